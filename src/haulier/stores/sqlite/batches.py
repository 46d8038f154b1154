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
from haulier.stores.codes import (
    CANCELLED,
    FAILED,
    PARKED,
    PENDING,
    RUNNING,
    STATE_CODE,
    WAITING,
    rank_of,
)
from haulier.stores.sqlite import flows, gates, kept, uniques
from haulier.stores.sqlite.ledger import SUBJECT, Ledger, Subject
from haulier.stores.sqlite.rows import (
    Row,
    fetch,
)
from haulier.stores.sqlite.settling import (
    CANCELLING,
    DELETING,
    PAUSING,
    PRUNING,
    RESTARTING,
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
RETURNING seq, {SUBJECT}
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

REVIVED = "iif(children IS NULL, NULL, 3)"
"""`children` of a job that is requeued: those that were cancelled because of it come back."""

_REQUEUE = f"""
UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, cancel = 0,
    children = {REVIVED}, run_at = :now,
    rank = CASE WHEN :gated THEN NULL ELSE :now - priority * {_POINT} END,
    gate = CASE WHEN :gated THEN {PARKED} END
WHERE seq IN (SELECT seq FROM jobs INDEXED BY jobs_failed
              WHERE batch = :batch AND state = {FAILED}
              AND seq > :cursor AND seq <= :cursor + {LOOKED_AT}
              AND (:type IS NULL OR error ->> 'type' = :type) ORDER BY seq LIMIT :slice)
RETURNING seq, {SUBJECT}
"""

_STATE = (
    "SELECT j.state, b.failed, b.sealed, b.draining, b.cancel, b.paused, j.id, j.attempt, "
    "j.lease, j.queue, j.kind, j.role, j.batch "
    "FROM jobs j JOIN batches b ON j.id = b.id WHERE j.id = ?"
)

_RETRY_UNDER_WAY = "SELECT retry_type, retry_left, gated FROM batches WHERE id = ?"


def _head(db: apsw.Connection, batch: bytes) -> tuple[Row, Subject]:
    """The state of a batch, and its head; raises JobNotFoundError."""
    rows = fetch(db, _STATE, (batch,))
    if not rows:
        raise JobNotFoundError(text_id(batch))
    return rows[0][:6], Subject(*rows[0][6:])


# ── Begin ────────────────────────────────────────────────────────────────────────────────────


def begin_retry(
    db: apsw.Connection, now: int, batch: bytes, error_type: str | None, limit: int | None
) -> bool:
    """Reopen the head of a settled batch; draining then requeues its failed items.

    False if there is none to requeue.
    """
    (state, failed, sealed, draining, cancel, _), head = _head(db, batch)
    if draining or (cancel and state == RUNNING):
        raise JobStateError("a cancel, retry, pause or delete of this batch is still under way")
    if not sealed:
        raise JobStateError("this batch was never completely filled; start it anew")
    if not failed or limit == 0:
        return False
    if state != RUNNING:
        if error_type is not None and not _any_failed(db, batch, error_type):
            return False
        reopen_head(db, now, head, state)
    db.execute(
        "UPDATE batches SET draining = ?, drained = 0, moved = 0, retry_type = ?, retry_left = ? "
        "WHERE id = ?",
        (RETRYING, error_type, limit, batch),
    )
    return True


def _any_failed(db: apsw.Connection, batch: bytes, error_type: str) -> bool:
    return bool(
        fetch(
            db,
            f"SELECT 1 FROM jobs INDEXED BY jobs_failed WHERE batch = ? AND state = {FAILED} "
            "AND error ->> 'type' = ? LIMIT 1",
            (batch, error_type),
        )
    )


def reopen_head(db: apsw.Connection, now: int, head: Subject, state: int) -> None:
    """A settled head runs again, because some of its items do."""
    ((sealed, uniq),) = fetch(
        db,
        "SELECT b.sealed, j.uniq FROM batches b JOIN jobs j ON j.id = b.id WHERE b.id = ?",
        (head.id,),
    )
    if state == PENDING or not sealed:
        raise JobStateError("this batch was never completely filled; start it anew")
    if not uniques.retake(db, now, head.id, uniq):
        raise JobStateError("another batch holds the unique name of this one by now")
    db.execute(
        f"UPDATE jobs SET state = {RUNNING}, finished_at = NULL, result = NULL, error = NULL, "
        f"children = {REVIVED} WHERE id = ?",
        (head.id,),
    )
    db.execute(
        "UPDATE batches SET cancel = 0, owed = 1, finish_job = NULL, gated = paused OR "
        "concurrency IS NOT NULL OR batch_size IS NOT NULL WHERE id = ?",
        (head.id,),
    )
    ledger = Ledger()
    ledger.moved(Move.REOPEN, head, state, RUNNING)
    ledger.write(db, now)


def begin_delete(db: apsw.Connection, batch: bytes, *, pruned: bool = False) -> None:
    """Mark a batch as being deleted; `drain` then removes its items, and the head with the last.

    `pruned`: by retention, which leaves names that are held for a period.
    """
    _begin(db, batch, PRUNING if pruned else DELETING)


def begin_restart(db: apsw.Connection, batch: bytes) -> None:
    """Mark a batch as starting anew; `drain` removes its items and then requeues the head."""
    _begin(db, batch, RESTARTING)


def _begin(db: apsw.Connection, batch: bytes, what: int) -> None:
    db.execute(
        "UPDATE batches SET draining = ?, drained = 0, moved = 0 WHERE id = ?", (what, batch)
    )


def begin_pause(db: apsw.Connection, now: int, batch: bytes) -> bool:
    """From here on nothing of the batch is claimed; draining takes its items out of the line."""
    return _switch(db, now, batch, paused=True)


def begin_resume(db: apsw.Connection, now: int, batch: bytes) -> bool:
    """Let the gate open again; draining puts the items of a batch without limits into the line."""
    return _switch(db, now, batch, paused=False)


def _switch(db: apsw.Connection, now: int, batch: bytes, *, paused: bool) -> bool:
    """Pause or resume; false if it is so already."""
    (state, _, _, draining, cancel, is_paused), head = _head(db, batch)
    if state not in (PENDING, RUNNING) or cancel:
        raise JobStateError("this batch has ended, or is being cancelled")
    if draining not in (0, PAUSING, RESUMING):
        raise JobStateError("a retry or delete of this batch is still under way")
    if paused == bool(is_paused):
        return False
    db.execute(
        "UPDATE batches SET paused = ?1, drained = 0, moved = 0, draining = CASE WHEN ?1 THEN ?2 "
        "WHEN concurrency IS NULL AND batch_size IS NULL THEN ?3 ELSE 0 END, "
        "gated = ?1 OR concurrency IS NOT NULL OR batch_size IS NOT NULL WHERE id = ?4",
        (paused, PAUSING, RESUMING, batch),
    )
    ledger = Ledger()
    ledger.moved(PAUSED if paused else RESUMED, head, state, state)
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
    return [batch for batch in batches if drain(db, now, batch)]


def drain(db: apsw.Connection, now: int, batch: bytes) -> bool:
    """One slice of the work under way; whether there is more of it.

    How far it has come is kept with the batch, not with the caller: several may be at it, and what
    is under way may become something else meanwhile.
    """
    rows = fetch(db, "SELECT draining, drained FROM batches WHERE id = ?", (batch,))
    under_way, cursor = rows[0] if rows else (0, 0)
    if not under_way:
        return False
    count, following = _SLICES[under_way](db, now, batch, cursor)
    if following is not None:
        db.execute(
            "UPDATE batches SET drained = ?, moved = moved + ? WHERE id = ?",
            (following, count, batch),
        )
        return True
    db.execute("UPDATE batches SET draining = 0, moved = moved + ? WHERE id = ?", (count, batch))
    if under_way == RESTARTING:
        _restart(db, now, batch)
    else:
        settle_done(db, now, batch)
    return False


def moved(db: apsw.Connection, batch: bytes) -> int:
    """How many items the last work on a whole batch concerned."""
    rows = fetch(db, "SELECT moved FROM batches WHERE id = ?", (batch,))
    return int(rows[0][0]) if rows else 0


def _following(db: apsw.Connection, batch: bytes, cursor: int, rows: list[Row]) -> int | None:
    """Where the next slice of a walk over all items begins; None at the end."""
    if len(rows) == SLICE:
        return int(max(row[0] for row in rows))
    ((following,),) = fetch(
        db, "SELECT min(seq) FROM jobs WHERE batch = ? AND seq > ?", (batch, cursor + LOOKED_AT)
    )
    return None if following is None else int(following) - 1


def _drop_slice(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[int, int | None]:
    dropped = fetch(db, _DROP, {"now": now, "batch": batch, "cursor": cursor})
    ledger = Ledger()
    for _, *item in dropped:
        ledger.moved(Move.DROP, Subject(*item), PENDING, CANCELLED)
    following = _following(db, batch, cursor, dropped)
    if following is None:
        # Items claimed between two slices are running by now.
        tell_running(db, now, batch)
    ledger.write(db, now)
    return len(dropped), following


def _requeue_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    ((error_type, left, gated),) = fetch(db, _RETRY_UNDER_WAY, (batch,))
    requeued = fetch(
        db,
        _REQUEUE,
        {
            "now": now,
            "batch": batch,
            "gated": gated,
            "type": error_type,
            "slice": SLICE if left is None else min(SLICE, left),
            "cursor": cursor,
        },
    )
    ledger = Ledger()
    for _, *item in requeued:
        ledger.moved(Move.REQUEUE, Subject(*item), FAILED, PENDING)
    if left is not None:
        left -= len(requeued)
        db.execute("UPDATE batches SET retry_left = ? WHERE id = ?", (left, batch))
    follow_up(db, now, ledger.write(db, now))
    following = None if left == 0 else _following(db, batch, cursor, requeued)
    return len(requeued), following


def _park_slice(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[int, int | None]:
    del now
    parked = fetch(db, _PARK, {"batch": batch, "cursor": cursor})
    return len(parked), _following(db, batch, cursor, parked)


def _unpark_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    del now, cursor
    db.execute(_UNPARK, (batch,))
    count = db.changes()
    return count, None if count < SLICE else 0


def _delete_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    return _delete_items(db, now, batch, cursor, with_periods=True)


def _prune_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    return _delete_items(db, now, batch, cursor, with_periods=False)


def _delete_items(
    db: apsw.Connection, now: int, batch: bytes, cursor: int, *, with_periods: bool
) -> tuple[int, int | None]:
    """Remove items, with the last ones the head too. The batch's counters go with it."""
    rows = fetch(db, _DELETE, (batch,))
    count = len(rows)
    over = count < DELETED_AT_ONCE
    if over:
        rows += fetch(db, f"DELETE FROM jobs WHERE id = ? {REMOVED}", (batch,))
        db.execute("DELETE FROM batches WHERE id = ?", (batch,))
    ledger = Ledger()
    removed(db, ledger, rows, uncounted=True, with_periods=with_periods)
    ledger.write(db, now)
    return count, None if over else cursor


def _clear_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    """Remove items whose head makes them anew: with the same ids, so their leases go on."""
    rows = fetch(db, _DELETE, (batch,))
    ledger = Ledger()
    removed(db, ledger, rows)
    ledger.write(db, now)
    highest = max((Subject(*row[4:]).lease for row in rows), default=0)
    db.execute("UPDATE batches SET leases = max(leases, ?) WHERE id = ?", (highest, batch))
    return len(rows), None if len(rows) < DELETED_AT_ONCE else cursor


def _restart(db: apsw.Connection, now: int, batch: bytes) -> None:
    """The items are gone: the head is pending again and will expand."""
    db.execute(
        "UPDATE batches SET sealed = 0, cancel = 0, owed = 1, started_at = NULL, "
        "finish_job = NULL, gated = paused OR concurrency IS NOT NULL OR batch_size IS NOT NULL "
        "WHERE id = ?",
        (batch,),
    )
    ((state, *_), head) = _head(db, batch)
    ((seq,),) = fetch(db, "SELECT seq FROM jobs WHERE id = ?", (batch,))
    waits = flows.wait_again(db, seq)
    db.execute(
        f"UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, "
        f"cancel = 0, children = {REVIVED}, run_at = ?1, "
        f"rank = iif(?3, NULL, ?1 - priority * {_POINT}), gate = iif(?3, {WAITING}, NULL) "
        "WHERE id = ?2",
        (now, batch, waits),
    )
    ledger = Ledger()
    ledger.moved(Move.REQUEUE, head._replace(attempt=0), state, PENDING)
    ledger.write(db, now)


_SLICES = {
    CANCELLING: _drop_slice,
    RETRYING: _requeue_slice,
    DELETING: _delete_slice,
    PAUSING: _park_slice,
    RESUMING: _unpark_slice,
    PRUNING: _prune_slice,
    RESTARTING: _clear_slice,
}

REMOVED = f"RETURNING seq, state, uniq, children, {SUBJECT}"
"""What `removed` has to be told of deleted rows."""

_DELETE = (
    f"DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE batch = ? LIMIT {DELETED_AT_ONCE}) "
    f"{REMOVED}"
)


def removed(
    db: apsw.Connection,
    ledger: Ledger,
    rows: Iterable[Row],
    *,
    uncounted: bool = False,
    with_periods: bool = True,
) -> None:
    """Account for deleted jobs, and remove what was kept beside them."""
    for seq, state, uniq, children, *job in rows:
        db.execute("DELETE FROM errors WHERE job = ?", (seq,))
        kept.forget(db, seq)
        flows.forget(db, seq, job[0], state, children)
        if uniq is not None and with_periods:
            uniques.forget(db, job[0])
        elif uniq is not None:
            uniques.release_ended(db, job[0])
        ledger.moved(DELETED, Subject(*job), state, None, uncounted=uncounted)
