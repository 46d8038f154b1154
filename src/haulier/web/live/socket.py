"""A WebSocket on which a viewer says what it wants to see, and changes it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket, WebSocketDisconnect

from haulier.domain.access import Identity
from haulier.web.live.hub import Live
from haulier.web.live.interest import Interest, Topic
from haulier.web.live.seats import End, Seat
from haulier.web.models.live import Message, Ping, Subscribe, Unsubscribe

MAX_MESSAGE = 16 * 1024
"""Bytes of a message from a viewer."""

SOCKETS: Mapping[str, Any] = {
    "ws": "websockets-sansio",
    "ws_max_size": MAX_MESSAGE,
    # Each connection would compress for itself what was encoded once for all.
    "ws_per_message_deflate": False,
}
"""What uvicorn is told of sockets: also what is too large is refused before it is read whole."""

BURST = 20
RATE = 5.0
"""Messages that a viewer may send at once, and a second."""

CODES = {
    End.GONE: 1000,
    End.SHUTDOWN: 1012,
    End.FAILED: 1011,
    End.REVOKED: 1008,
    End.STALLED: 1008,
    End.TOO_MANY: 1008,
    End.TOO_LARGE: 1009,
    End.BINARY: 1003,
}
"""How a socket is closed (RFC 6455, section 7.4)."""

_MESSAGES: TypeAdapter[Subscribe | Unsubscribe | Ping] = TypeAdapter(Message)


class Session:
    """One socket. What it is sent comes from one task, what it sends is heard by another."""

    def __init__(self, live: Live, socket: WebSocket, identity: Identity) -> None:
        self._live = live
        self._socket = socket
        self._identity = identity
        self._interest: Interest | None = None
        self._cursor: str | None = None
        self._showing: asyncio.Task[None] | None = None
        self._allowance = float(BURST)
        self._counted = time.monotonic()

    async def run(self) -> None:
        """Until either side ends it; raises RateLimitError, unless accepted, without a seat."""
        async with self._live.seat(self._identity) as seat:
            await self._socket.accept()
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._listen(seat, group))
                await seat.over.wait()
                listening.cancel()
                if self._showing is not None:
                    self._showing.cancel()
            assert seat.ended is not None
            if seat.ended is not End.GONE:
                await self._socket.close(CODES[seat.ended], seat.ended)

    # ── What it hears ────────────────────────────────────────────────────────────────────────

    async def _listen(self, seat: Seat, group: asyncio.TaskGroup) -> None:
        try:
            while seat.ended is None:
                heard = await self._socket.receive()
                if heard["type"] == "websocket.disconnect":
                    seat.end(End.GONE)
                elif not self._allowed():
                    seat.end(End.TOO_MANY)
                elif (text := heard.get("text")) is None:
                    seat.end(End.BINARY)
                elif len(text.encode()) > MAX_MESSAGE:
                    seat.end(End.TOO_LARGE)
                else:
                    await self._obey(text, seat, group)
        except WebSocketDisconnect:
            seat.end(End.GONE)

    def _allowed(self) -> bool:
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + RATE * (now - self._counted)) - 1
        self._counted = now
        return self._allowance >= 0

    async def _obey(self, text: str, seat: Seat, group: asyncio.TaskGroup) -> None:
        try:
            message = _MESSAGES.validate_json(text)
            interest = self._interest_of(message)
        except ValidationError as error:
            await self._say("error", _told(error))
            return
        except HTTPException as error:
            await self._say("error", {"detail": error.detail, "errors": []})
            return
        if isinstance(message, Ping):
            await self._say("pong")
            return
        if self._showing is not None:
            self._showing.cancel()
            await asyncio.wait([self._showing])
            self._showing = None
        self._interest = interest
        if isinstance(message, Subscribe):
            self._cursor = message.after or self._cursor
            given = message.filter.model_dump(mode="json", exclude_defaults=True)
            said = {"topics": _topics(interest), "filter": given}
            await self._say("subscribed", said | {"after": self._cursor})
        else:
            await self._say("unsubscribed", {"topics": _topics(interest)})
        if self._interest is None:
            self._cursor = None
        else:
            self._showing = group.create_task(self._show(seat, self._interest))

    def _interest_of(self, message: Subscribe | Unsubscribe | Ping) -> Interest | None:
        """What is to be shown once the message was obeyed."""
        if isinstance(message, Subscribe):
            return message.filter.interest(message.topics).of(self._identity)
        if isinstance(message, Ping) or self._interest is None:
            return self._interest
        left = self._interest.topics.difference(message.topics or Topic)
        return dataclasses.replace(self._interest, topics=left) if left else None

    # ── What it says ─────────────────────────────────────────────────────────────────────────

    async def _show(self, seat: Seat, interest: Interest) -> None:
        try:
            with self._live.viewer(seat, interest, self._cursor) as viewer:
                while seat.ended is None:
                    frames = await viewer.frames(self._live.options.heartbeat)
                    for frame in frames:
                        await self._send(frame.text, seat)
                        # Not before: who is stopped here goes on from what was really sent.
                        self._cursor = frame.id or self._cursor
                    if not frames and seat.ended is None:
                        self._cursor = viewer.reached
                        await self._send(_message("heartbeat", cursor=self._cursor), seat)
        except WebSocketDisconnect:
            seat.end(End.GONE)

    async def _say(self, name: str, data: object = None) -> None:
        await self._socket.send_text(_message(name, data))

    async def _send(self, text: str, seat: Seat) -> None:
        with seat.sending():
            await self._socket.send_text(text)


def _topics(interest: Interest | None) -> list[str]:
    return [] if interest is None else sorted(interest.topics)


def _message(name: str, data: object = None, *, cursor: str | None = None) -> str:
    said = {"type": name, "id": cursor, "data": data}
    return to_json({part: value for part, value in said.items() if value is not None}).decode()


def _told(error: ValidationError) -> dict[str, object]:
    """What is wrong with a message, by field; what it said is not repeated."""
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return {"detail": "The message is not JSON", "errors": []}
    errors = [
        # The first part of a place names the type of message.
        {"field": ".".join(map(str, fault["loc"][1:])) or "type", "reason": fault["msg"]}
        for fault in faults
    ]
    return {"detail": "The message was refused", "errors": errors}
