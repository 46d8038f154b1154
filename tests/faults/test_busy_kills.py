"""SIGKILL of busy workers, one after the other, over a stream of jobs: nothing is lost.

`make faults` has the long one, with `--faults-long`.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest

from faults.history import percentile
from faults.run import Run
from nursery import Child

WORKERS = 4


@dataclass(frozen=True, slots=True)
class Size:
    """jobs, kills: at least so many. longest: seconds that a job takes at most.

    recovery: seconds within which what a killed worker had must be claimed again.
    """

    jobs: int
    kills: int
    every: float
    longest: float
    ttl: float = 3.0
    recovery: float = 5.0


SHORT = Size(jobs=600, kills=24, every=0.4, longest=0.15)
LONG = Size(jobs=20_000, kills=500, every=0.6, longest=0.3)
BY_DEFAULT = Size(jobs=600, kills=10, every=4.0, longest=1.0, ttl=15.0, recovery=20.0)


class Storm:
    """Workers and a producer over one store, and what strikes them."""

    def __init__(self, run: Run, size: Size, dice: random.Random) -> None:
        self.run = run
        self.size = size
        self.dice = dice
        self.kills = 0
        self.workers = [self.worker() for _ in range(WORKERS)]
        self.producer = self.produces()
        self.asleep: set[asyncio.Task[None]] = set()

    def worker(self) -> Child:
        # Together more slots than there are jobs at once: what is free again finds one.
        return self.run.start(concurrency=16)

    def produces(self) -> Child:
        return self.run.produce(self.dice, longest=self.size.longest)

    async def rage(self) -> None:
        """Strike until there were enough kills and enough jobs."""
        while self.kills < self.size.kills or self.run.sink.jobs < self.size.jobs:
            await asyncio.sleep(self.size.every * self.dice.uniform(0.5, 1.5))
            self.strike()
        self.run.kill(self.producer)
        await asyncio.gather(*self.asleep)

    def strike(self) -> None:
        busy = [child for child in self.workers if self.is_busy(child)]
        if not busy:
            return
        match self.dice.randrange(40):
            case 0 | 1:
                self.run.kill(self.producer)
                self.producer = self.produces()
            case 2:
                for child in busy:
                    self.kill(child)
            case 3 if len(busy) == WORKERS:
                task = asyncio.create_task(self.put_to_sleep(self.dice.choice(busy)))
                self.asleep.add(task)
                task.add_done_callback(self.asleep.discard)
            case _:
                self.kill(self.dice.choice(busy))

    def is_busy(self, child: Child) -> bool:
        return not child.stopped and bool(self.run.sink.busy.get(child.pid))

    def kill(self, child: Child) -> None:
        self.kills += 1
        self.run.kill(child)
        self.workers[self.workers.index(child)] = self.worker()

    async def put_to_sleep(self, child: Child) -> None:
        """It stands still for longer than its ttl, and comes back as if nothing had happened."""
        self.run.stop(child)
        await asyncio.sleep(self.size.ttl * 1.7)
        self.run.wake(child)


async def storm(nursery, place, size: Size, dice: random.Random, tell) -> None:
    async with Run(nursery, place.folder, place.url("jobs"), ttl=size.ttl) as run:
        raging = Storm(run, size, dice)
        await raging.rage()
        await run.rest(size.ttl * 4 + 30)
        report = await run.prove()
        # Free again is the store's doing; to be claimed takes a worker, and all may have been
        # killed. A machine that does everything late does this late as well.
        late = 5 * run.lag
        assert max(report.released) < size.recovery + late
        assert percentile(report.again, 99) < size.recovery + late
        tell(f"{place.kind}: {raging.kills} busy workers killed; {report}; lag {run.lag:.2f} s")


async def test_busy_workers_are_killed_and_nothing_is_lost(nursery, place, dice, tell, faults_long):
    await storm(nursery, place, LONG if faults_long else SHORT, dice, tell)


@pytest.mark.faults_long
async def test_by_default_what_killed_workers_had_is_claimed_again_within_20_seconds(
    nursery, place, dice, tell
):
    await storm(nursery, place, BY_DEFAULT, dice, tell)
