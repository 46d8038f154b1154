"""Schedulers in the world: they read, sleep, fire late and again, while an operator changes things.

Cadences stay as they are, so that it can be told which ticks there should be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from haulier.domain import event as ev
from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.job import MICROSECOND, Role
from haulier.domain.schedule import (
    Firing,
    Interval,
    Missed,
    Overlap,
    Schedule,
    Template,
    by_hand,
    plan,
)
from haulier.domain.tick import Tick, TickState
from simulation.history import Final, What

if TYPE_CHECKING:
    from simulation.world import World

MOST = 4
EVERYTHING = 1000


@dataclass(slots=True)
class Clockwork:
    """What is known of schedules. `broken`: those with gaps, because they were paused."""

    made: dict[str, Schedule] = field(default_factory=dict)
    noted: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    sleeping: list[Firing] = field(default_factory=list)


async def set_schedule(world: World) -> None:
    """Make one, or change how one deals with ticks."""
    work = world.clockwork
    missed = world.pick((Missed.skip(), Missed.once(), Missed.all(3), Missed.all(50)))
    overlap = world.pick(tuple(Overlap))
    if len(work.made) == MOST or (work.made and world.dice.random() < 0.3):
        found = await world.store.schedules().get(world.pick(list(work.made)))
        await _put(world, replace(found, missed=missed, overlap=overlap), ev.SCHEDULE_SET)
        return
    bulk = world.dice.random() < 0.3
    now = world.clock.now()
    length = world.pick((1.0, 2.5, 5.0))
    schedule = Schedule(
        name=f"s{len(work.made)}",
        id=world.id(),
        template=Template(
            kind="bulk" if bulk else "work",
            payload=b"{}",
            queue=world.pick(("default", "slow")),
            role=Role.HEAD if bulk else Role.SINGLE,
            policy=BatchPolicy(finish=FinishCallback(kind="told")) if bulk else BatchPolicy(),
        ),
        cadence=Interval(length, now),
        missed=missed,
        overlap=overlap,
        next=now + round(length * MICROSECOND),
        changed_by="world",
    )
    work.made[schedule.name] = schedule
    await _put(world, schedule, ev.SCHEDULE_SET)


async def pause_schedule(world: World) -> None:
    """Pause one, or resume it."""
    if not world.clockwork.made:
        return
    found = await world.store.schedules().get(world.pick(list(world.clockwork.made)))
    world.clockwork.broken.add(found.name)
    if found.paused:
        await _put(world, found.resumed(world.clock.now()), ev.SCHEDULE_RESUMED)
    else:
        await _put(world, replace(found, next=None), ev.SCHEDULE_PAUSED)


async def _put(world: World, schedule: Schedule, event: str) -> None:
    await world.ask(lambda: world.store.schedules().put(schedule, event))


async def tick(world: World) -> None:
    """A scheduler looks what is due and sees to it, or falls asleep between the two."""
    firings = await _due(world)
    if world.dice.random() < 0.3:
        world.clockwork.sleeping += firings
        return
    if world.dice.random() < 0.4:
        # Another one is quicker, and then there may be more to do.
        await _fire(world, firings)
        world.clock.advance(world.pick((0.1, 1.0, 5.0)))
        if world.dice.random() < 0.5:
            await _fire(world, await _due(world))
    await _fire(world, firings)


async def _due(world: World) -> list[Firing]:
    due = await world.store.schedules().due()
    return [firing for each in due.schedules if (firing := plan(each, due.now))]


async def tick_late(world: World) -> None:
    """One that slept wakes up and fires what it had read before."""
    firings, world.clockwork.sleeping = world.clockwork.sleeping, []
    await _fire(world, firings)


async def run_schedule(world: World) -> None:
    """Somebody wants a job now."""
    if world.clockwork.made:
        found = await world.store.schedules().get(world.pick(list(world.clockwork.made)))
        await _fire(world, [by_hand(found, world.clock.now())])


async def _fire(world: World, firings: list[Firing]) -> None:
    work = world.clockwork
    for firing in firings:
        last = (await world.store.schedules().get(firing.name)).last_job
        # Whatever a tick enqueues, the one after it may cancel.
        made = [planned.job.id for planned in firing.ticks if planned.job]
        for job in [last, *made] if firing.overlap is Overlap.CANCEL else ():
            if job is not None:
                world.note(What.CANCEL, job)
    await world.ask(lambda: world.store.schedules().fire(firings))
    for name in {firing.name for firing in firings}:
        template = work.made[name].template
        for found in await world.store.schedules().ticks(name, limit=EVERYTHING):
            if found.job is None or found.job in work.noted:
                continue
            work.noted.add(found.job)
            bulk = template.role is Role.HEAD
            world.note(What.ENQUEUE, found.job, calls_back=bulk)
            (world.heads if bulk else world.jobs).append(found.job)


async def findings(world: World, final: Final) -> list[str]:
    """All that is wrong with ticks in the end."""
    found: list[str] = []
    jobs: set[str] = set()
    deleted = {event.job_id for event in final.events or () if event.type == ev.DELETED}
    for name, schedule in world.clockwork.made.items():
        ticks = await world.store.schedules().ticks(name, limit=EVERYTHING)
        there = await world.store.schedules().get(name)
        found += _of_one(schedule, there, ticks[::-1], whole=name not in world.clockwork.broken)
        for each in ticks:
            gone = each.job is not None and each.job not in final.jobs
            if gone and each.job not in deleted:
                found.append(f"schedule {name}: the job {each.job} of {each.tick} is not there")
            if each.job in jobs:
                found.append(f"schedule {name}: the job {each.job} has two ticks")
            jobs.add(each.job or "")
    return found


def _of_one(
    schedule: Schedule, there: Schedule, ticks: list[Tick], *, whole: bool
) -> Iterator[str]:
    """Each tick is there once, those that were missed within the row of the last of them."""
    length = schedule.cadence.length
    assert schedule.next is not None
    wanted = schedule.next
    for tick in ticks:
        if tick.state is TickState.MANUAL:
            continue
        first = tick.since or tick.tick
        # By hand, and not done because of an overlap: at no time of the cadence's.
        if (first - schedule.next) % length and tick.state is TickState.OVERLAP:
            continue
        if (first - schedule.next) % length or (tick.tick - first) % length:
            yield f"schedule {schedule.name}: {tick} is no tick of its cadence"
        if first < wanted or (whole and first > wanted):
            yield f"schedule {schedule.name}: {tick} follows, {wanted} was wanted"
        if tick.state is TickState.FIRED and tick.job != schedule.job_id(tick.tick):
            yield f"schedule {schedule.name}: {tick} has another job"
        wanted = tick.tick + length
    if whole and there.next != wanted:
        yield f"schedule {schedule.name}: next is {there.next}, {wanted} was wanted"
