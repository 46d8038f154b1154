"""What limits cost, how long a fresh key waits, and whether a rate is what it says."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from haulier.app import App
from haulier.cli.bench.measure import Countdown, Figures, all_settled, percentile
from haulier.domain.job import MICROSECOND
from haulier.domain.limits import Rate
from haulier.ports import JobFilter, pages
from haulier.worker.lanes import WorkerOptions

if TYPE_CHECKING:
    from haulier.cli.bench.command import Lines, Load

MOST = 10_000
PER_KEY = 20
"""Jobs of each key: 500 keys in all."""

BUSY = 0.005
CROWD = 100_000
CROWDED_SLOTS = 10
FRESH_PAUSE = 0.02
METERED = Rate(200)
SHOWN = ("p50", "p99", "max")
KINDS = ("free_noop", "held_noop", "free_busy", "held_busy")


class _Bench:
    """An app whose kinds come in pairs: under a limit of one at a time per key, and under none."""

    def __init__(self, url: str) -> None:
        self.app = App(url)
        self.done = Countdown(1)
        self.rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.fresh: dict[str, asyncio.Future[float]] = {}
        for kind in KINDS:
            self.app.task(kind=kind)(self._busy if kind.endswith("busy") else self._noop)

        @self.app.task
        async def crowd(name: str) -> None:
            if name in self.fresh:
                self.fresh[name].set_result(time.perf_counter())
            await asyncio.sleep(BUSY)

        @self.app.task
        async def metered() -> None: ...

    async def _noop(self) -> None:
        self.done.one()

    async def _busy(self) -> None:
        await asyncio.sleep(BUSY)
        self.done.one()

    async def round(self, kind: str, keys: int, concurrency: int) -> None:
        """All jobs of all keys are there, then run: from the first to the last finish."""
        for key in range(keys):
            await self.app.enqueue_many(kind, [{}] * PER_KEY, key=f"key-{key}")
        self.done = Countdown(keys * PER_KEY)
        began = time.perf_counter()
        async with self.app.working(WorkerOptions(concurrency=concurrency)):
            await self.done.wait()
            await all_settled(self.app)
            self.rates[kind].append(keys * PER_KEY / (time.perf_counter() - began))

    def ratio(self, sort: str) -> float:
        """The median over the rounds, each against the unlimited one just beside it."""
        pairs = zip(self.rates[f"held_{sort}"], self.rates[f"free_{sort}"], strict=True)
        return round(statistics.median(held / free for held, free in pairs), 3)

    async def fresh_keys(self, crowd: int, singles: int) -> list[float]:
        """Enqueue to start of the first job of keys that come to a crowd of one key's jobs."""
        app, loop = self.app, asyncio.get_running_loop()
        await app.limits.set("bench-crowd", kind="crowd", concurrency=CROWDED_SLOTS, per_key=True)
        await app.enqueue_many("crowd", ({"name": ""} for _ in range(crowd)), key="crowd")
        latencies = []
        async with app.working(WorkerOptions(concurrency=CROWDED_SLOTS)):
            for number in range(singles):
                name = f"fresh-{number}"
                self.fresh[name] = loop.create_future()
                asked = time.perf_counter()
                await app.enqueue("crowd", {"name": name}, key=name)
                latencies.append(await self.fresh[name] - asked)
                await asyncio.sleep(FRESH_PAUSE)
        await app.cancel_all(JobFilter(key="crowd"))
        return latencies

    async def rate(self, seconds: float) -> float:
        """Starts a second under a rate after its burst, by the store's clock."""
        await self.app.limits.set("bench-rate", kind="metered", rate=METERED)
        count = METERED.depth + max(1, round(METERED.count * seconds))
        await self.app.enqueue_many("metered", [{}] * count)
        async with self.app.working():
            await all_settled(self.app)
        where = JobFilter(kind="metered")
        started = [job.started_at or 0 async for job in pages(self.app.store, where)]
        return (count - METERED.depth) * MICROSECOND / (max(started) - min(started))


async def limits(url: str, load: Load) -> tuple[Figures, Lines]:
    """Rounds with and without limits in turn; then a crowd of one key, then a rate."""
    bench = _Bench(url)
    keys = max(1, min(load.jobs, MOST) // PER_KEY)
    crowd = min(load.present, CROWD)
    async with bench.app:
        for kind in ("held_noop", "held_busy"):
            await bench.app.limits.set(f"bench-{kind}", kind=kind, concurrency=1, per_key=True)
        for _ in range(load.rounds):
            for kind in KINDS:
                await bench.round(kind, keys, load.concurrency)
        fresh = await bench.fresh_keys(crowd, load.singles)
        rate = await bench.rate(load.seconds)
    figures: Figures = {
        "jobs": keys * PER_KEY,
        "keys": keys,
        "concurrency": load.concurrency,
        "rounds": load.rounds,
        "crowd": crowd,
        **{f"{kind}_per_s": round(statistics.median(bench.rates[kind])) for kind in KINDS},
        "noop_ratio": bench.ratio("noop"),
        "busy_ratio": bench.ratio("busy"),
        "fresh_p50_ms": percentile(fresh, 50),
        "fresh_p99_ms": percentile(fresh, 99),
        "fresh_max_ms": percentile(fresh, 100),
        "rate_wanted": METERED.count,
        "rate_given": round(rate, 2),
    }
    fresh_told = ", ".join(f"{name} {figures[f'fresh_{name}_ms']:.2f} ms" for name in SHOWN)
    return figures, [
        ("keys", f"{keys:,}, {PER_KEY} jobs each, one at a time"),
        ("slots", f"{load.concurrency:,}"),
        ("no-ops", _against(figures, "noop")),
        (f"jobs of {BUSY * 1000:.0f} ms", _against(figures, "busy")),
        (f"a fresh key behind {crowd:,}", fresh_told),
        (f"a rate of {METERED}", f"{figures['rate_given']:.2f} a second"),
    ]


def _against(figures: Figures, sort: str) -> str:
    held, free = figures[f"held_{sort}_per_s"], figures[f"free_{sort}_per_s"]
    return f"{held:,} jobs/s, {figures[f'{sort}_ratio']:.2f} of {free:,} without limits"
