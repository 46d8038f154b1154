"""Whole batches at once: cancel, retry, pause, resume, delete, in slices that block no claim.

A batch with such work under way is marked `draining`. Whoever began it goes on until it is done;
if that process dies, the next sweep of any worker takes it up.
"""

from __future__ import annotations

from collections.abc import Iterable

import apsw

from haulier.domain.event import PAUSED, RESUMED
from haulier.domain.ids import text_id
from haulier.domain.moves import RULES, Move
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.stores.codes import (
    CANCELLED,
    FAILED,
    ITEM,
    PARKED,
    PENDING,
    RUNNING,
    STATE_CODE,
    WAITING,
    rank_of,
)
from haulier.stores.sqlite import altering, flows, gates, nesting, removing, uniques
from haulier.stores.sqlite.ledger import SUBJECT, Ledger, Subject
from haulier.stores.sqlite.nesting import FROM_AROUND, OWN
from haulier.stores.sqlite.rows import (
    Row,
    fetch,
)
from haulier.stores.sqlite.settling import (
    CANCELLED_BY_REQUEST,
    CANCELLING,
    DELETING,
    LIMITING,
    PAUSING,
    PRUNING,
    RESTARTING,
    RESUMING,
    RETRYING,
    begin_cancel,
    follow_up,
    settle_done,
    tell_running,
)

SLICE = 500
"""Items that one slice moves: a few milliseconds."""

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
WHERE seq IN (SELECT seq FROM jobs WHERE {_WALK} AND rank IS NOT NULL AND lane IS NULL
              ORDER BY seq LIMIT {SLICE})
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
    lane = NULL, children = {REVIVED}, run_at = :now,
    rank = CASE WHEN :gated THEN NULL ELSE :now - priority * {_POINT} END,
    gate = CASE WHEN :gated THEN {PARKED} END
WHERE seq IN (SELECT seq FROM jobs INDEXED BY jobs_failed
              WHERE batch = :batch AND state = {FAILED} AND role = {ITEM}
              AND seq > :cursor AND seq <= :cursor + {LOOKED_AT}
              AND (:type IS NULL OR error ->> 'type' = :type) ORDER BY seq LIMIT :slice)
RETURNING seq, {SUBJECT}
"""

_STATE = (
    "SELECT j.state, b.failed, b.sealed, b.draining, b.cancel, b.paused, j.id, j.attempt, "
    "j.lease, j.queue, j.kind, j.role, j.batch "
    "FROM jobs j JOIN batches b ON j.id = b.id WHERE j.id = ?"
)

_TOGGLE = "UPDATE batches SET paused = (paused | ?1) - (paused & ?1) WHERE id = ?2"

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
        if not _any_failed(db, batch, error_type):
            return False
        reopen_head(db, now, head, state)
    db.execute(
        "UPDATE batches SET draining = ?, drained = 0, moved = 0, retry_type = ?, retry_left = ? "
        "WHERE id = ?",
        (RETRYING, error_type, limit, batch),
    )
    return True


def _any_failed(db: apsw.Connection, batch: bytes, error_type: str | None) -> bool:
    return bool(
        fetch(
            db,
            f"SELECT 1 FROM jobs INDEXED BY jobs_failed WHERE batch = ?1 AND state = {FAILED} "
            f"AND role = {ITEM} AND (?2 IS NULL OR error ->> 'type' = ?2) LIMIT 1",
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
    if head.batch is not None:
        reopen_for_item(db, now, head.batch)
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


def reopen_for_item(db: apsw.Connection, now: int, batch: bytes) -> bool:
    """Reopen the batch of an item that runs again; whether it has a gate."""
    (state, _, _, draining, cancel, _), head = _head(db, batch)
    if draining in (DELETING, PRUNING, RESTARTING) or (cancel and state == RUNNING):
        raise JobStateError("a cancel or delete of this item's batch is still under way")
    if state != RUNNING:
        reopen_head(db, now, head, state)
    ((gated,),) = fetch(db, "SELECT gated FROM batches WHERE id = ?", (batch,))
    return bool(gated)


def begin_delete(db: apsw.Connection, batch: bytes, *, pruned: bool = False) -> None:
    """Mark a batch as being deleted; `drain` then removes its items, and the head with the last.

    `pruned`: by retention, which leaves names that are held for a period.
    """
    _begin(db, batch, PRUNING if pruned else DELETING)


def begin_restart(db: apsw.Connection, batch: bytes) -> None:
    """Mark a batch as starting anew; `drain` removes its items and then requeues the head."""
    _begin(db, batch, RESTARTING)
    # What it lies within must not settle meanwhile.
    db.execute("UPDATE batches SET owed = 1 WHERE id = ?", (batch,))


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
    if draining not in (0, PAUSING, RESUMING, LIMITING):
        raise JobStateError("a retry or delete of this batch is still under way")
    if paused == bool(is_paused & OWN):
        return False
    if is_paused & FROM_AROUND:
        # It is held by the batch around it; only whether it will be by itself has changed.
        db.execute(_TOGGLE, (OWN, batch))
    else:
        set_paused(db, batch, OWN if paused else 0)
    ledger = Ledger()
    ledger.moved(PAUSED if paused else RESUMED, head, state, state)
    ledger.write(db, now)
    gates.let_in(db, now, batch)
    return True


def set_paused(db: apsw.Connection, batch: bytes, paused: int) -> None:
    """Pause a batch that was not, or the other way about, and begin what that brings along."""
    db.execute(
        "UPDATE batches SET paused = ?1, drained = 0, moved = 0, draining = CASE "
        # In the midst of a retry; the pause follows it.
        f"WHEN draining NOT IN (0, {PAUSING}, {RESUMING}, {LIMITING}) THEN draining "
        "WHEN ?1 THEN ?2 "
        "WHEN concurrency IS NULL AND batch_size IS NULL THEN ?3 "
        # Got its limits while it was being paused: what still stands in the line is not let in.
        "WHEN draining = ?2 THEN ?5 "
        # Those within it are to be resumed as well.
        "WHEN EXISTS (SELECT 1 FROM batches i WHERE i.within = ?4 AND i.owed = 1) THEN ?5 "
        "ELSE 0 END, "
        "gated = ?1 OR concurrency IS NOT NULL OR batch_size IS NOT NULL WHERE id = ?4",
        (paused, PAUSING, RESUMING, batch, LIMITING),
    )


def _adapt(db: apsw.Connection, now: int, batch: bytes, *, cancel: bool, pause: bool) -> None:
    """Do to a batch what was done to the one around it."""
    if cancel:
        begin_cancel(db, now, batch, CANCELLED_BY_REQUEST)
        return
    (state, _, _, _, _, paused), head = _head(db, batch)
    if paused & OWN:
        db.execute(_TOGGLE, (FROM_AROUND, batch))
        return
    set_paused(db, batch, FROM_AROUND if pause else 0)
    ledger = Ledger()
    ledger.moved(PAUSED if pause else RESUMED, head, state, state)
    ledger.write(db, now)
    gates.let_in(db, now, batch)


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
    if under_way in (CANCELLING, PAUSING, RESUMING, LIMITING) and nesting.go_on(
        db,
        batch,
        lambda inner, cancel, pause: _adapt(db, now, inner, cancel=cancel, pause=pause),
        lambda inner: drain(db, now, inner),
    ):
        db.execute("UPDATE batches SET moved = moved + ? WHERE id = ?", (count, batch))
        return True
    # A pause that came in the midst of a retry follows now.
    db.execute(
        "UPDATE batches SET draining = iif(? AND paused > 0, ?, 0), drained = 0, "
        "moved = moved + ? WHERE id = ?",
        (under_way == RETRYING, PAUSING, count, batch),
    )
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


def _limit_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    parked, count = altering.limit_slice(db, now, batch, cursor)
    return count, _following(db, batch, cursor, parked)


def _unpark_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    del now, cursor
    db.execute(_UNPARK, (batch,))
    count = db.changes()
    return count, None if count < SLICE else 0


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
    gate = None
    if flows.wait_again(db, seq):
        gate = WAITING
    elif head.batch is not None and head.batch in gates.gated_batches(db):
        gate = PARKED
    db.execute(
        f"UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, "
        f"cancel = 0, children = {REVIVED}, run_at = ?1, lane = NULL, "
        f"rank = iif(?3 IS NULL, ?1 - priority * {_POINT}, NULL), gate = ?3 WHERE id = ?2",
        (now, batch, gate),
    )
    ledger = Ledger()
    ledger.moved(Move.REQUEUE, head._replace(attempt=0), state, PENDING)
    follow_up(db, now, ledger.write(db, now))


_SLICES = {
    CANCELLING: _drop_slice,
    RETRYING: _requeue_slice,
    DELETING: removing.delete_slice,
    PAUSING: _park_slice,
    RESUMING: _unpark_slice,
    PRUNING: removing.prune_slice,
    RESTARTING: removing.clear_slice,
    LIMITING: _limit_slice,
}
