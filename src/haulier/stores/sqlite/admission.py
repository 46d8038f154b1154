"""Admission: how much room the limits leave, and the lanes of one claim served in turn.

All is decided in memory and written once at the end; a look that claims nothing writes nothing.
"""

from __future__ import annotations

import heapq
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import apsw

from haulier.domain.limits import Limit
from haulier.stores.codes import PENDING
from haulier.stores.sqlite import breakers, gates
from haulier.stores.sqlite.lanes import BATCH, EMPTY, KEY, OPEN, POINT, write_alike
from haulier.stores.sqlite.rows import Row, fetch
from haulier.stores.sqlite.rules import Concern, Rules

LOOKED_AT = 1000
"""Lanes that one claim looks at per line; whatever is left, the next one does."""

SERVED_AT_ONCE, SERVING_SECONDS = 250, 0.02
"""Lanes that a claim reads together; and how long it goes on to read more of them. On a machine
that is busy otherwise a claim gets less, and not the write lock for longer."""

READ_FIRST, READ_AT_ONCE = 2, 64
"""Jobs of a lane: most give one, and the next one tells its turn. Others are read on in steps."""

NOW, UNTIL_AN_END = -1, (1 << 63) - 1
"""What a key has to wait: not at all, until a run of it has ended, or else until an instant."""

Verdict = tuple[int, int | None]
"""Why a lane is to be closed, and when time opens it again, if time does."""

_RATES = "SELECT name, used, full_at FROM limits WHERE told IS NOT NULL"
_RUNNING = (
    "SELECT key, queue, kind, running FROM lanes "
    "WHERE key IN (SELECT value FROM json_each(?)) AND running > 0"
)
_METERS = (
    "SELECT key, rest_at FROM meters WHERE name = ? AND key IN (SELECT value FROM json_each(?))"
)
_ADD_METER = (
    "INSERT INTO meters (name, key, rest_at) VALUES (?, ?, ?) "
    "ON CONFLICT DO UPDATE SET rest_at = excluded.rest_at"
)


class Lane:
    """A lane while a claim looks at it, and the first of its jobs: rank, seq, priority."""

    __slots__ = (
        *("batch", "id", "jobs", "key", "last", "more", "place", "taken", "touched", "turn"),
        *("wake_at", "why"),
    )

    jobs: list[Sequence[int]]
    """Those that were read, the next one last."""

    last: Sequence[int]
    more: bool

    def __init__(
        self, lane: int, key: str | None, batch: bytes | None, turn: int, place: int
    ) -> None:
        self.id = lane
        self.key = key
        self.batch = batch
        self.turn = turn
        self.place = place
        self.why = OPEN
        self.wake_at: int | None = None
        self.taken = 0
        self.touched = False

    def close(self, why: int, wake_at: int | None = None) -> None:
        self.why, self.wake_at, self.touched = why, wake_at, True


class Admission:
    """The room under all limits and in all batches, as one claim uses it up."""

    def __init__(self, db: apsw.Connection, now: int, rules: Rules) -> None:
        self.db = db
        self.now = now
        self.rules = rules
        self.until = time.monotonic() + SERVING_SECONDS
        self._shared: dict[str, int] = {}
        self._spent: Counter[Limit] = Counter()
        self._shared_full_at: dict[str, int] = {}
        # A plain mapping where it is read: a Counter takes thrice as long for what it has not.
        self._running: Counter[tuple[str, str]] = Counter()
        self._full_at: dict[tuple[str, str], int] = {}
        self._open_until: dict[tuple[str, str], int] = {}
        self._keyed = [limit for limit in rules.limits if limit.per_key]
        self._changed: set[tuple[str, str]] = set()
        self._seen: set[str] = set()
        self.twice: set[str] = set()
        self._batches: dict[bytes, int | None] = {}
        by_name = {limit.name: limit for limit in rules.limits if not limit.per_key}
        for name, used, full_at in fetch(db, _RATES) if by_name else ():
            limit = by_name.get(name)
            if limit is None:
                continue
            if limit.rate is not None:
                self._shared_full_at[name] = full_at
                self._shared[name] = limit.rate.tokens(full_at, now)
            elif limit.concurrency is not None:
                self._shared[name] = limit.concurrency - used

    def look_at(self, keys: Iterable[str]) -> None:
        """Read how these keys stand, of those that were not read yet."""
        new: set[str] = set()
        for key in keys:
            # What is taken for it in one lane is missing in its others.
            (self.twice if key in self._seen or key in new else new).add(key)
        if not new or not self._keyed:
            return
        self._seen |= new
        text = json.dumps(list(new))
        if any(limit.rate is None for limit in self._keyed):
            for key, queue, kind, running in fetch(self.db, _RUNNING, (text,)):
                for limit in self.rules.of(queue, kind).keyed:
                    self._running[limit.name, key] += running
        for limit in self._keyed:
            self._read_meters(limit, text)

    def _read_meters(self, limit: Limit, keys: str) -> None:
        if limit.rate is not None:
            # Of a slower rate before it, more may be missing than this bucket holds.
            fullest = self.now + limit.rate.depth * limit.rate.interval
            for key, full_at in fetch(self.db, _METERS, (limit.name, keys)):
                self._full_at[limit.name, key] = min(full_at, fullest)
        elif limit.breaker is not None:
            for key, state in breakers.states(self.db, limit.name, keys).items():
                if state.open_until is not None:
                    self._open_until[limit.name, key] = state.open_until

    def room(self, concern: Concern) -> bool:
        """Whether the limits that are for all keys let one more start."""
        return all(self._shared[limit.name] > 0 for limit in concern.shared)

    def verdict(self, lane: Lane, concern: Concern) -> Verdict | None:
        """Why the lane gives no job now; None: it may. Its key must have been looked at."""
        if lane.batch is not None:
            left = self.left_in(lane.batch)
            if left is not None and left <= 0:
                return BATCH, None
        if lane.key is None or not concern.keyed:
            return None
        longest = NOW
        for limit in concern.keyed:
            if limit.concurrency is None:
                longest = max(longest, self._wait(limit, lane.key))
            elif self._running.get((limit.name, lane.key), 0) >= limit.concurrency:
                longest = UNTIL_AN_END
        if longest == NOW:
            return None
        # Whatever else there is to wait for, the lane is looked at again when a run has ended.
        return KEY, None if longest == UNTIL_AN_END else longest

    def _wait(self, limit: Limit, key: str) -> int:
        """Until when a key has no room under a rate or a breaker."""
        if limit.rate is not None:
            full_at = self._full_at.get((limit.name, key), 0)
            if limit.rate.tokens(full_at, self.now) > 0:
                return NOW
            return limit.rate.next_token(full_at)
        assert limit.breaker is not None
        open_until = self._open_until.get((limit.name, key))
        if open_until is None:
            return NOW
        if open_until > self.now:
            return open_until
        probing = self._running[limit.name, key] >= limit.breaker.probes
        return UNTIL_AN_END if probing else NOW

    def admits(self, queue: str, kind: str, key: str | None) -> bool:
        """Whether one more job of this key may start, its batch left aside."""
        concern = self.rules.of(queue, kind)
        if not self.room(concern):
            return False
        if key is not None:
            self.look_at([key])
        return self.verdict(Lane(0, key, None, 0, 0), concern) is None

    def left_in(self, batch: bytes) -> int | None:
        """How many more of this batch may start; None: as many as like to."""
        if batch not in self._batches:
            self._batches[batch] = gates.room(self.db, self.now, batch)
        return self._batches[batch]

    def take(self, key: str | None, batch: bytes | None, concern: Concern) -> None:
        """One more of this key and batch starts."""
        for limit in concern.shared:
            self._shared[limit.name] -= 1
            self._spent[limit] += 1
        if batch is not None:
            left = self.left_in(batch)
            if left is not None:
                self._batches[batch] = left - 1
        if key is None:
            return
        for limit in concern.keyed:
            which = limit.name, key
            if limit.rate is not None:
                full_at = self._full_at.get(which, 0)
                self._full_at[which] = limit.rate.spent(full_at, self.now, 1)
                self._changed.add(which)
            else:
                self._running[which] += 1

    def write(self) -> None:
        """Write what was taken of limits; lanes are written by who took from them."""
        for limit, count in self._spent.items():
            if limit.rate is not None:
                full_at = limit.rate.spent(self._shared_full_at[limit.name], self.now, count)
                self.db.execute(
                    "UPDATE limits SET full_at = ? WHERE name = ?", (full_at, limit.name)
                )
            else:
                self.db.execute(
                    "UPDATE limits SET used = used + ? WHERE name = ?", (count, limit.name)
                )
        self.db.executemany(
            _ADD_METER, [(*which, self._full_at[which]) for which in sorted(self._changed)]
        )


# ── The lanes of a line ──────────────────────────────────────────────────────────────────────

_FIRST_JOBS = f"""
(SELECT group_concat('[' || rank || ',' || seq || ',' || priority || ']') FROM (
    SELECT rank, seq, priority FROM jobs
    WHERE lane = lanes.id AND state = {PENDING} AND rank IS NOT NULL
    ORDER BY rank, seq LIMIT ?))
"""
_OPEN_LANES = f"""
SELECT id, key, batch, turn, place, {_FIRST_JOBS} FROM lanes
WHERE queue = ? AND kind = ? AND head = ? AND why = {OPEN} AND (place, id) > (?, ?)
ORDER BY place, id LIMIT ?
"""
# From batch to batch, however many lanes each of them has.
_NEXT_CLOSED_BATCH = f"""
SELECT min(batch) FROM lanes
WHERE why = {BATCH} AND queue = ? AND kind = ? AND head = ? AND batch > ?
"""
_LANES_OF_BATCH = f"""
SELECT id, key, batch, turn, place, {_FIRST_JOBS} FROM lanes
WHERE why = {BATCH} AND queue = ? AND kind = ? AND head = ? AND batch = ? ORDER BY place LIMIT ?
"""
_MORE_JOBS = f"""
SELECT rank, seq, priority FROM jobs
WHERE lane = ? AND state = {PENDING} AND rank IS NOT NULL AND (rank, seq) > (?, ?)
ORDER BY rank, seq LIMIT ?
"""
_WRITE_LANE = "UPDATE lanes SET turn = ?, place = ?, why = ?, wake_at = ?, running = running + ?"

_LOWEST = -(1 << 63)


class LaneLine:
    """The open lanes of one queue and kind: a job at a time, from the lane whose turn it is.

    `heads`: those that no limit touches; only their lane is served then. `in_batches`: some may
    wait for their batch. `cut`: there may be more
    lanes than were looked at.
    """

    def __init__(
        self,
        admission: Admission,
        queue: str,
        kind: str,
        slots: int,
        *,
        heads: bool = False,
        in_batches: bool = False,
    ) -> None:
        self._admission = admission
        self._which = queue, kind, heads
        self._concern = Concern((), ()) if heads else admission.rules.of(queue, kind)
        self._slots = slots
        self._lanes: list[Lane] = []
        self._turns: list[tuple[int, int, Lane]] = []
        self._ranks: list[int] = []
        self._read_up_to = _LOWEST, 0
        self._all_read = False
        self.cut = False
        if in_batches and self._has_room():
            self._reopen_batches()

    def _has_room(self) -> bool:
        return not self._concern.shared or self._admission.room(self._concern)

    # ── Reading ──────────────────────────────────────────────────────────────────────────────

    def _reopen_batches(self) -> None:
        """Lanes whose batch had no room when a claim met them, and has some now."""
        db = self._admission.db
        batch = b""
        while batch is not None:
            ((batch,),) = fetch(db, _NEXT_CLOSED_BATCH, (*self._which, batch))
            left = 0 if batch is None else self._admission.left_in(batch)
            count = self._slots if left is None else min(left, self._slots)
            if count > 0:
                place = (*self._which, batch, count)
                self._add(fetch(db, _LANES_OF_BATCH, (READ_FIRST, *place)))
                for lane in self._lanes:
                    lane.touched = True

    def _read(self) -> None:
        size = min(self._slots, LOOKED_AT - len(self._lanes), SERVED_AT_ONCE)
        if size <= 0 or (self._lanes and time.monotonic() > self._admission.until):
            self._all_read = self.cut = True
            return
        place = (*self._which, *self._read_up_to, size)
        rows = fetch(self._admission.db, _OPEN_LANES, (READ_FIRST, *place))
        self._all_read = len(rows) < size
        if rows:
            self._read_up_to = rows[-1][4], rows[-1][0]
            self._add(rows)

    def _add(self, rows: Sequence[Row]) -> None:
        """Queue these lanes up with their first jobs; close those that have no room or no job."""
        admission = self._admission
        admission.look_at(row[1] for row in rows if row[1] is not None)
        # As one text, which is parsed several times as fast as a lane at a time.
        first = json.loads(f"[[{'],['.join([row[5] or '' for row in rows])}]]")
        for row, jobs in zip(rows, first, strict=True):
            lane = Lane(*row[:5])
            self._lanes.append(lane)
            verdict = admission.verdict(lane, self._concern)
            if verdict is not None:
                lane.close(*verdict)
            elif not jobs:
                lane.close(EMPTY)
            else:
                if len(jobs) > 1:
                    jobs.sort(reverse=True)
                lane.jobs, lane.last = jobs, jobs[0]
                lane.more = len(jobs) == READ_FIRST
                heapq.heappush(self._turns, (lane.place, lane.id, lane))
                heapq.heappush(self._ranks, jobs[-1][0])

    # ── Serving ──────────────────────────────────────────────────────────────────────────────

    def rank(self) -> int | None:
        """How old the line is beside others; None: it gives nothing now.

        The oldest of the first jobs counts, whichever lane's turn it is.
        """
        return self._ranks[0] if self._next() is not None else None

    def _next(self) -> Lane | None:
        """The lane whose turn it is."""
        turns = self._turns
        while self._has_room():
            if not self._all_read and (not turns or turns[0][:2] > self._read_up_to):
                self._read()
                continue
            if not turns or (self.cut and turns[0][:2] > self._read_up_to):
                # Nothing, or it would be the turn of lanes that were not looked at.
                return None
            lane = turns[0][2]
            if lane.batch is None and lane.key not in self._admission.twice:
                # It was found to have room when it was queued up, and nobody else takes of that.
                return lane
            verdict = self._admission.verdict(lane, self._concern)
            if verdict is None:
                return lane
            heapq.heappop(turns)
            lane.close(*verdict)
        return None

    def take(self) -> int | None:
        """The seq of the next job, which now counts as one that runs; None: it gives nothing."""
        lane = self._next()
        if lane is None:
            return None
        heapq.heappop(self._turns)
        heapq.heappop(self._ranks)
        seq = lane.jobs.pop()[1]
        self._admission.take(lane.key, lane.batch, self._concern)
        lane.taken += 1
        lane.touched = True
        # Never the same turn twice, or it would be its turn again within a microsecond.
        lane.turn = lane.place = max(self._admission.now, lane.turn + 1)
        if not lane.jobs and not self._more_jobs(lane):
            lane.close(EMPTY)
            return seq
        rank, _, priority = lane.jobs[-1]
        lane.place -= priority * POINT
        verdict = self._admission.verdict(lane, self._concern)
        if verdict is None:
            heapq.heappush(self._turns, (lane.place, lane.id, lane))
            heapq.heappush(self._ranks, rank)
        else:
            lane.close(*verdict)
        return seq

    def _more_jobs(self, lane: Lane) -> bool:
        """Read on in a lane that has given all that was read; whether it has more."""
        if lane.more:
            count = min(2 * lane.taken, READ_AT_ONCE)
            place = (lane.id, *lane.last[:2], count)
            rows: list[Sequence[int]] = [*fetch(self._admission.db, _MORE_JOBS, place)]
            if rows:
                lane.last = rows[-1]
            lane.jobs, lane.more = rows[::-1], len(rows) == count
        return bool(lane.jobs)

    # ── Writing ──────────────────────────────────────────────────────────────────────────────

    @property
    def changed(self) -> bool:
        """Whether lanes were met that are to be closed."""
        return any(lane.touched and lane.why != OPEN for lane in self._lanes)

    def write(self) -> None:
        """Write what became of the lanes."""
        heads = self._which[2]
        # A head that has handed over holds no slot, so heads are not counted.
        write_alike(
            self._admission.db,
            _WRITE_LANE,
            (
                (
                    (lane.turn, lane.place, lane.why, lane.wake_at, 0 if heads else lane.taken),
                    lane.id,
                )
                for lane in self._lanes
                if lane.touched
            ),
        )


# ── Time ─────────────────────────────────────────────────────────────────────────────────────

_WAKES = "SELECT min(wake_at) FROM lanes WHERE wake_at IS NOT NULL"
_ANY_OPEN = (
    f"SELECT 1 FROM lanes WHERE queue = ? AND kind = ? AND head = 0 AND why = {OPEN} LIMIT 1"
)


def next_room(
    db: apsw.Connection, now: int, rules: Rules, lines: Iterable[tuple[str, str]]
) -> list[int]:
    """When time makes room again: for a lane, and under the rates that hold these lines back."""
    ((wake_at,),) = fetch(db, _WAKES)
    found = [] if wake_at is None else [int(wake_at)]
    full_at: dict[str, int] | None = None
    for line in lines:
        rates = [limit for limit in rules.of(*line).shared if limit.rate is not None]
        if not rates or not fetch(db, _ANY_OPEN, line):
            continue
        if full_at is None:
            full_at = {name: full for name, _, full in fetch(db, _RATES)}
        for limit in rates:
            assert limit.rate is not None
            if limit.rate.tokens(full_at[limit.name], now) <= 0:
                found.append(limit.rate.next_token(full_at[limit.name]))
    return found
