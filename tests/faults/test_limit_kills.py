"""SIGKILL of busy workers over jobs under limits: no limit is passed, and no slot is left over.

The proof is the jobs' own: from what they wrote down as they began and ended, see `history.crowds`.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from faults.run import Run
from faults.script import Names
from haulier.domain.job import NewJob
from haulier.domain.limits import Limit
from haulier.services.ids import new_id
from nursery import Child
from support import wait_until

TTL = 2.5
WORKERS = 3
WAITING = 150
"""Jobs that are always there while workers are killed."""

LIMITS = (
    Limit(name="all", concurrency=10),
    Limit(name="key", concurrency=2, per_key=True),
    Limit(name="one", concurrency=1, per_key=True, kind="thread_work"),
)
KEYS = (None, *(f"key-{number}" for number in range(6)))


@dataclass(frozen=True, slots=True)
class Size:
    """So many kills, and about so many seconds between them."""

    kills: int
    every: float


SHORT, LONG = Size(kills=8, every=0.7), Size(kills=300, every=0.7)


async def test_no_limit_is_passed_and_no_slot_is_left_over_under_kills(
    nursery, place, dice, tell, faults_long
):
    size = LONG if faults_long else SHORT
    async with Run(nursery, place.folder, place.url("jobs"), ttl=TTL) as run:
        for limit in LIMITS:
            run.log.write("limit", limit=limit.as_json())
            await run.store.limits().put(limit, by="test")
        workers = [run.start(concurrency=16) for _ in range(WORKERS)]
        for _ in range(size.kills):
            await fill(run, dice)
            await asyncio.sleep(size.every * dice.uniform(0.5, 1.5))
            await wait_until(lambda: busy(run, workers), 30)
            victim = dice.choice(busy(run, workers))
            run.kill(victim)
            workers[workers.index(victim)] = run.start(concurrency=16)
        await run.rest(TTL * 4 + 60)
        report = await run.prove()
        assert report.kills == size.kills
        assert report.taken > 0
        # All of what is allowed was used, or nothing was put to the proof.
        assert report.fullest == {limit.name: limit.concurrency for limit in LIMITS}
        await no_slot_is_left(run)
        tell(f"{place.kind}: {report}; at once {report.fullest}")


def busy(run: Run, workers: list[Child]) -> list[Child]:
    return [child for child in workers if run.sink.busy.get(child.pid)]


async def fill(run: Run, dice: random.Random) -> None:
    """New jobs until enough wait: of all keys, some of which fail at first."""
    counts = await run.store.counts()
    missing = WAITING - sum(n for (*_, state), n in counts.items() if not state.final)
    names = Names(new_id())
    jobs: list[NewJob] = []
    for number in range(max(missing, 0)):
        kind = "thread_work" if dice.random() < 0.1 else "work"
        how = "flaky" if kind == "work" and dice.random() < 0.2 else "well"
        job = names.job(f"{number}", kind, seconds=dice.uniform(0.02, 0.15), how=how)
        jobs.append(job._replace(key=dice.choice(KEYS)))
    await run.store.insert(jobs)


async def no_slot_is_left(run: Run) -> None:
    limits = run.store.limits()
    assert [state.running for state in await limits.list()] == [0] * len(LIMITS)
    for limit in LIMITS:
        if limit.per_key:
            assert await limits.keys(limit.name) == []
