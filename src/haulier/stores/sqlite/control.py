"""What operators do to single jobs: cancel, requeue, delete."""

from __future__ import annotations

from collections.abc import Iterable

import apsw

from haulier.domain.event import CANCEL_REQUESTED, DELETED
from haulier.domain.job import JobError, JobState
from haulier.domain.moves import Move
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.stores.sqlite import uniques
from haulier.stores.sqlite.batches import begin_delete, first_slices, remove_jobs, reopen_head
from haulier.stores.sqlite.ledger import Ledger
from haulier.stores.sqlite.rows import (
    CANCELLED,
    FAILED,
    HEAD,
    ITEM,
    PARKED,
    PENDING,
    REQUESTED,
    RUNNING,
    STATES,
    Row,
    error_to_text,
    fetch,
    key_of,
    rank_of,
)
from haulier.stores.sqlite.settling import (
    CANCELLED_BY_REQUEST,
    DELETING,
    begin_cancel,
    follow_up,
)

_LOOK = (
    "SELECT seq, state, role, queue, kind, batch, worker, priority, id, attempt, lease, cancel, "
    "uniq FROM jobs WHERE id = ?"
)


def cancel(
    db: apsw.Connection, now: int, job_ids: Iterable[str]
) -> tuple[dict[str, JobState], list[str]]:
    """Cancel or request it; returns the states, and the heads whose batches are to be drained."""
    states: dict[str, JobState] = {}
    heads: list[str] = []
    ledger = Ledger()
    for job_id in job_ids:
        row = _look(db, job_id)
        if row is None:
            continue
        state, role, worker = row[1], row[2], row[6]
        if role == HEAD and state in (PENDING, RUNNING):
            begin_cancel(db, now, key_of(job_id), CANCELLED_BY_REQUEST)
            heads.append(job_id)
        if state == PENDING:
            drop(db, now, ledger, row)
            state = CANCELLED
        elif state == RUNNING and (role != HEAD or worker is not None):
            _request(db, ledger, row)
        states[job_id] = STATES[state]
    follow_up(db, now, ledger.write(db, now))
    return states, heads


def drop(
    db: apsw.Connection, now: int, ledger: Ledger, row: Row, error: JobError | None = None
) -> None:
    """Cancel a pending job; `row` is one of `_LOOK`."""
    seq, state, role, queue, kind, batch, _, _, job, attempt, lease, *_ = row
    db.execute(
        f"UPDATE jobs SET state = {CANCELLED}, rank = NULL, gate = NULL, waiter = NULL, "
        "finished_at = ?, error = coalesce(?, error) WHERE seq = ?",
        (now, error and error_to_text(error, now), seq),
    )
    uniques.release_ended(db, job)
    ledger.moved(
        Move.DROP,
        (job, attempt, lease),
        queue=queue,
        kind=kind,
        role=role,
        batch=batch,
        source=state,
        target=CANCELLED,
        error=error.type if error else None,
    )


def replace(db: apsw.Connection, now: int, jobs: Iterable[bytes], by: str) -> None:
    """Cancel pending jobs in whose place another one is inserted."""
    for job in jobs:
        (row,) = fetch(db, _LOOK, (job,))
        ledger = Ledger()
        drop(db, now, ledger, row, JobError(type="Replaced", message=f"by job {by}"))
        follow_up(db, now, ledger.write(db, now))
        if row[2] == HEAD:
            begin_cancel(db, now, job, CANCELLED_BY_REQUEST)
            # One that nobody expanded yet has no items, so one slice is all.
            first_slices(db, now, [job])


def _request(db: apsw.Connection, ledger: Ledger, row: Row) -> None:
    seq, state, role, queue, kind, batch, _, _, job, attempt, lease, cancel, _ = row
    if cancel:
        return
    db.execute("UPDATE jobs SET cancel = ? WHERE seq = ?", (REQUESTED, seq))
    ledger.moved(
        CANCEL_REQUESTED,
        (job, attempt, lease),
        queue=queue,
        kind=kind,
        role=role,
        batch=batch,
        source=state,
        target=state,
    )


def requeue(db: apsw.Connection, now: int, job_ids: Iterable[str]) -> dict[str, JobState]:
    """Failed and cancelled jobs become pending again; others keep the state that is returned."""
    states: dict[str, JobState] = {}
    for job_id in job_ids:
        row = _look(db, job_id)
        if row is None:
            continue
        state = row[1]
        if state in (FAILED, CANCELLED) and uniques.retake(db, now, row[8], row[12]):
            _requeue(db, now, row)
            state = PENDING
        states[job_id] = STATES[state]
    return states


def _requeue(db: apsw.Connection, now: int, row: Row) -> None:
    seq, state, role, queue, kind, batch, _, priority, job, _, lease, *_ = row
    gated = False
    if role == HEAD:
        _restart_head(db, now, job)
    elif role == ITEM:
        gated = _reopen_for_item(db, now, batch)
    db.execute(
        f"UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, "
        "cancel = 0, run_at = ?, rank = ?, gate = ? WHERE seq = ?",
        (now, None if gated else rank_of(now, priority), PARKED if gated else None, seq),
    )
    ledger = Ledger()
    ledger.moved(
        Move.REQUEUE,
        (job, 0, lease),
        queue=queue,
        kind=kind,
        role=role,
        batch=batch,
        source=state,
        target=PENDING,
    )
    follow_up(db, now, ledger.write(db, now))


def delete(db: apsw.Connection, now: int, job_id: str) -> bytes | None:
    """Delete a single job, or begin to delete a batch, which is returned and to be drained."""
    row = _deletable(db, job_id)
    seq, state, role, queue, kind, *_, job, attempt, lease, _, _ = row
    if role == HEAD:
        begin_delete(db, job)
        return bytes(job)
    db.execute("DELETE FROM jobs WHERE seq = ?", (seq,))
    remove_jobs(db, now, [(seq, job, attempt, lease, queue, kind, state)])
    return None


def _deletable(db: apsw.Connection, job_id: str) -> Row:
    """The job's row; raises JobNotFoundError, or JobStateError if it must stay."""
    row = _look(db, job_id)
    if row is None:
        raise JobNotFoundError(job_id)
    _, state, role, *_ = row
    if state == RUNNING:
        raise JobStateError(f"job {job_id} is running: stop it before you delete it")
    if role == ITEM:
        raise JobStateError(f"job {job_id} is an item: delete its batch instead")
    if role == HEAD:
        busy = fetch(
            db, "SELECT 1 FROM batches WHERE id = ? AND running + pending > 0", (key_of(job_id),)
        )
        if busy:
            raise JobStateError(f"batch {job_id} still has items that are not finished")
    return row


def _look(db: apsw.Connection, job_id: str) -> Row | None:
    rows = fetch(db, _LOOK, (key_of(job_id),))
    return rows[0] if rows else None


def _restart_head(db: apsw.Connection, now: int, batch: bytes) -> None:
    """A head that failed or was cancelled expands again, from nothing."""
    ((own_expander, unfinished, draining),) = fetch(
        db, "SELECT own_expander, running + pending, draining FROM batches WHERE id = ?", (batch,)
    )
    if not own_expander:
        raise JobStateError("this batch was filled by its producer: retry its items instead")
    if unfinished:
        raise JobStateError("this batch still has items that are not finished")
    if draining == DELETING:
        raise JobStateError("this batch is being deleted")
    ledger = Ledger()
    highest = 0
    for seq, job, attempt, lease, queue, kind, state in fetch(
        db,
        "DELETE FROM jobs WHERE batch = ? RETURNING seq, id, attempt, lease, queue, kind, state",
        (batch,),
    ):
        db.execute("DELETE FROM errors WHERE job = ?", (seq,))
        highest = max(highest, lease)
        ledger.moved(
            DELETED,
            (job, attempt, lease),
            queue=queue,
            kind=kind,
            role=ITEM,
            batch=batch,
            source=state,
            target=None,
        )
    ledger.write(db, now)
    db.execute(
        "UPDATE batches SET sealed = 0, draining = 0, cancel = 0, owed = 1, started_at = NULL, "
        "finish_job = NULL, gated = paused OR concurrency IS NOT NULL OR batch_size IS NOT NULL, "
        "leases = max(leases, ?) WHERE id = ?",
        (highest, batch),
    )


def _reopen_for_item(db: apsw.Connection, now: int, batch: bytes) -> bool:
    """Reopen the batch of an item that runs again; whether it has a gate."""
    ((state, queue, kind, attempt, lease, cancel, draining),) = fetch(
        db,
        "SELECT j.state, j.queue, j.kind, j.attempt, j.lease, b.cancel, b.draining FROM jobs j "
        "JOIN batches b ON b.id = j.id WHERE j.id = ?",
        (batch,),
    )
    if draining == DELETING or (cancel and state == RUNNING):
        raise JobStateError("a cancel or delete of this item's batch is still under way")
    if state != RUNNING:
        reopen_head(db, now, batch, (queue, kind, state, attempt, lease))
    ((gated,),) = fetch(db, "SELECT gated FROM batches WHERE id = ?", (batch,))
    return bool(gated)
