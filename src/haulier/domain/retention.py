"""How long finished jobs and their results are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from haulier.domain.job import JobState

DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Jobs of one kind and state are kept for `age` seconds, and at most the latest `count`.

    None does not limit. `Keep(count=0)` removes a job as soon as upkeep comes by.
    """

    age: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.age is not None and not 0 <= self.age < float("inf"):
            raise ValueError("age must be a number of seconds, 0 or more")
        if self.count is not None and self.count < 0:
            raise ValueError("count must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long the finished jobs of a kind are kept. A batch is kept and removed as one.

    `result_ttl` is how many seconds the result of a single job outlives it (None: as long as the
    job). Results of items stay as long as their batch, which is what they are looked at through.
    """

    completed: Keep = Keep(age=7 * DAY)
    failed: Keep = Keep(age=90 * DAY)
    cancelled: Keep = Keep(age=7 * DAY)
    result_ttl: float | None = 3600.0

    def __post_init__(self) -> None:
        if self.result_ttl is not None and not 0 <= self.result_ttl < float("inf"):
            raise ValueError("result_ttl must be a number of seconds, 0 or more")

    def by_state(self) -> Iterator[tuple[JobState, Keep]]:
        """Each final state and what is kept of it."""
        yield JobState.COMPLETED, self.completed
        yield JobState.FAILED, self.failed
        yield JobState.CANCELLED, self.cancelled
