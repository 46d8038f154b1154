"""The event log against the table of moves, the history, and the jobs as they are at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from haulier.domain.event import (
    ALTERED,
    CANCEL_HEARD,
    CANCEL_REQUESTED,
    DELETED,
    INSERTED,
    OF_NOBODY,
    OF_SCHEDULES,
    PAUSED,
    RESUMED,
    Event,
)
from haulier.domain.job import JobState, Role
from haulier.domain.moves import RULES, Move
from haulier.domain.unique import Scope
from simulation.flow_log import check_flows
from simulation.history import Entry, Final, What, callbacks_of
from simulation.queues import check_queues

BY_WORKERS = {move for move, rule in RULES.items() if rule.fenced}
WHILE_RUNNING = {CANCEL_REQUESTED, CANCEL_HEARD}
BESIDE = {PAUSED, RESUMED, ALTERED, *OF_NOBODY, *OF_SCHEDULES}


@dataclass(slots=True)
class _Walk:
    """A job as its events tell it. `states`: an inserted head is pending, or opened and running."""

    states: set[JobState]
    attempt: int = 0
    lease: int = 0


def check_events(history: Sequence[Entry], final: Final) -> Iterator[str]:
    """All that is wrong with the events."""
    events = final.events or ()
    for before, event in pairwise(events):
        if event.seq != before.seq + 1 or event.epoch != before.epoch:
            yield f"event {event.cursor} follows {before.cursor}: there is a gap"
    walks: dict[str, _Walk] = {}
    for event in events:
        yield from _step(walks, event)
    yield from _ends(walks, final)
    yield from _ended_once(events)
    yield from _with_history(history, events)
    yield from _rounds(history, final)
    yield from _names(history, events)
    yield from check_queues(events)
    yield from check_flows(history, events, final.parents)


def _step(walks: dict[str, _Walk], event: Event) -> Iterator[str]:
    walk = walks.get(event.job_id)
    if event.type in BESIDE:
        return
    if event.type == INSERTED:
        if walk is not None:
            yield f"job {event.job_id}: inserted twice, again at event {event.seq}"
        either = {JobState.PENDING} | ({JobState.RUNNING} if event.role is Role.HEAD else set())
        walks[event.job_id] = _Walk(either, lease=event.lease)
        return
    if walk is None:
        yield f"job {event.job_id}: {event.type} at event {event.seq}, before it was inserted"
    elif event.type == DELETED:
        del walks[event.job_id]
    elif event.type in WHILE_RUNNING:
        if JobState.RUNNING not in walk.states:
            yield f"job {event.job_id}: {event.type} at event {event.seq} while it did not run"
    else:
        yield from _move(walk, event)


def _move(walk: _Walk, event: Event) -> Iterator[str]:
    rule = RULES[Move(event.type)]
    if not walk.states & rule.sources:
        states = " or ".join(sorted(walk.states))
        yield f"job {event.job_id}: {event.type} at event {event.seq} while it was {states}"
    walk.states = {rule.target}
    attempt = 0 if rule.resets else walk.attempt + rule.attempt
    lease = walk.lease + rule.lease
    if (event.attempt, event.lease) != (attempt, lease):
        yield (
            f"job {event.job_id}: event {event.seq} ({event.type}) has attempt {event.attempt} and "
            f"lease {event.lease}, not {attempt} and {lease}"
        )
    walk.attempt, walk.lease = event.attempt, event.lease


def _ends(walks: dict[str, _Walk], final: Final) -> Iterator[str]:
    if walks.keys() != final.jobs.keys():
        yield f"events and jobs differ about {sorted(walks.keys() ^ final.jobs.keys())}"
    for job_id in walks.keys() & final.jobs.keys():
        job, walk = final.jobs[job_id], walks[job_id]
        if job.state not in walk.states:
            states = " or ".join(sorted(walk.states))
            yield f"job {job_id}: {job.state} at the end, {states} by its events"
        if (job.attempt, job.lease) != (walk.attempt, walk.lease):
            yield (
                f"job {job_id}: attempt {job.attempt} and lease {job.lease} at the end, "
                f"{walk.attempt} and {walk.lease} by its events"
            )


def _ended_once(events: Sequence[Event]) -> Iterator[str]:
    """No lease is ended by two moves; nor is it when a head makes its items anew."""
    ended: dict[tuple[str, int], Event] = {}
    for event in events:
        if event.type in BY_WORKERS:
            place = event.job_id, _handed_in_under(event)
            if place in ended:
                both = f"{ended[place].type} and by {event.type}"
                yield f"job {event.job_id}: the lease {place[1]} ended by {both}"
            ended[place] = event


def _handed_in_under(event: Event) -> int:
    """When a head is handed over its lease rises, and the event has the new one."""
    return event.lease - RULES[Move(event.type)].lease


def _with_history(history: Sequence[Entry], events: Sequence[Event]) -> Iterator[str]:
    """Every answer has its event, and no worker's move is there that no worker handed in."""
    claims = {(e.job_id, e.lease, e.worker) for e in events if e.type == Move.CLAIM}
    for entry in history:
        if entry.what is What.CLAIM and (entry.job, entry.lease, entry.worker) not in claims:
            yield f"job {entry.job}: no event tells of the claim {entry.lease} by {entry.worker}"
    told = _moves_told(events)
    handed_in: dict[tuple[str, int], set[Move]] = defaultdict(set)
    for entry in history:
        if entry.what is not What.FINISH or entry.ok is False:
            continue
        assert entry.move is not None
        handed_in[entry.job, entry.lease].add(entry.move)
        if entry.ok and not set(told[entry.job, entry.lease]) & {entry.move, Move.CANCEL}:
            yield f"job {entry.job}: no event tells of {entry.move} under {entry.lease}"
    for (job_id, lease), moves in told.items():
        # A cancel may also be what a loss, a retry or a snooze became.
        if not set(moves) <= handed_in[job_id, lease] | {Move.CANCEL}:
            yield f"job {job_id}: {moves[0]} under {lease} in the events, nobody handed it in"


def _moves_told(events: Sequence[Event]) -> dict[tuple[str, int], list[Move]]:
    """The moves that workers made, by job and by the lease under which they were handed in."""
    told: dict[tuple[str, int], list[Move]] = defaultdict(list)
    for event in events:
        if event.type in BY_WORKERS:
            told[event.job_id, _handed_in_under(event)].append(Move(event.type))
    return told


def _rounds(history: Sequence[Entry], final: Final) -> Iterator[str]:
    """A head calls back once each time that it ends."""
    calls_back = {e.job for e in history if e.what is What.ENQUEUE and e.calls_back}
    ends = Counter(
        event.job_id
        for event in final.events or ()
        if event.job_id in calls_back
        and event.type in RULES
        and RULES[Move(event.type)].target.final
    )
    callbacks = callbacks_of(final)
    for batch_id, rounds in ends.items():
        made = len(callbacks.get(batch_id, ()))
        if made != rounds and batch_id in final.batches:
            yield f"batch {batch_id}: ended {rounds} times, called back {made} times"


def _names(history: Sequence[Entry], events: Sequence[Event]) -> Iterator[str]:
    """No two jobs hold one name at a time: that of `RULES`, whose moves release and retake it."""
    wants = {entry.job: (entry.name, entry.held) for entry in history if entry.name is not None}
    holders: dict[str, str] = {}
    for event in events:
        if event.job_id not in wants:
            continue
        name, scope = wants[event.job_id]
        takes = event.type == INSERTED or (event.type == Move.REQUEUE and scope is Scope.ACTIVE)
        if takes and name in holders:
            yield f"job {event.job_id}: takes the name {name} that {holders[name]} holds"
        if takes:
            holders[name] = event.job_id
        elif holders.get(name) == event.job_id and (
            event.type == DELETED or _releases(event, scope)
        ):
            del holders[name]


def _releases(event: Event, scope: Scope) -> bool:
    return event.type in RULES and scope in RULES[Move(event.type)].releases
