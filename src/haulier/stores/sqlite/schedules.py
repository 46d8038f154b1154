"""Schedules and their ticks in an SQLite file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import apsw

from haulier.domain.event import SCHEDULE_DELETED
from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import NewJob
from haulier.domain.schedule import Due, Firing, Schedule
from haulier.domain.tick import KEPT_TICKS, TICK_STATES, Tick
from haulier.exceptions import ScheduleNotFoundError
from haulier.stores.codes import RUNNING, SINGLE, key_of
from haulier.stores.firing import settle
from haulier.stores.sqlite import control, inserts
from haulier.stores.sqlite.ledger import Ledger, Subject
from haulier.stores.sqlite.rows import Row, fetch
from haulier.stores.sqlite.schedule_records import ADD_TICK, COLUMNS, FIND, TICK, tick_from_row
from haulier.stores.watching import Change

T = TypeVar("T")

_GET = f"SELECT {COLUMNS} FROM schedules WHERE name = ?"
_DUE = f"SELECT {COLUMNS} FROM schedules WHERE next <= ? ORDER BY next LIMIT ?"
_WAIT = "SELECT next FROM schedules WHERE next > ? ORDER BY next LIMIT 1"
_ADD = (
    f"INSERT INTO schedules ({COLUMNS}) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO NOTHING"
)
_CHANGE = (
    "UPDATE schedules SET revision = revision + 1, next = ?, kind = ?, queue = ?, body = ?, "
    "changed_by = ?, changed_at = ? WHERE name = ? AND revision = ?"
)
_MOVE_ON = (
    "UPDATE schedules SET revision = revision + 1, next = ?, last_job = ? "
    "WHERE name = ? AND revision = ?"
)
_LAST_JOB = "SELECT last_job FROM schedules WHERE name = ? AND revision = ?"
# What nobody needs any more: done, and not among the latest. Two go for each that comes.
_FORGET = f"""
DELETE FROM ticks WHERE schedule = ?1 AND tick IN (
    SELECT t.tick FROM ticks t WHERE t.schedule = ?1 AND t.tick <= (
        SELECT tick FROM ticks WHERE schedule = ?1 ORDER BY tick DESC LIMIT 1 OFFSET {KEPT_TICKS})
    AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = t.job AND j.state <= {RUNNING})
    ORDER BY t.tick LIMIT ?2)
"""


def _schedule(row: Row) -> Schedule:
    name, raw, revision, following, last_job, kind, queue, body, changed_by, changed_at = row
    return Schedule.stored(
        kind=kind,
        queue=queue,
        body=body,
        name=name,
        id=text_id(raw),
        revision=revision,
        next=following,
        last_job=last_job and text_id(last_job),
        changed_by=changed_by,
        changed_at=changed_at,
    )


def _say(db: apsw.Connection, now: int, event: str, schedule: Row, by: str) -> None:
    """Append an event of a schedule: its id, queue and kind."""
    ledger = Ledger()
    raw, queue, kind = schedule
    ledger.moved(event, Subject(raw, 0, 0, queue, kind, SINGLE, None), None, None, error=by)
    ledger.write(db, now)


def put(db: apsw.Connection, now: int, schedule: Schedule, event: str) -> bool:
    template, raw = schedule.template, raw_id(schedule.id)
    what = (template.kind, template.queue, schedule.body(), schedule.changed_by, now)
    if schedule.revision:
        db.execute(_CHANGE, (schedule.next, *what, schedule.name, schedule.revision))
    else:
        db.execute(_ADD, (schedule.name, raw, schedule.next, None, *what))
    if not db.changes():
        return False
    _say(db, now, event, (raw, template.queue, template.kind), schedule.changed_by)
    return True


def delete(db: apsw.Connection, now: int, name: str, by: str) -> None:
    gone = fetch(db, "DELETE FROM schedules WHERE name = ? RETURNING id, queue, kind", (name,))
    if not gone:
        raise ScheduleNotFoundError(name)
    db.execute("DELETE FROM ticks WHERE schedule = ?", (name,))
    _say(db, now, SCHEDULE_DELETED, gone[0], by)


def get(db: apsw.Connection, name: str) -> Schedule:
    for row in fetch(db, _GET, (name,)):
        return _schedule(row)
    raise ScheduleNotFoundError(name)


def due(db: apsw.Connection, now: int, limit: int) -> Due:
    found = tuple(_schedule(row) for row in fetch(db, _DUE, (now, limit)))
    following = fetch(db, _WAIT, (now,))
    return Due(now, found, following[0][0] - now if following else None)


Fired = tuple[list[tuple[Tick, ...] | None], list[str]]
"""What became of each firing, and the heads whose batches are to be drained."""


def fire(db: apsw.Connection, now: int, firings: Sequence[Firing]) -> Fired:
    heads: list[str] = []
    return [_fire(db, now, firing, heads) for firing in firings], heads


def _fire(
    db: apsw.Connection, now: int, firing: Firing, heads: list[str]
) -> tuple[Tick, ...] | None:
    there = fetch(db, _LAST_JOB, (firing.name, firing.revision))
    if not there:
        return None
    last_job = there[0][0]

    def active(job_id: str) -> bool:
        sql = f"SELECT 1 FROM jobs WHERE id = ? AND state <= {RUNNING}"
        return bool(fetch(db, sql, (raw_id(job_id),)))

    def known(tick: int) -> bool:
        sql = "SELECT 1 FROM ticks WHERE schedule = ? AND tick = ?"
        return bool(fetch(db, sql, (firing.name, tick)))

    fired = settle(firing, now, last_job=last_job and text_id(last_job), active=active, known=known)
    for deed in fired.deeds:
        if isinstance(deed, NewJob):
            inserts.insert(db, now, [deed], None, firing.policy)
        else:
            heads += control.cancel(db, now, [deed])[1]
    for t in fired.ticks:
        row = (t.schedule, t.tick, t.at, TICK_STATES.index(t.state), t.job and raw_id(t.job))
        db.execute(ADD_TICK, (*row, t.since))
    last = fired.last_job
    db.execute(_MOVE_ON, (firing.next, last and raw_id(last), firing.name, firing.revision))
    db.execute(_FORGET, (firing.name, 2 * len(fired.ticks)))
    return tuple(fired.ticks)


def ticks(db: apsw.Connection, name: str, before: int | None, limit: int) -> list[Tick]:
    sql = f"SELECT {TICK} FROM ticks WHERE schedule = ? AND tick < ? ORDER BY tick DESC LIMIT ?"
    last = 2**62 if before is None else before
    return [tick_from_row(row) for row in fetch(db, sql, (name, last, limit))]


def tick_of(db: apsw.Connection, job_id: str) -> Tick | None:
    for row in fetch(db, f"SELECT {TICK} FROM ticks WHERE job = ?", (key_of(job_id),)):
        return tick_from_row(row)
    return None


# ── The verbs ────────────────────────────────────────────────────────────────────────────────


class _Read(Protocol):
    def __call__(self, run: Callable[[apsw.Connection], T], /) -> Awaitable[T]: ...


class _Change(Protocol):
    def __call__(self, run: Callable[[apsw.Connection], T], change: Change, /) -> Awaitable[T]: ...


class SqliteSchedules:
    """The part of an SQLite store that keeps schedules; it runs on the threads of its store."""

    def __init__(
        self,
        read: _Read,
        change: _Change,
        now: Callable[[], int],
        drain: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._read = read
        self._change = change
        self._now = now
        self._drain = drain

    async def find(self, *, after: str = "", limit: int = 100) -> list[Schedule]:
        rows = await self._read(lambda db: fetch(db, FIND, (after, limit)))
        return [_schedule(row) for row in rows]

    async def get(self, name: str) -> Schedule:
        return await self._read(lambda db: get(db, name))

    async def put(self, schedule: Schedule, event: str) -> bool:
        # Workers are woken as if there were jobs: some of them have to know when to tick.
        return await self._change(lambda db: put(db, self._now(), schedule, event), Change.READY)

    async def delete(self, name: str, *, by: str) -> None:
        await self._change(lambda db: delete(db, self._now(), name, by), Change.NOTHING)

    async def due(self, limit: int = 100) -> Due:
        return await self._read(lambda db: due(db, self._now(), limit))

    async def fire(self, firings: Sequence[Firing]) -> list[tuple[Tick, ...] | None]:
        fired, heads = await self._change(lambda db: fire(db, self._now(), firings), Change.ANY)
        for head in heads:
            await self._drain(raw_id(head))
        return fired

    async def ticks(self, name: str, *, before: int | None = None, limit: int = 50) -> list[Tick]:
        return await self._read(lambda db: ticks(db, name, before, limit))

    async def tick_of(self, job_id: str) -> Tick | None:
        return await self._read(lambda db: tick_of(db, job_id))
