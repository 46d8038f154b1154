"""The echo server: tells a caller how its request arrived. Proxies are judged by what it says.

A plain ASGI application (ASGI 3.0, HTTP protocol 2.x): `uvicorn haulier.runners.echo:app
--no-proxy-headers` serves it alone, and any ASGI framework can mount it. It must face the network
itself: a server that believes X-Forwarded-For, as uvicorn does by default for callers on
127.0.0.1, would report what a proxy claims instead of what the socket says.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_HIDDEN = frozenset({"authorization", "proxy-authorization", "cookie"})
"""Headers whose presence matters and whose value must not travel back through a proxy."""


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answer any GET with {remote, method, path, headers} as JSON; HEAD without the body.

    `remote` is the address of the caller's socket, null when there is none. `headers` has names in
    lower case; the values of a repeated one are joined by ", " (RFC 9110 section 5.3), those of
    credentials and cookies are masked.
    """
    match scope["type"]:
        case "http":
            await _answer(scope, send)
        case "lifespan":
            await _live(receive, send)
        case "websocket":
            await send({"type": "websocket.close", "code": 1000})


async def _answer(scope: MutableMapping[str, Any], send: Send) -> None:
    if scope["method"] not in {"GET", "HEAD"}:
        await _respond(send, 405, b'{"error":"only GET and HEAD are answered"}', allow=b"GET, HEAD")
        return
    client = scope.get("client")
    seen = {
        "remote": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"],
        "headers": _joined(scope["headers"]),
    }
    body = json.dumps(seen, separators=(",", ":")).encode()
    await _respond(send, 200, body, silent=scope["method"] == "HEAD")


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        value = "******" if name in _HIDDEN else raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


async def _respond(
    send: Send, status: int, body: bytes, *, silent: bool = False, allow: bytes | None = None
) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # An answer kept by a cache on the way would describe somebody else's request.
        (b"cache-control", b"no-store"),
    ]
    if allow:
        headers.append((b"allow", allow))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if silent else body})


async def _live(receive: Receive, send: Send) -> None:
    """Agree to start and to stop: servers ask, and there is nothing to prepare."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
