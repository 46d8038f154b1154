"""What operators and upkeep ask for, as calls of functions of the server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from haulier.domain.job import MICROSECOND, JobState
from haulier.domain.retention import Keep
from haulier.domain.worker import Note, WorkerRow
from haulier.stores.codes import STATE_CODE, STATES
from haulier.stores.postgres import kept
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.rows import storable, uuid_of

T = TypeVar("T")

Operation = Callable[
    [Connection, int | None, Sequence[str]], Awaitable[tuple[dict[str, JobState], list[str]]]
]
"""Something done to jobs: the states they are in then, and the heads whose batches are to drain."""


async def cancel(
    connection: Connection, now: int | None, job_ids: Sequence[str]
) -> tuple[dict[str, JobState], list[str]]:
    return await _operate(connection, "cancel_jobs", now, job_ids)


async def requeue(
    connection: Connection, now: int | None, job_ids: Sequence[str]
) -> tuple[dict[str, JobState], list[str]]:
    return await _operate(connection, "requeue_jobs", now, job_ids)


async def _operate(
    connection: Connection, verb: str, now: int | None, job_ids: Sequence[str]
) -> tuple[dict[str, JobState], list[str]]:
    # Asked for once each, and answered under the name by which it was asked for.
    asked = {uuid_of(job_id): job_id for job_id in job_ids}
    rows = await connection.fetch(
        f"SELECT job::text, now_in, head FROM {verb}($1, $2)", now, list(asked)
    )
    states = {asked[job]: STATES[state] for job, state, _ in rows}
    return states, [asked[job] for job, _, head in rows if head]


async def enlist(connection: Connection, now: int | None, worker: WorkerRow, ttl: int) -> None:
    await connection.execute(
        "SELECT enlist($1, $2, $3, $4, $5, $6, $7, $8)",
        now,
        worker.id,
        worker.host,
        worker.pid,
        json.dumps(worker.queues),
        json.dumps(worker.kinds),
        worker.slots,
        ttl,
    )


async def note(connection: Connection, now: int | None, notes: Sequence[Note]) -> None:
    """Record what running jobs say, with their log lines in the same transaction."""
    values: list[Any] = [
        now,
        [note.job_id for note in notes],
        [note.lease for note in notes],
        [note.progress for note in notes],
        [None if note.message is None else storable(note.message) for note in notes],
        [note.heard for note in notes],
    ]
    sql = "SELECT note($1, $2, $3, $4, $5, $6)"
    if any(note.lines for note in notes):
        sql += ", keep_lines($1, $7, $8, $9, $10, $11, $12)"
        values += kept.said(notes)
    await connection.execute(sql, *values)


async def look_around(connection: Connection, now: int | None) -> tuple[list[str], list[str]]:
    """Expired incarnations, and batches that somebody has to go on with."""
    expired = await connection.fetchval("SELECT expired_workers($1)::text[]", now)
    draining = await connection.fetch(
        "SELECT id::text FROM batches WHERE draining > 0 UNION SELECT batch::text FROM nested_due"
    )
    return expired, [row[0] for row in draining]


async def prune(
    connection: Connection, now: int | None, *, kind: str, state: JobState, keep: Keep
) -> tuple[int, list[str]]:
    """Remove one slice of what is kept no longer."""
    if keep.age is None and keep.count is None:
        return 0, []
    age = None if keep.age is None else min(round(keep.age * MICROSECOND), 2**62)
    removed, heads = await connection.fetchrow(
        "SELECT removed, batches::text[] FROM prune_jobs($1, $2, $3, $4, $5)",
        now,
        kind,
        STATE_CODE[state],
        age,
        keep.count,
    )
    return removed, heads
