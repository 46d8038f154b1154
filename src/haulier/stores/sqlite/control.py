"""What operators do to single jobs: cancel, requeue, delete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import apsw

from haulier.domain.event import CANCEL_REQUESTED
from haulier.domain.job import JobError, JobState
from haulier.domain.moves import Move
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.stores.codes import (
    CANCELLED,
    FAILED,
    HEADS,
    ITEM,
    PARKED,
    PENDING,
    REQUESTED,
    RUNNING,
    STATES,
    WAITING,
    error_to_text,
    key_of,
    rank_of,
)
from haulier.stores.sqlite import flows, nesting, uniques
from haulier.stores.sqlite.batches import (
    REVIVED,
    begin_delete,
    begin_restart,
    first_slices,
    reopen_for_item,
)
from haulier.stores.sqlite.ledger import SUBJECT, Ledger, Subject
from haulier.stores.sqlite.removing import REMOVED, removed
from haulier.stores.sqlite.rows import (
    fetch,
)
from haulier.stores.sqlite.settling import (
    CANCELLED_BY_REQUEST,
    DELETING,
    PRUNING,
    begin_cancel,
    follow_up,
)

_LOOK = f"SELECT seq, state, worker, priority, cancel, uniq, {SUBJECT} FROM jobs WHERE id = ?"


class _Found(NamedTuple):
    """A job as operations look at it: the columns of _LOOK."""

    seq: int
    state: int
    worker: bytes | None
    priority: int
    cancel: int
    uniq: str | None
    job: Subject


def _look(db: apsw.Connection, job: bytes) -> _Found | None:
    for seq, state, worker, priority, cancelled, uniq, *subject in fetch(db, _LOOK, (job,)):
        return _Found(seq, state, worker, priority, cancelled, uniq, Subject(*subject))
    return None


def cancel(
    db: apsw.Connection, now: int, job_ids: Iterable[str]
) -> tuple[dict[str, JobState], list[str]]:
    """Cancel or request it; returns the states, and the heads whose batches are to be drained."""
    states: dict[str, JobState] = {}
    heads: list[str] = []
    ledger = Ledger()
    for job_id in job_ids:
        found = _look(db, key_of(job_id))
        if found is None:
            continue
        state, role = found.state, found.job.role
        if role in HEADS and state in (PENDING, RUNNING):
            begin_cancel(db, now, found.job.id, CANCELLED_BY_REQUEST)
            heads.append(job_id)
        if state == PENDING:
            _drop(db, now, ledger, found)
            state = CANCELLED
        elif (
            state == RUNNING
            and (role not in HEADS or found.worker is not None)
            and not found.cancel
        ):
            db.execute("UPDATE jobs SET cancel = ? WHERE seq = ?", (REQUESTED, found.seq))
            ledger.moved(CANCEL_REQUESTED, found.job, state, state)
        states[job_id] = STATES[state]
    follow_up(db, now, ledger.write(db, now))
    return states, heads


def _drop(
    db: apsw.Connection, now: int, ledger: Ledger, found: _Found, error: JobError | None = None
) -> None:
    """Cancel a pending job."""
    db.execute(
        f"UPDATE jobs SET state = {CANCELLED}, rank = NULL, gate = NULL, waiter = NULL, "
        "finished_at = ?, error = coalesce(?, error) WHERE seq = ?",
        (now, error and error_to_text(error, now), found.seq),
    )
    uniques.release_ended(db, found.job.id)
    what = error.type if error else None
    ledger.moved(Move.DROP, found.job, found.state, CANCELLED, error=what)


def replace(db: apsw.Connection, now: int, jobs: Iterable[bytes], by: str) -> None:
    """Cancel pending jobs in whose place another one is inserted."""
    for job in jobs:
        found = _look(db, job)
        assert found is not None
        ledger = Ledger()
        _drop(db, now, ledger, found, JobError(type="Replaced", message=f"by job {by}"))
        follow_up(db, now, ledger.write(db, now))
        if found.job.role in HEADS:
            begin_cancel(db, now, job, CANCELLED_BY_REQUEST)
            # It has no items yet, or it would have stayed.
            first_slices(db, now, [job])


def requeue(
    db: apsw.Connection, now: int, job_ids: Iterable[str]
) -> tuple[dict[str, JobState], list[str]]:
    """Failed and cancelled jobs become pending again; others keep the state that is returned.

    Heads do so when their old items are gone: these are returned too, to be drained.
    """
    states: dict[str, JobState] = {}
    heads: list[str] = []
    for job_id in job_ids:
        found = _look(db, key_of(job_id))
        if found is None:
            continue
        state = found.state
        if state in (FAILED, CANCELLED) and uniques.retake(db, now, found.job.id, found.uniq):
            if found.job.role in HEADS:
                _restart_head(db, now, found.job)
                heads.append(job_id)
            else:
                _requeue(db, now, found)
                state = PENDING
        states[job_id] = STATES[state]
    return states, heads


def _requeue(db: apsw.Connection, now: int, found: _Found) -> None:
    job, gated = found.job, False
    if job.batch is not None:
        gated = reopen_for_item(db, now, job.batch)
    gate = WAITING if flows.wait_again(db, found.seq) else PARKED if gated else None
    rank = None if gate else rank_of(now, found.priority)
    db.execute(
        f"UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, "
        f"cancel = 0, children = {REVIVED}, run_at = ?, rank = ?, gate = ?, lane = NULL "
        "WHERE seq = ?",
        (now, rank, gate, found.seq),
    )
    ledger = Ledger()
    ledger.moved(Move.REQUEUE, job._replace(attempt=0), found.state, PENDING)
    follow_up(db, now, ledger.write(db, now))


def delete(db: apsw.Connection, now: int, job_id: str) -> bytes | None:
    """Delete a single job, or begin to delete a batch, which is returned and to be drained."""
    found = _deletable(db, job_id)
    ledger = Ledger()
    if found.job.role in HEADS:
        if found.state == PENDING:
            # Out of the line, or a worker might still take it and make items.
            _drop(db, now, ledger, found)
            ledger.write(db, now)
        begin_delete(db, found.job.id)
        return found.job.id
    removed(db, ledger, fetch(db, f"DELETE FROM jobs WHERE seq = ? {REMOVED}", (found.seq,)))
    ledger.write(db, now)
    return None


def _deletable(db: apsw.Connection, job_id: str) -> _Found:
    """The job; raises JobNotFoundError, or JobStateError if it must stay."""
    found = _look(db, key_of(job_id))
    if found is None:
        raise JobNotFoundError(job_id)
    if found.state == RUNNING:
        raise JobStateError(f"job {job_id} is running: stop it before you delete it")
    if found.job.role >= ITEM:
        raise JobStateError(f"job {job_id} is an item: delete its batch instead")
    if found.job.role in HEADS and (
        nesting.any_owed(db, found.job.id)
        or fetch(
            db, "SELECT 1 FROM batches WHERE id = ? AND running + pending > 0", (found.job.id,)
        )
    ):
        raise JobStateError(f"batch {job_id} still has items that are not finished")
    return found


def _restart_head(db: apsw.Connection, now: int, head: Subject) -> None:
    """A head that failed or was cancelled is to expand again, from nothing."""
    batch = head.id
    ((own_expander, unfinished, draining),) = fetch(
        db, "SELECT own_expander, running + pending, draining FROM batches WHERE id = ?", (batch,)
    )
    if not own_expander:
        raise JobStateError("this batch was filled by its producer: retry its items instead")
    if unfinished or nesting.any_owed(db, batch):
        raise JobStateError("this batch still has items that are not finished")
    if draining in (DELETING, PRUNING):
        raise JobStateError("this batch is being deleted")
    if head.batch is not None:
        reopen_for_item(db, now, head.batch)
    begin_restart(db, batch)
