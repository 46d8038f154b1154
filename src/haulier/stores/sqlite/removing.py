"""Removing the items of whole batches, slice by slice, and what was kept beside them."""

from __future__ import annotations

from collections.abc import Iterable

import apsw

from haulier.domain.event import DELETED
from haulier.stores.sqlite import flows, kept, nesting, uniques
from haulier.stores.sqlite.ledger import SUBJECT, Ledger, Subject
from haulier.stores.sqlite.rows import Row, fetch

DELETED_AT_ONCE = 250
"""A row leaves all its indexes when it is deleted, which takes longer than to move it."""

REMOVED = f"RETURNING seq, state, uniq, children, {SUBJECT}"
"""What `removed` has to be told of deleted rows."""

_DELETE = (
    f"DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE batch = ? LIMIT {DELETED_AT_ONCE}) "
    f"{REMOVED}"
)


def delete_slice(
    db: apsw.Connection, now: int, batch: bytes, cursor: int
) -> tuple[int, int | None]:
    """Remove items of a batch that is deleted, in the end itself."""
    return _delete_items(db, now, batch, cursor, with_periods=True)


def prune_slice(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[int, int | None]:
    """The same by retention, which leaves names that are held for a period."""
    return _delete_items(db, now, batch, cursor, with_periods=False)


def _delete_items(
    db: apsw.Connection, now: int, batch: bytes, cursor: int, *, with_periods: bool
) -> tuple[int, int | None]:
    """Remove items, with the last ones the head too. The batch's counters go with it."""
    inner = nesting.innermost(db, batch)
    rows = fetch(db, _DELETE, (inner,))
    count = len(rows)
    over = count < DELETED_AT_ONCE
    if over:
        rows += fetch(db, f"DELETE FROM jobs WHERE id = ? {REMOVED}", (inner,))
        db.execute("DELETE FROM batches WHERE id = ?", (inner,))
    ledger = Ledger()
    removed(db, ledger, rows, uncounted=True, with_periods=with_periods)
    ledger.write(db, now)
    return count, None if over and inner == batch else cursor


def clear_slice(db: apsw.Connection, now: int, batch: bytes, cursor: int) -> tuple[int, int | None]:
    """Remove items whose head makes them anew: with the same ids, so their leases go on."""
    inner = nesting.innermost(db, batch)
    rows = fetch(db, _DELETE, (inner,))
    count = len(rows)
    ledger = Ledger()
    removed(db, ledger, rows, uncounted=inner != batch)
    if inner != batch and count < DELETED_AT_ONCE:
        ((within,),) = fetch(db, "SELECT within FROM batches WHERE id = ?", (inner,))
        db.execute("DELETE FROM batches WHERE id = ?", (inner,))
        rows += fetch(db, f"DELETE FROM jobs WHERE id = ? {REMOVED}", (inner,))
        removed(db, ledger, rows[count:], uncounted=within != batch)
        count = DELETED_AT_ONCE
    ledger.write(db, now)
    highest = max((Subject(*row[4:]).lease for row in rows), default=0)
    db.execute("UPDATE batches SET leases = max(leases, ?) WHERE id = ?", (highest, batch))
    return len(rows), None if count < DELETED_AT_ONCE else cursor


def removed(
    db: apsw.Connection,
    ledger: Ledger,
    rows: Iterable[Row],
    *,
    uncounted: bool = False,
    with_periods: bool = True,
) -> None:
    """Account for deleted jobs, and remove what was kept beside them."""
    for seq, state, uniq, children, *job in rows:
        db.execute("DELETE FROM errors WHERE job = ?", (seq,))
        kept.forget(db, seq)
        flows.forget(db, seq, job[0], state, children)
        if uniq is not None and with_periods:
            uniques.forget(db, job[0])
        elif uniq is not None:
            uniques.release_ended(db, job[0])
        ledger.moved(DELETED, Subject(*job), state, None, uncounted=uncounted)
