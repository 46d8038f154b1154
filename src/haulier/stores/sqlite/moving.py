"""Applying transitions: each to the job that still holds its lease, with all it brings along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from haulier.domain.ids import raw_id
from haulier.domain.job import Job
from haulier.domain.moves import RULES, Move, Transition, runs_alone
from haulier.stores.codes import (
    ALONE,
    CANCELLED,
    COMPLETED,
    PARKED,
    PENDING,
    ROLE_CODE,
    RUNNING,
    STATE_CODE,
    error_to_text,
    rank_of,
    raw_once,
)
from haulier.stores.packed import ENTRY
from haulier.stores.sqlite import gates, uniques
from haulier.stores.sqlite.batches import first_slices
from haulier.stores.sqlite.ledger import Ledger, Subject, Touched
from haulier.stores.sqlite.rows import (
    fetch,
)
from haulier.stores.sqlite.settling import CANCELLED_BY_REQUEST, begin_cancel, follow_up

KEPT_ERRORS = 100
"""Claims of one job whose errors are kept."""

# Completions are nine of ten moves, so all of them go in one statement: the interpreter is free
# while it works, and the event loop can run the next jobs. Each is a text of seq, lease and result.
_GIVEN = b"%019d%019d%b"
_COMPLETE = """
UPDATE jobs SET state = 2, worker = NULL, cancel = 0, finished_at = ?, result = g.result,
    error = NULL
FROM (SELECT CAST(substr(value, 1, 19) AS INTEGER) AS seq,
             CAST(substr(value, 20, 19) AS INTEGER) AS lease,
             nullif(substr(value, 39), x'') AS result FROM carray(?)) g
WHERE jobs.seq = g.seq AND jobs.lease = g.lease AND jobs.state = 1
RETURNING jobs.seq, jobs.id
"""

_YIELDS = "(cancel > 0 OR :doomed) AND :yields"

_MOVE = f"""
UPDATE jobs SET
    state = CASE WHEN {_YIELDS} THEN {CANCELLED} ELSE :target END,
    attempt = attempt + CASE WHEN {_YIELDS} THEN 0 ELSE :attempt END,
    lost = lost + CASE WHEN {_YIELDS} THEN 0 ELSE :lost END,
    lease = lease + :lease_rise,
    rank = CASE WHEN {_YIELDS} THEN NULL ELSE :rank END,
    gate = CASE WHEN {_YIELDS} THEN NULL ELSE :gate END,
    run_at = coalesce(:run_at, run_at), worker = NULL,
    cancel = CASE WHEN :target = {RUNNING} THEN cancel ELSE 0 END,
    finished_at = CASE WHEN :target > {RUNNING} OR ({_YIELDS}) THEN :now END,
    error = coalesce(:error, error)
WHERE seq = :seq AND lease = :lease AND state = {RUNNING}
RETURNING state, attempt, lease
"""

_RECORD = (
    "INSERT OR REPLACE INTO errors (job, lease, attempt, at, worker, type, message, traceback) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class _Applied:
    """What came of transitions: those that were `lost`, and what is next for batches.

    `handed_over` may have nothing left to wait for; `ended` go, and take their items with them.
    """

    __slots__ = ("ended", "handed_over", "lost")

    def __init__(self) -> None:
        self.lost: list[Transition] = []
        self.handed_over: list[bytes] = []
        self.ended: list[bytes] = []


@dataclass(slots=True)
class Applied:
    """What transitions came to: those not applied, whether a batch settled, what is to drain."""

    lost: list[Transition]
    settled: bool
    drain: list[bytes]


def apply_all(db: apsw.Connection, now: int, transitions: Sequence[Transition]) -> Applied:
    """Apply transitions, and do what follows from them for their batches."""
    ledger = Ledger()
    applied = _apply(db, now, transitions, ledger)
    touched = ledger.write(db, now) + [Touched(batch, 0) for batch in applied.handed_over]
    after = follow_up(db, now, touched)
    return Applied(applied.lost, after.settled, first_slices(db, now, applied.ended + after.cut))


def _apply(
    db: apsw.Connection, now: int, transitions: Sequence[Transition], ledger: Ledger
) -> _Applied:
    result = _Applied()
    completions = [t for t in transitions if t.move is Move.COMPLETE]
    if completions:
        _complete(db, now, completions, ledger, result)
    if len(completions) < len(transitions):
        gated = gates.gated_batches(db)
        for transition in transitions:
            if transition.move is not Move.COMPLETE:
                _move(db, now, transition, ledger, gated, result)
    return result


def _complete(
    db: apsw.Connection,
    now: int,
    completions: list[Transition],
    ledger: Ledger,
    result: _Applied,
) -> None:
    given = tuple(_GIVEN % (t.job.seq, t.job.lease, t.result or b"") for t in completions)
    applied: dict[int, bytes] = dict(db.execute(_COMPLETE, (now, apsw.carray(given))))
    alike, group = None, []
    for transition in completions:
        job = transition.job
        # Each seq counts once, even when a finish was delivered twice.
        raw = applied.pop(job.seq, None)
        if raw is None:
            result.lost.append(transition)
            continue
        if alike != (job.queue, job.kind, job.role, job.batch_id, job.worker):
            alike = (job.queue, job.kind, job.role, job.batch_id, job.worker)
            group = ledger.group(
                *("complete", job.queue, job.kind, ROLE_CODE[job.role], _raw(job.batch_id)),
                *(RUNNING, COMPLETED, _raw(job.worker)),
            )
        group.append(ENTRY.pack(raw, job.attempt, job.lease))
        if job.unique:
            uniques.release_ended(db, raw)


def _move(
    db: apsw.Connection,
    now: int,
    transition: Transition,
    ledger: Ledger,
    gated: frozenset[bytes],
    result: _Applied,
) -> None:
    """Apply one transition with all it brings along, if its lease holds."""
    job, rule, delay = transition.job, RULES[transition.move], transition.delay
    target = STATE_CODE[rule.target]
    run_at = None if delay is None else now + delay
    rank, gate = None, None
    if target == PENDING:
        rank, gate = _place(job, job.lost + rule.lost, gated, run_at, due=not delay)
    error = transition.error
    rows = fetch(
        db,
        _MOVE,
        {
            "target": target,
            "yields": rule.yields_to_cancel,
            "doomed": rule.yields_to_cancel and _is_doomed(db, job),
            "attempt": rule.attempt,
            "lost": rule.lost,
            "lease_rise": rule.lease,
            "rank": rank,
            "gate": gate,
            "run_at": run_at,
            "now": now,
            "error": error and _error_text(job, transition, now),
            "seq": job.seq,
            "lease": job.lease,
        },
    )
    if not rows:
        result.lost.append(transition)
        return
    if error is not None and rule.records:
        _record(db, now, transition)
    _account(db, now, transition, rows[0], ledger, result)


def _is_doomed(db: apsw.Connection, job: Job) -> bool:
    """Whether the batch of an item is cancelled, though the item itself was not told.

    It was claimed while the cancel went through the batch slice by slice, and passed by.
    """
    if job.batch_id is None:
        return False
    batch = (raw_once(job.batch_id),)
    return bool(fetch(db, "SELECT 1 FROM batches WHERE id = ? AND cancel > 0", batch))


def _place(
    job: Job, lost: int, gated: frozenset[bytes], run_at: int | None, *, due: bool
) -> tuple[int | None, int | None]:
    """Rank and gate of a job that becomes pending."""
    if runs_alone(lost):
        return None, ALONE
    if not due:
        return None, None
    if job.batch_id is not None and raw_once(job.batch_id) in gated:
        return None, PARKED
    return rank_of(run_at or job.run_at, job.priority), None


def _account(
    db: apsw.Connection,
    now: int,
    transition: Transition,
    after: tuple[int, int, int],
    ledger: Ledger,
    result: _Applied,
) -> None:
    """Counters, event, unique names, and what becomes of a head's batch."""
    job, move, (state, attempt, lease) = transition.job, transition.move, after
    yielded = state != STATE_CODE[RULES[move].target]
    raw = raw_id(job.id)
    role, batch = ROLE_CODE[job.role], _raw(job.batch_id)
    ledger.moved(
        Move.CANCEL if yielded else move,
        Subject(raw, attempt, lease, job.queue, job.kind, role, batch),
        RUNNING,
        state,
        worker=_raw(job.worker),
        error=transition.error.type if transition.error else None,
    )
    if job.unique and state > RUNNING:
        uniques.release_ended(db, raw)
    if not job.role.heads:
        return
    if move is Move.HAND_OVER:
        db.execute("UPDATE batches SET sealed = 1 WHERE id = ?", (raw,))
        result.handed_over.append(raw)
    elif state > RUNNING:
        begin_cancel(db, now, raw, CANCELLED_BY_REQUEST)
        result.ended.append(raw)


def _error_text(job: Job, transition: Transition, now: int) -> str:
    assert transition.error is not None
    return error_to_text(transition.error, now, lease=job.lease, worker=job.worker)


def _record(db: apsw.Connection, now: int, transition: Transition) -> None:
    job, error = transition.job, transition.error
    assert error is not None
    db.execute(
        _RECORD,
        (
            job.seq,
            job.lease,
            error.attempt,
            now,
            _raw(job.worker),
            error.type,
            error.message,
            error.traceback,
        ),
    )
    if job.lease > KEPT_ERRORS:
        db.execute(
            "DELETE FROM errors WHERE job = ? AND lease <= ?", (job.seq, job.lease - KEPT_ERRORS)
        )


def _raw(text: str | None) -> bytes | None:
    return None if text is None else raw_once(text)
