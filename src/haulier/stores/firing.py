"""What a firing comes to, for the stores that decide it in Python inside their transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from haulier.domain.job import NewJob
from haulier.domain.schedule import Firing, Overlap
from haulier.domain.tick import Tick, TickState


@dataclass(slots=True)
class Fired:
    """What is to be written for one firing: ticks, and what is done to jobs in its order.

    `deeds` are jobs to insert and ids of jobs to cancel. `last_job` belongs to the latest tick.
    """

    ticks: list[Tick] = field(default_factory=list)
    deeds: list[NewJob | str] = field(default_factory=list)
    last_job: str | None = None


def settle(
    firing: Firing,
    now: int,
    *,
    last_job: str | None,
    active: Callable[[str], bool],
    known: Callable[[int], bool],
) -> Fired:
    """What to do. `active`: whether a job is pending or running; `known`: a tick is recorded."""
    fired = Fired(last_job=last_job)
    made: set[str] = set()
    for planned in firing.ticks:
        if known(planned.tick):
            continue
        name, tick, job = firing.name, planned.tick, planned.job
        if job is None:
            fired.ticks.append(Tick(name, tick, now, TickState.MISSED, None, planned.since))
            continue
        before = fired.last_job
        if firing.overlap is not Overlap.ALLOW and before is not None:
            overlaps = before in made or active(before)
            if overlaps and firing.overlap is Overlap.SKIP:
                fired.ticks.append(Tick(name, tick, now, TickState.OVERLAP))
                continue
            if overlaps:
                fired.deeds.append(before)
        state = TickState.MANUAL if firing.manual else TickState.FIRED
        fired.ticks.append(Tick(name, tick, now, state, job.id))
        fired.deeds.append(job)
        fired.last_job = job.id
        made.add(job.id)
    return fired
