"""The limits against the event log: at no moment did more run, or start, than they allowed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from haulier.domain.event import DELETED, Event
from haulier.domain.job import MICROSECOND, JobState
from haulier.domain.limits import Breaker, KeyState, Limit, Rate
from haulier.domain.moves import RULES, Move
from simulation.history import Final

ENDS = {str(move) for move, rule in RULES.items() if JobState.RUNNING in rule.sources}
EAGER = Breaker(failures=0.001, least=1, window=1e6, pause=10.0)
"""The one breaker that is followed: its first failure opens it, so that it need not be counted."""

Place = tuple[str, str | None]
"""A limit and a key, None for all jobs together."""


@dataclass(frozen=True, slots=True)
class Change:
    """After the event numbered `after` a limit was put, or dropped (None), or reset for `key`."""

    after: int
    name: str
    limit: Limit | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Limited:
    """What was done with limits, the key of each job that was enqueued, what is held at the end."""

    changes: Sequence[Change]
    key_of: Mapping[str, str | None]
    slots: Mapping[str, int]
    keys: Mapping[str, Sequence[KeyState]]


@dataclass(slots=True)
class _Circuit:
    open_until: int
    probes: set[str] = field(default_factory=set)


class _Replay:
    """Follows the events with the limits as they were then."""

    def __init__(self, final: Final, limited: Limited) -> None:
        self.changes = list(reversed(limited.changes))
        # Callbacks are made by the store.
        self.key_of = {job.id: job.key for job in final.jobs.values()} | dict(limited.key_of)
        self.limits: dict[str, Limit] = {}
        self.running: dict[str, tuple[str, str]] = {}
        self.full_at: dict[Place, int] = defaultdict(int)
        self.circuits: dict[Place, _Circuit] = {}

    def take(self, event: Event) -> Iterator[str]:
        """Findings at this event."""
        while self.changes and self.changes[-1].after < event.seq:
            self._change(self.changes.pop())
        if event.role.heads:
            return
        if event.type == Move.CLAIM:
            self.running[event.job_id] = event.queue, event.kind
            for name, limit in self.limits.items():
                key = self.key_of[event.job_id] if limit.per_key else None
                if limit.concerns(event.queue, event.kind) and (key or not limit.per_key):
                    yield from self._claimed(event, limit, (name, key))
        elif event.type in ENDS:
            self.running.pop(event.job_id, None)
            self._ended(event)
        elif event.type == DELETED:
            self.running.pop(event.job_id, None)

    def _change(self, change: Change) -> None:
        if change.key is not None:
            self.circuits.pop((change.name, change.key), None)
        elif change.limit is None:
            self.limits.pop(change.name, None)
        elif self.limits.get(change.name) != change.limit:
            self.limits[change.name] = change.limit
        else:
            return
        if change.key is None:
            # A new limit begins anew, which allows the most.
            for kept in (self.full_at, self.circuits):
                for place in [place for place in kept if place[0] == change.name]:
                    del kept[place]

    def _claimed(self, event: Event, limit: Limit, place: Place) -> Iterator[str]:
        told = f"event {event.seq}: {limit.name} ({place[1] or 'all'})"
        if limit.concurrency is not None:
            count = sum(
                limit.concerns(*where) and (not limit.per_key or self.key_of[job] == place[1])
                for job, where in self.running.items()
            )
            if count > limit.concurrency:
                yield f"{told} lets {count} run, {limit.concurrency} may"
        elif limit.rate is not None:
            yield from self._token(event, limit.rate, place, told)
        elif (circuit := self.circuits.get(place)) is not None:
            if event.at < circuit.open_until:
                yield f"{told} lets one start {circuit.open_until - event.at} µs before its time"
            circuit.probes.add(event.job_id)
            if len(circuit.probes) > EAGER.probes:
                yield f"{told} lets {len(circuit.probes)} try it"

    def _token(self, event: Event, rate: Rate, place: Place, told: str) -> Iterator[str]:
        if rate.tokens(self.full_at[place], event.at) < 1:
            yield f"{told} lets one start without a token"
        self.full_at[place] = rate.spent(self.full_at[place], event.at, 1)

    def _ended(self, event: Event) -> None:
        failed = event.type in (Move.FAIL, Move.RETRY)
        for name, limit in self.limits.items():
            place = name, self.key_of[event.job_id]
            if limit.breaker is None or place[1] is None:
                continue
            circuit = self.circuits.get(place)
            if circuit is not None:
                circuit.probes.discard(event.job_id)
            if not limit.concerns(event.queue, event.kind):
                continue
            if circuit is not None and event.at < circuit.open_until:
                continue
            if failed:
                self.circuits[place] = _Circuit(event.at + round(EAGER.pause * MICROSECOND))
            elif event.type == Move.COMPLETE:
                self.circuits.pop(place, None)


def check_limits(final: Final, limited: Limited) -> Iterator[str]:
    """All that is wrong with limits."""
    replay = _Replay(final, limited)
    for event in final.events or ():
        yield from replay.take(event)
    for name, count in limited.slots.items():
        if count:
            yield f"{name}: {count} slots are taken at the end, and nothing runs"
    for name, states in limited.keys.items():
        for state in states:
            if state.running:
                yield f"{name} ({state.key}): {state.running} run at the end, and nothing does"
