"""Batches that may not run as fast as they could: paused ones, and those with limits.

Their items wait outside the ready line (parked) and are let in as there is room, so a claim never
meets one that it must not take, however many are waiting.
"""

from __future__ import annotations

import json

import apsw

from haulier.stores.codes import (
    ALONE,
    LET_IN,
    PARKED,
    PENDING,
    rank_of,
)
from haulier.stores.sqlite.rows import (
    fetch,
)

PROMOTED_AT_ONCE = 1000

_POINT = rank_of(0, -1)

_DUE = f"state = {PENDING} AND rank IS NULL AND gate IS NULL AND run_at <= ?"

_PROMOTE = f"""
UPDATE jobs SET rank = run_at - priority * {_POINT}
WHERE seq IN (SELECT seq FROM jobs WHERE {_DUE} ORDER BY run_at LIMIT {PROMOTED_AT_ONCE})
"""

_DUE_NOW = f"SELECT seq, batch FROM jobs WHERE {_DUE} ORDER BY run_at LIMIT {PROMOTED_AT_ONCE}"
_PARK_THESE = f"UPDATE jobs SET gate = {PARKED} WHERE seq IN (SELECT value FROM json_each(?))"
_PROMOTE_THESE = (
    f"UPDATE jobs SET rank = run_at - priority * {_POINT} "
    "WHERE seq IN (SELECT value FROM json_each(?))"
)

_GATED = "SELECT id FROM batches WHERE gated = 1"

_LET_IN = f"""
UPDATE jobs SET gate = {LET_IN}, rank = run_at - priority * {_POINT}
WHERE seq IN (SELECT seq FROM jobs WHERE batch = ? AND state = {PENDING} AND gate = {PARKED}
              ORDER BY run_at - priority * {_POINT}, seq LIMIT ?)
"""

_ROOM = (
    "SELECT paused, concurrency, batch_size, running FROM batches "
    "WHERE id = ? AND gated = 1 AND cancel = 0"
)
_WAITING = (
    f"SELECT total(gate = {LET_IN}), total(gate = {ALONE} AND run_at <= ?) FROM jobs "
    f"WHERE batch = ? AND state = {PENDING} AND gate IN ({LET_IN}, {ALONE})"
)


def gated_batches(db: apsw.Connection) -> frozenset[bytes]:
    """The batches whose items have to wait to be let in."""
    return frozenset(row[0] for row in db.execute(_GATED))


def promote(db: apsw.Connection, now: int, gated: frozenset[bytes]) -> None:
    """Put scheduled jobs that are due into the line, or in front of their batch's gate."""
    if not gated:
        db.execute(_PROMOTE, (now,))
        return
    due = fetch(db, _DUE_NOW, (now,))
    if due:
        db.execute(_PARK_THESE, (json.dumps([seq for seq, batch in due if batch in gated]),))
        others = json.dumps([seq for seq, batch in due if batch not in gated])
        db.execute(_PROMOTE_THESE, (others,))
        for batch in {batch for _, batch in due if batch in gated}:
            let_in(db, now, batch)


def let_in(db: apsw.Connection, now: int, batch: bytes) -> int:
    """Let parked items of a batch into the line as far as its limits allow; how many.

    Those in the line count against `concurrency` as if they ran already, and are never more than
    `batch_size`: so no claim can take too many, and none has to count. Those that are due to be
    run alone have a place kept for them.
    """
    free = room(db, now, batch)
    if free is None or free <= 0:
        return 0
    db.execute(_LET_IN, (batch, free))
    return db.changes()


def room(db: apsw.Connection, now: int, batch: bytes) -> int | None:
    """How many more items may be let into the line; below 0, as many are too much.

    None for a batch that is paused or has no limits.
    """
    rows = fetch(db, _ROOM, (batch,))
    if not rows or rows[0][0]:
        return None
    _, concurrency, batch_size, running = rows[0]
    ((waiting, alone),) = fetch(db, _WAITING, (now, batch))
    free = [batch_size - waiting] if batch_size is not None else []
    if concurrency is not None:
        free.append(concurrency - running - waiting - alone)
    return int(min(free)) if free else None
