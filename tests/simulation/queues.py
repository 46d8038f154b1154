"""Whole queues that an operator pauses and resumes: what is paused gives nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from haulier.domain.configuration import paused
from haulier.domain.event import CONFIGURED, Event
from haulier.domain.job import Job
from haulier.domain.moves import Move
from haulier.domain.shares import Share, shares_of

if TYPE_CHECKING:
    from simulation.world import World

QUEUES = ("default", "slow")
SETTINGS = {paused(queue): queue for queue in QUEUES}


@dataclass
class Shut:
    """The queues that are paused, as the operator was answered, and what was given of them."""

    queues: set[str] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)

    def given(self, jobs: Sequence[Job]) -> None:
        """Jobs that the answer to an exchange has brought."""
        for job in jobs:
            if job.queue in self.queues:
                self.findings.append(f"job {job.id}: started although {job.queue} is paused")


async def pause_queue(world: World) -> None:
    queue = world.pick(list(QUEUES))
    values = {paused(queue): True}
    await world.ask(lambda: world.store.configurable().configure(values, by="operator"))
    world.shut.queues.add(queue)


async def resume_queue(world: World) -> None:
    await _resume(world, world.pick(list(QUEUES)))


async def resume_all(world: World) -> None:
    for queue in QUEUES:
        await _resume(world, queue)


async def _resume(world: World, queue: str) -> None:
    unset = [paused(queue)]
    await world.ask(lambda: world.store.configurable().configure({}, unset=unset, by="operator"))
    world.shut.queues.discard(queue)


def shares(world: World) -> tuple[Share, ...]:
    """Some claims are by weight, with whatever times."""
    if world.dice.random() < 0.7:
        return ()
    return shares_of((world.dice.randint(1, 5), world.dice.randint(1, 5)))


def check_queues(events: Sequence[Event]) -> Iterator[str]:
    """No claim stands between the pause of its queue and the resume that followed."""
    shut: set[str] = set()
    for event in events:
        if event.type == CONFIGURED and event.setting in SETTINGS:
            # What changes nothing is no event.
            shut ^= {SETTINGS[event.setting]}
        elif event.type == Move.CLAIM and event.queue in shut:
            yield f"job {event.job_id}: claimed at event {event.seq} while {event.queue} is paused"
