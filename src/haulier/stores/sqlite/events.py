"""Reading the events: rows of many are taken apart, cursors are checked."""

from __future__ import annotations

import apsw

from haulier.domain.event import RESET, Event
from haulier.domain.ids import text_id
from haulier.exceptions import Problem, ValidationError
from haulier.stores.codes import (
    ROLES,
)
from haulier.stores.sqlite.ledger import ENTRY
from haulier.stores.sqlite.rows import (
    Row,
    fetch,
)

_AFTER = (
    "SELECT seq, n, at, type, kind, queue, role, batch, worker, error, body FROM events "
    "WHERE seq > ? ORDER BY seq LIMIT ?"
)


def last_event(db: apsw.Connection) -> str:
    ((epoch, last),) = fetch(db, "SELECT epoch, last FROM history")
    return f"{epoch}:{last}"


def read(db: apsw.Connection, after: str | None, limit: int) -> list[Event]:
    """Events after a cursor; a `reset` for one that cannot be gone on from."""
    ((epoch, last),) = fetch(db, "SELECT epoch, last FROM history")
    oldest = fetch(db, "SELECT seq - n, at FROM events ORDER BY seq LIMIT 1")
    before = oldest[0][0] if oldest else last
    seen = before
    if after is not None:
        of, seen = _parsed(after)
        if of != epoch or not before <= seen <= last:
            at = oldest[0][1] if oldest else 0
            return [Event(epoch, before, at, RESET)]
    found: list[Event] = []
    # A row holds at least one event, so so many rows are always enough.
    for row in db.execute(_AFTER, (seen, limit)):
        found.extend(_unpacked(epoch, row, seen))
        if len(found) >= limit:
            break
    return found[:limit]


def _unpacked(epoch: str, row: Row, seen: int) -> list[Event]:
    last, n, at, event, kind, queue, role, batch, worker, error, body = row
    first = last - n + 1
    batch_id = None if batch is None else text_id(batch)
    worker_id = None if worker is None else text_id(worker)
    return [
        Event(
            epoch,
            seq,
            at,
            event,
            text_id(job),
            kind,
            queue,
            ROLES[role],
            batch_id,
            attempt,
            lease,
            worker_id,
            error,
        )
        for seq, (job, attempt, lease) in enumerate(ENTRY.iter_unpack(body), start=first)
        if seq > seen
    ]


def _parsed(cursor: str) -> tuple[str, int]:
    epoch, colon, number = cursor.partition(":")
    if not (colon and epoch and number.isascii() and number.isdigit() and len(number) <= 18):
        raise ValidationError(
            "the cursor was refused", [Problem("after", "is no cursor of an event")]
        )
    return epoch, int(number)
