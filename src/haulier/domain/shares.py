"""Queues with weights: which of them a worker takes its next jobs from.

Each queue has a time of its own. Every job that a worker takes from it moves this time on, the less
the more the queue weighs, and the next job comes from the queue that would stand earliest then. So
with all of them full the jobs are shared as the weights say, however many a claim takes, and one
that is empty leaves its share to the others as they weigh. (Stride scheduling: Waldspurger and
Weihl, 1995.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from haulier.exceptions import ConfigurationError

MOST = 1000
"""The greatest weight; the least is 1, so that no queue starves."""

_STEP = 1_000_000
_PLACES = 1024
"""Times are whole numbers that no two queues have in common: what remains of them is its place."""


class Share(NamedTuple):
    """A queue in a demand: its time is at `ahead`, and each job moves it on by `step`."""

    step: int
    ahead: int

    def after(self, jobs: int) -> int:
        """The time of the queue when so many more jobs were taken from it."""
        return self.ahead + jobs * self.step


def weights_of(
    queues: Sequence[str], own: Mapping[str, int], stored: Mapping[str, int]
) -> tuple[int, ...]:
    """The weight of each queue, what the store says before what the worker says.

    Empty if nobody gives any of them a weight. If somebody does, the others weigh 1.
    """
    if not any(queue in own or queue in stored for queue in queues):
        return ()
    return tuple(stored.get(queue, own.get(queue, 1)) for queue in queues)


def shares_of(weights: Iterable[int]) -> tuple[Share, ...]:
    """The shares of queues none of which was taken from yet."""
    return tuple(
        Share(_STEP // weight * _PLACES, place % _PLACES) for place, weight in enumerate(weights)
    )


def moved_on(shares: Sequence[Share], taken: Sequence[int]) -> tuple[Share, ...]:
    """The shares after a claim that took so many jobs from each queue.

    A queue that would have been next and gave nothing was empty. It keeps no claim to what it did
    not use: later it begins where the others are.
    """
    if not any(taken):
        return tuple(shares)
    last = max(share.after(jobs) for share, jobs in zip(shares, taken, strict=True) if jobs)
    ahead = [
        # In whole steps, or its time would not be its own any more.
        share.after(jobs) + max(0, -(-(last - share.after(jobs + 1)) // _PLACES)) * _PLACES
        for share, jobs in zip(shares, taken, strict=True)
    ]
    base = min(ahead) // _PLACES * _PLACES
    return tuple(Share(share.step, at - base) for share, at in zip(shares, ahead, strict=True))


def listened_to(texts: Iterable[str]) -> tuple[str, ...] | dict[str, int]:
    """Queues as a command line names them: `name`, or `name=weight` for some or all of them."""
    names: list[str] = []
    weights: dict[str, int] = {}
    for text in texts:
        name, equals, weight = text.partition("=")
        names.append(name)
        if equals:
            weights[name] = int(weight) if weight.isascii() and weight.isdigit() else 0
    if len(set(names)) < len(names):
        raise ConfigurationError("queues: the same queue is named twice")
    for name, number in weights.items():
        check_weight(name, number)
    return {name: weights.get(name, 1) for name in names} if weights else tuple(names)


def check_weight(queue: str, weight: object) -> None:
    """Raises ConfigurationError for what is no weight."""
    if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= MOST:
        raise ConfigurationError(
            f"queues: the weight of {queue!r} is not a number from 1 to {MOST}"
        )
