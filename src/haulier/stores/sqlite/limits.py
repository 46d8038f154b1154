"""Limits as operators and code change them, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import apsw

from haulier.domain.event import BREAKER_RESET, LIMIT_CHANGED, LIMIT_DELETED
from haulier.domain.limits import BREAKER_KEPT, KeyState, Limit, LimitState, Rate
from haulier.domain.transfer import LimitRecord, MeterRecord, Records
from haulier.exceptions import JobStateError, LimitNotFoundError
from haulier.ports import Clock
from haulier.stores.marks import CLOSED, PAGE_RECORDS
from haulier.stores.sqlite import breakers, lanes
from haulier.stores.sqlite.ledger import say_of_nobody
from haulier.stores.sqlite.rows import fetch
from haulier.stores.sqlite.rules import rules_of
from haulier.stores.watching import Change

T = TypeVar("T")

FORGOTTEN_AT_ONCE = 500

_LIMIT = "SELECT told, declared, full_at FROM limits WHERE name = ?"
_PUT = (
    "INSERT INTO limits (name, told, declared, by_code, changed_by, changed_at, used, full_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET told = excluded.told, "
    "declared = coalesce(excluded.declared, declared), by_code = excluded.by_code, "
    "changed_by = excluded.changed_by, changed_at = excluded.changed_at, used = excluded.used, "
    "full_at = excluded.full_at"
)
_LIST = (
    "SELECT told, changed_by, changed_at, by_code, used FROM limits WHERE told IS NOT NULL "
    "ORDER BY name"
)
_METERS = (
    "SELECT key, rest_at FROM meters WHERE name = ? AND key > ? AND rest_at > ? "
    "ORDER BY key LIMIT ?"
)
_RESTING = "FROM meters WHERE rest_at <= ?"


# ── Changes ──────────────────────────────────────────────────────────────────────────────────


def put(db: apsw.Connection, now: int, limit: Limit, by: str, *, declared: bool) -> bool:
    """Store a limit; whether anything changed."""
    told = limit.to_text()
    rows = fetch(db, _LIMIT, (limit.name,))
    was, was_declared, full_at = rows[0] if rows else (None, None, 0)
    if declared and was_declared == told:
        return False
    if was == told:
        if declared:
            db.execute("UPDATE limits SET declared = ? WHERE name = ?", (told, limit.name))
        return False
    if limit.rate is not None:
        # Of another rate there may be more missing than this one's bucket holds.
        full_at = min(full_at, now + limit.rate.depth * limit.rate.interval)
    told_declared = told if declared else None
    db.execute(_PUT, (limit.name, told, told_declared, declared, by, now, 0, full_at))
    if was is not None and _measures(was) != _measures(told):
        db.execute("DELETE FROM meters WHERE name = ?", (limit.name,))
    rules = rules_of(db)
    assert rules is not None
    lanes.count_running(db, now, rules)
    if limit.concurrency is not None and not limit.per_key:
        running = lanes.used(db, limit)
        db.execute("UPDATE limits SET used = ? WHERE name = ?", (running, limit.name))
    say_of_nobody(db, now, LIMIT_CHANGED, [limit.name], by)
    return True


def _measures(told: str) -> tuple[str, ...]:
    """What is kept per key under a limit depends on."""
    fields = json.loads(told)
    return tuple(name for name in ("rate", "breaker") if name in fields and fields["per_key"])


def drop(db: apsw.Connection, now: int, name: str, by: str) -> bool:
    """Delete a limit. What code declared is kept, so that the same is not put again by it."""
    db.execute(
        "UPDATE limits SET told = NULL, by_code = 0, used = 0, full_at = 0, changed_by = ?, "
        "changed_at = ? WHERE name = ? AND told IS NOT NULL",
        (by, now, name),
    )
    if not db.changes():
        return False
    db.execute("DELETE FROM meters WHERE name = ?", (name,))
    say_of_nobody(db, now, LIMIT_DELETED, [name], by)
    return True


# ── Questions ────────────────────────────────────────────────────────────────────────────────


def listed(db: apsw.Connection) -> list[LimitState]:
    """All limits by name."""
    found = []
    for told, changed_by, changed_at, by_code, used in fetch(db, _LIST):
        limit = Limit.from_json(json.loads(told))
        found.append(
            LimitState(
                limit=limit,
                changed_by=changed_by,
                changed_at=changed_at,
                declared=bool(by_code),
                running=used if limit.concurrency is not None else 0,
            )
        )
    return found


def _limit(db: apsw.Connection, name: str) -> Limit:
    for told, *_ in fetch(db, _LIMIT, (name,)):
        if told is not None:
            return Limit.from_json(json.loads(told))
    raise LimitNotFoundError(name)


def keys(
    db: apsw.Connection, now: int, name: str, limit: int, cursor: str | None
) -> list[KeyState]:
    """How keys stand under a limit that is per key."""
    rule = _limit(db, name)
    if not rule.per_key:
        return []
    after = "" if cursor is None else cursor
    terms, values = _concerned(rule)
    running: dict[str, int] = dict(
        fetch(
            db,
            f"SELECT key, sum(running) FROM lanes WHERE key > ? AND running > 0 {terms} "
            "GROUP BY key ORDER BY key LIMIT ?",
            (after, *values, limit),
        )
    )
    rests: dict[str, int] = dict(fetch(db, _METERS, (name, after, now, limit)))
    found = sorted(running.keys() | rests.keys())[:limit]
    if rule.breaker is not None:
        told = json.dumps([key for key in found if key in rests])
        states = breakers.states(db, name, told)
        return [
            states.get(key, breakers.State()).told(key, running.get(key, 0), rule.breaker, now)
            for key in found
        ]
    return [
        KeyState(
            key=key,
            running=running.get(key, 0),
            ready_at=None if rule.rate is None else _next_token(rule.rate, rests.get(key, 0), now),
        )
        for key in found
    ]


def _next_token(rate: Rate, full_at: int, now: int) -> int | None:
    """When the next may start, if not now."""
    full_at = min(full_at, now + rate.depth * rate.interval)
    return None if rate.tokens(full_at, now) else rate.next_token(full_at)


def _concerned(limit: Limit) -> tuple[str, list[Any]]:
    """The condition for the lanes that a limit concerns, and its values."""
    pairs = [
        (column, value)
        for column, value in (("queue", limit.queue), ("kind", limit.kind))
        if value is not None
    ]
    return "".join(f"AND {column} = ? " for column, _ in pairs), [value for _, value in pairs]


def reset(db: apsw.Connection, now: int, name: str, key: str, by: str) -> bool:
    """Close the breaker of a key; false if it had nothing to forget."""
    if _limit(db, name).breaker is None:
        raise JobStateError(f"limit {name} is no circuit breaker")
    db.execute("DELETE FROM meters WHERE name = ? AND key = ? AND rest_at > ?", (name, key, now))
    done = bool(db.changes())
    if done:
        say_of_nobody(db, now, BREAKER_RESET, [f"{name} {key}"], by)
    return done


# ── What is at rest ──────────────────────────────────────────────────────────────────────────


def any_at_rest(db: apsw.Connection, now: int) -> bool:
    """Whether there are lanes or states of keys that say nothing any more."""
    if rules_of(db) is None or _is_being_copied(db):
        return False
    return lanes.any_at_rest(db) or bool(fetch(db, f"SELECT 1 {_RESTING} LIMIT 1", (now,)))


def forget_at_rest(db: apsw.Connection, now: int) -> None:
    """Remove a slice of them."""
    if _is_being_copied(db):
        return
    lanes.remove_at_rest(db)
    db.execute(
        f"DELETE FROM meters WHERE (name, key) IN (SELECT name, key {_RESTING} "
        f"LIMIT {FORGOTTEN_AT_ONCE})",
        (now,),
    )


def _is_being_copied(db: apsw.Connection) -> bool:
    """Whether nothing may change, or the copy would not be the same."""
    return any(stage in CLOSED for (stage,) in fetch(db, "SELECT stage FROM transfer"))


# ── Copies ───────────────────────────────────────────────────────────────────────────────────

_COPIED = "name, told, declared, by_code, changed_by, changed_at, full_at"
_READ_LIMITS = f"SELECT {_COPIED} FROM limits WHERE name > ? ORDER BY name LIMIT {PAGE_RECORDS + 1}"
# Breakers have a half, and are only told of while they are not closed.
_READ_METERS = (
    "SELECT name, key, iif(open_until IS NULL, rest_at, 0), open_until FROM meters "
    "WHERE (name, key) > (?, ?) AND (open_until IS NOT NULL OR half = 0) ORDER BY name, key "
    f"LIMIT {PAGE_RECORDS + 1}"
)


def read_limits(db: apsw.Connection, after: str | None) -> Records:
    """A page of limits, with those that were deleted."""
    rows = fetch(db, _READ_LIMITS, (after or "",))
    records = tuple(
        LimitRecord._make((*row[:3], bool(row[3]), *row[4:])) for row in rows[:PAGE_RECORDS]
    )
    return Records(records, records[-1].name if len(rows) > PAGE_RECORDS else None)


def read_meters(db: apsw.Connection, after: str | None) -> Records:
    """A page of the states of keys."""
    name, key = json.loads(after) if after else ("", "")
    rows = fetch(db, _READ_METERS, (name, key))
    records = tuple(MeterRecord(*row) for row in rows[:PAGE_RECORDS])
    last = json.dumps(records[-1][:2]) if len(rows) > PAGE_RECORDS else None
    return Records(records, last)


def insert_limits(db: apsw.Connection, records: Sequence[LimitRecord]) -> None:
    """Insert a page of a copy."""
    db.executemany(f"INSERT INTO limits ({_COPIED}) VALUES (?, ?, ?, ?, ?, ?, ?)", records)


def insert_meters(db: apsw.Connection, records: Sequence[MeterRecord]) -> None:
    """Insert a page of a copy."""
    db.executemany(
        "INSERT INTO meters (name, key, rest_at, open_until) VALUES (?, ?, ?, ?)",
        [
            (
                *(r.limit, r.key),
                *(r.full_at if r.open_until is None else r.open_until + BREAKER_KEPT, r.open_until),
            )
            for r in records
        ],
    )


# ── The verbs ────────────────────────────────────────────────────────────────────────────────


class _Read(Protocol):
    def __call__(self, run: Callable[[apsw.Connection], T], /) -> Awaitable[T]: ...


class _Change(Protocol):
    def __call__(self, run: Callable[[apsw.Connection], T], change: Change, /) -> Awaitable[T]: ...


class SqliteLimits:
    """The part of an SQLite store that is told of limits; it runs on the threads of its store."""

    def __init__(self, read: _Read, change: _Change, clock: Clock) -> None:
        self._read = read
        self._change = change
        self._clock = clock

    async def put(self, limit: Limit, *, by: str, declared: bool = False) -> bool:
        def run(db: apsw.Connection) -> tuple[bool, int | None]:
            changed = put(db, self._clock.now(), limit, by, declared=declared)
            return changed, lanes.open_slice(db, 0) if changed else None

        changed, after = await self._change(run, Change.ANY)
        await self._open(after)
        return changed

    async def drop(self, name: str, *, by: str) -> bool:
        def run(db: apsw.Connection) -> tuple[bool, int | None]:
            dropped = drop(db, self._clock.now(), name, by)
            return dropped, lanes.open_slice(db, 0) if dropped else None

        dropped, after = await self._change(run, Change.ANY)
        await self._open(after)
        return dropped

    async def _open(self, after: int | None) -> None:
        """Slice by slice: there may be as many lanes as keys."""
        while after is not None:
            start = after
            after = await self._change(lambda db: lanes.open_slice(db, start), Change.ANY)  # noqa: B023

    async def keys(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> list[KeyState]:
        return await self._read(lambda db: keys(db, self._clock.now(), name, limit, cursor))

    async def reset(self, name: str, key: str, *, by: str) -> bool:
        def run(db: apsw.Connection) -> bool:
            done = reset(db, self._clock.now(), name, key, by)
            lanes.open_keys(db, [key])
            return done

        return await self._change(run, Change.ANY)

    async def list(self) -> list[LimitState]:
        return await self._read(listed)
