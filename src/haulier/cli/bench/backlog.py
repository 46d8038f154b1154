"""What waiting jobs cost: the rate beside a million of them against that of an empty store."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from haulier.app import App
from haulier.cli.bench.measure import Countdown, Figures
from haulier.worker.lanes import WorkerOptions

if TYPE_CHECKING:
    from haulier.cli.bench.command import Lines, Load

OTHER_QUEUES = 10


class _Bench:
    """One store with a backlog, and rounds of jobs that are run on it."""

    def __init__(self, url: str) -> None:
        self.app = App(url)
        self.rates: list[float] = []
        self._done = Countdown(1)

        @self.app.task
        async def noop(number: int) -> None:
            del number
            self._done.one()

    async def fill(self, count: int, queue: str = "default") -> None:
        await self.app.enqueue_many("noop", ({"number": n} for n in range(count)), queue=queue)

    async def round(self, jobs: int, concurrency: int) -> None:
        """Run so many of those first in the line; from the first to the last of them."""
        await self.fill(jobs)
        self._done = Countdown(jobs)
        async with self.app.working(WorkerOptions(concurrency=concurrency)):
            await self._done.wait()
        self.rates.append(jobs / (self._done.ended - self._done.began))


async def backlog(url: str, load: Load) -> tuple[Figures, Lines]:
    """Rounds on three stores in turn, since a machine is faster at one time than at another."""
    async with contextlib.AsyncExitStack() as stack:
        # The others lie on the same disk as the one that was given.
        beside = Path(url.removeprefix("sqlite:///")).parent
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=beside))
        empty, others, same = (
            _Bench(each) for each in (url, f"sqlite:///{folder}/a.db", f"sqlite:///{folder}/b.db")
        )
        for each in (empty, others, same):
            await stack.enter_async_context(each.app)
        for number in range(OTHER_QUEUES):
            await others.fill(load.present // OTHER_QUEUES, queue=f"other{number}")
        await same.fill(load.present)
        for _ in range(load.rounds):
            for each in (empty, others, same):
                await each.round(load.jobs, load.concurrency)
    figures: Figures = {
        "jobs": load.jobs,
        "rounds": load.rounds,
        "present": load.present,
        "empty_per_s": round(statistics.median(empty.rates)),
        "other_queues_per_s": round(statistics.median(others.rates)),
        "same_queue_per_s": round(statistics.median(same.rates)),
        "other_queues_ratio": _ratio(others, empty),
        "same_queue_ratio": _ratio(same, empty),
    }
    return figures, [
        ("empty store", f"{figures['empty_per_s']:,} jobs/s"),
        (f"{load.present:,} in other queues", _against(figures, "other_queues")),
        (f"{load.present:,} in the same queue", _against(figures, "same_queue")),
    ]


def _ratio(one: _Bench, other: _Bench) -> float:
    """The median over the rounds, each against the other's round just beside it."""
    return round(
        statistics.median(a / b for a, b in zip(one.rates, other.rates, strict=True)),
        3,
    )


def _against(figures: Figures, name: str) -> str:
    return f"{figures[f'{name}_per_s']:,} jobs/s, {figures[f'{name}_ratio']:.2f} of the empty store"
