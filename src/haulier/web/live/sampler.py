"""Reads how everything stands, once for all viewers."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from haulier.domain.batch import Batch
from haulier.domain.event import INSERTED, Event
from haulier.domain.job import JobState, Role
from haulier.domain.moves import RULES, Move
from haulier.domain.routing import lines_of
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobStore
from haulier.web.live.frames import Frame
from haulier.web.live.interest import Interest, Topic
from haulier.web.models.live import (
    LiveBatch,
    LiveQueue,
    LiveQueues,
    LiveRates,
    LiveStats,
    LiveWorker,
    LiveWorkers,
)
from haulier.web.schemas import QueueLineView

MOST_BATCHES = 100
"""Batches that one sample reads; the others that have changed have their turn with the next."""

SHOWN_BATCHES = 50
"""Batches in a snapshot."""

LOOKS = 2
"""How often a batch is read after its last event: some stores count it a moment later."""

SHORTEST_COUNT = 0.9
"""Seconds over which rates are counted at least."""

_ITEMS = frozenset({Role.ITEM, Role.INNER})
_RATES: Mapping[str, str] = {
    INSERTED: "enqueued",
    Move.CLAIM: "started",
    Move.RETRY: "retried",
    **{
        move: rule.target.value
        for move, rule in RULES.items()
        if rule.target.final and move is not Move.SETTLE
    },
}
"""Under which rate each type of event is counted."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How everything stood. Batches are those that had changed since the sample before."""

    stats: LiveStats
    lines: Mapping[tuple[str, str], QueueLineView]
    paused: tuple[str, ...]
    workers: Mapping[str, LiveWorker]
    batches: Mapping[str, LiveBatch] = field(default_factory=dict)

    def queues(self, before: Sample | None = None) -> LiveQueues | None:
        """All lines, or what has changed since another sample; None for nothing."""
        if before is not None and (before.lines, before.paused) == (self.lines, self.paused):
            return None
        old = {} if before is None else before.lines
        return LiveQueues(
            changed=[line for place, line in self.lines.items() if old.get(place) != line],
            removed=[
                LiveQueue(queue=queue, kind=kind) for queue, kind in old.keys() - self.lines.keys()
            ],
            paused=list(self.paused),
        )

    def crew(self, before: Sample | None = None) -> LiveWorkers | None:
        """All live workers, or which came and went since another sample; None for nothing."""
        if before is not None and before.workers == self.workers:
            return None
        old = {} if before is None else before.workers
        return LiveWorkers(
            changed=[row for each, row in self.workers.items() if old.get(each) != row],
            removed=sorted(old.keys() - self.workers.keys()),
        )

    def frames(self, before: Sample) -> Iterator[tuple[Topic, Frame]]:
        """What to tell those who have seen the sample before; batches apart."""
        if self.stats != before.stats.model_copy(update={"at": self.stats.at}):
            yield Topic.STATS, Frame.saying("stats", self.stats)
        if (queues := self.queues(before)) is not None:
            yield Topic.QUEUES, Frame.saying("queues", queues)
        if (workers := self.crew(before)) is not None:
            yield Topic.WORKERS, Frame.saying("workers", workers)


class Sampler:
    """Takes samples of a store. It is told of every event, for the rates and the batches."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._seen: Counter[str] = Counter()
        self._rates = LiveRates()
        self._since = time.monotonic()
        self._changed: dict[str, int] = {}
        self._told: dict[str, Batch] = {}

    def saw(self, event: Event) -> None:
        """Take note of an event."""
        rate = _RATES.get(event.type)
        if rate is not None:
            self._seen[rate] += 1
        if event.batch_id is not None:
            self._changed[event.batch_id] = LOOKS
        if event.role.heads and event.job_id:
            self._changed[event.job_id] = LOOKS

    def forget(self) -> None:
        """Nobody wants to see batches: do not keep which have changed."""
        self._changed.clear()
        self._told.clear()

    async def take(self, *, batches: bool) -> Sample:
        """A new sample; raises StoreError."""
        counts, rows = await self._store.counts(), await self._store.workers()
        settings = await self._store.configurable().configuration()
        tops, items = Counter[JobState](), Counter[JobState]()
        for (_, _, role, state), number in counts.items():
            (items if role in _ITEMS else tops)[state] += number
        alive = [row for row in rows if row.alive]
        stats = LiveStats.model_validate(
            {
                "at": time.time_ns() // 1000,
                "workers": len(alive),
                "jobs": {state: tops[state] for state in JobState},
                "items": {state: items[state] for state in JobState},
                "rates": self._rates_now(),
            }
        )
        lines = [QueueLineView.model_validate(line) for line in lines_of(counts, rows, settings)]
        return Sample(
            stats=stats,
            lines={(line.queue, line.kind): line for line in lines},
            paused=tuple(sorted(settings.paused)),
            workers={row.id: LiveWorker.model_validate(row) for row in alive},
            batches=await self._batches() if batches else {},
        )

    async def batches(self, interest: Interest) -> list[LiveBatch]:
        """The newest batches that somebody wants to see, or the one that was asked for."""
        found: list[Batch] = []
        named = interest.batch or interest.job
        if named is None:
            found = await self._store.batches(limit=SHOWN_BATCHES)
        else:
            with contextlib.suppress(JobNotFoundError):
                found = [await self._store.batch(named)]
        now = time.time_ns() // 1000
        return [
            LiveBatch.of(batch, now)
            for batch in found
            if interest.wants_batch(batch.id, batch.kind, batch.queue)
        ]

    def _rates_now(self) -> LiveRates:
        """Counted over a second or so: over less they would jump."""
        now = time.monotonic()
        elapsed = now - self._since
        if elapsed >= SHORTEST_COUNT:
            counted = {name: round(number / elapsed, 1) for name, number in self._seen.items()}
            self._rates = LiveRates(**counted)
            self._seen.clear()
            self._since = now
        return self._rates

    async def _batches(self) -> dict[str, LiveBatch]:
        """Those of which something happened, and that tell something else than before."""
        found: dict[str, LiveBatch] = {}
        now = time.time_ns() // 1000
        for batch_id in list(self._changed)[:MOST_BATCHES]:
            left = self._changed.pop(batch_id) - 1
            if left:
                self._changed[batch_id] = left
            try:
                batch = await self._store.batch(batch_id)
            except JobNotFoundError:
                self._told.pop(batch_id, None)
                self._changed.pop(batch_id, None)
                continue
            if self._told.get(batch_id) != batch:
                found[batch_id] = LiveBatch.of(batch, now)
            if left:
                self._told[batch_id] = batch
            else:
                self._told.pop(batch_id, None)
        return found
