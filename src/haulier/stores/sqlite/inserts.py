"""New jobs, and batches while they are being filled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import apsw

from haulier.domain import flow
from haulier.domain.batch import BatchPolicy
from haulier.domain.event import INSERTED
from haulier.domain.ids import derived_id, raw_id, text_id
from haulier.domain.job import NewJob, Role
from haulier.domain.unique import Conflict
from haulier.exceptions import JobNotFoundError, JobStateError, LeaseLostError
from haulier.ports import Fence, Inserted
from haulier.stores.codes import (
    HEADS,
    ON_LOST_CODE,
    PARKED,
    PENDING,
    ROLE_CODE,
    RUNNING,
    rank_of,
    raw_once,
    retry_to_text,
)
from haulier.stores.packed import ENTRY
from haulier.stores.sqlite import control, flows, gates, nesting, uniques
from haulier.stores.sqlite.lanes import Lanes
from haulier.stores.sqlite.ledger import Ledger
from haulier.stores.sqlite.rows import (
    Row,
    fetch,
)
from haulier.stores.sqlite.rules import rules_of
from haulier.stores.sqlite.settling import (
    CANCELLED_BY_REQUEST,
    CUT_SHORT,
    follow_up,
    settle_done,
)

_INSERT = (
    "INSERT INTO jobs (id, kind, queue, role, version, payload, state, rank, priority, run_at, "
    "key, batch, position, retry, created_at, gate, on_lost, uniq, lease, baggage, lane) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO NOTHING"
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
    if not any(job.after for job in jobs):
        return _insert(db, now, jobs, policy)
    flow.check(jobs)
    there = flows.those_there(db, jobs)
    inserted = _insert(db, now, jobs, policy)
    flows.add(db, jobs, there, inserted.instead)
    return inserted


def _insert(
    db: apsw.Connection, now: int, jobs: Sequence[NewJob], policy: BatchPolicy | None
) -> Inserted:
    batches = {job.batch_id for job in jobs if job.batch_id is not None}
    gated = gates.gated_batches(db) if batches else frozenset()
    if any(job.unique for job in jobs):
        return _insert_unique(db, now, jobs, policy, gated)
    new = _insert_rows(db, now, jobs, PENDING, gated)
    for job in new:
        if job.role.heads:
            _add_batch(db, job, policy or BatchPolicy(), own_expander=True)
    # Only for what is new: repeating an insert is harmless, also after the batch was sealed.
    _check_open(db, {job.batch_id for job in new if job.batch_id is not None})
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
    new = 0
    if head.unique:
        inserted = _insert_one(db, now, head, RUNNING, frozenset())
        if inserted.instead:
            return inserted
        new = inserted.new
    else:
        new = len(_insert_rows(db, now, [head], RUNNING, frozenset()))
    if new:
        _add_batch(db, head, policy or BatchPolicy(), own_expander=False)
    if _insert_rows(db, now, items, PENDING, gates.gated_batches(db)):
        _check_open(db, {head.id})
    if sealed:
        seal(db, now, raw_id(head.id))
    return Inserted(new)


def seal(db: apsw.Connection, now: int, batch: bytes) -> None:
    """All items are in; an empty or already finished batch settles at once."""
    db.execute("UPDATE batches SET sealed = 1 WHERE id = ?", (batch,))
    if not db.changes():
        raise JobNotFoundError(text_id(batch))
    settle_done(db, now, batch)


def _insert_unique(
    db: apsw.Connection,
    now: int,
    jobs: Sequence[NewJob],
    policy: BatchPolicy | None,
    gated: frozenset[bytes],
) -> Inserted:
    """One by one, as each has to see the names that those before it took."""
    new = 0
    instead: dict[str, str] = {}
    if all(_holds_by_itself(job) for job in jobs):
        return _insert_keyed(db, now, jobs, gated)
    for job in jobs:
        inserted = _insert_one(db, now, job, PENDING, gated)
        if inserted.new and job.batch_id is not None:
            _check_open(db, {job.batch_id})
        if inserted.new and job.role.heads:
            _add_batch(db, job, policy or BatchPolicy(), own_expander=True)
        new += inserted.new
        instead |= inserted.instead
    return Inserted(new, instead)


def _holds_by_itself(job: NewJob) -> bool:
    """Whether a name of the job is held as soon as it is taken, also before its row is there."""
    keyed = all(each.conflict is Conflict.MATCH for each in job.unique)
    return keyed and not job.role.heads and job.batch_id is None


def _insert_keyed(
    db: apsw.Connection, now: int, jobs: Sequence[NewJob], gated: frozenset[bytes]
) -> Inserted:
    """Jobs with idempotency keys, as a stream brings them: their rows are inserted together."""
    instead: dict[str, str] = {}
    fresh = []
    for job in jobs:
        if fetch(db, "SELECT 1 FROM jobs WHERE id = ?", (raw_id(job.id),)):
            continue
        verdict = uniques.judge(db, now, job)
        if verdict.instead is not None:
            instead[job.id] = text_id(verdict.instead)
            continue
        uniques.take(db, now, job)
        fresh.append(job)
    return Inserted(len(_insert_rows(db, now, fresh, PENDING, gated)), instead)


def _insert_one(
    db: apsw.Connection, now: int, job: NewJob, state: int, gated: frozenset[bytes]
) -> Inserted:
    if fetch(db, "SELECT 1 FROM jobs WHERE id = ?", (raw_id(job.id),)):
        # Repeated: who holds the names by now is no longer its affair.
        return Inserted(0)
    verdict = uniques.judge(db, now, job)
    if verdict.instead is not None:
        return Inserted(0, {job.id: text_id(verdict.instead)})
    control.replace(db, now, verdict.replaced, job.id)
    uniques.take(db, now, job)
    return Inserted(len(_insert_rows(db, now, [job], state, gated)))


def _insert_rows(
    db: apsw.Connection, now: int, jobs: Sequence[NewJob], state: int, gated: frozenset[bytes]
) -> Sequence[NewJob]:
    """Insert the rows and account for them; returns the jobs that were new."""
    leases = _leases(db, jobs)
    rules = rules_of(db)
    lanes = Lanes(db, now, rules) if rules is not None and state == PENDING else None
    rows = [_row(job, now, state, gated, leases, lanes) for job in jobs]
    if lanes is not None:
        lanes.open()
    before = db.total_changes()
    db.executemany(_INSERT, rows)
    new: Sequence[NewJob] = jobs
    if db.total_changes() - before != len(jobs):
        new, rows = _really_new(db, jobs, rows, before)
    ledger = Ledger()
    for row in rows:
        ledger.group(INSERTED, row[2], row[1], row[3], row[11], None, state, None).append(
            ENTRY.pack(row[0], 0, row[18])
        )
    follow_up(db, now, ledger.write(db, now))
    return new


def _really_new(
    db: apsw.Connection, jobs: Sequence[NewJob], rows: list[Row], before: int
) -> tuple[list[NewJob], list[Row]]:
    """Some ids existed already; ours are the newest rows of this transaction.

    Rare (a producer that repeats itself after a crash), so the common path need not ask.
    """
    inserted = db.total_changes() - before
    newest = fetch(db, "SELECT id FROM jobs ORDER BY seq DESC LIMIT ?", (inserted,))
    fresh = {row[0] for row in newest}
    new, new_rows = [], []
    for job, row in zip(jobs, rows, strict=True):
        if row[0] in fresh:
            fresh.remove(row[0])
            new.append(job)
            new_rows.append(row)
    return new, new_rows


def _leases(db: apsw.Connection, jobs: Sequence[NewJob]) -> dict[bytes | None, int]:
    """Where the leases of items begin: a head that expands anew makes jobs of the same ids."""
    batches = {raw_once(job.batch_id) for job in jobs if job.batch_id is not None}
    return {
        batch: row[0]
        for batch in batches
        for row in fetch(db, "SELECT leases FROM batches WHERE id = ? AND leases > 0", (batch,))
    }


def _row(
    job: NewJob,
    now: int,
    state: int,
    gated: frozenset[bytes],
    leases: dict[bytes | None, int],
    lanes: Lanes | None,
) -> Row:
    # An instant in the past counts as now, or a producer could jump the line by naming one.
    run_at = now + job.delay if job.run_at is None else max(job.run_at, now)
    ready = run_at <= now
    batch = raw_once(job.batch_id) if job.batch_id is not None else None
    lane = None
    if lanes is not None and ready and lanes.limited(job.queue, job.kind):
        # What its batch allows is looked at when it is its lane's turn.
        lane = lanes.ready(
            lanes.of(job.queue, job.kind, job.key, batch, ROLE_CODE[job.role]), job.priority
        )
    parked = ready and lane is None and batch in gated
    return (
        raw_id(job.id),
        job.kind,
        job.queue,
        ROLE_CODE[job.role],
        job.version,
        job.payload,
        state,
        rank_of(run_at, job.priority) if ready and not parked else None,
        job.priority,
        run_at,
        job.key,
        batch,
        job.position,
        retry_to_text(job.retry) if job.retry is not None else None,
        now,
        PARKED if parked else None,
        ON_LOST_CODE[job.on_lost],
        uniques.names_to_text(job.unique),
        leases.get(batch, 0),
        job.baggage,
        lane,
    )


def _add_batch(
    db: apsw.Connection, head: NewJob, policy: BatchPolicy, *, own_expander: bool
) -> None:
    db.execute(
        "INSERT INTO batches (id, own_expander, finish_kind, finish_queue, concurrency, "
        "batch_size, max_failures, gated, round) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            raw_id(head.id),
            own_expander,
            policy.finish and policy.finish.kind,
            policy.finish and policy.finish.queue,
            policy.concurrency,
            policy.batch_size,
            policy.max_failures,
            policy.concurrency is not None or policy.batch_size is not None,
            _first_round(db, head.id) if policy.finish else 0,
        ),
    )
    if head.role is Role.INNER:
        assert head.batch_id is not None
        _put_within(db, raw_id(head.id), raw_id(head.batch_id))


def _put_within(db: apsw.Connection, batch: bytes, outer: bytes) -> None:
    """A new batch lies within another one: paused like it, with leases above all used there."""
    nesting.depth_within(db, outer)
    db.execute(
        "UPDATE batches SET within = ?1, (paused, leases) = "
        "(SELECT iif(paused > 0, ?2, 0), leases FROM batches WHERE id = ?1) WHERE id = ?3",
        (outer, nesting.FROM_AROUND, batch),
    )
    db.execute("UPDATE batches SET gated = 1 WHERE id = ? AND paused > 0", (batch,))


def _first_round(db: apsw.Connection, batch_id: str) -> int:
    """Where the rounds of a batch begin: an earlier one of its id may have left callbacks."""
    for number in count():
        callback = raw_id(derived_id(batch_id, f"finish/{number}"))
        if not fetch(db, "SELECT 1 FROM jobs WHERE id = ?", (callback,)):
            return number
    raise AssertionError


def _check_fence(db: apsw.Connection, fence: Fence) -> None:
    held = fetch(
        db,
        "SELECT 1 FROM jobs WHERE id = ? AND lease = ? AND state = ?",
        (raw_id(fence.job_id), fence.lease, RUNNING),
    )
    if not held:
        raise LeaseLostError(f"job {fence.job_id} is no longer held by lease {fence.lease}")


_CLOSED = {
    0: "sealed",
    CANCELLED_BY_REQUEST: "cancelled",
    CUT_SHORT: "cut short, too many of its items failed",
}


def _check_open(db: apsw.Connection, batch_ids: set[str]) -> None:
    for batch_id in batch_ids:
        rows = fetch(
            db,
            "SELECT b.sealed, b.cancel FROM batches b JOIN jobs j ON j.id = b.id "
            "WHERE b.id = ? AND j.role IN (?, ?)",
            (raw_id(batch_id), *HEADS),
        )
        if not rows:
            raise JobStateError(f"there is no batch {batch_id} to add items to")
        if rows[0][0] or rows[0][1]:
            why = _CLOSED[rows[0][1]]
            raise JobStateError(f"batch {batch_id} is {why}: no items can be added")
