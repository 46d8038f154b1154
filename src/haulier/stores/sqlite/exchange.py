"""The hot path: finished transitions in, newly claimed jobs out, one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import apsw

from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import Job, Role
from haulier.domain.moves import RULES, Move, Transition
from haulier.domain.worker import Demand, Exchange
from haulier.stores.sqlite.batches import begin_cancel
from haulier.stores.sqlite.counters import Deltas
from haulier.stores.sqlite.rows import (
    CANCELLED,
    COMPLETED,
    JOB_COLUMNS,
    PENDING,
    ROLE_CODE,
    RUNNING,
    STATE_CODE,
    Row,
    error_to_text,
    fetch,
    job_from_row,
    rank_of,
)
from haulier.stores.sqlite.settling import settle_done

PROMOTED_AT_ONCE = 1000

# Completions are nine of ten moves, so they have a statement of their own with fewer values.
_COMPLETE = (
    "UPDATE jobs SET state = 2, worker = NULL, cancel = 0, finished_at = ?, result = ?, "
    "error = NULL WHERE seq = ? AND lease = ? AND state = 1 RETURNING seq"
)

_MOVE = f"""
UPDATE jobs SET
    state = CASE WHEN cancel = 1 AND :yields THEN {CANCELLED} ELSE :target END,
    attempt = attempt + CASE WHEN cancel = 1 AND :yields THEN 0 ELSE :attempt END,
    lost = lost + CASE WHEN cancel = 1 AND :yields THEN 0 ELSE :lost END,
    lease = lease + :lease_rise,
    rank = :rank, run_at = coalesce(:run_at, run_at), worker = NULL,
    cancel = CASE WHEN :target = {RUNNING} THEN cancel ELSE 0 END,
    finished_at = CASE WHEN :target > {RUNNING} OR (cancel = 1 AND :yields) THEN :now END,
    error = coalesce(:error, error)
WHERE seq = :seq AND lease = :lease AND state = {RUNNING}
RETURNING state
"""

_PROMOTE = f"""
UPDATE jobs SET rank = run_at - priority * {rank_of(0, -1)}
WHERE seq IN (SELECT seq FROM jobs WHERE state = {PENDING} AND rank IS NULL AND run_at <= ?
              ORDER BY run_at LIMIT {PROMOTED_AT_ONCE})
"""

_LINE = (
    f"FROM jobs WHERE queue = :queue AND state = {PENDING} AND rank IS NOT NULL "
    "AND kind IN (SELECT value FROM json_each(:kinds)) ORDER BY rank, seq LIMIT :slots"
)


def _claiming(seqs: str) -> str:
    return f"""
UPDATE jobs SET state = {RUNNING}, attempt = attempt + 1, lease = lease + 1, worker = :worker,
    started_at = :now, finished_at = NULL, progress = NULL, message = NULL
WHERE seq IN ({seqs})
RETURNING rank, {JOB_COLUMNS}
"""


_CLAIM_FIRST = _claiming(f"SELECT seq {_LINE}")
_CLAIM_THESE = _claiming("SELECT value FROM json_each(:seqs)")
_FIRST = f"SELECT rank, seq {_LINE}"
_NEXT_DUE = f"SELECT min(run_at) FROM jobs WHERE state = {PENDING} AND rank IS NULL"
_CANCELS = f"SELECT id FROM jobs WHERE worker = ? AND cancel = 1 AND state = {RUNNING}"
_ALIVE = "SELECT 1 FROM workers WHERE id = ? AND ended_at IS NULL AND boot = ? AND expires > ?"

Boot = tuple[str, int]


@lru_cache(maxsize=256)
def _kinds_json(kinds: tuple[str, ...]) -> str:
    return json.dumps(kinds)


def nothing_to_do(
    db: apsw.Connection, now: int, boot: Boot, worker_id: str, demands: Sequence[Demand]
) -> tuple[Exchange, bool] | None:
    """An empty answer if a claim would find nothing; None if it is worth a transaction.

    Without it, idle workers of several processes would wake each other by their empty commits.
    """
    worker = raw_id(worker_id)
    if not fetch(db, _ALIVE, (worker, *boot)):
        return Exchange(alive=False), False
    ((due,),) = fetch(db, _NEXT_DUE)
    if due is not None and due <= now:
        return None
    for demand in demands:
        for portion in demand.portions:
            for queue in demand.queues:
                if _first(db, queue, portion.kinds, 1):
                    return None
    due_in = None if due is None else due - now
    return Exchange(cancels=_cancels(db, worker), due_in=due_in), False


def exchange(
    db: apsw.Connection,
    now: int,
    boot: Boot,
    worker_id: str,
    finished: Sequence[Transition],
    demands: Sequence[Demand],
) -> tuple[Exchange, bool]:
    """Apply the transitions that still hold their lease, then claim what the demands ask for.

    The second value tells whether a batch settled, which may have brought a new job.
    """
    worker = raw_id(worker_id)
    alive = bool(fetch(db, _ALIVE, (worker, *boot)))
    deltas = Deltas()
    lost = _apply(db, now, finished, deltas)
    settled = False
    if deltas.touch_batches:
        # Before the claim, so that a finish callback is among what it finds.
        settled = settle_done(db, now, deltas.write(db, now))
        deltas = Deltas()
    jobs: list[Job] = []
    wanted = sum(demand.slots for demand in demands)
    if alive and wanted:
        db.execute(_PROMOTE, (now,))
        for demand in demands:
            jobs.extend(_claim(db, now, worker, demand, deltas))
    deltas.write(db, now)
    ((due,),) = fetch(db, _NEXT_DUE) if len(jobs) < wanted else ((None,),)
    reply = Exchange(
        jobs=tuple(jobs),
        lost=tuple(lost),
        cancels=_cancels(db, worker),
        due_in=None if due is None else max(due - now, 0),
        alive=alive,
    )
    return reply, settled


def apply_transitions(
    db: apsw.Connection, now: int, transitions: Sequence[Transition]
) -> list[Transition]:
    """Apply transitions outside an exchange; returns those whose lease did not hold."""
    deltas = Deltas()
    lost = _apply(db, now, transitions, deltas)
    settle_done(db, now, deltas.write(db, now))
    return lost


def _apply(
    db: apsw.Connection, now: int, transitions: Sequence[Transition], deltas: Deltas
) -> list[Transition]:
    completions = [t for t in transitions if t.move is Move.COMPLETE]
    lost = _complete(db, now, completions, deltas) if completions else []
    if len(completions) < len(transitions):
        for transition in transitions:
            if transition.move is not Move.COMPLETE and not _move(db, now, transition, deltas):
                lost.append(transition)
    return lost


def _complete(
    db: apsw.Connection, now: int, completions: list[Transition], deltas: Deltas
) -> list[Transition]:
    rows = [(now, t.result, t.job.seq, t.job.lease) for t in completions]
    applied = {row[0] for row in db.executemany(_COMPLETE, rows)}
    lost = []
    for transition in completions:
        job = transition.job
        if job.seq in applied:
            # Each seq counts once, even when a finish was delivered twice.
            applied.remove(job.seq)
            _count(deltas, job, COMPLETED)
        else:
            lost.append(transition)
    return lost


def _move(db: apsw.Connection, now: int, transition: Transition, deltas: Deltas) -> bool:
    """Apply one transition with all it brings along; whether its lease held."""
    job, rule, delay = transition.job, RULES[transition.move], transition.delay
    target = STATE_CODE[rule.target]
    run_at = None if delay is None else now + delay
    due = target == PENDING and not delay
    rows = fetch(
        db,
        _MOVE,
        {
            "target": target,
            "yields": rule.yields_to_cancel,
            "attempt": rule.attempt,
            "lost": rule.lost,
            "lease_rise": rule.lease,
            "rank": rank_of(run_at or job.run_at, job.priority) if due else None,
            "run_at": run_at,
            "now": now,
            "error": error_to_text(replace(transition.error, at=now)) if transition.error else None,
            "seq": job.seq,
            "lease": job.lease,
        },
    )
    if not rows:
        return False
    state = rows[0][0]
    _count(deltas, job, state)
    if job.role is Role.HEAD:
        _head_moved(db, now, job, transition.move, state)
    return True


def _head_moved(db: apsw.Connection, now: int, job: Job, move: Move, state: int) -> None:
    """A head that was expanding: its batch is complete, or must go with it."""
    batch = raw_id(job.id)
    if move is Move.HAND_OVER:
        db.execute("UPDATE batches SET sealed = 1 WHERE id = ?", (batch,))
        settle_done(db, now, [batch])
    elif state not in (PENDING, RUNNING):
        begin_cancel(db, batch)


def _count(deltas: Deltas, job: Job, state: int) -> None:
    deltas.moved(
        job.queue,
        job.kind,
        ROLE_CODE[job.role],
        raw_id(job.batch_id) if job.batch_id is not None else None,
        RUNNING,
        state,
    )


def _claim(
    db: apsw.Connection, now: int, worker: bytes, demand: Demand, deltas: Deltas
) -> Iterator[Job]:
    bindings: dict[str, Any] = {"worker": worker, "now": now}
    if len(demand.portions) == len(demand.queues) == 1:
        (portion,), (queue,) = demand.portions, demand.queues
        bindings |= _place(queue, portion.kinds, min(demand.slots, portion.slots))
        rows = fetch(db, _CLAIM_FIRST, bindings)
    else:
        rows = fetch(db, _CLAIM_THESE, bindings | {"seqs": json.dumps(_line_up(db, demand))})
    # RETURNING gives no order of its own; rank, then seq, is the order of the line.
    rows.sort(key=_rank_and_seq)
    for row in rows:
        job = job_from_row(row[1:])
        deltas.moved(job.queue, job.kind, row[8], row[15], PENDING, RUNNING)
        yield job


def _line_up(db: apsw.Connection, demand: Demand) -> list[int]:
    """The first jobs of several lines merged into one: no queue or portion starves another."""
    waiting = [
        (rank, seq, number)
        for number, portion in enumerate(demand.portions)
        for queue in demand.queues
        for rank, seq in _first(db, queue, portion.kinds, min(demand.slots, portion.slots))
    ]
    room = [portion.slots for portion in demand.portions]
    chosen: list[int] = []
    for _, seq, number in sorted(waiting):
        if room[number] > 0 and len(chosen) < demand.slots:
            room[number] -= 1
            chosen.append(seq)
    return chosen


def _first(db: apsw.Connection, queue: str, kinds: tuple[str, ...], slots: int) -> list[Row]:
    return fetch(db, _FIRST, _place(queue, kinds, slots))


def _place(queue: str, kinds: tuple[str, ...], slots: int) -> dict[str, Any]:
    return {"queue": queue, "kinds": _kinds_json(kinds), "slots": slots}


def _rank_and_seq(row: Row) -> tuple[int, int]:
    return row[0], row[2]


def _cancels(db: apsw.Connection, worker: bytes) -> tuple[str, ...]:
    return tuple(text_id(row[0]) for row in db.execute(_CANCELS, (worker,)))
