"""The limits of a batch are changed while it runs."""

from __future__ import annotations

from collections.abc import Mapping

import apsw

from haulier.domain.batch import LIMITS, told_change
from haulier.domain.event import ALTERED
from haulier.domain.ids import text_id
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.stores.codes import LET_IN, PARKED, PENDING, rank_of
from haulier.stores.packed import altered
from haulier.stores.sqlite import gates
from haulier.stores.sqlite.ledger import Ledger, Subject
from haulier.stores.sqlite.rows import Row, fetch
from haulier.stores.sqlite.settling import (
    CUT_SHORT,
    LIMITING,
    PAUSING,
    RESUMING,
    begin_cancel,
)

SLICE = 500

_POINT = rank_of(0, -1)

_LOOK = (
    "SELECT b.draining, b.cancel, b.paused, b.owed, b.failed, b.concurrency, b.batch_size, "
    "b.max_failures, j.state, j.id, j.attempt, j.lease, j.queue, j.kind, j.role, j.batch "
    "FROM batches b JOIN jobs j ON j.id = b.id WHERE b.id = ?"
)

_ALTER = """
UPDATE batches SET concurrency = :concurrency, batch_size = :batch_size,
    max_failures = :max_failures, draining = :draining,
    drained = iif(draining = :draining, drained, 0), moved = iif(draining = :draining, moved, 0),
    gated = owed AND (paused > 0 OR :concurrency IS NOT NULL OR :batch_size IS NOT NULL)
WHERE id = :id
"""

_TAKE_BACK = f"""
UPDATE jobs SET gate = {PARKED}, rank = NULL
WHERE seq IN (SELECT seq FROM jobs WHERE batch = ? AND state = {PENDING} AND gate = {LET_IN}
              ORDER BY run_at - priority * {_POINT} DESC, seq DESC LIMIT ?)
"""

_PARK = f"""
UPDATE jobs SET rank = NULL, gate = {PARKED}
WHERE seq IN (SELECT seq FROM jobs WHERE batch = :batch AND seq > :cursor
              AND state = {PENDING} AND rank IS NOT NULL AND gate IS NULL AND lane IS NULL
              ORDER BY seq LIMIT {SLICE})
RETURNING seq
"""


def alter(
    db: apsw.Connection, now: int, batch: bytes, changes: Mapping[str, int | None], by: str
) -> bool:
    """Change the limits that are named; whether something is to be drained."""
    rows = fetch(db, _LOOK, (batch,))
    if not rows:
        raise JobNotFoundError(text_id(batch))
    draining, cancel, paused, owed, failed, *limits = rows[0][:8]
    state, head = rows[0][8], Subject(*rows[0][9:])
    if owed and cancel:
        raise JobStateError("this batch has ended, or is being cancelled")
    if draining not in (0, PAUSING, RESUMING, LIMITING):
        raise JobStateError("a retry or delete of this batch is still under way")
    old: dict[str, int | None] = dict(zip(LIMITS, limits, strict=True))
    new = {**old, **changes}
    if new == old:
        return False
    if owed and not paused:
        draining = _under_way(draining, was=_limited(old), limited=_limited(new))
    db.execute(_ALTER, {**new, "draining": draining, "id": batch})
    ledger = Ledger()
    what = altered(by, told_change(old, new))
    ledger.moved(ALTERED, head, state, state, error=what)
    ledger.write(db, now)
    if owed and new["max_failures"] is not None and failed > new["max_failures"]:
        begin_cancel(db, now, batch, CUT_SHORT)
        return True
    _take_back(db, now, batch)
    gates.let_in(db, now, batch)
    return bool(draining)


def _limited(limits: Mapping[str, int | None]) -> bool:
    """Whether there is a gate for items; failures need none."""
    return limits["concurrency"] is not None or limits["batch_size"] is not None


def _under_way(draining: int, *, was: bool, limited: bool) -> int:
    """What is to be done to the items of a batch that is not paused."""
    if limited == was:
        return draining
    return LIMITING if limited else RESUMING


def _take_back(db: apsw.Connection, now: int, batch: bytes) -> None:
    """Park those that were let in beyond what may be in the line by now, the last ones first."""
    room = gates.room(db, now, batch)
    if room is not None and room < 0:
        db.execute(_TAKE_BACK, (batch, -room))


def limit_slice(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[list[Row], int]:
    """Park some of the items that stood in the line before there was a gate.

    Claims take none of them meanwhile, but those that are let in.
    """
    parked = fetch(db, _PARK, {"batch": batch, "cursor": cursor})
    gates.let_in(db, now, batch)
    return parked, len(parked)
