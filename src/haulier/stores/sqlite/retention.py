"""Removing what is kept no longer, a small slice at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import apsw

from haulier.domain.job import MICROSECOND, JobState
from haulier.domain.retention import Keep, Retention
from haulier.stores.codes import (
    COMPLETED,
    HEAD,
    SINGLE,
    STATE_CODE,
)
from haulier.stores.sqlite.batches import begin_delete
from haulier.stores.sqlite.ledger import Ledger
from haulier.stores.sqlite.removing import REMOVED, removed
from haulier.stores.sqlite.rows import (
    Row,
    fetch,
)

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
_COLUMNS = "seq, id, role"
# One that cannot go yet is still one of the oldest: no younger one goes in its stead.
_OLDEST = f"""
SELECT {_COLUMNS} FROM (SELECT * {_FINISHED} ORDER BY finished_at LIMIT ?) WHERE {_WHOLE}
"""
_TOO_OLD = (
    f"SELECT {_COLUMNS} {_FINISHED} AND {_WHOLE} AND finished_at <= ? ORDER BY finished_at LIMIT ?"
)

# In these words it is the condition of the index: results that say nothing are left alone.
_EXPIRED = (
    f"SELECT seq FROM jobs INDEXED BY jobs_results WHERE kind = ? AND state = {COMPLETED} "
    f"AND role = {SINGLE} AND result IS NOT NULL AND result <> x'6e756c6c' AND finished_at <= ? "
    "LIMIT ?"
)
_FREE = "SELECT name FROM uniques WHERE until <= ? LIMIT ?"


@dataclass(slots=True)
class Slice:
    """What one slice did: how many jobs go, and the batches among them that are to be drained."""

    removed: int = 0
    batches: list[bytes] = field(default_factory=list)


def prune(db: apsw.Connection, now: int, rules: Mapping[str, Retention]) -> Slice:
    """Remove one slice of what is kept no longer."""
    for kind, rule in rules.items():
        for state, keep in rule.by_state():
            for rows in _surplus(db, now, kind, state, keep):
                return _remove(db, now, rows)
        found = _expired(db, now, kind, rule, SLICE)
        if found:
            db.executemany("UPDATE jobs SET result = NULL WHERE seq = ?", found)
            return Slice()
    db.executemany("DELETE FROM uniques WHERE name = ?", fetch(db, _FREE, (now, SLICE)))
    db.executemany("DELETE FROM events WHERE seq = ?", _surplus_events(db, now))
    return Slice()


def prune_needed(db: apsw.Connection, now: int, rules: Mapping[str, Retention]) -> bool:
    """Whether there is anything to remove, asked without the write lock."""
    for kind, rule in rules.items():
        for state, keep in rule.by_state():
            if any(_surplus(db, now, kind, state, keep)):
                return True
        if _expired(db, now, kind, rule, 1):
            return True
    return bool(fetch(db, _FREE, (now, 1)) or _surplus_events(db, now))


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
    result = Slice()
    ledger = Ledger()
    for seq, job, role in rows:
        if role == HEAD:
            ((items,),) = fetch(db, "SELECT total FROM batches WHERE id = ?", (job,))
            begin_delete(db, job, pruned=True)
            result.batches.append(job)
            result.removed += items + 1
        else:
            gone = fetch(db, f"DELETE FROM jobs WHERE seq = ? {REMOVED}", (seq,))
            removed(db, ledger, gone, with_periods=False)
            result.removed += 1
    ledger.write(db, now)
    return result


def _expired(db: apsw.Connection, now: int, kind: str, rule: Retention, limit: int) -> list[Row]:
    """Jobs whose results are kept no longer."""
    if rule.result_ttl is None:
        return []
    return fetch(db, _EXPIRED, (kind, now - round(rule.result_ttl * MICROSECOND), limit))


def _surplus_events(db: apsw.Connection, now: int) -> list[tuple[int]]:
    ((last,),) = fetch(db, "SELECT last FROM history")
    return fetch(
        db,
        "SELECT seq FROM (SELECT seq, at FROM events ORDER BY seq LIMIT ?) "
        "WHERE seq <= ? OR at < ?",
        (EVENT_ROWS, last - EVENTS_KEPT, now - EVENTS_AGE),
    )
