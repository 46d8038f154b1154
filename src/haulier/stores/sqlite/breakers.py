"""Circuit breakers: what each key of one has counted, and how it stands by that.

A window is counted in two halves, and the older one is forgotten as a whole: so what ended less
than half a window ago counts, and what ended a whole window ago does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple, Self

import apsw

from haulier.domain.job import MICROSECOND, Job
from haulier.domain.limits import BREAKER_KEPT, Breaker, Circuit, KeyState, Limit
from haulier.domain.moves import Move
from haulier.stores.sqlite.rows import fetch
from haulier.stores.sqlite.rules import Rules

_STATE = "open_until, half, good, bad, good_before, bad_before"
_READ = (
    f"SELECT key, {_STATE} FROM meters WHERE name = ? AND key IN (SELECT value FROM json_each(?))"
)
_WRITE = (
    f"INSERT OR REPLACE INTO meters (name, key, rest_at, {_STATE}) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_FORGET = "DELETE FROM meters WHERE name = ? AND key = ?"


_TELLING = frozenset({Move.COMPLETE, Move.FAIL, Move.RETRY})
"""What tells whether something works; of a lost worker nobody knows."""


class State(NamedTuple):
    """How a breaker stands for one key: the columns of the same names."""

    open_until: int | None = None
    half: int = 0
    good: int = 0
    bad: int = 0
    good_before: int = 0
    bad_before: int = 0

    def at(self, breaker: Breaker, now: int) -> Self:
        """What it still knows now."""
        half = now // _half(breaker)
        if half == self.half:
            return self
        before = (self.good, self.bad) if half == self.half + 1 else (0, 0)
        return self._replace(half=half, good=0, bad=0, good_before=before[0], bad_before=before[1])

    def after(self, breaker: Breaker, now: int, *, failed: bool) -> Self:
        """How it stands when an attempt has ended. While it is open, that changes nothing."""
        if self.open_until is not None and now < self.open_until:
            return self
        if self.open_until is not None and not failed:
            return type(self)()
        state = self.at(breaker, now)
        state = state._replace(good=state.good + (not failed), bad=state.bad + failed)
        total = state.succeeded + state.failed
        broken = total >= breaker.least and state.failed >= breaker.failures * total
        if self.open_until is not None or broken:
            return state._replace(open_until=now + round(breaker.pause * MICROSECOND))
        return state

    @property
    def succeeded(self) -> int:
        return self.good + self.good_before

    @property
    def failed(self) -> int:
        return self.bad + self.bad_before

    def rest_at(self, breaker: Breaker) -> int:
        """When it has forgotten everything."""
        if self.open_until is None:
            return (self.half + 2) * _half(breaker)
        return self.open_until + BREAKER_KEPT

    def told(self, key: str, running: int, breaker: Breaker, now: int) -> KeyState:
        """How it stands now, for people."""
        state = self.at(breaker, now)
        is_open = self.open_until is not None and now < self.open_until
        if self.open_until is None:
            circuit = Circuit.CLOSED
        else:
            circuit = Circuit.OPEN if is_open else Circuit.HALF_OPEN
        return KeyState(
            key=key,
            running=running,
            ready_at=self.open_until if is_open else None,
            circuit=circuit,
            succeeded=state.succeeded,
            failed=state.failed,
        )


def _half(breaker: Breaker) -> int:
    return max(1, round(breaker.window * MICROSECOND / 2))


def states(db: apsw.Connection, name: str, keys: str) -> dict[str, State]:
    """How a breaker stands for those of these keys (JSON) of which it has counted anything."""
    return {key: State(*row) for key, *row in fetch(db, _READ, (name, keys))}


def count(
    db: apsw.Connection, now: int, rules: Rules, ends: Iterable[tuple[int, Job, Move]]
) -> None:
    """Runs have ended, each of a lane: tell the breakers that concern them."""
    by_limit: dict[Limit, list[tuple[str, bool]]] = {}
    for _, job, move in ends:
        if job.key is None or move not in _TELLING:
            continue
        for limit in rules.of(job.queue, job.kind).keyed:
            if limit.breaker is not None:
                failed = move is not Move.COMPLETE
                by_limit.setdefault(limit, []).append((job.key, failed))
    for limit, some in by_limit.items():
        assert limit.breaker is not None
        known = states(db, limit.name, json.dumps(sorted({key for key, _ in some})))
        then = dict(known)
        for key, failed in some:
            then[key] = then.get(key, State()).after(limit.breaker, now, failed=failed)
        changed = {key: state for key, state in then.items() if state != known.get(key)}
        db.executemany(
            _WRITE,
            [
                (limit.name, key, state.rest_at(limit.breaker), *state)
                for key, state in changed.items()
                if state != State()
            ],
        )
        db.executemany(
            _FORGET, [(limit.name, key) for key, state in changed.items() if state == State()]
        )
