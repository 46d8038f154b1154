"""Between what the scripts answer and values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from haulier.domain.batch import Batch, Counts
from haulier.domain.flow import Parent
from haulier.domain.job import Job, JobState
from haulier.domain.line import Line
from haulier.domain.step import Step
from haulier.domain.worker import WorkerRow
from haulier.stores.codes import (
    CANCELLED,
    HEARD,
    ON_LOST,
    OTHERWISE,
    PARKED,
    ROLES,
    RUNNING,
    STATES,
    WAITING,
    error_from_text,
    retry_from_text,
)

Row = list[Any]

JOB_FIELDS = (
    *("seq", "kind", "queue", "payload", "state", "version", "role", "priority", "run_at"),
    *("attempt", "lease", "lost", "key", "batch", "position", "retry", "worker", "cancel", "gate"),
    *("uniq", "on_lost", "created", "started", "finished", "progress", "message", "result"),
    *("error", "baggage"),
)
"""Fields of a job's hash in the order of Job's own; a script puts the id behind them."""

BATCH_FIELDS = (
    *("total", "pending", "running", "completed", "failed", "cancelled", "sealed", "cancel"),
    *("started", "finish_job", "paused", "concurrency", "batch_size", "max_failures", "owed"),
)


@lru_cache(maxsize=4096)
def text_of(raw: bytes) -> str:
    """The text of bytes that many jobs share: a kind, a queue, a batch's or a worker's id."""
    return raw.decode()


def _int(raw: Any) -> int | None:
    return None if raw is None else int(raw)


def job_from_row(row: Row) -> Job:
    """The job that a row of JOB_FIELDS and its id holds."""
    seq, kind, queue, payload, state, version, role, priority, run_at, attempt, lease, *rest = row
    lost, key, batch, position, retry, worker, cancel, gate, uniq, on_lost, *rest = rest
    created, started, finished, progress, message, result, error, baggage, job_id = rest
    code = int(state)
    cancelling = int(cancel) if cancel else 0
    return Job._make(
        (
            job_id.decode(),
            int(seq),
            text_of(kind),
            text_of(queue),
            payload,
            STATES[code],
            1 if version is None else int(version),
            ROLES[int(role or 0)],
            int(priority or 0),
            int(run_at),
            int(attempt or 0),
            int(lease or 0),
            int(lost or 0),
            key and key.decode(),
            batch and text_of(batch),
            _int(position),
            retry and retry_from_text(text_of(retry)),
            # The scripts leave it to a job that has ended.
            text_of(worker) if code == RUNNING and worker else None,
            cancelling > 0,
            cancelling == HEARD,
            gate is not None and int(gate) == PARKED,
            uniq is not None,
            ON_LOST[int(on_lost or 0)],
            int(created),
            _int(started),
            _int(finished),
            _int(progress),
            None if message is None else message.decode(),
            result,
            None if error is None else error_from_text(error),
            None if baggage is None else text_of(baggage),
            gate is not None and int(gate) == WAITING,
        )
    )


def steps_from(job_id: str, flat: Sequence[bytes]) -> list[Step]:
    """A job's steps in their order, from the fields and values of their hash."""
    found = []
    for name, value in zip(flat[::2], flat[1::2], strict=True):
        at, lease, result = value.split(b" ", 2)
        found.append(Step(job_id, int(lease), name.decode(), result, int(at)))
    return sorted(found, key=lambda step: (step.at, step.name))


def lines_from(flat: Sequence[bytes]) -> list[Line]:
    """A job's log lines in their order, from the fields and values of their hash."""
    found = []
    for field, value in zip(flat[::2], flat[1::2], strict=True):
        lease, number = field.split(b":")
        at, text = value.split(b" ", 1)
        found.append(Line(int(lease), int(number), int(at), text.decode()))
    return sorted(found)


def parent_from_row(row: Row) -> tuple[int, Parent]:
    """A parent that a row of the script `parents` holds, and its place among others."""
    parent, edge, end, result, error, present = row
    nth, otherwise, told = edge.split(b":")
    known = (parent.decode(), OTHERWISE[int(otherwise)])
    if not told:
        # One that was removed, and of which the job is told in a moment.
        state = STATES[CANCELLED if present is None else int(present)]
        return int(nth), Parent(*known, state, ended=False)
    same, state = end == told, STATES[int(told)]
    return int(nth), Parent(
        *known,
        state,
        ended=True,
        result=result if same and state is JobState.COMPLETED else None,
        error=error_from_text(error) if same and error else None,
    )


def batch_from_row(row: Row) -> Batch:
    """The batch behind: id, what its head's hash says, and BATCH_FIELDS."""
    batch_id, (kind, queue, state, created, finished, within), fields = row
    total, pending, running, completed, failed, cancelled, sealed, cancel, *rest = fields
    started, finish_job, paused, concurrency, batch_size, max_failures, owed = rest
    return Batch(
        id=batch_id.decode(),
        kind=kind.decode(),
        queue=queue.decode(),
        state=STATES[int(state)],
        counts=Counts(
            total=int(total or 0),
            pending=int(pending or 0),
            running=int(running or 0),
            completed=int(completed or 0),
            failed=int(failed or 0),
            cancelled=int(cancelled or 0),
        ),
        sealed=bool(int(sealed or 0)),
        cancel_requested=int(cancel or 0) > 0,
        created_at=int(created),
        started_at=_int(started),
        finished_at=_int(finished),
        finish_job=finish_job and finish_job.decode(),
        paused=bool(int(paused or 0)),
        concurrency=_int(concurrency),
        batch_size=_int(batch_size),
        max_failures=_int(max_failures),
        settled=not int(owed or 0),
        within=within and text_of(within),
    )


def worker_from_row(row: Row) -> WorkerRow:
    """The worker that a row of the script `workers` holds."""
    host, pid, queues, kinds, slots, started, renewed, _, _, worker_id, alive = row
    return WorkerRow(
        id=worker_id.decode(),
        host=host.decode(),
        pid=int(pid),
        queues=tuple(json.loads(queues)),
        kinds=tuple(json.loads(kinds)),
        slots=int(slots),
        started_at=int(started),
        renewed_at=int(renewed),
        alive=bool(alive),
    )
