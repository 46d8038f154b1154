"""Ticks of schedules, as stores remember them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

KEPT_TICKS = 100
"""Ticks of one schedule that are remembered, beside those whose jobs are not done."""


class TickState(StrEnum):
    """What became of a tick: its job was enqueued, it was missed, or skipped for an overlap.

    `manual` is none of the cadence's: somebody ran the schedule then.
    """

    FIRED = "fired"
    MANUAL = "manual"
    MISSED = "missed"
    OVERLAP = "overlap"


TICK_STATES = tuple(TickState)
"""By their codes in stores."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick of a schedule, as the store remembers it.

    `at` is when it was dealt with. `since`: of those that were missed, the first one; they share
    the row of the last. `job` was enqueued for it.
    """

    schedule: str
    tick: int
    at: int
    state: TickState
    job: str | None = None
    since: int | None = None
