"""What one operation did to jobs: summed up in memory, written once at its end.

From the same entries come the events, the counters of queues and those of batches, so these can
never disagree.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import apsw

from haulier.domain.ids import raw_id
from haulier.stores.codes import (
    FAILED,
    ITEM,
    RUNNING,
    SINGLE,
)
from haulier.stores.configuring import NOBODY
from haulier.stores.packed import ENTRY
from haulier.stores.sqlite.rows import (
    fetch,
)

_ADD_COUNTS = (
    "INSERT INTO counts (queue, kind, role, state, n) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT DO UPDATE SET n = n + excluded.n"
)
_ADD_BATCH = (
    "UPDATE batches SET total = total + ?, pending = pending + ?, running = running + ?, "
    "completed = completed + ?, failed = failed + ?, cancelled = cancelled + ?, "
    "started_at = coalesce(started_at, ?) WHERE id = ?"
)
_ADD_EVENTS = (
    "INSERT INTO events (seq, n, at, type, kind, queue, role, batch, worker, error, body) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_Key = tuple[
    str, str, str, int, bytes | None, int | None, int | None, bytes | None, str | None, bool
]


@dataclass(frozen=True, slots=True)
class Touched:
    """A batch whose counters an operation changed, and by how many failures."""

    batch: bytes
    failures: int


SUBJECT = "id, attempt, lease, queue, kind, role, batch"


class Subject(NamedTuple):
    """What the ledger has to know of a job: the columns of SUBJECT."""

    id: bytes
    attempt: int
    lease: int
    queue: str
    kind: str
    role: int
    batch: bytes | None


class Ledger:
    """Gathers the moves of one operation. Group by group, because most moves are alike."""

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups: defaultdict[_Key, list[bytes]] = defaultdict(list)

    def moved(
        self,
        event: str,
        job: Subject,
        source: int | None,
        target: int | None,
        *,
        worker: bytes | None = None,
        error: str | None = None,
        uncounted: bool = False,
    ) -> None:
        """A job went from one state to another; `job` tells it as it is after that.

        No source: it was inserted. No target: it was removed. Twice the same: only an event.
        `uncounted`: its batch goes as well, and its counters with it.
        """
        key = (
            *(event, job.queue, job.kind, job.role, job.batch),
            *(source, target, worker, error, uncounted),
        )
        self._groups[key].append(ENTRY.pack(job.id, job.attempt, job.lease))

    def group(
        self,
        event: str,
        queue: str,
        kind: str,
        role: int,
        batch: bytes | None,
        source: int | None,
        target: int,
        worker: bytes | None,
    ) -> list[bytes]:
        """The list to put packed entries of such moves in: for the hot path, which has many."""
        return self._groups[event, queue, kind, role, batch, source, target, worker, None, False]

    def write(self, db: apsw.Connection, now: int) -> list[Touched]:
        """Write counters and events; returns the batches whose counters changed."""
        if not self._groups:
            return []
        counts: Counter[tuple[str, str, int, int]] = Counter()
        batches: defaultdict[bytes, list[int]] = defaultdict(lambda: [0] * 6)
        for (
            _,
            queue,
            kind,
            role,
            batch,
            source,
            target,
            *_,
            uncounted,
        ), jobs in self._groups.items():
            if source == target:
                continue
            n = len(jobs)
            if source is not None:
                counts[queue, kind, role, source] -= n
            if target is not None:
                counts[queue, kind, role, target] += n
            if role >= ITEM and batch is not None and not uncounted:
                _add(batches[batch], source, target, n)
        rows = [(*key, n) for key, n in counts.items() if n]
        if rows:
            db.executemany(_ADD_COUNTS, rows)
        for batch, deltas in batches.items():
            started = now if deltas[1 + RUNNING] > 0 else None
            db.execute(_ADD_BATCH, (*deltas, started, batch))
        self._write_events(db, now)
        self._groups.clear()
        return [Touched(batch, deltas[1 + FAILED]) for batch, deltas in batches.items()]

    def _write_events(self, db: apsw.Connection, now: int) -> None:
        total = sum(map(len, self._groups.values()))
        ((last,),) = fetch(db, "UPDATE history SET last = last + ? RETURNING last", (total,))
        seq = last - total
        rows = []
        for (event, queue, kind, role, batch, _, _, worker, error, _), jobs in self._groups.items():
            seq += len(jobs)
            body = b"".join(jobs)
            rows.append((seq, len(jobs), now, event, kind, queue, role, batch, worker, error, body))
        db.executemany(_ADD_EVENTS, rows)


def say_of_nobody(db: apsw.Connection, now: int, event: str, names: Iterable[str], by: str) -> None:
    """Append events that are no job's: what was changed, and who did it."""
    ledger = Ledger()
    for name in names:
        subject = Subject(raw_id(NOBODY), 0, 0, "", name, SINGLE, None)
        ledger.moved(event, subject, RUNNING, RUNNING, error=by)
    ledger.write(db, now)


def _add(deltas: list[int], source: int | None, target: int | None, n: int) -> None:
    """`deltas`: of the total, then of each state."""
    if source is None:
        deltas[0] += n
    else:
        deltas[1 + source] -= n
    if target is None:
        deltas[0] -= n
    else:
        deltas[1 + target] += n
