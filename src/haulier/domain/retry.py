"""When a failed attempt is tried again: a pure function of attempt, error and one throw of dice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self


class Backoff(StrEnum):
    """How the delay grows from one attempt to the next."""

    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


ASKED = "haulier.exceptions.RetryLater"
"""By raising this a task asks for another try itself, whatever else is worth one."""

ErrorClasses = tuple[str | type[BaseException], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, after what delay, and after which errors a failed job is tried again.

    `max_attempts` counts every try, the first included. `delay` and `cap` are seconds. With
    `jitter` the delay is drawn evenly from 0 to the computed value ("full jitter": M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), so that jobs that failed
    together do not come back together.

    `retry_on` names the exceptions that are tried again (empty: all), `give_up_on` those that are
    not; each is a class or its name, bare or dotted, and stands for its subclasses too.

    `function` decides instead of backoff: it is given the attempt and the error's class name and
    message, and returns the seconds to wait, or None to give up. It belongs to a task; it cannot be
    stored with a job.
    """

    max_attempts: int = 3
    backoff: Backoff = Backoff.EXPONENTIAL
    delay: float = 2.0
    cap: float = 300.0
    jitter: bool = True
    retry_on: ErrorClasses = ()
    give_up_on: ErrorClasses = ()
    function: Callable[[int, str, str], float | None] | None = None

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise ValueError("max_attempts must be an integer, 1 or more")
        # The largest float: a whole number beyond it cannot be reckoned with.
        if not 0 <= self.delay <= sys.float_info.max:
            raise ValueError("delay must be a number of seconds, 0 or more")
        if not self.delay <= self.cap <= sys.float_info.max:
            raise ValueError("cap must be a number of seconds, not below delay")
        for name in ("retry_on", "give_up_on"):
            # Kept as names, the form that can be stored and compared.
            object.__setattr__(self, name, tuple(map(_class_name, getattr(self, name))))

    @classmethod
    def never(cls) -> Self:
        """One attempt, no retry."""
        return cls(max_attempts=1)

    def wait(
        self, attempt: int, error: str, message: str, classes: Collection[str], dice: float
    ) -> float | None:
        """Seconds until the next try after the given attempt (counted from 1), None for no more.

        `error` and `message` tell what was raised, `classes` the names of its class and bases.
        """
        if attempt >= self.max_attempts or not self.retries(classes):
            return None
        if self.function is None:
            return self.delay_for(attempt, dice)
        wait = self.function(attempt, error, message)
        return None if wait is None else float(wait)

    def retries(self, classes: Collection[str]) -> bool:
        """Whether an error of these classes is worth another try."""
        if ASKED in classes:
            return True
        if any(name in classes for name in self.give_up_on):
            return False
        return not self.retry_on or any(name in classes for name in self.retry_on)

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
        """The policy as plain JSON values; raises ValueError for one with a function."""
        if self.function is not None:
            raise ValueError("a retry policy with a function cannot be stored: give it to the task")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["function"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`; also reads what earlier versions wrote."""
        given = {**values}
        if "backoff" in given:
            given["backoff"] = Backoff(given["backoff"])
        for name in ("retry_on", "give_up_on"):
            if name in given:
                given[name] = tuple(given[name])
        return cls(**given)


def class_names(error: type[BaseException]) -> tuple[str, ...]:
    """The names that a policy may call an exception class by: its own and its bases', both ways."""
    return tuple(
        name
        for base in error.__mro__
        if issubclass(base, BaseException)
        for name in (base.__name__, _class_name(base))
    )


def _class_name(error: str | type[BaseException]) -> str:
    return error if isinstance(error, str) else f"{error.__module__}.{error.__qualname__}"
