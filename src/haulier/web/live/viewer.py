"""What one viewer is shown: what it has missed, then what happens."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from haulier.domain.event import RESET
from haulier.web.live.broadcast import Broadcast, Reason, upto
from haulier.web.live.frames import Frame, joined
from haulier.web.live.interest import Interest
from haulier.web.live.seats import Seat

MOST = 64
"""Frames that are sent as one."""


class Viewer:
    """A place in a channel, and how it came there. `cursor`: all up to it was shown.

    Used as a block. Without `after` it begins with what happens from now on.
    """

    def __init__(
        self,
        broadcast: Broadcast,
        seat: Seat,
        interest: Interest,
        after: str | None,
        *,
        gather: float,
    ) -> None:
        self.interest = interest
        self.cursor = after
        self._broadcast = broadcast
        self._seat = seat
        self._gathering = gather
        self._channel = broadcast.join(interest)
        self._missing = after is not None
        self._owed: Reason | None = "start" if after is None else None
        if after is not None and interest.samples:
            self._owed = "resume"
        self._anchored = False
        self._place = self._read = 0
        self._upto = ""
        self._sent = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._channel.forget(self._seat.wake)
        self._broadcast.leave(self._channel)

    async def frames(self, patience: float) -> list[Frame]:
        """What comes next; nothing if it has not come after so many seconds, or the seat ended."""
        try:
            async with asyncio.timeout(patience):
                frames = await self._next()
        except TimeoutError:
            return []
        self._sent = asyncio.get_running_loop().time()
        return frames

    def piece(self, frames: list[Frame]) -> bytes:
        """What `frames` has just given, as a piece of an event stream."""
        if len(frames) == self._read:
            return self._channel.piece(self._place - self._read, frames)
        return joined(frames)

    @property
    def reached(self) -> str | None:
        """The cursor up to which there is nothing more to show, be it of others' interest."""
        if self._missing or self._owed or self._place != self._channel.end:
            return self.cursor
        latest = self._broadcast.cursor
        return self.cursor if self.cursor and not _before(self.cursor, latest) else latest

    async def _next(self) -> list[Frame]:
        self._read = 0
        await self._broadcast.ready.wait()
        if not self._anchored:
            self._anchor()
        frames: list[Frame] = []
        while not frames and self._seat.ended is None:
            if self._missing:
                frames = await self._catch_up()
            elif self._owed is not None:
                frames = [await self._snapshot(self._owed)]
            else:
                frames = await self._latest()
        return frames

    def _anchor(self) -> None:
        """From here on the channel has all that follows `upto`."""
        self._place, self._upto = self._channel.end, self._broadcast.cursor
        self._anchored = True

    async def _catch_up(self) -> list[Frame]:
        """A page of what it has missed, as the store has it."""
        assert self.cursor is not None
        page = await self._broadcast.page(self.cursor)
        if page and page[0].type == RESET:
            self._missing = False
            self._owed = "expired"
            self._anchor()
            return []
        shown = upto(page, self._upto)
        if shown:
            self.cursor = shown[-1].cursor
        if not page or len(shown) < len(page):
            if self._channel.lost(self._place):
                self._anchor()
            else:
                self._missing = False
        return [Frame.of(event) for event in shown if self.interest.wants(event)]

    async def _snapshot(self, reason: Reason) -> Frame:
        cursor = self.cursor if reason == "resume" and self.cursor else self._upto
        frame = await self._broadcast.snapshot(self.interest, reason, cursor)
        self._owed = None
        self.cursor = cursor
        return frame

    async def _latest(self) -> list[Frame]:
        """What the channel has."""
        channel = self._channel
        await self._gather()
        if channel.lost(self._place):
            self._owed = "expired" if channel.was_cut(self._place) else "slow"
            self._anchor()
            return []
        frames = channel.read(self._place, MOST)
        if not frames:
            self._seat.wake.clear()
            if self._seat.ended is None:
                channel.call(self._seat.wake)
                await self._seat.wake.wait()
            return []
        self._place += len(frames)
        self._read = len(frames)
        # The follower may lie behind what the viewer has read by itself.
        frames = [each for each in frames if not each.seq or self._is_new(each)]
        self.cursor = next((each.id for each in reversed(frames) if each.id), self.cursor)
        return frames

    def _is_new(self, frame: Frame) -> bool:
        assert frame.id is not None
        return self.cursor is None or _before(self.cursor, frame.id)

    async def _gather(self) -> None:
        waiting = self._channel.end - self._place
        if 0 < waiting < MOST:
            left = self._sent + self._gathering - asyncio.get_running_loop().time()
            if left > 0:
                await asyncio.sleep(left)


def _before(one: str, other: str) -> bool:
    """Whether a cursor lies before another one; of two histories nothing can be said but yes."""
    (epoch, _, seq), (of, _, number) = one.rpartition(":"), other.rpartition(":")
    return epoch != of or int(seq) < int(number)
