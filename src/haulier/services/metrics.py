"""Figures of a store: the names that scripts know, and Prometheus.

What is there now (depth, ages, workers) is read from the store whenever somebody asks. What happens
(rates, durations) is counted from events while somebody keeps asking.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Counted

from haulier.domain.event import INSERTED, RESET, Event
from haulier.domain.job import MICROSECOND, JobState, Role
from haulier.domain.moves import Move
from haulier.domain.worker import WorkerRow
from haulier.ports import JobStore

Counts = Mapping[tuple[str, str, Role, JobState], int]

_ITEMS = frozenset({Role.ITEM, Role.INNER})
_UPLOADS = "bulk_upload.item"

REMEMBERED = 100_000
"""Jobs whose last start, or enqueue, is remembered for the histograms: the latest ones."""

WAITS = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400)
DURATIONS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
"""Seconds: upper bounds of the histograms' buckets."""

_ENDS = {
    Move.COMPLETE: "completed",
    Move.SETTLE: "completed",
    Move.FAIL: "failed",
    Move.LOSE_LAST: "failed",
    Move.GIVE_UP: "failed",
    Move.CANCEL: "cancelled",
    Move.DROP: "cancelled",
    Move.ABANDON: "cancelled",
}
_STOPS = {*_ENDS, Move.RETRY, Move.SNOOZE, Move.GIVE_BACK, Move.LOSE, Move.LOSE_LAST}


@dataclass(frozen=True, slots=True)
class Standing:
    """What was read of a store at one moment. `fronts` as the store's verb of that name."""

    counts: Counts
    workers: Sequence[WorkerRow]
    fronts: Mapping[str, int]
    now: int

    @classmethod
    async def of(cls, store: JobStore, now: int) -> Standing:
        """Read it; `now` is in microseconds UTC. Raises StoreError."""
        return cls(await store.counts(), await store.workers(), await store.fronts(), now)

    @property
    def alive(self) -> int:
        """Live worker processes."""
        return sum(worker.alive for worker in self.workers)

    def by_state(self, *, items: bool) -> dict[JobState, int]:
        """How many are in each state: items of batches, or single and head jobs."""
        found = Counter[JobState]()
        for (_, _, role, state), number in self.counts.items():
            if (role in _ITEMS) is items:
                found[state] += number
        return {state: found[state] for state in JobState}

    def oldest(self) -> float | None:
        """Seconds that the job which is longest first in its queue has waited; None: none waits."""
        return max((self.age(at) for at in self.fronts.values()), default=None)

    def age(self, at: int) -> float:
        """Seconds since an instant of the store's clock."""
        return max(0, self.now - at) / MICROSECOND


def job_metrics(counts: Counts) -> dict[str, Any]:
    """Figures by the names that scripts know; of all jobs that are kept.

    Jobs are single and head jobs, accounts are the items of batches, uploads those of
    `bulk_upload`.
    """
    states, items, uploads = Counter[JobState](), Counter[JobState](), Counter[JobState]()
    kinds = Counter[str]()
    for (_, kind, role, state), number in counts.items():
        if role in _ITEMS:
            items[state] += number
            uploads[state] += number if kind == _UPLOADS else 0
        else:
            states[state] += number
            kinds[kind] += number
    return {
        "total_jobs": states.total(),
        "completed_jobs": states[JobState.COMPLETED],
        "failed_jobs": states[JobState.FAILED],
        "total_accounts_processed": items[JobState.COMPLETED] + items[JobState.FAILED],
        "total_uploads_success": uploads[JobState.COMPLETED],
        "total_uploads_failed": uploads[JobState.FAILED],
        "jobs_by_type": {kind: number for kind, number in sorted(kinds.items()) if number},
        "running_jobs_count": states[JobState.RUNNING],
    }


class Metrics:
    """Counts what happens, and tells it with what is there in the form that Prometheus reads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._starts: OrderedDict[str, int] = OrderedDict()
        self._enqueued: OrderedDict[str, int] = OrderedDict()
        self._now_there()
        self._happened()

    def _now_there(self) -> None:
        registry, labels = self._registry, ("queue", "kind", "role", "state")
        self._jobs = Gauge("haulier_jobs", "Jobs that are kept.", labels, registry=registry)
        self._oldest = Gauge(
            "haulier_oldest_ready_seconds",
            "How long the first job of a queue has been due.",
            ("queue",),
            registry=registry,
        )
        self._workers = Gauge("haulier_workers", "Live worker processes.", registry=registry)
        self._slots = Gauge(
            "haulier_slots", "Jobs that live workers run at once.", registry=registry
        )

    def _happened(self) -> None:
        labels, registry = ("queue", "kind"), self._registry
        self._enqueues = Counted(
            "haulier_jobs_enqueued", "Jobs that were enqueued.", labels, registry=registry
        )
        self._ends = Counted(
            "haulier_jobs_ended", "Jobs that ended.", (*labels, "state"), registry=registry
        )
        self._retries = Counted(
            "haulier_retries", "Failed attempts that are tried again.", labels, registry=registry
        )
        self._lost = Counted(
            "haulier_jobs_lost", "Runs that ended with their worker.", labels, registry=registry
        )
        self._resets = Counted(
            "haulier_events_missed", "Times that events were missed here.", registry=registry
        )
        self._waits = Histogram(
            "haulier_job_wait_seconds",
            "From enqueue to the first start, a delay that was asked for included.",
            labels,
            registry=registry,
            buckets=WAITS,
        )
        self._durations = Histogram(
            "haulier_job_run_seconds",
            "From a job's start to the end of the run; of a batch, of its expansion.",
            labels,
            registry=registry,
            buckets=DURATIONS,
        )

    def observe(self, event: Event) -> None:
        """Count one event."""
        happened, labels = event.type, (event.queue, event.kind)
        if happened == INSERTED:
            self._enqueues.labels(*labels).inc()
            _remember(self._enqueued, event.job_id, event.at)
        elif happened == Move.CLAIM:
            since = self._enqueued.pop(event.job_id, None)
            if since is not None:
                self._waits.labels(*labels).observe(max(0, event.at - since) / MICROSECOND)
            _remember(self._starts, event.job_id, event.at)
        elif happened == RESET:
            self._resets.inc()
            self._starts.clear()
            self._enqueued.clear()
        if happened in _STOPS:
            self._enqueued.pop(event.job_id, None)
            since = self._starts.pop(event.job_id, None)
            if since is not None:
                self._durations.labels(*labels).observe(max(0, event.at - since) / MICROSECOND)
        if happened in _ENDS:
            self._ends.labels(*labels, _ENDS[Move(happened)]).inc()
        if happened == Move.RETRY:
            self._retries.labels(*labels).inc()
        elif happened in (Move.LOSE, Move.LOSE_LAST):
            self._lost.labels(*labels).inc()

    def expose(self, standing: Standing) -> bytes:
        """All figures, in the text format that Prometheus reads."""
        for gauge in (self._jobs, self._oldest):
            gauge.clear()
        for (queue, kind, role, state), number in standing.counts.items():
            self._jobs.labels(queue, kind, role, state).set(number)
        for queue, at in standing.fronts.items():
            self._oldest.labels(queue).set(standing.age(at))
        self._workers.set(standing.alive)
        self._slots.set(sum(worker.slots for worker in standing.workers if worker.alive))
        return generate_latest(self._registry)


def _remember(known: OrderedDict[str, int], job_id: str, at: int) -> None:
    known[job_id] = at
    if len(known) > REMEMBERED:
        known.popitem(last=False)
