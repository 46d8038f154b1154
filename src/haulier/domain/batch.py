"""A bulk job: its counters, its progress, and how long it will still take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from haulier.domain.job import MICROSECOND, JobState

DEEPEST = 4
"""The most batches that may lie around one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishCallback:
    """The job that is inserted, in the same transaction, when a batch settles.

    Its payload is made by the store: `batch_id`, `state` and `counts` of the settled batch.
    """

    kind: str
    queue: str = "default"


LIMITS: Mapping[str, int] = {"concurrency": 1, "batch_size": 1, "max_failures": 0}
"""The limits of a batch that may be changed while it runs, and the least that each may be."""


def told_change(old: Mapping[str, int | None], new: Mapping[str, int | None]) -> str:
    """What was changed, in words: `concurrency 5 -> 20, max_failures none -> 3`."""
    return ", ".join(
        f"{name} {_told(old[name])} -> {_told(new[name])}"
        for name in LIMITS
        if old[name] != new[name]
    )


def _told(limit: int | None) -> str:
    return "none" if limit is None else str(limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """How a batch is worked on. None does not limit.

    finish: the job that is inserted once the batch has settled. concurrency: the most of its items
    that run at once, over all workers. batch_size: the most of its items that one claim takes.
    max_failures: when more items than this have failed, the rest is cancelled and the batch fails.
    """

    finish: FinishCallback | None = None
    concurrency: int | None = None
    batch_size: int | None = None
    max_failures: int | None = None

    def __post_init__(self) -> None:
        for name, least in LIMITS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer, {least} or more")


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

    `sealed` says that all items were added, `paused` that no more of them are started,
    `settled` that nothing of it runs or will run any more: a head may end before its last items do.
    `finish_job` is the id of the last finish callback's job, once the batch has settled.
    `within` is the id of the batch that this one is an item of.
    """

    id: str
    kind: str
    queue: str
    state: JobState
    counts: Counts
    sealed: bool
    settled: bool = False
    cancel_requested: bool = False
    paused: bool = False
    concurrency: int | None = None
    batch_size: int | None = None
    max_failures: int | None = None
    created_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    finish_job: str | None = None
    within: str | None = None

    @property
    def open(self) -> bool:
        """Whether it waits for more items: until it is sealed or ends, it does not settle."""
        return not self.sealed and self.state is JobState.RUNNING and not self.cancel_requested

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
        if rate is None or self.state.final or self.paused or not self.sealed:
            return None
        return (self.counts.total - self.counts.done) / rate
