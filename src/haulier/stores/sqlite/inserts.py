"""New jobs, and batches while they are being filled."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from haulier.domain.batch import BatchPolicy
from haulier.domain.ids import raw_id
from haulier.domain.job import NewJob, Role
from haulier.exceptions import JobStateError, LeaseLostError
from haulier.ports import Fence, Inserted
from haulier.stores.sqlite.counters import Deltas
from haulier.stores.sqlite.rows import (
    HEAD,
    PENDING,
    ROLE_CODE,
    RUNNING,
    Row,
    fetch,
    rank_of,
    retry_to_text,
)
from haulier.stores.sqlite.settling import settle_done

_INSERT = (
    "INSERT INTO jobs (id, kind, queue, role, version, payload, state, rank, priority, run_at, "
    "key, batch, position, retry, created_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) "
    "ON CONFLICT (id) DO NOTHING"
)


def insert(
    db: apsw.Connection,
    now: int,
    jobs: Sequence[NewJob],
    fence: Fence | None,
    policy: BatchPolicy | None,
) -> Inserted:
    """Insert pending jobs."""
    if fence is not None:
        _check_fence(db, fence)
    deltas = Deltas()
    new = _insert_rows(db, now, jobs, PENDING, deltas)
    for job in new:
        if job.role is Role.HEAD:
            _add_batch(db, job, policy or BatchPolicy(), own_expander=True)
    # Only for what is new: repeating an insert is harmless, also after the batch was sealed.
    _check_open(db, {job.batch_id for job in new if job.batch_id is not None})
    deltas.write(db, now)
    return Inserted(len(new))


def open_batch(
    db: apsw.Connection,
    now: int,
    head: NewJob,
    items: Sequence[NewJob],
    policy: BatchPolicy | None,
    sealed: bool,
) -> Inserted:
    """Insert a head that its producer expands, with its first items."""
    deltas = Deltas()
    new = len(_insert_rows(db, now, [head], RUNNING, deltas))
    if new:
        _add_batch(db, head, policy or BatchPolicy(), own_expander=False)
    if _insert_rows(db, now, items, PENDING, deltas):
        _check_open(db, {head.id})
    deltas.write(db, now)
    if sealed:
        seal(db, now, raw_id(head.id))
    return Inserted(new)


def seal(db: apsw.Connection, now: int, batch: bytes) -> None:
    """All items are in; an empty or already finished batch settles at once."""
    db.execute("UPDATE batches SET sealed = 1 WHERE id = ?", (batch,))
    settle_done(db, now, [batch])


def _insert_rows(
    db: apsw.Connection, now: int, jobs: Sequence[NewJob], state: int, deltas: Deltas
) -> Sequence[NewJob]:
    """Insert the rows and count them; returns the jobs that were new."""
    rows = [_row(job, now, state) for job in jobs]
    before = db.total_changes()
    db.executemany(_INSERT, rows)
    new: Sequence[NewJob] = jobs
    if db.total_changes() - before != len(jobs):
        new = _really_new(db, jobs, rows, before)
    for job in new:
        batch = raw_id(job.batch_id) if job.batch_id is not None else None
        deltas.added(job.queue, job.kind, ROLE_CODE[job.role], batch, state)
    return new


def _really_new(
    db: apsw.Connection, jobs: Sequence[NewJob], rows: list[Row], before: int
) -> list[NewJob]:
    """Some ids existed already; ours are the newest rows of this transaction.

    Rare (a producer that repeats itself after a crash), so the common path need not ask.
    """
    inserted = db.total_changes() - before
    newest = fetch(db, "SELECT id FROM jobs ORDER BY seq DESC LIMIT ?", (inserted,))
    fresh = {row[0] for row in newest}
    new = []
    for job, row in zip(jobs, rows, strict=True):
        if row[0] in fresh:
            fresh.remove(row[0])
            new.append(job)
    return new


def _row(job: NewJob, now: int, state: int) -> Row:
    # An instant in the past counts as now, or a producer could jump the line by naming one.
    run_at = now + job.delay if job.run_at is None else max(job.run_at, now)
    ready = run_at <= now
    return (
        raw_id(job.id),
        job.kind,
        job.queue,
        ROLE_CODE[job.role],
        job.version,
        job.payload,
        state,
        rank_of(run_at, job.priority) if ready else None,
        job.priority,
        run_at,
        job.key,
        raw_id(job.batch_id) if job.batch_id is not None else None,
        job.position,
        retry_to_text(job.retry) if job.retry is not None else None,
        now,
    )


def _add_batch(
    db: apsw.Connection, head: NewJob, policy: BatchPolicy, *, own_expander: bool
) -> None:
    db.execute(
        "INSERT INTO batches (id, own_expander, finish_kind, finish_queue) VALUES (?, ?, ?, ?)",
        (
            raw_id(head.id),
            own_expander,
            policy.finish and policy.finish.kind,
            policy.finish and policy.finish.queue,
        ),
    )


def _check_fence(db: apsw.Connection, fence: Fence) -> None:
    held = fetch(
        db,
        "SELECT 1 FROM jobs WHERE id = ? AND lease = ? AND state = ?",
        (raw_id(fence.job_id), fence.lease, RUNNING),
    )
    if not held:
        raise LeaseLostError(f"job {fence.job_id} is no longer held by lease {fence.lease}")


def _check_open(db: apsw.Connection, batch_ids: set[str]) -> None:
    for batch_id in batch_ids:
        rows = fetch(
            db,
            "SELECT b.sealed, b.cancel FROM batches b JOIN jobs j ON j.id = b.id "
            "WHERE b.id = ? AND j.role = ?",
            (raw_id(batch_id), HEAD),
        )
        if not rows:
            raise JobStateError(f"there is no batch {batch_id} to add items to")
        if rows[0][0] or rows[0][1]:
            why = "cancelled" if rows[0][1] else "sealed"
            raise JobStateError(f"batch {batch_id} is {why}: no items can be added")
