"""A stream of events as server-sent events (HTML Living Standard, section 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from haulier.domain.access import Identity
from haulier.web.live.hub import RETRY, Live
from haulier.web.live.interest import Interest
from haulier.web.live.seats import End, Seat

MEDIA_TYPE = "text/event-stream"

_HEADERS = {
    "Cache-Control": "no-store",
    # Some reverse proxies would keep what comes until there is enough of it.
    "X-Accel-Buffering": "no",
    "Vary": "Accept",
}


class EventStream(Response):
    """Raises RateLimitError, before anything is sent, when there is no room for another stream.

    One whose viewer does not read is cut off without its last words.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self, live: Live, identity: Identity, interest: Interest, after: str | None
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._live = live
        self._identity = identity
        self._interest = interest
        self._after = after

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._live.seat(self._identity) as seat:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            listening = asyncio.create_task(_until_gone(receive, seat))
            try:
                await self._show(seat, send)
            finally:
                listening.cancel()
            await send(_body(f": {seat.ended}\n\n".encode(), more=False))

    async def _show(self, seat: Seat, send: Send) -> None:
        piece = f"retry: {RETRY}\n\n".encode()
        with self._live.viewer(seat, self._interest, self._after) as viewer:
            while seat.ended is None:
                with seat.sending():
                    await send(_body(piece))
                frames = await viewer.frames(self._live.options.heartbeat)
                piece = viewer.piece(frames) if frames else _heartbeat(viewer.reached)


async def _until_gone(receive: Receive, seat: Seat) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    seat.end(End.GONE)


def _heartbeat(cursor: str | None) -> bytes:
    """A comment. An id without data makes no event, but a browser goes on from it."""
    return b":\n\n" if cursor is None else f":\nid: {cursor}\n\n".encode()


def _body(piece: bytes, *, more: bool = True) -> MutableMapping[str, Any]:
    return {"type": "http.response.body", "body": piece, "more_body": more}
