"""Between rows and values: columns, and what is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from haulier.domain.batch import Batch
from haulier.domain.ids import text_id
from haulier.domain.job import Job, JobError
from haulier.domain.worker import WorkerRow
from haulier.stores.codes import (
    HEARD,
    ON_LOST,
    PARKED,
    ROLES,
    STATES,
    WAITING,
    error_from_text,
    key_of,
    retry_from_text,
)
from haulier.stores.packed import batch_of, worker_of

Row = Sequence[Any]

JOB_COLUMNS = (
    "id::text, seq, kind, queue, payload, state, version, role, priority, run_at, attempt, lease, "
    "lost, key, batch::text, position, retry, worker::text, cancel, gate, uniq IS NOT NULL, "
    "on_lost, created_at, started_at, finished_at, progress, message, result, error, error_at, "
    "baggage"
)
"""In the order in which `job_from_row` expects them; the type `claimed` has the same."""

WITHOUT_PAYLOAD = JOB_COLUMNS.replace(" payload,", " 'null'::bytea,")


def uuid_of(job_id: str) -> str:
    """The id as PostgreSQL writes it; JobNotFoundError for a text that is no id at all."""
    return text_id(key_of(job_id))


def storable(text: str) -> str:
    """The text without what PostgreSQL's `text` cannot hold: zero bytes and lone surrogates."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


@lru_cache(maxsize=256)
def _error(text: str, at: int | None) -> JobError:
    return replace(error_from_text(text), at=at or 0)


def job_from_row(row: Row) -> Job:
    """The job that a row of JOB_COLUMNS holds; they stand in the order of Job's fields."""
    return Job._make(
        (
            *row[:5],
            STATES[row[5]],
            row[6],
            ROLES[row[7]],
            *row[8:16],
            row[16] and retry_from_text(row[16]),
            row[17],
            row[18] > 0,
            row[18] == HEARD,
            row[19] == PARKED,
            row[20],
            ON_LOST[row[21]],
            *row[22:28],
            row[28] and _error(row[28], row[29]),
            row[30],
            row[19] == WAITING,
        )
    )


BATCH_COLUMNS = (
    "b.id::text, j.kind, j.queue, j.state, "
    "b.total + d.total, b.pending + d.pending, b.running + d.running, "
    "b.completed + d.completed, b.failed + d.failed, b.cancelled + d.cancelled, "
    "b.sealed, b.cancel, j.created_at, coalesce(b.started_at, d.started_at), j.finished_at, "
    "b.finish_job::text, b.paused, b.concurrency, b.batch_size, b.max_failures, b.owed, "
    "j.batch::text"
)
BATCH_TABLES = """
    batches b JOIN jobs j ON j.id = b.id, LATERAL (
        SELECT coalesce(sum(total), 0)::integer AS total,
               coalesce(sum(pending), 0)::integer AS pending,
               coalesce(sum(running), 0)::integer AS running,
               coalesce(sum(completed), 0)::integer AS completed,
               coalesce(sum(failed), 0)::integer AS failed,
               coalesce(sum(cancelled), 0)::integer AS cancelled, min(started_at) AS started_at
        FROM batch_deltas WHERE batch = b.id) d
"""


def batch_from_row(row: Row) -> Batch:
    """The batch that a row of BATCH_COLUMNS holds."""
    return batch_of(row, row[0], row[15], row[21])


def worker_from_row(row: Row) -> WorkerRow:
    """The worker behind: id, host, pid, queues, kinds, slots, started_at, renewed_at, alive."""
    return worker_of(row, row[0])
