"""Reading the events."""

from __future__ import annotations

import apsw

from haulier.domain.event import RESET, Event
from haulier.domain.ids import text_id
from haulier.stores.packed import events_of, parsed_cursor
from haulier.stores.sqlite.rows import fetch

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
        of, seen = parsed_cursor(after)
        if of != epoch or not before <= seen <= last:
            at = oldest[0][1] if oldest else 0
            return [Event(epoch, before, at, RESET)]
    found: list[Event] = []
    # A row holds at least one event, so so many rows are always enough.
    for row in db.execute(_AFTER, (seen, limit)):
        batch, worker = (None if raw is None else text_id(raw) for raw in row[7:9])
        found += events_of(epoch, row, seen, batch=batch, worker=worker)
        if len(found) >= limit:
            break
    return found[:limit]
