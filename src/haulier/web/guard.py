"""What every request passes first: who may ask, how much may be sent, and what an error tells.

The API has no tokens, so it answers only those who reach it by a loopback name. That also keeps
out web pages: one that has its own name point to 127.0.0.1 (DNS rebinding) still sends that name
as the host, and one that posts across origins says where it comes from.
"""

from __future__ import annotations

import re

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haulier.domain.access import Access, Identity
from haulier.services.deadlines import at_most
from haulier.services.ids import new_id
from haulier.web.access import IDENTITY
from haulier.web.problems import REQUEST_ID, problem_response

LOOPBACK = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
LONGEST_LENGTH = 20
"""Digits of a Content-Length that are read: thousands of them would be slow to understand."""

_log = structlog.get_logger("haulier.web")


class Guard:
    """ASGI middleware around the whole API."""

    def __init__(self, app: ASGIApp, *, max_body: int, deadline: float) -> None:
        self._app = app
        self._max_body = max_body
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = new_id()
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, stamped)
            return
        # Whoever reaches a loopback address is this machine's operator.
        scope[IDENTITY] = Identity("local", Access.ADMIN)
        if scope["type"] == "websocket":
            await self._app(scope, receive, stamped)
            return
        try:
            with at_most(self._deadline):
                await self._app(scope, self._limited(receive), stamped)
        except Exception:
            _log.exception(
                "request failed", request=request_id, method=scope["method"], path=scope["path"]
            )
            if started:
                # Half an answer is out: only a broken connection tells the client.
                raise
            await problem_response(500)(scope, receive, stamped)

    def _refusal(self, scope: Scope) -> Response | None:
        """Why the head of a request is enough to refuse it, None if it is not."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not LOOPBACK.fullmatch(hosts[0]):
            return problem_response(421, detail="Ask by the name localhost or a loopback address")
        # A page may open a socket to anywhere, and read what it is told.
        if scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS:
            for origin in headers.getlist("origin"):
                if origin.lower() not in _origins_of(hosts[0]):
                    return problem_response(403, detail="Pages of other origins may not do this")
        length = headers.get("content-length", "")[:LONGEST_LENGTH]
        size = int(length) if length.isdecimal() else 0
        if size > self._max_body:
            return problem_response(413, detail=self._limit)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if (size or "transfer-encoding" in headers) and media_type != "application/json":
            return problem_response(415, detail="A body must be application/json")
        return None

    def _limited(self, receive: Receive) -> Receive:
        """Counts what is really received: a length need not be declared, nor be true."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                # Of all errors only this kind passes through the reading of a body unchanged.
                raise HTTPException(413, self._limit)
            return message

        return limited

    @property
    def _limit(self) -> str:
        return f"At most {self._max_body:,} bytes are taken"


def _origins_of(host: str) -> tuple[str, str]:
    return f"http://{host.lower()}", f"https://{host.lower()}"
