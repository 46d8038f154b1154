"""Claiming: the first jobs of the line that a worker can start, and those that run alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import apsw

from haulier.domain.job import Job
from haulier.domain.worker import Demand
from haulier.stores.sqlite import gates, uniques
from haulier.stores.sqlite.ledger import ENTRY, Ledger
from haulier.stores.sqlite.rows import (
    ALONE,
    JOB_COLUMNS,
    PARKED,
    PENDING,
    RUNNING,
    Row,
    fetch,
    job_from_row,
)
from haulier.stores.sqlite.settling import PAUSING

Boot = tuple[str, int]

_READY = (
    f"FROM jobs WHERE queue = :queue AND state = {PENDING} AND rank IS NOT NULL "
    "AND kind IN (SELECT value FROM json_each(:kinds))"
)
_IN_LINE = " ORDER BY rank, seq LIMIT :slots"


def _claiming(seqs: str) -> str:
    return f"""
UPDATE jobs SET state = {RUNNING}, attempt = attempt + 1, lease = lease + 1, worker = :worker,
    started_at = :now, finished_at = NULL, progress = NULL, message = NULL, waiter = NULL
WHERE seq IN ({seqs})
RETURNING rank, {JOB_COLUMNS}
"""


_CLAIM_FIRST = _claiming(f"SELECT seq {_READY}{_IN_LINE}")
_FIRST = f"SELECT rank, seq {_READY}{_IN_LINE}"
_CLAIM_THESE = _claiming("SELECT value FROM json_each(:seqs)")
_PAUSING = f"SELECT id FROM batches WHERE draining = {PAUSING} AND draining > 0"

LOOKED_THROUGH = 500
"""Jobs of the line that a claim looks through for items of batches that are just being paused."""

# A batch that is just being paused still has items in the line. A claim takes those away that it
# meets: passing over them would cost every claim the same way again.
_PARK_AHEAD = f"""
UPDATE jobs SET rank = NULL, gate = {PARKED}
WHERE seq IN (SELECT seq FROM (SELECT seq, batch {_READY}
                               ORDER BY rank, seq LIMIT {LOOKED_THROUGH})
              WHERE batch IN ({_PAUSING}))
"""
_FIRST_NOT_PAUSING = f"""
SELECT rank, seq FROM (SELECT rank, seq, batch {_READY} ORDER BY rank, seq LIMIT {LOOKED_THROUGH})
WHERE batch IS NULL OR batch NOT IN ({_PAUSING}) ORDER BY rank, seq LIMIT :slots
"""
NEXT_DUE = f"""
SELECT min(at) FROM (
    SELECT min(run_at) AS at FROM jobs WHERE state = {PENDING} AND rank IS NULL AND gate IS NULL
    UNION ALL
    SELECT min(run_at) FROM jobs WHERE gate = {ALONE} AND state = {PENDING} AND run_at > ?)
"""

_LONERS = f"""
SELECT j.seq, j.queue, j.kind, j.waiter,
       EXISTS (SELECT 1 FROM workers w WHERE w.id = j.waiter AND w.ended_at IS NULL
               AND w.boot = :boot AND w.expires > :since)
FROM jobs j
WHERE j.gate = {ALONE} AND j.state = {PENDING} AND j.run_at <= :now
  AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = j.batch
                  AND (b.paused = 1 OR b.running >= b.concurrency))
ORDER BY j.run_at LIMIT 100
"""
_RUNS_A_LONER = f"SELECT 1 FROM jobs WHERE gate = {ALONE} AND state = {RUNNING} AND worker = ?"
_RUNS_ANYTHING = f"SELECT 1 FROM jobs WHERE worker = ? AND state = {RUNNING} LIMIT 1"


def claim(
    db: apsw.Connection,
    now: int,
    boot: Boot,
    worker: bytes,
    demands: Sequence[Demand],
) -> list[Job]:
    """Claim what the demands ask for and may start now."""
    gated = gates.gated_batches(db)
    gates.promote(db, now, gated)
    ledger = Ledger()
    jobs = _claim_loner(db, now, boot, worker, demands, ledger)
    if jobs is None:
        jobs = []
        pausing = bool(gated) and bool(fetch(db, _PAUSING))
        for demand in demands:
            jobs.extend(_claim(db, now, worker, demand, ledger, pausing=pausing))
    for touched in ledger.write(db, now):
        if touched.batch in gated:
            gates.let_in(db, now, touched.batch)
    return jobs


def next_due(db: apsw.Connection, now: int) -> int | None:
    """When the next job becomes due that is not in the line yet."""
    ((due,),) = fetch(db, NEXT_DUE, (now,))
    return None if due is None else int(due)


def anything_to_claim(
    db: apsw.Connection, now: int, boot: Boot, worker: bytes, demands: Sequence[Demand]
) -> bool:
    """Whether a claim would find something, asked without the write lock."""
    if _suitable_loner(db, now, boot, worker, demands) is not None:
        return True
    return any(
        _first(db, queue, portion.kinds, 1, pausing=False)
        for demand in demands
        for portion in demand.portions
        for queue in demand.queues
    )


# ── In the line ──────────────────────────────────────────────────────────────────────────────


def _claim(
    db: apsw.Connection,
    now: int,
    worker: bytes,
    demand: Demand,
    ledger: Ledger,
    *,
    pausing: bool,
) -> list[Job]:
    bindings: dict[str, Any] = {"worker": worker, "now": now}
    if len(demand.portions) == len(demand.queues) == 1 and not pausing:
        (portion,), (queue,) = demand.portions, demand.queues
        bindings |= _place(queue, portion.kinds, min(demand.slots, portion.slots))
        rows = fetch(db, _CLAIM_FIRST, bindings)
    else:
        seqs = json.dumps(_line_up(db, demand, pausing=pausing))
        rows = fetch(db, _CLAIM_THESE, bindings | {"seqs": seqs})
    # RETURNING gives no order of its own; rank, then seq, is the order of the line.
    rows.sort(key=_rank_and_seq)
    return [_claimed(db, row, worker, ledger) for row in rows]


def _claimed(db: apsw.Connection, row: Row, worker: bytes, ledger: Ledger) -> Job:
    job = job_from_row(row[1:])
    ledger.group("claim", job.queue, job.kind, row[8], row[15], PENDING, RUNNING, worker).append(
        ENTRY.pack(row[1], job.attempt, job.lease)
    )
    if job.unique:
        uniques.release_claimed(db, row[1])
    return job


def _line_up(db: apsw.Connection, demand: Demand, *, pausing: bool) -> list[int]:
    """The first jobs of several lines merged into one: no queue or portion starves another."""
    waiting = [
        (rank, seq, number)
        for number, portion in enumerate(demand.portions)
        for queue in demand.queues
        for rank, seq in _first(
            db, queue, portion.kinds, min(demand.slots, portion.slots), pausing=pausing
        )
    ]
    room = [portion.slots for portion in demand.portions]
    chosen: list[int] = []
    for _, seq, number in sorted(waiting):
        if room[number] > 0 and len(chosen) < demand.slots:
            room[number] -= 1
            chosen.append(seq)
    return chosen


def _first(
    db: apsw.Connection, queue: str, kinds: tuple[str, ...], slots: int, *, pausing: bool
) -> list[Row]:
    place = _place(queue, kinds, slots)
    if not pausing:
        return fetch(db, _FIRST, place)
    db.execute(_PARK_AHEAD, place)
    return fetch(db, _FIRST_NOT_PAUSING, place)


def _place(queue: str, kinds: tuple[str, ...], slots: int) -> dict[str, Any]:
    return {"queue": queue, "kinds": _kinds_json(kinds), "slots": slots}


@lru_cache(maxsize=256)
def _kinds_json(kinds: tuple[str, ...]) -> str:
    return json.dumps(kinds)


def _rank_and_seq(row: Row) -> tuple[int, int]:
    return row[0] or 0, row[2]


# ── Alone ────────────────────────────────────────────────────────────────────────────────────


def _claim_loner(
    db: apsw.Connection,
    now: int,
    boot: Boot,
    worker: bytes,
    demands: Sequence[Demand],
    ledger: Ledger,
) -> list[Job] | None:
    """A job that runs alone, for a worker without any other; None: claim as usual.

    A worker that is busy gets nothing more until it has run dry, so that one that never would be
    idle takes it too. An idle one comes first.
    """
    if fetch(db, _RUNS_A_LONER, (worker,)):
        return []
    seq = _suitable_loner(db, now, boot, worker, demands)
    if seq is None:
        return None
    if fetch(db, _RUNS_ANYTHING, (worker,)):
        db.execute("UPDATE jobs SET waiter = ? WHERE seq = ?", (worker, seq))
        return []
    rows = fetch(db, _CLAIM_THESE, {"worker": worker, "now": now, "seqs": json.dumps([seq])})
    return [_claimed(db, row, worker, ledger) for row in rows]


def _suitable_loner(
    db: apsw.Connection, now: int, boot: Boot, worker: bytes, demands: Sequence[Demand]
) -> int | None:
    """The first job to be run alone that this worker could take, or is to run dry for."""
    waiting = fetch(db, _LONERS, {"now": now, "boot": boot[0], "since": boot[1]})
    if not waiting:
        return None
    idle = not fetch(db, _RUNS_ANYTHING, (worker,))
    for seq, queue, kind, waiter, waits in waiting:
        if (idle or waiter == worker or not waits) and _asked_for(demands, queue, kind):
            return int(seq)
    return None


def _asked_for(demands: Sequence[Demand], queue: str, kind: str) -> bool:
    return any(
        queue in demand.queues and any(kind in portion.kinds for portion in demand.portions)
        for demand in demands
    )
