"""The latest frames for all viewers of one interest.

They share one ring of frames. Each viewer has only its place in it, so one that does not read costs
nothing as time goes on: when the ring has moved past its place, it has lost it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice

from haulier.web.live.frames import Frame, joined
from haulier.web.live.interest import Interest


class Channel:
    """Places count all frames that there ever were; `end` is that of the next one."""

    def __init__(self, interest: Interest, size: int) -> None:
        self.interest = interest
        self.end = 0
        self.viewers = 0
        self._frames: deque[Frame] = deque(maxlen=size)
        self._cut = 0
        self._waiting: set[asyncio.Event] = set()
        self._piece: tuple[int, int, bytes] = (0, 0, b"")

    def append(self, frame: Frame) -> None:
        """Show a frame to all viewers."""
        self._frames.append(frame)
        self.end += 1
        self.wake()

    def wake(self) -> None:
        """Let those look who wait."""
        for waiting in self._waiting:
            waiting.set()
        self._waiting.clear()

    def cut(self) -> None:
        """Say that what comes next does not follow what was last: all have lost their place."""
        self._frames.clear()
        self.end += 1
        self._cut = self.end
        self.wake()

    def lost(self, place: int) -> bool:
        """Whether the frame at this place is gone."""
        return place < self.end - len(self._frames)

    def was_cut(self, place: int) -> bool:
        """Whether a place was lost because the events themselves do not go on from there."""
        return place < self._cut

    def call(self, waiting: asyncio.Event) -> None:
        """Set the event with the next frame."""
        self._waiting.add(waiting)

    def forget(self, waiting: asyncio.Event) -> None:
        """Whoever waited by this event does so no longer."""
        self._waiting.discard(waiting)

    def read(self, place: int, most: int) -> list[Frame]:
        """Up to so many frames from a place on that is not lost."""
        first = place - (self.end - len(self._frames))
        return list(islice(self._frames, first, first + most))

    def piece(self, place: int, frames: list[Frame]) -> bytes:
        """Frames read from a place, encoded; those who read together get the same bytes."""
        start, stop, piece = self._piece
        if (start, stop) != (place, place + len(frames)):
            piece = joined(frames)
            self._piece = (place, place + len(frames), piece)
        return piece
