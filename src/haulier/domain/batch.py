"""A bulk job: its counters, its progress, and how long it will still take."""

from __future__ import annotations

from dataclasses import dataclass

from haulier.domain.job import MICROSECOND, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishCallback:
    """The job that is inserted, in the same transaction, when a batch settles.

    Its payload is made by the store: `batch_id`, `state` and `counts` of the settled batch.
    """

    kind: str
    queue: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many items of a batch are in each state; they always add up to `total`."""

    total: int = 0
    pending: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def done(self) -> int:
        """Items that reached a final state."""
        return self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch as its head job and its counters tell it. Instants are microseconds UTC.

    `sealed` says that all items were added. `finish_job` is the id of the last finish callback's
    job, once the batch has settled.
    """

    id: str
    kind: str
    queue: str
    state: JobState
    counts: Counts
    sealed: bool
    cancel_requested: bool = False
    created_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    finish_job: str | None = None

    @property
    def progress(self) -> float:
        """Percent of the items that are done, 0 to 100."""
        return 100.0 * self.counts.done / self.counts.total if self.counts.total else 0.0

    def rate(self, now: int) -> float | None:
        """Items done per second since the first one started; None before any is done."""
        if self.started_at is None or not self.counts.done:
            return None
        elapsed = (self.finished_at or now) - self.started_at
        return self.counts.done * MICROSECOND / elapsed if elapsed > 0 else None

    def eta(self, now: int) -> float | None:
        """Seconds until the last item is done at the present rate; None when unknown or over."""
        rate = self.rate(now)
        if rate is None or self.state.final or not self.sealed:
            return None
        return (self.counts.total - self.counts.done) / rate
