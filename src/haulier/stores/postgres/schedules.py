"""Schedules and their ticks in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from haulier.domain.batch import BatchPolicy
from haulier.domain.event import SCHEDULE_DELETED
from haulier.domain.job import NewJob, Role
from haulier.domain.schedule import Due, Firing, Schedule
from haulier.domain.tick import KEPT_TICKS, TICK_STATES, Tick
from haulier.exceptions import ScheduleNotFoundError
from haulier.stores.firing import Fired, settle
from haulier.stores.postgres import inserting, operations
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.rows import uuid_of
from haulier.stores.postgres.schedule_records import (
    COLUMNS,
    READ,
    READ_TICKS,
    TICK,
    tick_from_row,
)
from haulier.stores.watching import Change

T = TypeVar("T")
Work = Callable[[Connection], Awaitable[T]]

_NOW = "SELECT coalesce($1::bigint, clock_us())"
_OPEN = f"{_NOW}, must_be_open()"
# An event that moves nothing.
_SAY = (
    "SELECT write_moves($1, ARRAY[($2::text, $3::uuid, 0, 0, $4::text, $5::text, 0, NULL, NULL, "
    "NULL, NULL, $6::text)::moved])"
)
_ADD = (
    f"INSERT INTO schedules ({COLUMNS}) VALUES ($1, $2, 1, $3, NULL, $4, $5, $6, $7, $8) "
    "ON CONFLICT DO NOTHING RETURNING 1"
)
_CHANGE = (
    "UPDATE schedules SET revision = revision + 1, next = $1, kind = $2, queue = $3, body = $4, "
    "changed_by = $5, changed_at = $6 WHERE name = $7 AND revision = $8 RETURNING 1"
)
# One that somebody else is at has another revision soon: not worth a wait.
_LOCK = (
    "SELECT name, revision, last_job::text FROM schedules WHERE name = ANY ($1) ORDER BY name "
    "FOR UPDATE SKIP LOCKED"
)
_KNOWN = (
    "SELECT t.schedule, t.tick FROM unnest($1::text[], $2::bigint[]) u (schedule, tick) "
    "JOIN ticks t USING (schedule, tick)"
)
_MOVE_ON = (
    "UPDATE schedules s SET revision = s.revision + 1, next = u.next, last_job = u.last_job "
    "FROM unnest($1::text[], $2::bigint[], $3::uuid[]) u (name, next, last_job) "
    "WHERE s.name = u.name"
)
_ADD_TICKS = (
    f"INSERT INTO ticks ({TICK}) SELECT * FROM "
    "unnest($1::text[], $2::bigint[], $3::bigint[], $4::smallint[], $5::uuid[], $6::bigint[])"
)
# What nobody needs any more: done, and not among the latest. Two go for each that comes.
_FORGET = f"""
DELETE FROM ticks WHERE schedule = $1 AND tick IN (
    SELECT t.tick FROM ticks t WHERE t.schedule = $1 AND t.tick <= (
        SELECT o.tick FROM ticks o WHERE o.schedule = $1
        ORDER BY o.tick DESC LIMIT 1 OFFSET {KEPT_TICKS})
    AND NOT EXISTS (SELECT FROM jobs_live j WHERE j.id = t.job)
    ORDER BY t.tick LIMIT $2)
"""


def _schedule(row: Sequence[Any]) -> Schedule:
    name, schedule_id, revision, following, last_job, kind, queue, body, changed_by, at = row
    return Schedule.stored(
        kind=kind,
        queue=queue,
        body=body,
        name=name,
        id=schedule_id,
        revision=revision,
        next=following,
        last_job=last_job,
        changed_by=changed_by,
        changed_at=at,
    )


async def put(db: Connection, now: int | None, schedule: Schedule, event: str) -> bool:
    template = schedule.template
    async with db.transaction():
        at, _ = await db.fetchrow(_OPEN, now)
        what = (template.kind, template.queue, schedule.body(), schedule.changed_by, at)
        if schedule.revision:
            asked = (schedule.next, *what, schedule.name, schedule.revision)
            done = await db.fetchval(_CHANGE, *asked)
        else:
            done = await db.fetchval(_ADD, schedule.name, schedule.id, schedule.next, *what)
        if done:
            of = (schedule.id, template.queue, template.kind, schedule.changed_by)
            await db.execute(_SAY, at, event, *of)
        return bool(done)


async def delete(db: Connection, now: int | None, name: str, by: str) -> None:
    async with db.transaction():
        at, _ = await db.fetchrow(_OPEN, now)
        gone = await db.fetchrow(
            "DELETE FROM schedules WHERE name = $1 RETURNING id::text, queue, kind", name
        )
        if gone is None:
            raise ScheduleNotFoundError(name)
        await db.execute("DELETE FROM ticks WHERE schedule = $1", name)
        await db.execute(_SAY, at, SCHEDULE_DELETED, *gone, by)


async def due(db: Connection, now: int | None, limit: int) -> Due:
    at, first = await db.fetchrow(f"{_NOW}, (SELECT min(next) FROM schedules)", now)
    if first is None or first > at:
        return Due(at, (), None if first is None else first - at)
    rows = await db.fetch(f"{READ} WHERE next <= $1 ORDER BY next LIMIT $2", at, limit)
    following = await db.fetchval("SELECT min(next) FROM schedules WHERE next > $1", at)
    found = tuple(map(_schedule, rows))
    return Due(at, found, None if following is None else following - at)


_Done = list[tuple[Tick, ...] | None]


async def fire(
    db: Connection, now: int | None, firings: Sequence[Firing]
) -> tuple[_Done, list[str]]:
    """What became of each firing, and the heads whose batches are to be drained."""
    async with db.transaction():
        at, _ = await db.fetchrow(_OPEN, now)
        rows = await db.fetch(_LOCK, [firing.name for firing in firings])
        held = {(name, revision): last_job for name, revision, last_job in rows}
        known = await _known(db, firings)
        active = await _active(db, [job for job in held.values() if job])
        done: _Done = []
        mine: list[tuple[Firing, Fired]] = []
        for firing in firings:
            which = (firing.name, firing.revision)
            if which not in held:
                done.append(None)
                continue
            fired = settle(
                firing,
                at,
                last_job=held.pop(which),
                active=active.__contains__,
                known=lambda tick, name=firing.name: (name, tick) in known,  # type: ignore[misc]
            )
            mine.append((firing, fired))
            done.append(tuple(fired.ticks))
        heads = await _do(db, at, mine)
        await _record(db, mine)
        return done, heads


async def _known(db: Connection, firings: Sequence[Firing]) -> set[tuple[str, int]]:
    ticks = [(firing.name, planned.tick) for firing in firings for planned in firing.ticks]
    rows = await db.fetch(_KNOWN, [name for name, _ in ticks], [tick for _, tick in ticks])
    return {(name, tick) for name, tick in rows}


async def _active(db: Connection, jobs: Sequence[str]) -> set[str]:
    if not jobs:
        return set()
    rows = await db.fetch("SELECT id::text FROM jobs_live WHERE id = ANY ($1)", jobs)
    return {row[0] for row in rows}


async def _do(db: Connection, now: int, mine: Sequence[tuple[Firing, Fired]]) -> list[str]:
    """Insert jobs, as many as possible at once, and cancel others in their turn."""
    heads: list[str] = []
    waiting: list[NewJob] = []

    async def insert(policy: BatchPolicy | None = None) -> None:
        if waiting:
            what = inserting.Insertion(jobs=waiting, now=now, policy=policy)
            await inserting.insert(db, what)
            waiting.clear()

    for firing, fired in mine:
        for deed in fired.deeds:
            if isinstance(deed, NewJob) and deed.role is Role.SINGLE:
                waiting.append(deed)
                continue
            await insert()
            if isinstance(deed, NewJob):
                waiting.append(deed)
                await insert(firing.policy)
            else:
                heads += (await operations.cancel(db, now, [deed]))[1]
    await insert()
    return heads


async def _record(db: Connection, mine: Sequence[tuple[Firing, Fired]]) -> None:
    ticks = [tick for _, fired in mine for tick in fired.ticks]
    if ticks:
        await db.execute(
            _ADD_TICKS,
            [tick.schedule for tick in ticks],
            [tick.tick for tick in ticks],
            [tick.at for tick in ticks],
            [TICK_STATES.index(tick.state) for tick in ticks],
            [tick.job for tick in ticks],
            [tick.since for tick in ticks],
        )
        forget = [(firing.name, 2 * len(fired.ticks)) for firing, fired in mine]
        await db.executemany(_FORGET, forget)
    if mine:
        await db.execute(
            _MOVE_ON,
            [firing.name for firing, _ in mine],
            [firing.next for firing, _ in mine],
            [fired.last_job for _, fired in mine],
        )


# ── The verbs ────────────────────────────────────────────────────────────────────────────────


class _Run(Protocol):
    def __call__(self, work: Work[T], /) -> Awaitable[T]: ...


class _Write(Protocol):
    def __call__(self, work: Work[T], change: Change, /) -> Awaitable[T]: ...


class PostgresSchedules:
    """The part of a PostgreSQL store that keeps schedules."""

    def __init__(
        self,
        run: _Run,
        write: _Write,
        now: Callable[[], int | None],
        drain: Callable[[str], Awaitable[None]],
    ) -> None:
        self._run = run
        self._write = write
        self._now = now
        self._drain = drain

    async def find(self, *, after: str = "", limit: int = 100) -> list[Schedule]:
        sql = f"{READ} WHERE name > $1 ORDER BY name LIMIT $2"
        return [_schedule(row) for row in await self._run(lambda db: db.fetch(sql, after, limit))]

    async def get(self, name: str) -> Schedule:
        row = await self._run(lambda db: db.fetchrow(f"{READ} WHERE name = $1", name))
        if row is None:
            raise ScheduleNotFoundError(name)
        return _schedule(row)

    async def put(self, schedule: Schedule, event: str) -> bool:
        # Workers are woken as if there were jobs: some of them have to know when to tick.
        return await self._write(lambda db: put(db, self._now(), schedule, event), Change.READY)

    async def delete(self, name: str, *, by: str) -> None:
        await self._write(lambda db: delete(db, self._now(), name, by), Change.NOTHING)

    async def due(self, limit: int = 100) -> Due:
        return await self._run(lambda db: due(db, self._now(), limit))

    async def fire(self, firings: Sequence[Firing]) -> _Done:
        done, heads = await self._write(lambda db: fire(db, self._now(), firings), Change.ANY)
        for head in heads:
            await self._drain(head)
        return done

    async def ticks(self, name: str, *, before: int | None = None, limit: int = 50) -> list[Tick]:
        sql = f"{READ_TICKS} WHERE schedule = $1 AND tick < $2 ORDER BY tick DESC LIMIT $3"
        last = 2**62 if before is None else before
        return [
            tick_from_row(row)
            for row in await self._run(lambda db: db.fetch(sql, name, last, limit))
        ]

    async def tick_of(self, job_id: str) -> Tick | None:
        sql, job = f"{READ_TICKS} WHERE job = $1", uuid_of(job_id)
        row = await self._run(lambda db: db.fetchrow(sql, job))
        return None if row is None else tick_from_row(row)
