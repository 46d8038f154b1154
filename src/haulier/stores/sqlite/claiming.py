"""Claiming: the first jobs of the line that a worker can start, and those that run alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import apsw

from haulier.domain.job import Job
from haulier.domain.worker import Demand
from haulier.stores.codes import (
    ALONE,
    LET_IN,
    PARKED,
    PENDING,
    ROLE_CODE,
    RUNNING,
)
from haulier.stores.packed import ENTRY
from haulier.stores.sqlite import gates, uniques
from haulier.stores.sqlite.ledger import Ledger
from haulier.stores.sqlite.rows import (
    JOB_COLUMNS,
    Row,
    fetch,
    job_from_row,
)
from haulier.stores.sqlite.settling import LIMITING, PAUSING

Boot = tuple[str, int]

_READY = (
    f"FROM jobs WHERE queue = :queue AND kind = :kind AND state = {PENDING} AND rank IS NOT NULL"
)
# From the counters: as short as there are kinds, however long the lines are.
_PENDING_KINDS = f"SELECT DISTINCT kind FROM counts WHERE queue = ? AND state = {PENDING} AND n > 0"
_IN_LINE = " ORDER BY rank, seq LIMIT :slots"


def _claiming(seqs: str) -> str:
    return f"""
UPDATE jobs SET state = {RUNNING}, attempt = attempt + 1, lease = lease + 1, worker = :worker,
    started_at = :now, finished_at = NULL, progress = NULL, message = NULL, waiter = NULL
WHERE seq IN ({seqs})
RETURNING {JOB_COLUMNS}, rank
"""


_RANK_AND_SEQ = itemgetter(-1, 1)

_CLAIM_FIRST = _claiming(f"SELECT seq {_READY}{_IN_LINE}")
_FIRST = f"SELECT rank, seq {_READY}{_IN_LINE}"
_CLAIM_THESE = _claiming("SELECT value FROM json_each(:seqs)")
_PAUSING = f"SELECT id FROM batches WHERE draining IN ({PAUSING}, {LIMITING}) AND draining > 0"
# Of one that gets limits just now, those that are let in may be claimed.
_HELD_BACK = (
    f"EXISTS (SELECT 1 FROM batches b WHERE b.id = j.batch AND (b.draining = {PAUSING} "
    f"OR (b.draining = {LIMITING} AND j.gate IS NULL)))"
)

LOOKED_THROUGH = 500
"""Jobs of the line that a claim looks through for items of batches that are just being paused."""

# A batch that is just being paused still has items in the line. A claim takes those away that it
# meets: passing over them would cost every claim the same way again.
_PARK_AHEAD = f"""
UPDATE jobs SET rank = NULL, gate = {PARKED}
WHERE seq IN (SELECT seq FROM (SELECT seq, batch, gate {_READY}
                               ORDER BY rank, seq LIMIT {LOOKED_THROUGH}) j
              WHERE {_HELD_BACK})
"""
_FIRST_NOT_PAUSING = f"""
SELECT rank, seq FROM (SELECT rank, seq, batch, gate {_READY}
                       ORDER BY rank, seq LIMIT {LOOKED_THROUGH}) j
WHERE NOT {_HELD_BACK} ORDER BY rank, seq LIMIT :slots
"""
NEXT_DUE = f"""
SELECT min(at) FROM (
    SELECT min(run_at) AS at FROM jobs WHERE state = {PENDING} AND rank IS NULL AND gate IS NULL
    UNION ALL
    SELECT min(run_at) FROM jobs WHERE gate = {ALONE} AND state = {PENDING} AND run_at > ?)
"""

# Those in the line count as if they ran already: nobody counts again when they are claimed.
_LONERS = f"""
SELECT j.seq, j.queue, j.kind, j.waiter,
       EXISTS (SELECT 1 FROM workers w WHERE w.id = j.waiter AND w.ended_at IS NULL
               AND w.boot = :boot AND w.expires > :since)
FROM jobs j
WHERE j.gate = {ALONE} AND j.state = {PENDING} AND j.run_at <= :now
  AND j.queue IN (SELECT value FROM json_each(:queues))
  AND j.kind IN (SELECT value FROM json_each(:kinds))
  AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = j.batch
                  AND (b.paused > 0 OR b.concurrency <= b.running + (
                      SELECT count(*) FROM jobs w WHERE w.batch = b.id
                      AND w.state = {PENDING} AND w.gate = {LET_IN})))
ORDER BY j.run_at LIMIT 100
"""
_ANY_LONER = f"SELECT 1 FROM jobs WHERE gate = {ALONE} AND state = {PENDING} LIMIT 1"
_RUNS_A_LONER = f"SELECT 1 FROM jobs WHERE gate = {ALONE} AND state = {RUNNING} AND worker = ?"
_RUNS_ANYTHING = f"SELECT 1 FROM jobs WHERE worker = ? AND state = {RUNNING} LIMIT 1"


class Claimed(NamedTuple):
    """What a claim found; `more`: others were let into the line by it."""

    jobs: list[Job]
    more: bool


def claim(
    db: apsw.Connection,
    now: int,
    boot: Boot,
    worker: bytes,
    demands: Sequence[Demand],
) -> Claimed:
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
    let_in = sum(
        gates.let_in(db, now, touched.batch)
        for touched in ledger.write(db, now)
        if touched.batch in gated
    )
    return Claimed(jobs, let_in > 0)


def next_due(db: apsw.Connection, now: int) -> int | None:
    """When the next job becomes due that is not in the line yet."""
    ((due,),) = fetch(db, NEXT_DUE, (now,))
    return None if due is None else int(due)


def anything_to_claim(
    db: apsw.Connection, now: int, boot: Boot, worker: bytes, demands: Sequence[Demand]
) -> bool:
    """Whether a claim would find something, asked without the write lock."""
    if fetch(db, _RUNS_A_LONER, (worker,)):
        return False
    loner = _suitable_loner(db, now, boot, worker, demands)
    if loner is not None:
        return not loner.reserved
    return any(
        fetch(db, _FIRST, {"queue": line.queue, "kind": line.kind, "slots": 1})
        for demand in demands
        for line in _lines(db, demand)
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
    lines = _lines(db, demand)
    if not lines:
        return []
    bindings: dict[str, Any] = {"worker": worker, "now": now}
    if len(lines) == 1 and not pausing:
        (line,) = lines
        slots = min(demand.slots, demand.portions[line.portion].slots)
        bindings |= {"queue": line.queue, "kind": line.kind, "slots": slots}
        rows = fetch(db, _CLAIM_FIRST, bindings)
    else:
        seqs = json.dumps(_line_up(db, demand, lines, pausing=pausing))
        rows = fetch(db, _CLAIM_THESE, bindings | {"seqs": seqs})
    # RETURNING gives no order of its own; rank, then seq, is the order of the line.
    rows.sort(key=_RANK_AND_SEQ)
    return _claimed(db, rows, worker, ledger)


def _claimed(db: apsw.Connection, rows: Sequence[Row], worker: bytes, ledger: Ledger) -> list[Job]:
    """The jobs of these rows, entered in the ledger. Most of what one claim finds is alike."""
    jobs = []
    alike, group = None, []
    for row in rows:
        job = job_from_row(row)
        raw, batch = row[0], row[14]
        if alike != (job.queue, job.kind, job.role, batch):
            alike = (job.queue, job.kind, job.role, batch)
            group = ledger.group(
                "claim", job.queue, job.kind, ROLE_CODE[job.role], batch, PENDING, RUNNING, worker
            )
        group.append(ENTRY.pack(raw, job.attempt, job.lease))
        if job.unique:
            uniques.release_claimed(db, raw)
        jobs.append(job)
    return jobs


class _Line(NamedTuple):
    """Ready jobs of one kind in one queue, and the portion of the demand that they are for."""

    portion: int
    queue: str
    kind: str


def _lines(db: apsw.Connection, demand: Demand) -> list[_Line]:
    """The lines in which something stands that the demand asks for."""
    waiting = {
        queue: {row[0] for row in db.execute(_PENDING_KINDS, (queue,))} for queue in demand.queues
    }
    return [
        _Line(number, queue, kind)
        for number, portion in enumerate(demand.portions)
        for queue in demand.queues
        for kind in portion.kinds
        if kind in waiting[queue]
    ]


def _line_up(
    db: apsw.Connection, demand: Demand, lines: Sequence[_Line], *, pausing: bool
) -> list[int]:
    """The first jobs of several lines merged into one, so that none of them starves another."""
    room = [portion.slots for portion in demand.portions]
    waiting: list[tuple[int, int, _Line]] = []
    for line in lines:
        slots = min(demand.slots, room[line.portion])
        place = {"queue": line.queue, "kind": line.kind, "slots": slots}
        if pausing:
            db.execute(_PARK_AHEAD, place)
        first = fetch(db, _FIRST_NOT_PAUSING if pausing else _FIRST, place)
        waiting.extend((rank, seq, line) for rank, seq in first)
    waiting.sort()
    if demand.shares:
        waiting = _in_turn(waiting, demand)
    chosen: list[int] = []
    for _, seq, (number, *_) in waiting:
        if room[number] > 0 and len(chosen) < demand.slots:
            room[number] -= 1
            chosen.append(seq)
    return chosen


def _in_turn(
    waiting: Sequence[tuple[int, int, _Line]], demand: Demand
) -> list[tuple[int, int, _Line]]:
    """Jobs that stand in line by rank, ordered by the times of their queues instead."""
    times = dict(zip(demand.queues, demand.shares, strict=True))
    nth: Counter[str] = Counter()
    ordered = []
    for _, seq, line in waiting:
        nth[line.queue] += 1
        ordered.append((times[line.queue].after(nth[line.queue]), seq, line))
    return sorted(ordered)


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
    loner = _suitable_loner(db, now, boot, worker, demands)
    if loner is None:
        return None
    if not loner.idle:
        if not loner.reserved:
            db.execute("UPDATE jobs SET waiter = ? WHERE seq = ?", (worker, loner.seq))
        return []
    seqs = json.dumps([loner.seq])
    rows = fetch(db, _CLAIM_THESE, {"worker": worker, "now": now, "seqs": seqs})
    return _claimed(db, rows, worker, ledger)


class _Loner(NamedTuple):
    """A job to be run alone: whether its worker-to-be is idle, or runs dry for it already."""

    seq: int
    idle: bool
    reserved: bool


def _suitable_loner(
    db: apsw.Connection, now: int, boot: Boot, worker: bytes, demands: Sequence[Demand]
) -> _Loner | None:
    """The first job to be run alone that this worker could take, or is to run dry for."""
    if not fetch(db, _ANY_LONER):
        return None
    kinds = {k for demand in demands for portion in demand.portions for k in portion.kinds}
    queues = {queue for demand in demands for queue in demand.queues}
    place = {"queues": json.dumps(sorted(queues)), "kinds": json.dumps(sorted(kinds))}
    waiting = fetch(db, _LONERS, {"now": now, "boot": boot[0], "since": boot[1], **place})
    if not waiting:
        return None
    idle = not fetch(db, _RUNS_ANYTHING, (worker,))
    for seq, queue, kind, waiter, waits in waiting:
        if (idle or waiter == worker or not waits) and _asked_for(demands, queue, kind):
            return _Loner(seq, idle, waiter == worker)
    return None


def _asked_for(demands: Sequence[Demand], queue: str, kind: str) -> bool:
    return any(
        queue in demand.queues and any(kind in portion.kinds for portion in demand.portions)
        for demand in demands
    )
