"""What follows when counters of a batch have changed: more items let in, cut short, or settled.

A batch settles in the transaction that finished its last item.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import apsw

from haulier.domain.event import CANCEL_REQUESTED, INSERTED
from haulier.domain.ids import derived_id, raw_id, text_id
from haulier.domain.job import JobError
from haulier.domain.moves import RULES, Move
from haulier.stores.codes import (
    PENDING,
    REQUESTED,
    RUNNING,
    SINGLE,
    STATE_CODE,
    STATES,
    error_to_text,
    rank_of,
)
from haulier.stores.sqlite import gates, uniques
from haulier.stores.sqlite.ledger import SUBJECT, Ledger, Subject, Touched
from haulier.stores.sqlite.rows import (
    Row,
    fetch,
)

CANCELLING, RETRYING, DELETING, PAUSING, RESUMING, PRUNING, RESTARTING, LIMITING = range(1, 9)
"""What is done to all items of a batch, slice by slice."""

CANCELLED_BY_REQUEST, CUT_SHORT = 1, 2
"""Why a batch ends before its time: somebody wanted it, or too many of its items failed."""

_LOOK = (
    "SELECT b.gated, b.cancel = 0 AND b.failed > b.max_failures, "
    "b.owed AND b.pending = 0 AND b.running = 0 AND b.draining = 0 AND NOT EXISTS "
    "(SELECT 1 FROM batches i WHERE i.within = b.id AND i.owed = 1), j.state, "
    "j.worker IS NULL AND (b.sealed = 1 OR b.cancel > 0) "
    "FROM batches b JOIN jobs j ON j.id = b.id WHERE b.id = ?"
)

_BATCH = (
    "SELECT b.cancel, b.total, b.completed, b.failed, b.cancelled, b.max_failures, b.finish_kind, "
    "b.finish_queue, b.round, j.priority, j.state, j.id, j.attempt, j.lease, j.queue, "
    "j.kind, j.role, j.batch "
    "FROM batches b JOIN jobs j ON j.id = b.id WHERE b.id = ?"
)

# By the index of what runs, which is little; the planner would read the whole batch.
_TELL = f"""
UPDATE jobs INDEXED BY jobs_running SET cancel = {REQUESTED}
WHERE batch = ? AND state = {RUNNING} AND cancel = 0
RETURNING {SUBJECT}
"""

_ENDS = {0: Move.SETTLE, CANCELLED_BY_REQUEST: Move.ABANDON, CUT_SHORT: Move.GIVE_UP}


@dataclass(slots=True)
class Consequences:
    """What followed: whether a batch settled, and which were cut short and are to be drained."""

    settled: bool = False
    cut: list[bytes] = field(default_factory=list)


def follow_up(db: apsw.Connection, now: int, touched: Iterable[Touched]) -> Consequences:
    """Do what the new counters of these batches ask for."""
    result = Consequences()
    todo = list(touched)
    while todo:
        each = todo.pop(0)
        for row in fetch(db, _LOOK, (each.batch,)):
            gated, exceeded, nothing_left, state, waits = row
            # Only a new failure counts: some of the old ones may just be tried again.
            if exceeded and each.failures > 0:
                begin_cancel(db, now, each.batch, CUT_SHORT)
                result.cut.append(each.batch)
                continue
            if nothing_left and ((state == RUNNING and waits) or state > RUNNING):
                # What it is an item of may settle now.
                todo += _settle(db, now, each.batch)
                result.settled = True
            elif gated:
                gates.let_in(db, now, each.batch)
    return result


def settle_done(db: apsw.Connection, now: int, batch: bytes) -> bool:
    """Settle this batch if it has nothing left to do; whether it did."""
    return follow_up(db, now, [Touched(batch, 0)]).settled


def begin_cancel(db: apsw.Connection, now: int, batch: bytes, why: int) -> None:
    """Mark a batch as cancelled and tell its running items; draining drops the pending ones.

    The first reason stays. Nothing is left to be paused.
    """
    db.execute(
        "UPDATE batches SET cancel = iif(cancel = 0, ?, cancel), draining = ?, drained = 0, "
        "moved = 0, paused = 0 WHERE id = ?",
        (why, CANCELLING, batch),
    )
    tell_running(db, now, batch)


def tell_running(db: apsw.Connection, now: int, batch: bytes) -> None:
    """Request the cancel of every running item of a batch."""
    ledger = Ledger()
    for row in fetch(db, _TELL, (batch,)):
        ledger.moved(CANCEL_REQUESTED, Subject(*row), RUNNING, RUNNING)
    ledger.write(db, now)


def _settle(db: apsw.Connection, now: int, batch: bytes) -> list[Touched]:
    """End the head, unless it ended before its items did, and call back; whom that concerns."""
    ((cancel, total, completed, failed, cancelled, allowed, *rest),) = fetch(db, _BATCH, (batch,))
    finish_kind, finish_queue, round_, priority, state, *head = rest
    counts = {"total": total, "completed": completed, "failed": failed, "cancelled": cancelled}
    ledger = Ledger()
    if state == RUNNING:
        move = _ENDS[cancel]
        error = _too_many(failed, allowed) if move is Move.GIVE_UP else None
        state = STATE_CODE[RULES[move].target]
        db.execute(
            "UPDATE jobs SET state = ?, finished_at = ?, result = ?, error = ?, cancel = 0 "
            "WHERE id = ?",
            (state, now, _json(counts), error and error_to_text(error, now), batch),
        )
        uniques.release_ended(db, batch)
        what = error.type if error else None
        ledger.moved(move, Subject(*head), RUNNING, state, error=what)
    callback = None
    if finish_kind is not None:
        # Named after the round: a batch that was reopened and settles again calls back again.
        callback, round_ = _callback_id(db, batch, round_)
        payload = {"batch_id": text_id(batch), "state": STATES[state], "counts": counts}
        _call_back(db, now, callback, batch, (finish_kind, finish_queue, priority), payload)
        made = Subject(callback, 0, 0, finish_queue, finish_kind, SINGLE, None)
        ledger.moved(INSERTED, made, None, PENDING)
    db.execute(
        "UPDATE batches SET round = ?, finish_job = ?, owed = 0, gated = 0 WHERE id = ?",
        (round_ + 1, callback, batch),
    )
    touched = ledger.write(db, now)
    outer = Subject(*head).batch
    return touched or ([] if outer is None else [Touched(outer, 0)])


def _callback_id(db: apsw.Connection, batch: bytes, round_: int) -> tuple[bytes, int]:
    """The id of a round's callback, and the round: a later one if that was called back before.

    A copy of the store brings callbacks along, but not how many there were.
    """
    while True:
        callback = raw_id(derived_id(text_id(batch), f"finish/{round_}"))
        if not fetch(db, "SELECT 1 FROM jobs WHERE id = ?", (callback,)):
            return callback, round_
        round_ += 1


def _call_back(
    db: apsw.Connection,
    now: int,
    job: bytes,
    batch: bytes,
    whom: Row,
    payload: Mapping[str, object],
) -> None:
    kind, queue, priority = whom
    db.execute(
        "INSERT INTO jobs (id, kind, queue, role, version, payload, state, rank, priority, "
        "run_at, created_at, baggage) VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, "
        "(SELECT baggage FROM jobs WHERE id = ?))",
        (
            job,
            kind,
            queue,
            SINGLE,
            _json(payload),
            PENDING,
            rank_of(now, priority),
            priority,
            now,
            now,
            batch,
        ),
    )


def _too_many(failed: int, allowed: int) -> JobError:
    return JobError(
        type="MaxFailuresExceeded",
        message=f"{failed} of the items failed and {allowed} may; the rest was cancelled",
    )


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
