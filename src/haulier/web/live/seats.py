"""How many streams there may be, whose they are, and until when."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from enum import StrEnum

from haulier.domain.access import Identity
from haulier.exceptions import RateLimitError

LAST_WORDS = 1.0
"""Seconds that a stream gets to say that it ends, before it is cut off."""

STALL = 60.0
"""Seconds after which a viewer who takes nothing of what it was sent loses its stream."""


class End(StrEnum):
    """Why a stream ends."""

    GONE = "the viewer has gone"
    SHUTDOWN = "the server stops"
    FAILED = "the stream failed"
    REVOKED = "the access has ended"
    STALLED = "nothing was read for too long"
    TOO_MANY = "too many messages"
    TOO_LARGE = "a message was too large"
    BINARY = "messages are text"


class Seat:
    """One open stream. The block of `held` ends soon after `end`, wherever it waits.

    `wake` is set when there may be something to do, `over` when the stream is to end.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.ended: End | None = None
        self.wake = asyncio.Event()
        self.over = asyncio.Event()
        self._deadline = asyncio.timeout(None)
        self._inside = False

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Within the block the seat can end it."""
        try:
            async with self._deadline:
                self._inside = True
                try:
                    yield
                finally:
                    self._inside = False
        except TimeoutError:
            if not self._deadline.expired():
                raise
            self.end(End.STALLED)

    def end(self, why: End) -> None:
        """Ask the stream to end; the first reason counts."""
        if self.ended is None:
            self.ended = why
            self.wake.set()
            self.over.set()
            self._until(LAST_WORDS)

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Around what waits for the viewer to read."""
        if self.ended is None:
            self._until(STALL)
        yield
        if self.ended is None:
            self._until(None)

    def _until(self, seconds: float | None) -> None:
        if not self._inside:
            return
        when = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._deadline.reschedule(when)


class Seats:
    """All open streams; so many at most, and so many of one identity."""

    def __init__(self, most: int, per_caller: int) -> None:
        self._most = most
        self._per_caller = per_caller
        self._seats: set[Seat] = set()
        self._of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(tuple(self._seats))

    def take(self, identity: Identity) -> Seat:
        """A seat; raises RateLimitError when all are taken."""
        if len(self._seats) >= self._most:
            raise RateLimitError(f"There are {self._most:,} streams open, which is the most")
        if self._of[identity.name] >= self._per_caller:
            raise RateLimitError(
                f"{identity.name} has {self._per_caller:,} streams open, which is the most"
            )
        seat = Seat(identity)
        self._seats.add(seat)
        self._of[identity.name] += 1
        return seat

    def give_back(self, seat: Seat) -> None:
        """It is free for another stream."""
        self._seats.discard(seat)
        self._of[seat.identity.name] -= 1
        if not self._of[seat.identity.name]:
            del self._of[seat.identity.name]
