"""Questions: plain reads, which wait for nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haulier.domain.batch import Batch
from haulier.domain.event import RESET, Event
from haulier.domain.job import Job, JobError, JobState, Role
from haulier.domain.worker import WorkerRow
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobFilter, Page
from haulier.stores.codes import (
    HEAD,
    IN_LANE,
    PARKED,
    PENDING,
    ROLE_CODE,
    ROLES,
    RUNNING,
    STATE_CODE,
    STATES,
    error_from_text,
)
from haulier.stores.packed import events_of, parsed_cursor
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.rows import (
    BATCH_COLUMNS,
    BATCH_TABLES,
    JOB_COLUMNS,
    batch_from_row,
    job_from_row,
    uuid_of,
    worker_from_row,
)

_COLUMNS = JOB_COLUMNS.replace(
    " gate,",
    f" CASE WHEN gate = {IN_LANE} AND state = {PENDING} AND EXISTS ("
    f"SELECT FROM lanes l WHERE l.id = lane AND l.why > 0) THEN {PARKED} ELSE gate END,",
)
_WITHOUT_PAYLOAD = _COLUMNS.replace(" payload,", " 'null'::bytea,")
_TOP = frozenset({Role.SINGLE, Role.HEAD})
_LIVE = frozenset({JobState.PENDING, JobState.RUNNING})


async def get(connection: Connection, job_id: str) -> Job:
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM jobs WHERE id = $1", uuid_of(job_id))
    if row is None:
        raise JobNotFoundError(job_id)
    return job_from_row(row)


async def errors(connection: Connection, job_id: str) -> list[JobError]:
    """The errors of a job's attempts, the latest first."""
    rows = await connection.fetch(
        "SELECT e.error, e.at FROM jobs j LEFT JOIN errors e ON e.job = j.seq WHERE j.id = $1 "
        "ORDER BY e.lease DESC",
        uuid_of(job_id),
    )
    if not rows:
        raise JobNotFoundError(job_id)
    return [replace(error_from_text(text), at=at) for text, at in rows if text is not None]


async def find(
    connection: Connection,
    where: JobFilter,
    limit: int,
    cursor: int | None,
    *,
    oldest_first: bool,
    payloads: bool,
) -> Page:
    """One more row than asked for tells whether there is a following page."""
    values: list[Any] = []
    terms = _terms(where, values)
    if cursor is not None:
        values.append(cursor)
        terms.append(f"seq {'>' if oldest_first else '<'} ${len(values)}")
    condition = f"WHERE {' AND '.join(terms)}" if terms else ""
    values.append(limit + 1)
    rows = await connection.fetch(
        f"SELECT {_COLUMNS if payloads else _WITHOUT_PAYLOAD} FROM {_table(where)} {condition} "
        f"ORDER BY seq {'ASC' if oldest_first else 'DESC'} LIMIT ${len(values)}",
        *values,
    )
    jobs = tuple(job_from_row(row) for row in rows[:limit])
    return Page(jobs, jobs[-1].seq if len(rows) > limit else None)


def _table(where: JobFilter) -> str:
    """The partition that is meant, where only one can be."""
    if where.worker is not None or (where.states is not None and where.states <= _LIVE):
        return "jobs_live"
    if where.states is not None and not where.states & _LIVE:
        return "jobs_done"
    return "jobs"


def _terms(where: JobFilter, values: list[Any]) -> list[str]:
    terms: list[str] = []

    def term(text: str, value: Any) -> None:
        values.append(value)
        terms.append(text.replace("?", f"${len(values)}"))

    if where.batch_id is not None:
        term("batch = ?", uuid_of(where.batch_id))
    if where.worker is not None:
        # Only what runs has a worker; in these words it is the condition of an index.
        term(f"worker = ? AND state = {RUNNING}", uuid_of(where.worker))
    for text, value in (
        ("kind = ?", where.kind),
        ("queue = ?", where.queue),
        ("key = ?", where.key),
        ("error_type = ?", where.error_type),
    ):
        if value is not None:
            term(text, value)
    if where.roles == _TOP:
        # What is no item has no batch: in these words it is the beginning of an index.
        terms.append("batch IS NULL AND role < 2")
    elif where.roles is not None:
        terms.append(_one_of("role", [ROLE_CODE[role] for role in where.roles]))
    if where.states is not None:
        terms.append(_one_of("state", [STATE_CODE[state] for state in where.states]))
    return terms


def _one_of(column: str, codes: Sequence[int]) -> str:
    """Numbers of our own, so they need no parameters, and an index's condition can be seen."""
    if not codes:
        return "false"
    if len(codes) == 1:
        return f"{column} = {codes[0]}"
    return f"{column} IN ({', '.join(map(str, sorted(codes)))})"


async def batch(connection: Connection, batch_id: str) -> Batch:
    row = await connection.fetchrow(
        f"SELECT {BATCH_COLUMNS} FROM {BATCH_TABLES} WHERE b.id = $1", uuid_of(batch_id)
    )
    if row is None:
        raise JobNotFoundError(batch_id)
    return batch_from_row(row)


async def batches(
    connection: Connection, limit: int, cursor: str | None, within: str | None
) -> list[Batch]:
    """Ids of batches begin with their time, so their order is the order of age."""
    where = f"j.role = {HEAD}" if within is None else "b.within = $3"
    rows = await connection.fetch(
        f"SELECT {BATCH_COLUMNS} FROM {BATCH_TABLES} "
        f"WHERE {where} AND ($1::uuid IS NULL OR b.id < $1) ORDER BY b.id DESC LIMIT $2",
        None if cursor is None else uuid_of(cursor),
        limit,
        *(() if within is None else (uuid_of(within),)),
    )
    return [batch_from_row(row) for row in rows]


async def counts(connection: Connection) -> dict[tuple[str, str, Role, JobState], int]:
    rows = await connection.fetch("SELECT queue, kind, role, state, n FROM current_counts()")
    return {(row[0], row[1], ROLES[row[2]], STATES[row[3]]): row[4] for row in rows}


# By the index of what is ready: the first of each line, however long it is.
_FRONTS = f"""
SELECT c.queue, min(f.run_at) FROM current_counts() c, LATERAL (
    SELECT j.run_at FROM jobs_live j
    WHERE j.queue = c.queue AND j.kind = c.kind AND j.state = {PENDING} AND j.rank IS NOT NULL
    ORDER BY j.rank, j.seq LIMIT 1) f
WHERE c.state = {PENDING} AND c.n > 0 GROUP BY c.queue
"""


async def fronts(connection: Connection) -> dict[str, int]:
    """Since when the first job of each queue has been due."""
    return {row[0]: row[1] for row in await connection.fetch(_FRONTS)}


async def workers(connection: Connection, now: int | None) -> list[WorkerRow]:
    rows = await connection.fetch(
        "SELECT id::text, host, pid, queues, kinds, slots, started_at, renewed_at, "
        "ended_at IS NULL AND expires > coalesce($1::bigint, clock_us()) "
        "FROM workers ORDER BY started_at DESC",
        now,
    )
    return [worker_from_row(row) for row in rows]


# ── Events ───────────────────────────────────────────────────────────────────────────────────


async def number_events(connection: Connection) -> None:
    """Number all that is committed by now; what is cut off here is gone on with the next time."""
    while await number_some(connection):
        pass


async def number_some(connection: Connection) -> bool:
    """Number one slice; whether there may be more."""
    more: bool = await connection.fetchval("SELECT number_events()")
    return more


async def last_event(connection: Connection) -> str:
    await number_events(connection)
    epoch, last = await connection.fetchrow("SELECT epoch, last FROM history")
    return f"{epoch}:{last}"


async def events(connection: Connection, after: str | None, limit: int) -> list[Event]:
    """Events after a cursor; a `reset` for one that cannot be gone on from."""
    await number_events(connection)
    # One moment for all of it: meanwhile old ones may be removed, and new ones numbered.
    async with _moment(connection):
        epoch, last = await connection.fetchrow("SELECT epoch, last FROM history")
        oldest = await connection.fetchrow("SELECT seq - n, at FROM events ORDER BY seq LIMIT 1")
        before = oldest[0] if oldest else last
        seen = before
        if after is not None:
            of, seen = parsed_cursor(after)
            if of != epoch or not before <= seen <= last:
                return [Event(epoch, before, oldest[1] if oldest else 0, RESET)]
        rows = await connection.fetch(
            "SELECT seq, n, at, type, kind, queue, role, batch::text, worker::text, error, body "
            # A row holds at least one event, so so many rows are always enough.
            "FROM events WHERE seq > $1 ORDER BY seq LIMIT $2",
            seen,
            limit,
        )
    found: list[Event] = []
    for row in rows:
        found += events_of(epoch, row, seen, batch=row[7], worker=row[8])
        if len(found) >= limit:
            break
    return found[:limit]


def _moment(connection: Connection) -> Any:
    """A transaction whose statements all see the same; within another one, only nearly so."""
    if connection.is_in_transaction():
        return connection.transaction()
    return connection.transaction(isolation="repeatable_read", readonly=True)
