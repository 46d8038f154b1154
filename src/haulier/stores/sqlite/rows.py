"""Between rows and values: columns, and what is read from them."""

from __future__ import annotations

from typing import Any

import apsw

from haulier.domain.batch import Batch
from haulier.domain.ids import text_id
from haulier.domain.job import Job
from haulier.domain.worker import WorkerRow
from haulier.stores.codes import (
    HEARD,
    ON_LOST,
    PARKED,
    ROLES,
    STATES,
    WAITING,
    error_from_text,
    retry_from_text,
    text_once,
)
from haulier.stores.packed import batch_of, worker_of

Row = tuple[Any, ...]

JOB_COLUMNS = (
    "id, seq, kind, queue, payload, state, version, role, priority, run_at, attempt, lease, lost, "
    "key, batch, position, retry, worker, cancel, gate, uniq, on_lost, created_at, started_at, "
    "finished_at, progress, message, result, error, baggage"
)
"""In the order of Job's fields."""

WITHOUT_PAYLOAD = JOB_COLUMNS.replace(" payload,", " CAST('null' AS BLOB),")


def fetch(db: apsw.Connection, sql: str, bindings: apsw.Bindings | None = None) -> list[Row]:
    """All rows of a statement, typed as what the schema makes of them."""
    return db.execute(sql, bindings).fetchall()


def job_from_row(row: Row) -> Job:
    """The job that a row of JOB_COLUMNS, and maybe more, holds."""
    # fmt: off
    (job_id, seq, kind, queue, payload, state, version, role, priority, run_at, attempt, lease,
     lost, key, batch, position, retry, worker, cancel, gate, uniq, on_lost, created, started,
     finished, progress, message, result, error, baggage, *_) = row
    # Every claimed job passes here: no list between, and the tuple made without its wrapper.
    return tuple.__new__(Job, (
        text_id(job_id), seq, kind, queue, payload, STATES[state], version, ROLES[role], priority,
        run_at, attempt, lease, lost, key,
        text_once(batch) if batch else None, position,
        retry_from_text(retry) if retry else None,
        text_once(worker) if worker else None,
        cancel > 0, cancel == HEARD, gate == PARKED, uniq is not None, ON_LOST[on_lost],
        created, started, finished, progress, message, result,
        error_from_text(error) if error else None, baggage, gate == WAITING,
    ))
    # fmt: on


BATCH_COLUMNS = (
    "b.id, j.kind, j.queue, j.state, b.total, b.pending, b.running, b.completed, b.failed, "
    "b.cancelled, b.sealed, b.cancel, j.created_at, b.started_at, j.finished_at, b.finish_job, "
    "b.paused, b.concurrency, b.batch_size, b.max_failures, b.owed, j.batch"
)


def batch_from_row(row: Row) -> Batch:
    """The batch that a row of BATCH_COLUMNS holds."""
    return batch_of(
        row, text_id(row[0]), row[15] and text_id(row[15]), row[21] and text_id(row[21])
    )


def worker_from_row(row: Row) -> WorkerRow:
    """The worker behind: id, host, pid, queues, kinds, slots, started_at, renewed_at, alive."""
    return worker_of(row, text_id(row[0]))
