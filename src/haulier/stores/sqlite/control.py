"""What operators do to single jobs: cancel, requeue, delete."""

from __future__ import annotations

from collections.abc import Iterable

import apsw

from haulier.domain.job import JobState
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.stores.sqlite.batches import DELETING, begin_cancel, begin_delete, reopen_head
from haulier.stores.sqlite.counters import Deltas
from haulier.stores.sqlite.rows import (
    CANCELLED,
    FAILED,
    HEAD,
    ITEM,
    PENDING,
    RUNNING,
    STATES,
    Row,
    fetch,
    key_of,
    rank_of,
)
from haulier.stores.sqlite.settling import settle_done

_LOOK = "SELECT seq, state, role, queue, kind, batch, worker, priority FROM jobs WHERE id = ?"


def cancel(
    db: apsw.Connection, now: int, job_ids: Iterable[str]
) -> tuple[dict[str, JobState], list[str]]:
    """Cancel or request it; returns the states, and the heads whose batches are to be drained."""
    states: dict[str, JobState] = {}
    heads: list[str] = []
    deltas = Deltas()
    for job_id in job_ids:
        row = _look(db, job_id)
        if row is None:
            continue
        seq, state, role, queue, kind, batch, worker, _ = row
        if role == HEAD and state in (PENDING, RUNNING):
            begin_cancel(db, key_of(job_id))
            heads.append(job_id)
        if state == PENDING:
            db.execute(
                f"UPDATE jobs SET state = {CANCELLED}, rank = NULL, finished_at = ? WHERE seq = ?",
                (now, seq),
            )
            deltas.moved(queue, kind, role, batch, PENDING, CANCELLED)
            state = CANCELLED
        elif state == RUNNING and (role != HEAD or worker is not None):
            db.execute("UPDATE jobs SET cancel = 1 WHERE seq = ?", (seq,))
        states[job_id] = STATES[state]
    settle_done(db, now, deltas.write(db, now))
    return states, heads


def requeue(db: apsw.Connection, now: int, job_ids: Iterable[str]) -> dict[str, JobState]:
    """Failed and cancelled jobs become pending again; others keep the state that is returned."""
    states: dict[str, JobState] = {}
    deltas = Deltas()
    for job_id in job_ids:
        row = _look(db, job_id)
        if row is None:
            continue
        seq, state, role, queue, kind, batch, _, priority = row
        if state in (FAILED, CANCELLED):
            if role == HEAD:
                _restart_head(db, now, key_of(job_id))
            elif role == ITEM:
                _reopen_for_item(db, now, batch)
            db.execute(
                f"UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, "
                "cancel = 0, run_at = ?, rank = ? WHERE seq = ?",
                (now, rank_of(now, priority), seq),
            )
            deltas.moved(queue, kind, role, batch, state, PENDING)
            state = PENDING
        states[job_id] = STATES[state]
    deltas.write(db, now)
    return states


def delete(db: apsw.Connection, now: int, job_id: str) -> bytes | None:
    """Delete a single job, or begin to delete a batch, which is returned and to be drained."""
    seq, state, role, queue, kind, *_ = _deletable(db, job_id)
    if role == HEAD:
        batch = key_of(job_id)
        begin_delete(db, batch)
        return batch
    db.execute("DELETE FROM jobs WHERE seq = ?", (seq,))
    deltas = Deltas()
    deltas.removed(queue, kind, role, state)
    deltas.write(db, now)
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
    removed = Deltas()
    for queue, kind, state in fetch(
        db, "DELETE FROM jobs WHERE batch = ? RETURNING queue, kind, state", (batch,)
    ):
        removed.removed(queue, kind, ITEM, state)
    removed.write(db, now)
    db.execute(
        "UPDATE batches SET sealed = 0, draining = 0, cancel = 0, total = 0, completed = 0, "
        "failed = 0, cancelled = 0, started_at = NULL, finish_job = NULL WHERE id = ?",
        (batch,),
    )


def _reopen_for_item(db: apsw.Connection, now: int, batch: bytes) -> None:
    ((state, queue, kind, cancel, draining),) = fetch(
        db,
        "SELECT j.state, j.queue, j.kind, b.cancel, b.draining FROM jobs j "
        "JOIN batches b ON b.id = j.id WHERE j.id = ?",
        (batch,),
    )
    if draining == DELETING or (cancel and state == RUNNING):
        raise JobStateError("a cancel or delete of this item's batch is still under way")
    if state != RUNNING:
        reopen_head(db, now, batch, queue, kind, state)
