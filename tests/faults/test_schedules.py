"""SIGKILL of schedulers, at random and around what they fire: each tick exactly once."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import replace

from faults.history import percentile
from faults.run import Run
from haulier.domain.event import SCHEDULE_PAUSED, SCHEDULE_SET
from haulier.domain.job import MICROSECOND, Job, JobState
from haulier.domain.schedule import Interval, Missed, Schedule, Template
from haulier.domain.tick import TickState
from haulier.ports import JobFilter, JobStore, pages
from haulier.services.ids import new_id

TTL = 2.5
SCHEDULERS = 5
SECONDS, MANY_SECONDS = 15.0, 300.0
POINTS = ("", "", "fire before", "fire after")


async def test_each_tick_of_a_schedule_is_done_once_whoever_is_killed(
    nursery, place, dice, tell, faults_long
):
    seconds = MANY_SECONDS if faults_long else SECONDS
    async with Run(nursery, place.folder, place.url("jobs"), ttl=TTL) as run:
        first = await begin(run.store)
        await strike(run, dice, seconds)
        last = await end(run)
        assert first.next is not None
        assert last.next is not None
        ticks = range(first.next, last.next, MICROSECOND)
        assert len(ticks) >= seconds - 3
        await each_once(run.store, first, ticks)
        await run.rest()
        late = await lateness(run.store, first, ticks)
        report = await run.prove()
        told = f"p50 {percentile(late, 50):.3f} s p99 {percentile(late, 99):.3f} s"
        tell(f"{place.kind}: {len(ticks)} ticks, each once, late {told}; {report}")


async def begin(store: JobStore) -> Schedule:
    """A schedule of every second, all of whose ticks count."""
    now = (await store.schedules().due(0)).now
    schedule = Schedule(
        name="each",
        id=new_id(),
        template=Template(kind="work", payload=b'{"seconds":0.05}'),
        cadence=Interval(1.0, now),
        missed=Missed.all(1000),
        next=now + MICROSECOND,
        changed_by="test",
    )
    assert await store.schedules().put(schedule, SCHEDULE_SET)
    return schedule


async def strike(run: Run, dice: random.Random, seconds: float) -> None:
    """So many schedulers, of which again and again one is killed, or dies while it fires."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        alive = [child for child in run.children if child.alive]
        for _ in range(SCHEDULERS - len(alive)):
            run.start(point=dice.choice(POINTS), passes=dice.randint(1, 3))
        await asyncio.sleep(dice.uniform(0.3, 1.5))
        run.kill(dice.choice([child for child in run.children if child.alive]))


async def end(run: Run) -> Schedule:
    """One scheduler does what is left; then the schedule is paused. As it was before that."""
    survivor = run.start()
    while True:
        found = await run.store.schedules().get("each")
        due = await run.store.schedules().due()
        if due.schedules:
            await asyncio.sleep(0.05)
        elif await run.store.schedules().put(replace(found, next=None), SCHEDULE_PAUSED):
            break
    for child in run.children:
        if child.alive and child is not survivor:
            child.send(signal.SIGTERM)
            await child.ended()
    await run.rest()
    survivor.send(signal.SIGTERM)
    await survivor.ended()
    return found


async def each_once(store: JobStore, schedule: Schedule, ticks: range) -> None:
    """A job for each tick and no other, and what is remembered of the last ticks says the same."""
    jobs = {job.id async for job in pages(store, JobFilter(kind="work"))}
    assert jobs == {schedule.job_id(tick) for tick in ticks}
    kept = await store.schedules().ticks("each", limit=1000)
    assert [tick.tick for tick in kept[:100]] == list(ticks)[::-1][:100]
    for tick in kept:
        assert tick.state is TickState.FIRED
        assert tick.job == schedule.job_id(tick.tick)


async def lateness(store: JobStore, schedule: Schedule, ticks: range) -> list[float]:
    """Seconds from each tick until its job was enqueued."""
    found: list[float] = []
    for tick in ticks:
        job: Job = await store.get(schedule.job_id(tick))
        assert job.state is JobState.COMPLETED
        found.append((job.created_at - tick) / MICROSECOND)
    return found
