"""What waiting jobs cost: the rate beside a million of them against that of an empty store."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from haulier.app import App
from haulier.cli.bench.measure import Countdown, Figures, file_of
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

    async def fill_others(self, count: int) -> None:
        for number in range(OTHER_QUEUES):
            await self.fill(count // OTHER_QUEUES, queue=f"other{number}")

    async def round(self, jobs: int, concurrency: int) -> None:
        """Run so many of those first in the line; from the first to the last of them."""
        await self.fill(jobs)
        self._done = Countdown(jobs)
        async with self.app.working(WorkerOptions(concurrency=concurrency)):
            await self._done.wait()
        self.rates.append(jobs / (self._done.ended - self._done.began))


async def backlog(url: str, load: Load) -> tuple[Figures, Lines]:
    """Rounds on an empty store and beside two backlogs.

    In files these are three stores, and their rounds take turns, since a machine is faster at one
    time than at another. Elsewhere it is the given store, and they come one after the other.
    """
    file = file_of(url)
    empty, others, same = (
        await _one_after_the_other(url, load)
        if file is None
        else await _in_turn(url, file.parent, load)
    )
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


async def _in_turn(url: str, folder: Path, load: Load) -> tuple[_Bench, _Bench, _Bench]:
    async with contextlib.AsyncExitStack() as stack:
        # The others lie on the same disk as the one that was given.
        beside = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=folder))
        empty, others, same = (
            _Bench(each) for each in (url, f"sqlite:///{beside}/a.db", f"sqlite:///{beside}/b.db")
        )
        for each in (empty, others, same):
            await stack.enter_async_context(each.app)
        await others.fill_others(load.present)
        await same.fill(load.present)
        for _ in range(load.rounds):
            for each in (empty, others, same):
                await each.round(load.jobs, load.concurrency)
    return empty, others, same


async def _one_after_the_other(url: str, load: Load) -> tuple[_Bench, _Bench, _Bench]:
    empty, others, same = (_Bench(url) for _ in range(3))
    for bench, backlog in ((empty, None), (others, others.fill_others), (same, same.fill)):
        async with bench.app:
            if backlog is not None:
                await backlog(load.present)
            for _ in range(load.rounds):
                await bench.round(load.jobs, load.concurrency)
    return empty, others, same


def _ratio(one: _Bench, other: _Bench) -> float:
    """The median over the rounds, each against the other's round just beside it."""
    return round(
        statistics.median(a / b for a, b in zip(one.rates, other.rates, strict=True)),
        3,
    )


def _against(figures: Figures, name: str) -> str:
    return f"{figures[f'{name}_per_s']:,} jobs/s, {figures[f'{name}_ratio']:.2f} of the empty store"
