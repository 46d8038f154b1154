"""Counters that follow every transition, summed up in memory and written once a transaction."""

from __future__ import annotations

from collections import Counter, defaultdict

import apsw

from haulier.stores.sqlite.rows import ITEM


class Deltas:
    """What one transaction changes in the counters of queues and of batches."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int, int]] = Counter()
        self._batches: defaultdict[bytes, list[int]] = defaultdict(lambda: [0] * 5)
        self._added: Counter[bytes] = Counter()

    def added(self, queue: str, kind: str, role: int, batch: bytes | None, state: int) -> None:
        """A job was inserted in a state."""
        self._counts[queue, kind, role, state] += 1
        if role == ITEM and batch is not None:
            self._batches[batch][state] += 1
            self._added[batch] += 1

    def moved(
        self, queue: str, kind: str, role: int, batch: bytes | None, source: int, target: int
    ) -> None:
        """A job went from one state to another."""
        if source == target:
            return
        self._counts[queue, kind, role, source] -= 1
        self._counts[queue, kind, role, target] += 1
        if role == ITEM and batch is not None:
            states = self._batches[batch]
            states[source] -= 1
            states[target] += 1

    def removed(self, queue: str, kind: str, role: int, state: int) -> None:
        """A job was deleted; a batch's own counters go with the batch."""
        self._counts[queue, kind, role, state] -= 1

    @property
    def touch_batches(self) -> bool:
        """Whether the counters of any batch change."""
        return bool(self._batches)

    def write(self, db: apsw.Connection, now: int) -> list[bytes]:
        """Apply the sums; returns the batches whose counters changed."""
        rows = [(*key, n) for key, n in self._counts.items() if n]
        if rows:
            db.executemany(
                "INSERT INTO counts (queue, kind, role, state, n) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET n = n + excluded.n",
                rows,
            )
        for batch, states in self._batches.items():
            started = now if states[1] > 0 else None
            db.execute(
                "UPDATE batches SET total = total + ?, pending = pending + ?, "
                "running = running + ?, completed = completed + ?, failed = failed + ?, "
                "cancelled = cancelled + ?, started_at = coalesce(started_at, ?) WHERE id = ?",
                (self._added[batch], *states, started, batch),
            )
        return list(self._batches)
