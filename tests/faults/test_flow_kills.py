"""SIGKILL of workers in the middle of flows, and of batches within batches that are part of them.

Nothing starts before its parents have ended, nothing is lost, and each batch calls back once.
"""

from __future__ import annotations

import asyncio
import random
import signal

from faults.log import read
from faults.run import Run
from faults.script import NESTED, Names
from haulier.domain.flow import PARENT_FAILED, After, Otherwise
from haulier.domain.job import JobState, NewJob
from haulier.services.ids import new_id
from simulation.flow_log import check_flows
from simulation.history import Entry, What, look
from support import wait_until

TTL = 2.5
SECONDS = 0.05
KILLS = 2
WIDTH, LENGTH = 12, 4
BATCHES, ITEMS = 3, 4
WAVES, MANY_WAVES = 1, 20


async def test_workers_are_killed_in_the_middle_of_flows_and_each_job_has_its_fate(
    nursery, place, dice, tell, faults_long
):
    waves = MANY_WAVES if faults_long else WAVES
    async with Run(nursery, place.folder, place.url("jobs"), ttl=TTL) as run:
        history: list[Entry] = []
        for _ in range(waves):
            history += await one_wave(run, dice)
        report = await run.prove()
        found = await look(run.store)
        assert list(check_flows(history, found.events)) == []
        tell(f"{place.kind}: {report}")


async def one_wave(run: Run, dice: random.Random) -> list[Entry]:
    """Flows whose workers are killed while they are under way, and the end of these jobs."""
    names = Names(new_id())
    well, gone, doomed = flows(names)
    await run.store.insert([*well, gone, *doomed])
    outer, last = nested(names, well[0])
    await run.store.insert([outer], policy=NESTED)
    await run.store.insert([last])
    jobs = [*well, last, gone, *doomed, outer]
    ids = {job.id for job in jobs}
    # These start whatever becomes of the others.
    certain = len(well) + 1

    def started() -> int:
        return len({e["job"] for e in read(run.path) if e["what"] == "start" and e["job"] in ids})

    for _ in range(KILLS):
        victim = run.start()
        goal = min(started() + dice.randint(5, 15), certain)
        await wait_until(lambda at=goal: started() >= at, 30)
        await asyncio.sleep(dice.uniform(0, SECONDS))
        run.kill(victim)
    worker = run.start()
    await run.rest()
    worker.send(signal.SIGTERM)
    await worker.ended()
    await each_batch_is_whole(run, outer.id)
    for job in [*well, last]:
        assert (await run.store.get(job.id)).state is JobState.COMPLETED
        parents = await run.store.parents(job.id)
        assert all(parent.ended for parent in parents)
    # When its worker was killed before it could fail, it did well the second time.
    failed = (await run.store.get(gone.id)).state is JobState.FAILED
    for job in doomed:
        found = await run.store.get(job.id)
        why = found.error.type if found.error else None
        assert (found.state, why) == (
            (JobState.CANCELLED, PARENT_FAILED) if failed else (JobState.COMPLETED, None)
        )
    return [Entry(What.ENQUEUE, job.id, after=job.after) for job in jobs]


async def each_batch_is_whole(run: Run, outer: str) -> None:
    batches = await run.store.batches(within=outer)
    assert len(batches) == BATCHES
    for batch, count in [(await run.store.batch(outer), BATCHES), *((b, ITEMS) for b in batches)]:
        assert batch.settled
        assert (batch.counts.total, batch.counts.completed) == (count, count)


def nested(names: Names, first: NewJob) -> tuple[NewJob, NewJob]:
    """A batch of batches after a first job, and one after all of it."""
    outer = names.head("outer", "nested", batches=BATCHES, items=ITEMS, seconds=SECONDS)
    outer = outer._replace(after=(After(first.id),))
    last = names.job("last", seconds=SECONDS)
    return outer, last._replace(after=(After(outer.id),))


def flows(names: Names) -> tuple[list[NewJob], NewJob, list[NewJob]]:
    """One job, many, one, then chains; and one that may fail, with those that go with it."""
    top = names.job("top", seconds=SECONDS)
    middle = [
        job._replace(after=(After(top.id),)) for job in names.jobs("middle", WIDTH, seconds=SECONDS)
    ]
    join = names.job("join", seconds=SECONDS)._replace(after=tuple(After(job.id) for job in middle))
    chains: list[NewJob] = []
    for chain in range(3):
        before = join
        for job in names.jobs(f"chain {chain}", LENGTH, seconds=SECONDS):
            chains.append(job._replace(after=(After(before.id),)))
            before = chains[-1]
    gone = names.job("gone", how="broken", seconds=SECONDS)
    doomed: list[NewJob] = []
    for job in names.jobs("doomed", LENGTH, seconds=SECONDS):
        doomed.append(job._replace(after=(After((doomed or [gone])[-1].id),)))
    clean_up = names.job("clean up", seconds=SECONDS)._replace(
        after=(After(doomed[-1].id, Otherwise.RUN),)
    )
    return [top, *middle, join, *chains, clean_up], gone, doomed
