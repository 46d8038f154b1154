"""Whole batches at once: cancel, retry and delete, in slices that never block a claim for long.

A batch with such work under way is marked `draining`. Whoever began it goes on until it is done;
if that process dies, the next sweep of any worker takes it up.
"""

from __future__ import annotations

import apsw

from haulier.domain.ids import text_id
from haulier.domain.moves import RULES, Move
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.stores.sqlite.counters import Deltas
from haulier.stores.sqlite.rows import (
    CANCELLED,
    COMPLETED,
    FAILED,
    HEAD,
    ITEM,
    PENDING,
    RUNNING,
    STATE_CODE,
    fetch,
    rank_of,
)
from haulier.stores.sqlite.settling import settle_done

SLICE = 2000
LOOKED_AT = 20_000
"""Items that one slice passes over at most: of a large batch most may be done already."""

CANCELLING, RETRYING, DELETING = 1, 2, 3

_DROP = f"""
UPDATE jobs SET state = {STATE_CODE[RULES[Move.DROP].target]}, rank = NULL, finished_at = ?
WHERE seq IN (SELECT seq FROM (SELECT seq, state FROM jobs WHERE batch = ? AND seq > ?
                               ORDER BY seq LIMIT {LOOKED_AT})
              WHERE state = {PENDING} ORDER BY seq LIMIT {SLICE})
RETURNING seq, queue, kind
"""

_PASSED = f"""
SELECT count(*), max(seq)
FROM (SELECT seq FROM jobs WHERE batch = ? AND seq > ? ORDER BY seq LIMIT {LOOKED_AT})
"""

# By the index of what runs, which is little; the planner would read the whole batch.
_TELL = f"""
UPDATE jobs INDEXED BY jobs_running SET cancel = 1 WHERE batch = ? AND state = {RUNNING}
"""

_REQUEUE = f"""
UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, cancel = 0,
    run_at = :now, rank = :now - priority * {rank_of(0, -1)}
WHERE seq IN (SELECT seq FROM jobs WHERE batch = :batch AND state = {FAILED}
              ORDER BY seq LIMIT {SLICE})
RETURNING queue, kind
"""


def begin_cancel(db: apsw.Connection, batch: bytes) -> None:
    """Mark a batch cancelled; `drain` then drops its pending items."""
    db.execute(
        "UPDATE batches SET cancel = 1, draining = ? WHERE id = ?",
        (CANCELLING, batch),
    )
    # Running items are told first: they take longest to stop.
    db.execute(_TELL, (batch,))


def begin_retry(db: apsw.Connection, now: int, batch: bytes) -> None:
    """Reopen the head of a settled batch; `drain` then requeues its failed items."""
    rows = fetch(
        db,
        "SELECT j.state, j.queue, j.kind, b.failed, b.sealed, b.draining, b.cancel FROM jobs j "
        "JOIN batches b ON b.id = j.id WHERE j.id = ?",
        (batch,),
    )
    if not rows:
        raise JobNotFoundError(text_id(batch))
    state, queue, kind, failed, sealed, draining, cancel = rows[0]
    if draining or (cancel and state == RUNNING):
        raise JobStateError("a cancel, retry or delete of this batch is still under way")
    if not sealed:
        raise JobStateError("this batch was never completely filled; start it anew")
    if not failed:
        return
    if state != RUNNING:
        reopen_head(db, now, batch, queue, kind, state)
    db.execute("UPDATE batches SET draining = ? WHERE id = ?", (RETRYING, batch))


def reopen_head(
    db: apsw.Connection, now: int, batch: bytes, queue: str, kind: str, state: int
) -> None:
    """A settled head runs again, because some of its items do."""
    if state not in (COMPLETED, CANCELLED):
        raise JobStateError("this batch failed while it was being filled; start it anew")
    db.execute(
        f"UPDATE jobs SET state = {RUNNING}, finished_at = NULL, result = NULL WHERE id = ?",
        (batch,),
    )
    db.execute(
        "UPDATE batches SET cancel = 0, sealed = 1, finish_job = NULL WHERE id = ?", (batch,)
    )
    deltas = Deltas()
    deltas.moved(queue, kind, HEAD, None, state, RUNNING)
    deltas.write(db, now)


def drain(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[int, int | None]:
    """One slice of the work under way: how many items moved, and the next cursor or None."""
    rows = fetch(db, "SELECT draining FROM batches WHERE id = ?", (batch,))
    if not rows or not rows[0][0]:
        return 0, None
    if rows[0][0] == RETRYING:
        return _requeue_slice(db, now, batch)
    if rows[0][0] == DELETING:
        return _delete_slice(db, now, batch)
    return _drop_slice(db, now, batch, cursor)


def _drop_slice(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[int, int | None]:
    dropped = fetch(db, _DROP, (now, batch, cursor))
    deltas = Deltas()
    for _, queue, kind in dropped:
        deltas.moved(queue, kind, ITEM, batch, PENDING, CANCELLED)
    if len(dropped) == SLICE:
        following = max(row[0] for row in dropped)
    else:
        ((passed, last),) = fetch(db, _PASSED, (batch, cursor))
        following = last if passed == LOOKED_AT else None
    if following is None:
        # Items claimed between two slices are running by now.
        db.execute(_TELL, (batch,))
        db.execute("UPDATE batches SET draining = 0 WHERE id = ?", (batch,))
    deltas.write(db, now)
    settle_done(db, now, [batch])
    return len(dropped), following


def _requeue_slice(db: apsw.Connection, now: int, batch: bytes) -> tuple[int, int | None]:
    requeued = fetch(db, _REQUEUE, {"now": now, "batch": batch})
    deltas = Deltas()
    for queue, kind in requeued:
        deltas.moved(queue, kind, ITEM, batch, FAILED, PENDING)
    done = len(requeued) < SLICE
    if done:
        db.execute("UPDATE batches SET draining = 0 WHERE id = ?", (batch,))
    deltas.write(db, now)
    settle_done(db, now, [batch])
    return len(requeued), None if done else 0


def draining_batches(db: apsw.Connection) -> list[bytes]:
    """Batches whose cancel, retry or delete somebody has to go on with."""
    rows = fetch(db, "SELECT id FROM batches WHERE draining > 0")
    return [row[0] for row in rows]


def begin_delete(db: apsw.Connection, batch: bytes) -> None:
    """Mark a batch as being deleted; `drain` then removes its items, and the head with the last."""
    db.execute("UPDATE batches SET draining = ? WHERE id = ?", (DELETING, batch))


def _delete_slice(db: apsw.Connection, now: int, batch: bytes) -> tuple[int, int | None]:
    rows = fetch(
        db,
        f"DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE batch = ? LIMIT {SLICE}) "
        "RETURNING queue, kind, state",
        (batch,),
    )
    deltas = Deltas()
    for queue, kind, state in rows:
        deltas.removed(queue, kind, ITEM, state)
    done = len(rows) < SLICE
    if done:
        for queue, kind, state in fetch(
            db, "DELETE FROM jobs WHERE id = ? RETURNING queue, kind, state", (batch,)
        ):
            deltas.removed(queue, kind, HEAD, state)
        db.execute("DELETE FROM batches WHERE id = ?", (batch,))
    deltas.write(db, now)
    return len(rows), None if done else 0
