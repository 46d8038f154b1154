"""Whole batches at once: cancel, retry, pause, resume, delete, in slices that block no claim.

A batch with such work under way is marked `draining`. Whoever began it goes on until it is done;
if that process dies, the next sweep of any worker takes it up.
"""

from __future__ import annotations

from collections.abc import Iterable

import apsw

from haulier.domain.event import DELETED, PAUSED, RESUMED
from haulier.domain.ids import text_id
from haulier.domain.moves import RULES, Move
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.stores.sqlite import gates, uniques
from haulier.stores.sqlite.ledger import Ledger
from haulier.stores.sqlite.rows import (
    CANCELLED,
    FAILED,
    HEAD,
    ITEM,
    PARKED,
    PENDING,
    RUNNING,
    STATE_CODE,
    Row,
    fetch,
    rank_of,
)
from haulier.stores.sqlite.settling import (
    CANCELLING,
    DELETING,
    PAUSING,
    RESUMING,
    RETRYING,
    follow_up,
    settle_done,
    tell_running,
)

SLICE = 500
"""Items that one slice moves: a few milliseconds."""

DELETED_AT_ONCE = 250
"""A row leaves all its indexes when it is deleted, which takes longer than to move it."""

LOOKED_AT = 10_000
"""Sequence numbers that one slice covers at most: of a large batch most may be done already."""

_POINT = rank_of(0, -1)

_WALK = f"batch = :batch AND seq > :cursor AND seq <= :cursor + {LOOKED_AT} AND state = {PENDING}"

_DROP = f"""
UPDATE jobs SET state = {STATE_CODE[RULES[Move.DROP].target]}, rank = NULL, gate = NULL,
    finished_at = :now
WHERE seq IN (SELECT seq FROM jobs WHERE {_WALK} ORDER BY seq LIMIT {SLICE})
RETURNING seq, id, attempt, lease, queue, kind
"""

_PARK = f"""
UPDATE jobs SET rank = NULL, gate = {PARKED}
WHERE seq IN (SELECT seq FROM jobs WHERE {_WALK} AND rank IS NOT NULL ORDER BY seq LIMIT {SLICE})
RETURNING seq
"""

_UNPARK = f"""
UPDATE jobs SET rank = run_at - priority * {_POINT}, gate = NULL
WHERE seq IN (SELECT seq FROM jobs WHERE batch = ? AND state = {PENDING} AND gate = {PARKED}
              ORDER BY run_at - priority * {_POINT}, seq LIMIT {SLICE})
"""

_REQUEUE = f"""
UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, cancel = 0,
    run_at = :now, rank = CASE WHEN :gated THEN NULL ELSE :now - priority * {_POINT} END,
    gate = CASE WHEN :gated THEN {PARKED} END
WHERE seq IN (SELECT seq FROM jobs WHERE batch = :batch AND state = {FAILED} AND seq > :cursor
              AND (:type IS NULL OR error ->> 'type' = :type) ORDER BY seq LIMIT :slice)
RETURNING seq, id, lease, queue, kind
"""

_STATE = (
    "SELECT j.state, j.queue, j.kind, j.attempt, j.lease, b.failed, b.sealed, b.draining, "
    "b.cancel, b.paused FROM jobs j JOIN batches b ON j.id = b.id WHERE j.id = ?"
)

_RETRY_UNDER_WAY = "SELECT retry_type, retry_left, gated FROM batches WHERE id = ?"


def _look(db: apsw.Connection, batch: bytes) -> Row:
    rows = fetch(db, _STATE, (batch,))
    if not rows:
        raise JobNotFoundError(text_id(batch))
    return rows[0]


# ── Begin ────────────────────────────────────────────────────────────────────────────────────


def begin_retry(
    db: apsw.Connection, now: int, batch: bytes, error_type: str | None, limit: int | None
) -> None:
    """Reopen the head of a settled batch; draining then requeues its failed items."""
    state, queue, kind, attempt, lease, failed, sealed, draining, cancel, _ = _look(db, batch)
    if draining or (cancel and state == RUNNING):
        raise JobStateError("a cancel, retry, pause or delete of this batch is still under way")
    if not sealed:
        raise JobStateError("this batch was never completely filled; start it anew")
    if not failed or limit == 0:
        return
    if state != RUNNING:
        if error_type is not None and not _any_failed(db, batch, error_type):
            return
        reopen_head(db, now, batch, (queue, kind, state, attempt, lease))
    db.execute(
        "UPDATE batches SET draining = ?, retry_type = ?, retry_left = ? WHERE id = ?",
        (RETRYING, error_type, limit, batch),
    )


def _any_failed(db: apsw.Connection, batch: bytes, error_type: str) -> bool:
    return bool(
        fetch(
            db,
            f"SELECT 1 FROM jobs WHERE batch = ? AND state = {FAILED} "
            "AND error ->> 'type' = ? LIMIT 1",
            (batch, error_type),
        )
    )


def reopen_head(db: apsw.Connection, now: int, batch: bytes, head: Row) -> None:
    """A settled head runs again, because some of its items do."""
    queue, kind, state, attempt, lease = head
    ((sealed,),) = fetch(db, "SELECT sealed FROM batches WHERE id = ?", (batch,))
    if state == PENDING or not sealed:
        raise JobStateError("this batch was never completely filled; start it anew")
    db.execute(
        f"UPDATE jobs SET state = {RUNNING}, finished_at = NULL, result = NULL, error = NULL "
        "WHERE id = ?",
        (batch,),
    )
    db.execute(
        "UPDATE batches SET cancel = 0, owed = 1, finish_job = NULL, gated = paused OR "
        "concurrency IS NOT NULL OR batch_size IS NOT NULL WHERE id = ?",
        (batch,),
    )
    ledger = Ledger()
    ledger.moved(
        Move.REOPEN,
        (batch, attempt, lease),
        queue=queue,
        kind=kind,
        role=HEAD,
        batch=None,
        source=state,
        target=RUNNING,
    )
    ledger.write(db, now)


def begin_delete(db: apsw.Connection, batch: bytes) -> None:
    """Mark a batch as being deleted; `drain` then removes its items, and the head with the last."""
    db.execute("UPDATE batches SET draining = ? WHERE id = ?", (DELETING, batch))


def begin_pause(db: apsw.Connection, now: int, batch: bytes) -> bool:
    """From here on nothing of the batch is claimed; draining takes its items out of the line."""
    return _switch(db, now, batch, paused=True)


def begin_resume(db: apsw.Connection, now: int, batch: bytes) -> bool:
    """Let the gate open again; draining puts the items of a batch without limits into the line."""
    return _switch(db, now, batch, paused=False)


def _switch(db: apsw.Connection, now: int, batch: bytes, *, paused: bool) -> bool:
    """Pause or resume; false if it is so already."""
    state, queue, kind, attempt, lease, _, _, draining, cancel, is_paused = _look(db, batch)
    if state not in (PENDING, RUNNING) or cancel:
        raise JobStateError("this batch has ended, or is being cancelled")
    if draining not in (0, PAUSING, RESUMING):
        raise JobStateError("a retry or delete of this batch is still under way")
    if paused == bool(is_paused):
        return False
    db.execute(
        "UPDATE batches SET paused = ?1, draining = CASE WHEN ?1 THEN ?2 "
        "WHEN concurrency IS NULL AND batch_size IS NULL THEN ?3 ELSE 0 END, "
        "gated = ?1 OR concurrency IS NOT NULL OR batch_size IS NOT NULL WHERE id = ?4",
        (paused, PAUSING, RESUMING, batch),
    )
    ledger = Ledger()
    ledger.moved(
        PAUSED if paused else RESUMED,
        (batch, attempt, lease),
        queue=queue,
        kind=kind,
        role=HEAD,
        batch=None,
        source=state,
        target=state,
    )
    ledger.write(db, now)
    gates.let_in(db, now, batch)
    return True


# ── Go on ────────────────────────────────────────────────────────────────────────────────────


def draining_batches(db: apsw.Connection) -> list[bytes]:
    """Batches whose cancel, retry, pause or delete somebody has to go on with."""
    rows = fetch(db, "SELECT id FROM batches WHERE draining > 0")
    return [row[0] for row in rows]


def first_slices(db: apsw.Connection, now: int, batches: Iterable[bytes]) -> list[bytes]:
    """Do the first slice of each at once; returns those with more to do."""
    return [batch for batch in batches if drain(db, now, batch, 0)[1] is not None]


def drain(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[int, int | None]:
    """One slice of the work under way: how many items moved, and the next cursor or None."""
    rows = fetch(db, "SELECT draining FROM batches WHERE id = ?", (batch,))
    under_way = rows[0][0] if rows else 0
    if under_way == CANCELLING:
        return _drop_slice(db, now, batch, cursor)
    if under_way == RETRYING:
        return _requeue_slice(db, now, batch, cursor)
    if under_way == DELETING:
        return _delete_slice(db, now, batch)
    if under_way == PAUSING:
        return _park_slice(db, batch, cursor)
    if under_way == RESUMING:
        return _unpark_slice(db, batch)
    return 0, None


def _done(db: apsw.Connection, batch: bytes) -> None:
    db.execute("UPDATE batches SET draining = 0 WHERE id = ?", (batch,))


def _following(db: apsw.Connection, batch: bytes, cursor: int, seqs: list[int]) -> int | None:
    """Where the next slice of a walk over all items begins; None at the end."""
    if len(seqs) == SLICE:
        return max(seqs)
    ((following,),) = fetch(
        db, "SELECT min(seq) FROM jobs WHERE batch = ? AND seq > ?", (batch, cursor + LOOKED_AT)
    )
    return None if following is None else int(following) - 1


def _drop_slice(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[int, int | None]:
    dropped = fetch(db, _DROP, {"now": now, "batch": batch, "cursor": cursor})
    ledger = Ledger()
    for _, job, attempt, lease, queue, kind in dropped:
        ledger.moved(
            Move.DROP,
            (job, attempt, lease),
            queue=queue,
            kind=kind,
            role=ITEM,
            batch=batch,
            source=PENDING,
            target=CANCELLED,
        )
    following = _following(db, batch, cursor, [row[0] for row in dropped])
    if following is None:
        # Items claimed between two slices are running by now.
        tell_running(db, now, batch)
        _done(db, batch)
    ledger.write(db, now)
    settle_done(db, now, batch)
    return len(dropped), following


def _requeue_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    ((error_type, left, gated),) = fetch(db, _RETRY_UNDER_WAY, (batch,))
    size = SLICE if left is None else min(SLICE, left)
    requeued = fetch(
        db,
        _REQUEUE,
        {
            "now": now,
            "batch": batch,
            "gated": gated,
            "type": error_type,
            "slice": size,
            "cursor": cursor,
        },
    )
    ledger = Ledger()
    for _, job, lease, queue, kind in requeued:
        ledger.moved(
            Move.REQUEUE,
            (job, 0, lease),
            queue=queue,
            kind=kind,
            role=ITEM,
            batch=batch,
            source=FAILED,
            target=PENDING,
        )
    if left is not None:
        left -= len(requeued)
        db.execute("UPDATE batches SET retry_left = ? WHERE id = ?", (left, batch))
    over = len(requeued) < SLICE or left == 0
    if over:
        _done(db, batch)
    follow_up(db, now, ledger.write(db, now))
    if over:
        settle_done(db, now, batch)
    return len(requeued), None if over else max(row[0] for row in requeued)


def _park_slice(db: apsw.Connection, batch: bytes, cursor: int) -> tuple[int, int | None]:
    parked = fetch(db, _PARK, {"batch": batch, "cursor": cursor})
    following = _following(db, batch, cursor, [row[0] for row in parked])
    if following is None:
        _done(db, batch)
    return len(parked), following


def _unpark_slice(db: apsw.Connection, batch: bytes) -> tuple[int, int | None]:
    db.execute(_UNPARK, (batch,))
    count = db.changes()
    if count < SLICE:
        _done(db, batch)
    return count, None if count < SLICE else 0


def _delete_slice(db: apsw.Connection, now: int, batch: bytes) -> tuple[int, int | None]:
    rows = fetch(
        db,
        "DELETE FROM jobs WHERE seq IN "
        f"(SELECT seq FROM jobs WHERE batch = ? LIMIT {DELETED_AT_ONCE}) "
        "RETURNING seq, id, attempt, lease, queue, kind, state",
        (batch,),
    )
    ledger = Ledger()
    _remove(db, ledger, rows, ITEM, batch)
    done = len(rows) < DELETED_AT_ONCE
    if done:
        heads = fetch(
            db,
            "DELETE FROM jobs WHERE id = ? RETURNING seq, id, attempt, lease, queue, kind, state",
            (batch,),
        )
        _remove(db, ledger, heads, HEAD, None)
        uniques.forget(db, batch)
        db.execute("DELETE FROM batches WHERE id = ?", (batch,))
    ledger.write(db, now)
    return len(rows), None if done else 0


def _remove(
    db: apsw.Connection, ledger: Ledger, rows: list[Row], role: int, batch: bytes | None
) -> None:
    """Account for deleted rows and remove what was kept beside them."""
    db.executemany("DELETE FROM errors WHERE job = ?", [(row[0],) for row in rows])
    for _, job, attempt, lease, queue, kind, state in rows:
        ledger.moved(
            DELETED,
            (job, attempt, lease),
            queue=queue,
            kind=kind,
            role=role,
            batch=batch,
            source=state,
            target=None,
            uncounted=True,
        )


def remove_jobs(db: apsw.Connection, now: int, rows: list[Row]) -> None:
    """Account for single jobs that were deleted: (seq, id, attempt, lease, queue, kind, state)."""
    ledger = Ledger()
    _remove(db, ledger, rows, 0, None)
    for row in rows:
        uniques.forget(db, row[1])
    ledger.write(db, now)
