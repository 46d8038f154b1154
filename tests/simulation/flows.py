"""Jobs that wait for others, in the simulation: what is enqueued, and what its events must say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from haulier.domain.event import DELETED, Event
from haulier.domain.flow import After, Otherwise
from haulier.domain.moves import RULES, Move
from haulier.exceptions import ValidationError
from simulation.history import Entry, What

if TYPE_CHECKING:
    from simulation.world import World


async def enqueue_flow(world: World) -> None:
    """Some jobs, each after earlier ones of its flow, or after any that there are already."""
    jobs = []
    for _ in range(world.dice.randint(1, 5)):
        known = [job.id for job in jobs] + world.jobs[-10:] + world.heads[-2:]
        parents = dict.fromkeys(world.pick(known) for _ in range(world.dice.randint(0, 2)) if known)
        rules = [world.pick(list(Otherwise)) for _ in parents]
        after = tuple(After(*each) for each in zip(parents, rules, strict=True))
        jobs.append(world.job(after=after))
    world.dice.shuffle(jobs)
    try:
        await world.ask(lambda: world.store.insert(jobs))
    except ValidationError:
        # One of the parents was removed meanwhile, or never came to be.
        return
    for job in jobs:
        world.jobs.append(job.id)
        world.note(What.ENQUEUE, job.id, after=tuple(each.job_id for each in job.after))


def check_flows(history: Sequence[Entry], events: Sequence[Event]) -> Iterator[str]:
    """No job starts before all that it waits for have ended."""
    after = {entry.job: entry.after for entry in history if entry.after}
    ended: set[str] = set()
    started: set[str] = set()
    for event in events:
        job = event.job_id
        if event.type == DELETED or (event.type in RULES and RULES[Move(event.type)].target.final):
            ended.add(job)
        if event.type == Move.CLAIM and job not in started:
            started.add(job)
            early = set(after.get(job, ())) - ended
            if early:
                yield f"job {job}: started at event {event.seq}, before {sorted(early)} had ended"
