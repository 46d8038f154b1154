"""Lanes: where the ready jobs of limited kinds stand, those with the same limits together.

A lane that has jobs and room is open. Claims meet only open lanes, in the order of their turns, so
it does not matter how many others there are, nor how many jobs stand in one.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import apsw

from haulier.domain.job import Job
from haulier.domain.limits import Limit
from haulier.domain.moves import Move
from haulier.stores.codes import HEADS, PENDING, RUNNING, rank_of
from haulier.stores.sqlite.rows import fetch
from haulier.stores.sqlite.rules import Rules

OPEN, EMPTY, KEY, BATCH = range(4)
"""Why a lane is closed, if it is: no job is ready, its key has no room, its batch has none."""

POINT = rank_of(0, -1)

MOVED_AT_ONCE = 1000
"""Jobs that one claim takes from the plain line into lanes; and lanes that it opens by time."""

REMOVED_AT_ONCE = 500

_FIND = "SELECT id FROM lanes WHERE key IS ? AND queue = ? AND kind = ? AND batch IS ? AND head = ?"
_MAKE = (
    "INSERT INTO lanes (key, queue, kind, batch, head, turn, place) VALUES (?, ?, ?, ?, ?, ?, ?)"
)

# One that was empty takes its turn now; into one that was not, a more urgent job brings forward.
_READY = f"""
UPDATE lanes SET
    place = CASE WHEN why = {EMPTY} THEN max(turn, ?1) - ?2 ELSE min(place, turn - ?2) END,
    turn = CASE WHEN why = {EMPTY} THEN max(turn, ?1) ELSE turn END,
    why = CASE WHEN why = {EMPTY} THEN {OPEN} ELSE why END
WHERE id = ?3
"""

_STRAGGLERS = f"""
SELECT seq, key, batch, role, priority FROM jobs
WHERE queue = ? AND kind = ? AND state = {PENDING} AND rank IS NOT NULL AND lane IS NULL
ORDER BY rank, seq LIMIT {MOVED_AT_ONCE}
"""
# Asked first: without an order and many rows the answer, mostly no, takes a fraction of the time.
_ANY_STRAGGLER = (
    f"SELECT 1 FROM jobs WHERE queue = ? AND kind = ? AND state = {PENDING} AND rank IS NOT NULL "
    "AND lane IS NULL LIMIT 1"
)
_MOVE_IN = "UPDATE jobs SET lane = ?, gate = NULL WHERE seq = ?"

_ANY_WAKES = "SELECT 1 FROM lanes WHERE wake_at IS NOT NULL AND wake_at <= ? LIMIT 1"
_WAKE = f"""
UPDATE lanes SET why = {OPEN}, wake_at = NULL WHERE id IN (
    SELECT id FROM lanes WHERE wake_at IS NOT NULL AND wake_at <= ?
    ORDER BY wake_at LIMIT {MOVED_AT_ONCE})
"""
_OPEN_KEYS = f"""
UPDATE lanes SET why = {OPEN}
WHERE key IN (SELECT value FROM json_each(?)) AND why = {KEY} AND wake_at IS NULL
"""
_GIVE_BACK = f"""
UPDATE lanes SET running = running - ?,
    why = CASE WHEN why = {KEY} AND wake_at IS NULL THEN {OPEN} ELSE why END
"""
_ANY_OPEN = f"SELECT 1 FROM lanes WHERE why = {OPEN} LIMIT 1"
_STILL_OPEN = (
    f"SELECT 1 FROM lanes WHERE id IN (SELECT value FROM carray(?)) AND why = {OPEN} LIMIT 1"
)

_AT_REST = (
    f"FROM lanes WHERE why = {EMPTY} AND running = 0 AND id > ? "
    "AND NOT EXISTS (SELECT 1 FROM jobs WHERE lane = lanes.id AND state = 0 AND rank IS NOT NULL)"
)


FEW = 4
"""So many lanes are written one by one, more of them that get the same values by one statement."""


def write_alike(
    db: apsw.Connection, update: str, values: Iterable[tuple[tuple[Any, ...], int]]
) -> None:
    """Update lanes, each given as its values and its id; most of them get the same.

    Alike ones go in one statement, because the interpreter is free while it works. One after the
    other, each of them could have to wait until the event loop lets go of the interpreter.
    """
    alike: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for given, lane in values:
        alike[given].append(lane)
    single = []
    for given, ids in alike.items():
        if len(ids) > FEW:
            db.execute(
                f"{update} WHERE id IN (SELECT value FROM carray(?))", (*given, numbers(ids))
            )
        else:
            single += [(*given, lane) for lane in ids]
    if single:
        db.executemany(f"{update} WHERE id = ?", single)


def numbers(values: Iterable[int]) -> apsw.CArrayBinding:
    """Integers for carray(); there must be one at least."""
    return apsw.carray(array("q", values))


class Lanes:
    """The lanes that the jobs of one operation come into; opened together at its end."""

    def __init__(self, db: apsw.Connection, now: int, rules: Rules) -> None:
        self._db = db
        self._now = now
        self._rules = rules
        self._ids: dict[tuple[str | None, str, str, bytes | None, bool], int] = {}
        self._ready: dict[int, int] = {}

    def limited(self, queue: str, kind: str) -> bool:
        """Whether jobs of this queue and kind stand in lanes."""
        return bool(self._rules.of(queue, kind))

    def of(self, queue: str, kind: str, key: str | None, batch: bytes | None, role: int) -> int:
        """The id of the lane, which is made if there is none."""
        place = queue, kind, batch
        # Heads are under no limit, so they share one, but those within batches.
        which = (None, *place, True) if role in HEADS else (key, *place, False)
        lane = self._ids.get(which)
        if lane is None:
            rows = fetch(self._db, _FIND, which)
            if not rows:
                self._db.execute(_MAKE, (*which, self._now, self._now))
            lane = rows[0][0] if rows else self._db.last_insert_rowid()
            self._ids[which] = lane
        return lane

    def ready(self, lane: int, priority: int) -> int:
        """A job of this priority has come into the lane, whose id is returned."""
        if priority > self._ready.get(lane, priority - 1):
            self._ready[lane] = priority
        return lane

    def open(self) -> None:
        """Open the lanes that jobs have come into."""
        rows = [(self._now, priority * POINT, lane) for lane, priority in self._ready.items()]
        self._db.executemany(_READY, rows)
        self._ready.clear()


def gather(db: apsw.Connection, now: int, rules: Rules, queue: str, kind: str) -> bool:
    """Take jobs of a limited kind from the plain line into lanes; whether more may be there.

    They came there before the limit, or became ready after they had waited elsewhere.
    """
    if not fetch(db, _ANY_STRAGGLER, (queue, kind)):
        return False
    rows = fetch(db, _STRAGGLERS, (queue, kind))
    lanes = Lanes(db, now, rules)
    moved = [
        (lanes.ready(lanes.of(queue, kind, key, batch, role), priority), seq)
        for seq, key, batch, role, priority in rows
    ]
    db.executemany(_MOVE_IN, moved)
    lanes.open()
    return len(rows) == MOVED_AT_ONCE


def wake(db: apsw.Connection, now: int) -> None:
    """Open the lanes whose time has come."""
    if fetch(db, _ANY_WAKES, (now,)):
        db.execute(_WAKE, (now,))


# ── Runs that end ────────────────────────────────────────────────────────────────────────────


class Freed(NamedTuple):
    """What ends of runs made room for: lanes of keys, and whether a limit for all was full."""

    lanes: list[int]
    shared: bool


def free(db: apsw.Connection, rules: Rules, ends: Sequence[tuple[int, Job, Move]]) -> Freed:
    """Runs have ended, each of a lane: give their slots back."""
    ended = Counter([lane for lane, _, _ in ends])
    write_alike(db, _GIVE_BACK, (((count,), lane) for lane, count in ended.items()))
    used: Counter[Limit] = Counter()
    keys: set[str] = set()
    alike: tuple[str, str] | None = None
    shared: list[Limit] = []
    keyed, in_batch = False, False
    for _, job, _ in ends:
        if alike != (job.queue, job.kind):
            alike = job.queue, job.kind
            concern = rules.of(*alike)
            shared = [limit for limit in concern.shared if limit.concurrency is not None]
            keyed = bool(concern.keyed)
        for limit in shared:
            used[limit] += 1
        if keyed and job.key is not None:
            keys.add(job.key)
        if job.batch_id is not None:
            in_batch = True
    # Each of these lanes was opened just now; others of the same keys may be closed for them.
    if keys:
        db.execute(_OPEN_KEYS, (json.dumps(list(keys)),))
    full = False
    for limit, count in used.items():
        ((left,),) = fetch(
            db,
            "UPDATE limits SET used = used - ? WHERE name = ? RETURNING used",
            (count, limit.name),
        )
        assert limit.concurrency is not None
        full = full or left + count >= limit.concurrency > left
    return Freed(list(ended) if keys else [], full or in_batch)


def left_over(db: apsw.Connection, freed: Freed) -> bool:
    """Whether something that was made room for is still there to be claimed."""
    if not (freed.shared or freed.lanes) or not fetch(db, _ANY_OPEN):
        return False
    return freed.shared or bool(fetch(db, _STILL_OPEN, (numbers(freed.lanes),)))


def open_keys(db: apsw.Connection, keys: Iterable[str]) -> None:
    """Open the lanes of these keys that are closed for want of room, whatever they wait for."""
    db.execute(
        f"UPDATE lanes SET why = {OPEN}, wake_at = NULL "
        f"WHERE key IN (SELECT value FROM json_each(?)) AND why = {KEY}",
        (json.dumps(list(keys)),),
    )


# ── Limits that change ───────────────────────────────────────────────────────────────────────

_RUNNING = f"""
SELECT seq, queue, kind, key, batch, role FROM jobs
WHERE state = {RUNNING} AND worker IS NOT NULL AND role NOT IN {HEADS} AND lane IS NULL
"""
_USED = "SELECT queue, kind, sum(running) FROM lanes WHERE running > 0 GROUP BY queue, kind"


def count_running(db: apsw.Connection, now: int, rules: Rules) -> None:
    """Jobs that were claimed before any limit concerned them get lanes, and count in them."""
    lanes = Lanes(db, now, rules)
    ids = [
        (lanes.of(queue, kind, key, batch, role), seq)
        for seq, queue, kind, key, batch, role in fetch(db, _RUNNING)
        if lanes.limited(queue, kind)
    ]
    db.executemany("UPDATE jobs SET lane = ? WHERE seq = ?", ids)
    counts = Counter(lane for lane, _ in ids)
    db.executemany(
        "UPDATE lanes SET running = running + ? WHERE id = ?",
        [(count, lane) for lane, count in counts.items()],
    )


def used(db: apsw.Connection, limit: Limit) -> int:
    """How many jobs run that a limit concerns."""
    return sum(count for queue, kind, count in fetch(db, _USED) if limit.concerns(queue, kind))


def open_slice(db: apsw.Connection, after: int) -> int | None:
    """Open lanes whose key had no room: the limits have changed. Where to go on; None at the end.

    A lane that is not reached, since the process died, is opened by its key's next end of a run,
    or by its time.
    """
    rows = fetch(
        db,
        f"UPDATE lanes SET why = {OPEN}, wake_at = NULL WHERE id IN (SELECT id FROM lanes "
        f"WHERE id > ? AND why = {KEY} ORDER BY id LIMIT {MOVED_AT_ONCE}) RETURNING id",
        (after,),
    )
    return max(row[0] for row in rows) if len(rows) == MOVED_AT_ONCE else None


# ── Lanes at rest ────────────────────────────────────────────────────────────────────────────


def any_at_rest(db: apsw.Connection) -> bool:
    """Whether there are lanes that nothing stands in and nothing runs of."""
    return bool(fetch(db, f"SELECT 1 {_AT_REST} LIMIT 1", (0,)))


def remove_at_rest(db: apsw.Connection) -> int:
    """Remove a slice of the lanes at rest; how many."""
    db.execute(
        f"DELETE FROM lanes WHERE id IN (SELECT id {_AT_REST} LIMIT {REMOVED_AT_ONCE})", (0,)
    )
    return db.changes()
