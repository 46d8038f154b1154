"""How long finished jobs and their results are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from haulier.domain.job import JobState

DAY = 86_400.0

Removal = bool | int | Mapping[str, float | None]
"""When to remove jobs, in short: True at once, False never, a number keeps the latest so many, a
mapping names `age` (seconds), `count`, or both."""


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

    @classmethod
    def unless(cls, removal: Removal) -> Self:
        """What is kept when so much is removed; raises ValueError for what says nothing clear."""
        if isinstance(removal, bool):
            return cls(count=0) if removal else cls()
        if isinstance(removal, int):
            return cls(count=removal)
        if not isinstance(removal, Mapping) or not removal or removal.keys() - {"age", "count"}:
            raise ValueError("is True, False, a number of jobs, or names age, count or both")
        if any(isinstance(value, bool) or value is None for value in removal.values()):
            raise ValueError("age is a number of seconds, count a number of jobs")
        count: Any = removal.get("count")
        if count is not None and not isinstance(count, int):
            raise ValueError("count must be an integer")
        try:
            return cls(age=removal.get("age"), count=count)
        except TypeError:
            raise ValueError("age must be a number of seconds") from None


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

    @classmethod
    def of(
        cls,
        retention: Self | None = None,
        *,
        remove_on_complete: Removal | None = None,
        remove_on_fail: Removal | None = None,
    ) -> Self:
        """A retention from itself, or from its short forms; raises ValueError for both at once."""
        if retention is not None:
            if remove_on_complete is not None or remove_on_fail is not None:
                raise ValueError("retention is given together with one of its short forms")
            if not isinstance(retention, cls):
                raise ValueError("retention must be a Retention")
            return retention
        plain = cls()
        return cls(
            completed=_keep(remove_on_complete, plain.completed),
            failed=_keep(remove_on_fail, plain.failed),
        )

    def by_state(self) -> Iterator[tuple[JobState, Keep]]:
        """Each final state and what is kept of it."""
        yield JobState.COMPLETED, self.completed
        yield JobState.FAILED, self.failed
        yield JobState.CANCELLED, self.cancelled


def _keep(removal: Removal | None, otherwise: Keep) -> Keep:
    return otherwise if removal is None else Keep.unless(removal)
