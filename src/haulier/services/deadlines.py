"""A shorter deadline for some of a store's callers: those whose own caller does not wait long."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

_shortest: ContextVar[float] = ContextVar("haulier_deadline", default=math.inf)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Within the block each store call of this task is given up after so many seconds.

    The store's own deadline, and what others ask of the same store meanwhile, stay as they are.
    """
    token = _shortest.set(min(seconds, _shortest.get()))
    try:
        yield
    finally:
        _shortest.reset(token)


def shortened(deadline: float) -> float:
    """A store's deadline as it holds for the present caller; both in seconds."""
    return min(deadline, _shortest.get())
