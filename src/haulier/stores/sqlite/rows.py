"""Between rows and values: the codes of states and roles, columns, and JSON columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

import apsw

from haulier.domain.batch import Batch, Counts
from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import RANK_PER_PRIORITY, Job, JobError, JobState, OnLost, Role
from haulier.domain.retry import RetryPolicy
from haulier.domain.worker import WorkerRow
from haulier.exceptions import JobNotFoundError

Row = tuple[Any, ...]

STATES = (
    JobState.PENDING,
    JobState.RUNNING,
    JobState.COMPLETED,
    JobState.FAILED,
    JobState.CANCELLED,
)
STATE_CODE: Mapping[JobState, int] = {state: code for code, state in enumerate(STATES)}
PENDING, RUNNING, COMPLETED, FAILED, CANCELLED = range(5)

ROLES = (Role.SINGLE, Role.HEAD, Role.ITEM)
ROLE_CODE: Mapping[Role, int] = {role: code for code, role in enumerate(ROLES)}
SINGLE, HEAD, ITEM = range(3)

REQUESTED, HEARD = 1, 2
"""How far the cancel of a running job is."""

JOB_COLUMNS = (
    "id, seq, kind, queue, payload, state, version, role, priority, run_at, attempt, lease, lost, "
    "key, batch, position, retry, worker, cancel, gate, uniq, on_lost, created_at, started_at, "
    "finished_at, progress, message, result, error"
)
"""In the order in which `job_from_row` expects them."""

PARKED, LET_IN, ALONE = 1, 2, 3
"""The gates of jobs that have to pass one: parked by their batch, let in by it, to be run alone."""

ON_LOST = (OnLost.RETRY, OnLost.FAIL)
ON_LOST_CODE: Mapping[OnLost, int] = {what: code for code, what in enumerate(ON_LOST)}


def rank_of(run_at: int, priority: int) -> int:
    """A ready job's place in its queue: lower comes first (see RANK_PER_PRIORITY)."""
    return run_at - priority * RANK_PER_PRIORITY


def key_of(job_id: str) -> bytes:
    """The stored form of an id; JobNotFoundError for a text that is no id at all."""
    try:
        return raw_id(job_id)
    except ValueError:
        raise JobNotFoundError(job_id) from None


@lru_cache(maxsize=4096)
def raw_once(text: str) -> bytes:
    """The bytes of an id that many jobs share: a batch's, a worker's."""
    return raw_id(text)


def fetch(db: apsw.Connection, sql: str, bindings: apsw.Bindings | None = None) -> list[Row]:
    """All rows of a statement, typed as what the schema makes of them."""
    return db.execute(sql, bindings).fetchall()


_ERROR = tuple(field.name for field in fields(JobError))


@lru_cache(maxsize=1024)
def _id_text(raw: bytes) -> str:
    return text_id(raw)


@lru_cache(maxsize=256)
def retry_from_text(text: str) -> RetryPolicy:
    return RetryPolicy.from_dict(json.loads(text))


@lru_cache(maxsize=256)
def retry_to_text(policy: RetryPolicy) -> str:
    return json.dumps(policy.as_dict(), separators=(",", ":"))


def error_to_text(error: JobError, now: int, *, lease: int = 0, worker: str | None = None) -> str:
    """The error as the job's row keeps it, with what only the store knows of it."""
    values = {name: getattr(error, name) for name in _ERROR}
    values |= {"at": now, "lease": lease, "worker": worker}
    return json.dumps(values, separators=(",", ":"))


def error_from_text(text: str) -> JobError:
    return JobError(**json.loads(text))


def job_from_row(row: Row) -> Job:
    """The job that a row of JOB_COLUMNS holds; they stand in the order of Job's fields."""
    return Job._make(
        (
            text_id(row[0]),
            *row[1:5],
            STATES[row[5]],
            row[6],
            ROLES[row[7]],
            *row[8:14],
            row[14] and _id_text(row[14]),
            row[15],
            row[16] and retry_from_text(row[16]),
            row[17] and _id_text(row[17]),
            row[18] > 0,
            row[18] == HEARD,
            row[19] == PARKED,
            row[20] is not None,
            ON_LOST[row[21]],
            *row[22:28],
            row[28] and error_from_text(row[28]),
        )
    )


BATCH_COLUMNS = (
    "b.id, j.kind, j.queue, j.state, b.total, b.pending, b.running, b.completed, b.failed, "
    "b.cancelled, b.sealed, b.cancel, j.created_at, b.started_at, j.finished_at, b.finish_job, "
    "b.paused, b.concurrency, b.batch_size, b.max_failures, b.owed"
)


def batch_from_row(row: Row) -> Batch:
    """The batch that a row of BATCH_COLUMNS holds."""
    return Batch(
        id=text_id(row[0]),
        kind=row[1],
        queue=row[2],
        state=STATES[row[3]],
        counts=Counts(
            total=row[4],
            pending=row[5],
            running=row[6],
            completed=row[7],
            failed=row[8],
            cancelled=row[9],
        ),
        sealed=bool(row[10]),
        cancel_requested=bool(row[11]),
        created_at=row[12],
        started_at=row[13],
        finished_at=row[14],
        finish_job=row[15] and text_id(row[15]),
        paused=bool(row[16]),
        concurrency=row[17],
        batch_size=row[18],
        max_failures=row[19],
        settled=not row[20],
    )


def worker_from_row(row: Row) -> WorkerRow:
    """The worker behind: id, host, pid, queues, kinds, slots, started_at, renewed_at, alive."""
    return WorkerRow(
        id=text_id(row[0]),
        host=row[1],
        pid=row[2],
        queues=tuple(json.loads(row[3])),
        kinds=tuple(json.loads(row[4])),
        slots=row[5],
        started_at=row[6],
        renewed_at=row[7],
        alive=bool(row[8]),
    )
