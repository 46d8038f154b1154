"""How a batch ends: its head settles in the transaction that finished its last item."""

from __future__ import annotations

import json
from collections.abc import Iterable

import apsw

from haulier.domain.ids import derived_id, raw_id, text_id
from haulier.domain.moves import RULES, Move
from haulier.stores.sqlite.counters import Deltas
from haulier.stores.sqlite.rows import (
    HEAD,
    PENDING,
    RUNNING,
    SINGLE,
    STATE_CODE,
    Row,
    fetch,
    rank_of,
)

_DONE = (
    "SELECT b.cancel, b.total, b.completed, b.failed, b.cancelled, b.finish_kind, b.finish_queue, "
    "b.round, j.queue, j.kind, j.priority FROM batches b JOIN jobs j ON j.id = b.id "
    "WHERE b.id = ? AND b.pending = 0 AND b.running = 0 AND b.draining = 0 "
    "AND (b.sealed = 1 OR b.cancel = 1) AND j.state = ? AND j.worker IS NULL"
)


def settle_done(db: apsw.Connection, now: int, batches: Iterable[bytes]) -> bool:
    """Settle the heads of those batches that have nothing left to do; whether there were any."""
    settled = False
    for batch in batches:
        for row in fetch(db, _DONE, (batch, RUNNING)):
            _settle(db, now, batch, row)
            settled = True
    return settled


def _settle(db: apsw.Connection, now: int, batch: bytes, row: Row) -> None:
    cancel, total, completed, failed, cancelled, finish_kind, finish_queue, round_, *head = row
    queue, kind, priority = head
    counts = {"total": total, "completed": completed, "failed": failed, "cancelled": cancelled}
    target = RULES[Move.ABANDON if cancel else Move.SETTLE].target
    db.execute(
        "UPDATE jobs SET state = ?, finished_at = ?, result = ?, cancel = 0 WHERE id = ?",
        (STATE_CODE[target], now, json.dumps(counts, separators=(",", ":")).encode(), batch),
    )
    deltas = Deltas()
    deltas.moved(queue, kind, HEAD, None, RUNNING, STATE_CODE[target])
    callback = None
    if finish_kind is not None:
        # Named after the round: a batch that was reopened and settles again calls back again.
        callback = raw_id(derived_id(text_id(batch), f"finish/{round_}"))
        payload = {"batch_id": text_id(batch), "state": target, "counts": counts}
        db.execute(
            "INSERT INTO jobs (id, kind, queue, role, version, payload, state, rank, priority, "
            "run_at, created_at) VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?)",
            (
                callback,
                finish_kind,
                finish_queue,
                SINGLE,
                json.dumps(payload, separators=(",", ":")).encode(),
                PENDING,
                rank_of(now, priority),
                priority,
                now,
                now,
            ),
        )
        deltas.added(finish_queue, finish_kind, SINGLE, None, PENDING)
    db.execute(
        "UPDATE batches SET round = round + 1, finish_job = ? WHERE id = ?", (callback, batch)
    )
    deltas.write(db, now)
