"""Limits on how much runs at once and how often, and circuit breakers: values and arithmetic.

A limit concerns the jobs of a queue, of a kind, or all; as one, or per key each by itself. It
admits before the claim: what has no room waits outside, and no worker ever sees it. Head jobs,
which only make items and wait for them, are exempt.

Rates are token buckets, kept as one instant each: the generic cell rate algorithm (ITU-T I.371,
annex A). An empty bucket gains one token per `Rate.interval`; `full_at` is when it will be full.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from haulier.domain.job import MICROSECOND

MOST_AT_ONCE = 1_000_000
LONGEST_PERIOD = 366 * 86_400.0

BREAKER_KEPT = 7 * 86_400 * MICROSECOND
"""Microseconds for which a breaker is kept after its pause, if nothing probes it."""

_PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_RATE = re.compile(r"\s*(\d{1,9})\s*/\s*(\d{0,9})\s*([smhd])\s*\Z")
_LIMIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,199}\Z")


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` starts in `per` seconds on average, and `burst` at once after a rest.

    Without `burst` it is as many as come to one second of the rate, one at least: so a start waits
    for the token before it, and a fast rate does not depend on how often a worker asks.
    """

    count: int
    per: float = 1.0
    burst: int | None = None

    def __post_init__(self) -> None:
        _whole("count", self.count, MOST_AT_ONCE)
        _seconds("per", self.per)
        if self.burst is not None:
            _whole("burst", self.burst, MOST_AT_ONCE)

    @classmethod
    def parse(cls, text: str, burst: int | None = None) -> Rate:
        """From text such as `30/m`, `5/s`, `100/h`, `1000/d` or `10/30s`; ValueError for other."""
        found = _RATE.match(text)
        if found is None:
            raise ValueError('rate must look like "30/m", "5/s", "100/h", "1000/d" or "10/30s"')
        count, many, unit = found.groups()
        return cls(int(count), int(many or 1) * _PERIODS[unit], burst)

    @property
    def interval(self) -> int:
        """Microseconds from one token to the next, rounded up: never more than the rate."""
        return max(1, math.ceil(self.per * MICROSECOND / self.count))

    @property
    def depth(self) -> int:
        """The most tokens that the bucket holds."""
        return self.burst if self.burst is not None else max(1, int(self.count / self.per))

    def tokens(self, full_at: int, now: int) -> int:
        """How many may start now."""
        missing = max(full_at - now, 0)
        return max(0, (self.depth * self.interval - missing) // self.interval)

    def spent(self, full_at: int, now: int, count: int) -> int:
        """When the bucket is full again after `count` more have started."""
        return max(full_at, now) + count * self.interval

    def next_token(self, full_at: int) -> int:
        """When an empty bucket has its next token (microseconds UTC)."""
        return full_at - (self.depth - 1) * self.interval

    def __str__(self) -> str:
        unit = {seconds: name for name, seconds in _PERIODS.items()}.get(self.per)
        text = f"{self.count}/{unit}" if unit else f"{self.count}/{self.per:g}s"
        return text if self.burst is None else f"{text} burst {self.burst}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """A circuit breaker: jobs of a key wait while what they all need is broken.

    It opens when of the attempts that ended within `window` seconds, `least` or more, the share
    `failures` or more failed (a retry counts as a failure; an attempt that was given back, snoozed,
    cancelled or lost does not count). Open: nothing of that key starts for `pause` seconds.
    Half-open: `probes` jobs may run; one success closes it, one failure opens it again. One that
    nothing probes for a week is forgotten, which closes it.
    """

    failures: float = 0.5
    least: int = 5
    window: float = 60.0
    pause: float = 30.0
    probes: int = 1

    def __post_init__(self) -> None:
        number = isinstance(self.failures, int | float) and not isinstance(self.failures, bool)
        if not number or not 0 < self.failures <= 1:
            raise ValueError("failures must be a share above 0, 1 at most")
        _whole("least", self.least, MOST_AT_ONCE)
        _seconds("window", self.window)
        _seconds("pause", self.pause)
        _whole("probes", self.probes, MOST_AT_ONCE)


class Circuit(StrEnum):
    """How a breaker stands for one key."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit: `concurrency`, `rate` or `breaker`, just one of them.

    `name` is what an operator calls it, one of a kind in the store. It concerns jobs of `queue` and
    of `kind`, None being all; `per_key`: those of each key by itself, and none that have no key.
    A breaker is per key always. Several may concern one job: it starts when all have room.
    """

    name: str
    concurrency: int | None = None
    rate: Rate | None = None
    breaker: Breaker | None = None
    queue: str | None = None
    kind: str | None = None
    per_key: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _LIMIT_NAME.match(self.name):
            raise ValueError("name must be 1 to 200 letters, digits or any of _ . : / -")
        given = [w for w in (self.concurrency, self.rate, self.breaker) if w is not None]
        if len(given) != 1:
            raise ValueError("give one of concurrency, rate and breaker")
        if self.concurrency is not None:
            _whole("concurrency", self.concurrency, MOST_AT_ONCE)
        if self.rate is not None and not isinstance(self.rate, Rate):
            raise ValueError('rate must be a Rate, such as Rate.parse("30/m")')
        if self.breaker is not None:
            if not isinstance(self.breaker, Breaker):
                raise ValueError("breaker must be a Breaker")
            if not self.per_key:
                raise ValueError("per_key must be true of a breaker")

    def concerns(self, queue: str, kind: str) -> bool:
        """Whether jobs of this queue and kind fall under it."""
        return self.queue in (None, queue) and self.kind in (None, kind)

    def as_json(self) -> dict[str, Any]:
        """As plain values, as a store keeps it; `from_json` reads it."""
        told: dict[str, Any] = {"name": self.name, "per_key": self.per_key}
        if self.queue is not None:
            told["queue"] = self.queue
        if self.kind is not None:
            told["kind"] = self.kind
        if self.concurrency is not None:
            told["concurrency"] = self.concurrency
        if self.rate is not None:
            rate = self.rate
            told["rate"] = {"count": rate.count, "per": rate.per, "burst": rate.burst}
        if self.breaker is not None:
            names = ("failures", "least", "window", "pause", "probes")
            told["breaker"] = {name: getattr(self.breaker, name) for name in names}
        return told

    def to_text(self) -> str:
        """The one JSON text of it, by which stores compare limits."""
        return json.dumps(self.as_json(), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Limit:
        """The limit that `as_json` told; raises ValueError for what is none."""
        told = dict(told)
        if told.get("rate") is not None:
            told["rate"] = Rate(**told["rate"])
        if told.get("breaker") is not None:
            told["breaker"] = Breaker(**told["breaker"])
        return cls(**told)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitState:
    """A limit as the store holds it, and who changed it last, when (microseconds UTC).

    `declared`: it came from a task's definition and nobody has changed it since. `running`: jobs
    that count against a concurrency that is not per key, else 0.
    """

    limit: Limit
    changed_by: str
    changed_at: int
    declared: bool = False
    running: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """How one key stands under one limit that is per key.

    `running` jobs of the key that the limit concerns. `ready_at`: when the next may start, where
    that is a matter of time (a rate's token, an open breaker), else None. `circuit`, `succeeded`
    and `failed` (within the window) are a breaker's.
    """

    key: str
    running: int = 0
    ready_at: int | None = None
    circuit: Circuit | None = None
    succeeded: int = 0
    failed: int = 0


def _whole(name: str, value: Any, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be an integer from 1 to {most:,}")


def _seconds(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0.001 <= value <= LONGEST_PERIOD:
        raise ValueError(f"{name} must be seconds from 0.001 to {LONGEST_PERIOD:,.0f}")
