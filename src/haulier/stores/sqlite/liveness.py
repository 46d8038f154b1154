"""Worker incarnations: who is there, who is gone, and what becomes of the jobs they held."""

from __future__ import annotations

import json
from collections.abc import Sequence

import apsw

from haulier.domain.event import CANCEL_HEARD
from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import MICROSECOND
from haulier.domain.moves import after_loss
from haulier.domain.worker import Note, Renewal, WorkerRow
from haulier.stores.codes import (
    HEARD,
    REQUESTED,
    RUNNING,
)
from haulier.stores.sqlite import flows, kept, limits
from haulier.stores.sqlite.ledger import SUBJECT, Ledger, Subject
from haulier.stores.sqlite.moving import apply_all
from haulier.stores.sqlite.rows import (
    JOB_COLUMNS,
    fetch,
    job_from_row,
)
from haulier.stores.sqlite.rules import rules_of

FORGET_AFTER = 24 * 3600 * MICROSECOND
"""How long an ended incarnation stays listed."""

Boot = tuple[str, int]

_HEAR = (
    f"UPDATE jobs SET cancel = {HEARD} "
    f"WHERE id = ? AND lease = ? AND state = {RUNNING} AND cancel = {REQUESTED} "
    f"RETURNING worker, {SUBJECT}"
)


def enlist(db: apsw.Connection, now: int, boot: Boot, worker: WorkerRow, ttl: int) -> None:
    """Record a new incarnation, alive for one ttl from now."""
    db.execute(
        "INSERT INTO workers (id, host, pid, queues, kinds, slots, boot, expires, started_at, "
        "renewed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        # Said again when its answer was lost.
        "ON CONFLICT (id) DO NOTHING",
        (
            raw_id(worker.id),
            worker.host,
            worker.pid,
            json.dumps(worker.queues),
            json.dumps(worker.kinds),
            worker.slots,
            boot[0],
            boot[1] + ttl,
            now,
            now,
        ),
    )


def renew(db: apsw.Connection, now: int, boot: Boot, worker: bytes, ttl: int) -> Renewal:
    """Put the expiry forward; an incarnation that has expired stays dead, swept or not."""
    db.execute(
        "UPDATE workers SET expires = ?, renewed_at = ? "
        "WHERE id = ? AND ended_at IS NULL AND boot = ? AND expires > ?",
        (boot[1] + ttl, now, worker, boot[0], boot[1]),
    )
    if not db.changes():
        return Renewal(alive=False)
    rows = fetch(
        db, f"SELECT id FROM jobs WHERE worker = ? AND cancel > 0 AND state = {RUNNING}", (worker,)
    )
    ((version,),) = fetch(db, "SELECT coalesce((SELECT version FROM configuration), 0)")
    return Renewal(alive=True, cancels=tuple(text_id(row[0]) for row in rows), version=version)


def retire(db: apsw.Connection, now: int, worker: bytes) -> int:
    """End an incarnation and give its jobs to others; returns how many it still held."""
    db.execute("UPDATE workers SET ended_at = ? WHERE id = ? AND ended_at IS NULL", (now, worker))
    rows = fetch(
        db, f"SELECT {JOB_COLUMNS} FROM jobs WHERE worker = ? AND state = {RUNNING}", (worker,)
    )
    jobs = [job_from_row(row) for row in rows]
    apply_all(db, now, [after_loss(job) for job in jobs], rules_of(db))
    return len(jobs)


def sweep(db: apsw.Connection, now: int, boot: Boot) -> int:
    """Retire every incarnation that expired or belongs to an earlier boot of this machine."""
    expired = fetch(
        db, "SELECT id FROM workers WHERE ended_at IS NULL AND (boot <> ? OR expires <= ?)", boot
    )
    released = sum(retire(db, now, row[0]) for row in expired)
    db.execute("DELETE FROM workers WHERE ended_at < ?", (now - FORGET_AFTER,))
    limits.forget_at_rest(db, now)
    return released


def sweep_needed(db: apsw.Connection, now: int, boot: Boot) -> bool:
    """Whether a sweep would find anything, without taking the write lock."""
    return limits.any_at_rest(db, now) or bool(
        fetch(
            db,
            "SELECT 1 FROM workers WHERE ended_at IS NULL AND (boot <> ? OR expires <= ?) "
            "UNION ALL SELECT 1 FROM batches WHERE draining > 0 LIMIT 1",
            boot,
        )
        or flows.work_left(db)
    )


def note(db: apsw.Connection, now: int, notes: Sequence[Note]) -> None:
    """Record progress, log lines and heard cancels, each only while its lease holds."""
    db.executemany(
        "UPDATE jobs SET progress = coalesce(?, progress), message = coalesce(?, message) "
        f"WHERE id = ? AND lease = ? AND state = {RUNNING}",
        [(n.progress, n.message, raw_id(n.job_id), n.lease) for n in notes],
    )
    kept.say(db, now, [each for each in notes if each.lines])
    heard = [each for each in notes if each.heard]
    if heard:
        _hear(db, now, heard)


def _hear(db: apsw.Connection, now: int, notes: Sequence[Note]) -> None:
    ledger = Ledger()
    for each in notes:
        for row in fetch(db, _HEAR, (raw_id(each.job_id), each.lease)):
            worker, *job = row
            ledger.moved(CANCEL_HEARD, Subject(*job), RUNNING, RUNNING, worker=worker)
    ledger.write(db, now)
