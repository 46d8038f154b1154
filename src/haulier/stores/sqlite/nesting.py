"""Batches within batches: what is done to one goes on through those whose heads are its items."""

from __future__ import annotations

from collections.abc import Callable

import apsw

from haulier.domain.batch import DEEPEST
from haulier.domain.ids import text_id
from haulier.exceptions import JobStateError
from haulier.stores.sqlite.rows import fetch

OWN, FROM_AROUND = 1, 2
"""Who has paused a batch: somebody, or the pause of the batch around it."""

_UNLIKE = """
SELECT i.id, o.cancel, o.paused FROM batches i JOIN batches o ON o.id = i.within
WHERE i.within = ? AND i.owed = 1 AND i.cancel = 0
  AND (o.cancel > 0 OR (o.paused > 0) <> (i.paused & 2 > 0)) LIMIT 1
"""
_STILL_AT_IT = (
    "SELECT id FROM batches INDEXED BY batches_within "
    "WHERE within = ? AND owed = 1 AND draining > 0 LIMIT 1"
)


def depth_within(db: apsw.Connection, outer: bytes) -> int:
    """How deep a batch lies that is put into this one; raises JobStateError beyond the deepest."""
    depth, at = 1, outer
    while depth <= DEEPEST:
        rows = fetch(db, "SELECT within FROM batches WHERE id = ?", (at,))
        if not rows or rows[0][0] is None:
            return depth
        depth, at = depth + 1, rows[0][0]
    raise JobStateError(
        f"batch {text_id(outer)} lies as deep as can be: {DEEPEST} batches around one are the most"
    )


def unlike(db: apsw.Connection, outer: bytes) -> tuple[bytes, bool, bool] | None:
    """A batch directly within this one that is not yet cancelled or paused as it is.

    With whether it is to be cancelled, else whether it is to be paused.
    """
    rows = fetch(db, _UNLIKE, (outer,))
    return None if not rows else (rows[0][0], rows[0][1] > 0, rows[0][2] > 0)


def go_on(
    db: apsw.Connection,
    outer: bytes,
    adapt: Callable[[bytes, bool, bool], None],
    drain: Callable[[bytes], bool],
) -> bool:
    """One step of bringing what lies within a batch into line with it; whether there is more.

    The work of each is done here, so that whoever drains the outer one does it all.
    """
    found = unlike(db, outer)
    if found is not None:
        adapt(*found)
        drain(found[0])
        return True
    rows = fetch(db, _STILL_AT_IT, (outer,))
    if not rows:
        return False
    drain(rows[0][0])
    return True


def innermost(db: apsw.Connection, batch: bytes) -> bytes:
    """The batch itself, or one within it that has none within."""
    while rows := fetch(db, "SELECT id FROM batches WHERE within = ? LIMIT 1", (batch,)):
        batch = rows[0][0]
    return batch


def any_owed(db: apsw.Connection, batch: bytes) -> bool:
    """Whether a batch directly within this one has not settled."""
    return bool(fetch(db, "SELECT 1 FROM batches WHERE within = ? AND owed = 1 LIMIT 1", (batch,)))
