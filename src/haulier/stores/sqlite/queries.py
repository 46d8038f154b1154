"""Questions: plain reads on a connection of their own, which no writer keeps waiting."""

from __future__ import annotations

from typing import Any

import apsw

from haulier.domain.batch import Batch
from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import Job, JobError, JobState, Role
from haulier.domain.worker import WorkerRow
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobFilter, Page
from haulier.stores.codes import (
    HEAD,
    PARKED,
    PENDING,
    ROLE_CODE,
    RUNNING,
    STATE_CODE,
    STATES,
    key_of,
)
from haulier.stores.sqlite.lanes import BATCH, KEY
from haulier.stores.sqlite.rows import (
    BATCH_COLUMNS,
    JOB_COLUMNS,
    batch_from_row,
    fetch,
    job_from_row,
    worker_from_row,
)

# By the way its lane stands, of a job that is in one.
_PARKED = (
    f"CASE WHEN state = {PENDING} AND rank IS NOT NULL AND lane IS NOT NULL THEN "
    f"iif((SELECT why FROM lanes WHERE id = jobs.lane) IN ({KEY}, {BATCH}), {PARKED}, NULL) "
    "ELSE gate END"
)
_COLUMNS = JOB_COLUMNS.replace(" gate,", f" {_PARKED},")
_WITHOUT_PAYLOAD = _COLUMNS.replace(" payload,", " CAST('null' AS BLOB),")
_TOP = frozenset({Role.SINGLE, Role.HEAD})
_FAILED = frozenset({JobState.FAILED})


def get(db: apsw.Connection, job_id: str) -> Job:
    rows = fetch(db, f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (key_of(job_id),))
    if not rows:
        raise JobNotFoundError(job_id)
    return job_from_row(rows[0])


def errors(db: apsw.Connection, job_id: str) -> list[JobError]:
    """The errors of a job's attempts, the latest first."""
    found = fetch(db, "SELECT seq FROM jobs WHERE id = ?", (key_of(job_id),))
    if not found:
        raise JobNotFoundError(job_id)
    rows = fetch(
        db,
        "SELECT type, message, traceback, attempt, at, lease, worker FROM errors "
        "WHERE job = ? ORDER BY lease DESC",
        found[0],
    )
    return [
        JobError(
            type=row[0],
            message=row[1],
            traceback=row[2],
            attempt=row[3],
            at=row[4],
            lease=row[5],
            worker=row[6] and text_id(row[6]),
        )
        for row in rows
    ]


def find(
    db: apsw.Connection,
    where: JobFilter,
    limit: int,
    cursor: int | None,
    *,
    oldest_first: bool,
    payloads: bool,
) -> Page:
    """One more row than asked for tells whether there is a following page."""
    terms, values = _terms(where)
    if cursor is not None:
        terms.append("seq > ?" if oldest_first else "seq < ?")
        values.append(cursor)
    condition = f"WHERE {' AND '.join(terms)}" if terms else ""
    rows = fetch(
        db,
        f"SELECT {_COLUMNS if payloads else _WITHOUT_PAYLOAD} FROM {_source(where)} {condition} "
        f"ORDER BY seq {'ASC' if oldest_first else 'DESC'} LIMIT ?",
        (*values, limit + 1),
    )
    jobs = tuple(job_from_row(row) for row in rows[:limit])
    return Page(jobs, jobs[-1].seq if len(rows) > limit else None)


def _source(where: JobFilter) -> str:
    """The table, by the index of failed jobs where only those are asked for.

    They are few among many that are done; the planner would pass over all of these.
    """
    if where.states != _FAILED:
        return "jobs"
    return f"jobs INDEXED BY {'jobs_dead' if where.batch_id is None else 'jobs_failed'}"


def _terms(where: JobFilter) -> tuple[list[str], list[Any]]:
    terms: list[str] = []
    values: list[Any] = []
    if where.batch_id is not None:
        terms.append("batch = ?")
        values.append(key_of(where.batch_id))
    if where.worker is not None:
        # Only what runs has a worker; in these words it is the condition of an index.
        terms.append(f"worker = ? AND state = {RUNNING}")
        values.append(key_of(where.worker))
    for term, value in (
        ("kind = ?", where.kind),
        ("queue = ?", where.queue),
        ("key = ?", where.key),
        ("error ->> 'type' = ?", where.error_type),
    ):
        if value is not None:
            terms.append(term)
            values.append(value)
    if where.roles == _TOP:
        # In these words it is the condition of the index jobs_top.
        terms.append("role < 2")
    elif where.roles is not None:
        terms.append(f"role IN ({', '.join(str(ROLE_CODE[role]) for role in where.roles)})")
    if where.states is not None and len(where.states) == 1:
        # In these words it is the condition of the indexes of one state.
        terms.extend(f"state = {STATE_CODE[state]}" for state in where.states)
    elif where.states is not None:
        terms.append(f"state IN ({', '.join(str(STATE_CODE[state]) for state in where.states)})")
    return terms, values


def batch(db: apsw.Connection, batch_id: str) -> Batch:
    rows = fetch(
        db,
        f"SELECT {BATCH_COLUMNS} FROM batches b JOIN jobs j ON j.id = b.id WHERE b.id = ?",
        (key_of(batch_id),),
    )
    if not rows:
        raise JobNotFoundError(batch_id)
    return batch_from_row(rows[0])


def batches(db: apsw.Connection, limit: int, cursor: str | None, within: str | None) -> list[Batch]:
    """Ids of batches begin with their time, so their order is the order of age."""
    where, outer = f"j.role = {HEAD}", []
    if within is not None:
        where, outer = "b.within = ?", [key_of(within)]
    rows = fetch(
        db,
        f"SELECT {BATCH_COLUMNS} FROM batches b JOIN jobs j ON j.id = b.id "
        f"WHERE {where} AND b.id < ? ORDER BY b.id DESC LIMIT ?",
        (*outer, raw_id(cursor) if cursor is not None else b"\xff" * 17, limit),
    )
    return [batch_from_row(row) for row in rows]


def counts(db: apsw.Connection) -> dict[tuple[str, str, Role, JobState], int]:
    roles = {code: role for role, code in ROLE_CODE.items()}
    rows = fetch(db, "SELECT queue, kind, role, state, n FROM counts WHERE n <> 0")
    return {(row[0], row[1], roles[row[2]], STATES[row[3]]): row[4] for row in rows}


# By the index of what is ready: the first of each line, however long it is.
_FRONTS = f"""
SELECT queue, min((
    SELECT run_at FROM jobs j
    WHERE j.queue = c.queue AND j.kind = c.kind
      AND state = {PENDING} AND rank IS NOT NULL AND lane IS NULL
    ORDER BY rank, seq LIMIT 1))
FROM counts c WHERE state = {PENDING} AND n > 0 GROUP BY queue
"""


def fronts(db: apsw.Connection) -> dict[str, int]:
    """Since when the first job of each queue has been due."""
    return {queue: at for queue, at in fetch(db, _FRONTS) if at is not None}


def workers(db: apsw.Connection, boot: tuple[str, int]) -> list[WorkerRow]:
    rows = fetch(
        db,
        "SELECT id, host, pid, queues, kinds, slots, started_at, renewed_at, "
        "ended_at IS NULL AND boot = ? AND expires > ? FROM workers ORDER BY started_at DESC",
        boot,
    )
    return [worker_from_row(row) for row in rows]
