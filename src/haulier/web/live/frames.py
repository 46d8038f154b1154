"""What is sent to viewers, encoded once for all of them."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from haulier.domain.event import Event
from haulier.web.schemas import EventView


class Frame:
    """One thing that a viewer is told: an event of the store, a sample, or a snapshot.

    `seq` is the number of an event, 0 of anything else. `id` is the cursor to go on from after it;
    samples have none, they are not repeated.
    """

    __slots__ = ("_sse", "_text", "data", "id", "seq", "type")

    def __init__(self, name: str, data: str, *, cursor: str | None = None, seq: int = 0) -> None:
        self.type = name
        self.data = data
        self.id = cursor
        self.seq = seq
        self._sse: bytes | None = None
        self._text: str | None = None

    @classmethod
    def of(cls, event: Event) -> Frame:
        """An event of the store."""
        data = EventView.model_validate(event).model_dump_json()
        return cls(event.type, data, cursor=event.cursor, seq=event.seq)

    @classmethod
    def saying(cls, name: str, model: BaseModel, cursor: str | None = None) -> Frame:
        """A sample, or with a cursor a snapshot."""
        return cls(name, model.model_dump_json(), cursor=cursor)

    @property
    def sse(self) -> bytes:
        """It as an event of an event stream. JSON has no line breaks of its own."""
        if self._sse is None:
            head = "" if self.id is None else f"id: {self.id}\n"
            self._sse = f"{head}event: {self.type}\ndata: {self.data}\n\n".encode()
        return self._sse

    @property
    def text(self) -> str:
        """It as a message of a WebSocket."""
        if self._text is None:
            head = "" if self.id is None else f'"id":"{self.id}",'
            self._text = f'{{"type":"{self.type}",{head}"data":{self.data}}}'
        return self._text


def joined(frames: Iterable[Frame]) -> bytes:
    """Several frames as a piece of an event stream."""
    return b"".join([frame.sse for frame in frames])
