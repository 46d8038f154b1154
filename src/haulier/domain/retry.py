"""When a failed attempt is tried again: a pure function of the attempt and one throw of dice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class Backoff(StrEnum):
    """How the delay grows from one attempt to the next."""

    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and after what delay, a failed job is tried again.

    `max_attempts` counts every try, the first included. `delay` and `cap` are seconds. With
    `jitter` the delay is drawn evenly from 0 to the computed value ("full jitter": M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), so that jobs that failed
    together do not come back together.
    """

    max_attempts: int = 3
    backoff: Backoff = Backoff.EXPONENTIAL
    delay: float = 2.0
    cap: float = 300.0
    jitter: bool = True

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be 1 or more")
        if not 0 <= self.delay < float("inf"):
            raise ValueError("delay must be a number of seconds, 0 or more")
        if not self.delay <= self.cap < float("inf"):
            raise ValueError("cap must be a number of seconds, not below delay")

    @classmethod
    def never(cls) -> Self:
        """One attempt, no retry."""
        return cls(max_attempts=1)

    def allows(self, attempt: int) -> bool:
        """Whether another try may follow the given attempt (counted from 1)."""
        return attempt < self.max_attempts

    def delay_for(self, attempt: int, dice: float) -> float:
        """Seconds to wait after the given attempt failed; `dice` is evenly drawn from [0, 1)."""
        match self.backoff:
            case Backoff.FIXED:
                ceiling = self.delay
            case Backoff.LINEAR:
                ceiling = self.delay * attempt
            case Backoff.EXPONENTIAL:
                # The exponent is bounded so that a huge attempt number cannot overflow a float.
                ceiling = self.delay * 2.0 ** min(attempt - 1, 64)
        ceiling = min(ceiling, self.cap)
        return ceiling * dice if self.jitter else ceiling

    def as_dict(self) -> dict[str, Any]:
        """The policy as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        return cls(**{**values, "backoff": Backoff(values["backoff"])})
