"""Removing what is kept no longer, a small slice at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import apsw

from haulier.domain.job import MICROSECOND, JobState
from haulier.domain.retention import Keep, Retention
from haulier.stores.sqlite.batches import begin_delete, remove_jobs
from haulier.stores.sqlite.rows import COMPLETED, HEAD, SINGLE, STATE_CODE, Row, fetch

SLICE = 250
"""Jobs that one slice removes: a few milliseconds, so that no claim waits for long."""

EVENTS_KEPT = 1_000_000
EVENTS_AGE = 24 * 3600 * MICROSECOND
"""Events are kept for a day, and at most the latest million."""

EVENT_ROWS = 50

_FINISHED = (
    "FROM jobs INDEXED BY jobs_finished WHERE kind = ? AND state = ? AND state > 1 AND role < 2"
)
# A head may be final while its items still stop; others are being retried or deleted.
_WHOLE = f"(role = {SINGLE} OR id IN (SELECT id FROM batches WHERE owed = 0 AND draining = 0))"
_COLUMNS = "seq, id, attempt, lease, queue, kind, state, role"
# One that cannot go yet is still one of the oldest: no younger one goes in its stead.
_OLDEST = f"""
SELECT {_COLUMNS} FROM (SELECT * {_FINISHED} ORDER BY finished_at LIMIT ?) WHERE {_WHOLE}
"""
_TOO_OLD = (
    f"SELECT {_COLUMNS} {_FINISHED} AND {_WHOLE} AND finished_at <= ? ORDER BY finished_at LIMIT ?"
)

_EXPIRED = (
    f"SELECT seq, finished_at {_FINISHED} AND finished_at > ? AND finished_at <= ? "
    f"AND role = {SINGLE} AND result <> x'6e756c6c' ORDER BY finished_at LIMIT ?"
)


@dataclass(slots=True)
class Slice:
    """What one slice did: jobs removed, batches to be drained, and whether there is more."""

    removed: int = 0
    batches: list[bytes] = field(default_factory=list)
    more: bool = False


def prune(db: apsw.Connection, now: int, rules: Mapping[str, Retention]) -> Slice:
    """Remove one slice of what is kept no longer."""
    for kind, rule in rules.items():
        for state, keep in rule.by_state():
            for rows in _surplus(db, now, kind, state, keep):
                return _remove(db, now, rows)
        if rule.result_ttl is not None and _expire(db, now, kind, rule.result_ttl):
            return Slice(more=True)
    db.execute("DELETE FROM uniques WHERE until <= ?", (now,))
    return Slice(more=_prune_events(db, now))


def prune_needed(db: apsw.Connection, now: int, rules: Mapping[str, Retention]) -> bool:
    """Whether there is anything to remove, asked without the write lock."""
    for kind, rule in rules.items():
        for state, keep in rule.by_state():
            if any(_surplus(db, now, kind, state, keep)):
                return True
        if rule.result_ttl is not None and _expired(db, now, kind, rule.result_ttl, 1):
            return True
    return bool(
        fetch(db, "SELECT 1 FROM uniques WHERE until <= ? LIMIT 1", (now,))
        or _surplus_events(db, now)
    )


def _surplus(
    db: apsw.Connection, now: int, kind: str, state: JobState, keep: Keep
) -> Iterator[list[Row]]:
    """Rows of finished jobs that are too old or too many, at most a slice of them."""
    code = STATE_CODE[state]
    if keep.age is not None:
        before = now - round(keep.age * MICROSECOND)
        rows = fetch(db, _TOO_OLD, (kind, code, before, SLICE))
        if rows:
            yield rows
    if keep.count is not None:
        ((there,),) = fetch(
            db,
            "SELECT coalesce(sum(n), 0) FROM counts WHERE kind = ? AND state = ? AND role < 2",
            (kind, code),
        )
        if there > keep.count:
            rows = fetch(db, _OLDEST, (kind, code, min(there - keep.count, SLICE)))
            if rows:
                yield rows


def _remove(db: apsw.Connection, now: int, rows: list[Row]) -> Slice:
    result = Slice(more=True)
    singles = []
    for *row, role in rows:
        if role == HEAD:
            result.batches.append(row[1])
        else:
            singles.append(tuple(row))
    for batch in result.batches:
        begin_delete(db, batch)
    db.executemany("DELETE FROM jobs WHERE seq = ?", [(row[0],) for row in singles])
    remove_jobs(db, now, singles)
    result.removed = len(singles)
    return result


def _expired(
    db: apsw.Connection, now: int, kind: str, ttl: float, limit: int
) -> list[tuple[int, int]]:
    rows = fetch(db, "SELECT upto FROM expired WHERE kind = ?", (kind,))
    since = rows[0][0] if rows else 0
    before = now - round(ttl * MICROSECOND)
    return fetch(db, _EXPIRED, (kind, COMPLETED, since, before, limit))


def _expire(db: apsw.Connection, now: int, kind: str, ttl: float) -> bool:
    """Remove results whose time is over; whether there may be more."""
    found = _expired(db, now, kind, ttl, SLICE)
    db.executemany("UPDATE jobs SET result = NULL WHERE seq = ?", [(row[0],) for row in found])
    upto = now - round(ttl * MICROSECOND)
    if len(found) == SLICE:
        # Many finish in the same instant: others of the last one may be left.
        upto = found[-1][1] - 1
    db.execute(
        "INSERT INTO expired (kind, upto) VALUES (?, ?) "
        "ON CONFLICT (kind) DO UPDATE SET upto = max(upto, excluded.upto)",
        (kind, upto),
    )
    return bool(found)


def _surplus_events(db: apsw.Connection, now: int) -> list[tuple[int]]:
    ((last,),) = fetch(db, "SELECT last FROM history")
    return fetch(
        db,
        "SELECT seq FROM (SELECT seq, at FROM events ORDER BY seq LIMIT ?) "
        "WHERE seq <= ? OR at < ?",
        (EVENT_ROWS, last - EVENTS_KEPT, now - EVENTS_AGE),
    )


def _prune_events(db: apsw.Connection, now: int) -> bool:
    rows = _surplus_events(db, now)
    db.executemany("DELETE FROM events WHERE seq = ?", rows)
    return len(rows) == EVENT_ROWS
