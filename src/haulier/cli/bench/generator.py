"""The load on an HTTP server, from a process of its own: keep-alive connections that ask on and on.

Not a client library: a connection sends the next request when the answer to the last one is whole,
and understands of it only its status and its length. That costs a tenth of what a server takes to
answer, so that the server is measured and not this.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from haulier.cli.bench.measure import percentile

PIECE = 64 << 10
"""Bytes of a streamed body that are handed to the socket at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One kind of load: the same request on some connections, for some seconds.

    With `pause` each connection waits so many seconds from one request to the next.
    """

    port: int
    method: str
    path: str
    body: str = ""
    connections: int = 32
    seconds: float = 5.0
    pause: float = 0.0
    token: str | None = None

    def bytes(self) -> bytes:
        """The request as it goes over the wire."""
        body = self.body.encode()
        return _head(self.method, self.path, self.token, f"content-length: {len(body)}") + body


def _head(method: str, path: str, token: str | None, *more: str) -> bytes:
    media = (
        "application/x-ndjson" if any("chunked" in line for line in more) else "application/json"
    )
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", *more]
    lines += [f"content-type: {media}"] if method != "GET" else []
    lines += [f"authorization: Bearer {token}"] if token else []
    return "\r\n".join([*lines, "", ""]).encode()


class _Connection(asyncio.Protocol):
    """Asks again whenever it was answered, until the time is over."""

    def __init__(self, request: bytes, until: float, pause: float) -> None:
        self._request = request
        self._until = until
        self._pause = pause
        self._transport: asyncio.Transport | None = None
        self._seen = b""
        self._began = 0.0
        self.took: list[float] = []
        self.refused = 0
        self.last = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not by asking for its class: uvloop's are none of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        seen = self._seen = self._seen + data if self._seen else data
        end = seen.find(b"\r\n\r\n")
        if end < 0 or len(seen) < end + 4 + _length(seen[:end]):
            return
        now = time.perf_counter()
        self.took.append(now - self._began)
        self.refused += seen[9:10] != b"2"
        self.last, self._seen = seen[end + 4 :], b""
        if now >= self._until:
            self._end()
        elif self._pause:
            left = self._pause - (now - self._began)
            asyncio.get_running_loop().call_later(max(left, 0), self._ask)
        else:
            self._ask()

    def _end(self) -> None:
        assert self._transport is not None
        self._transport.close()
        if not self.over.done():
            self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or ConnectionError("the server hung up"))


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


async def shoot(shot: Shot) -> dict[str, Any]:
    """Do it, and what came of it: answers a second, percentiles in milliseconds, refusals."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    until = began + shot.seconds
    request = shot.bytes()
    made = [
        await loop.create_connection(
            lambda: _Connection(request, until, shot.pause), "127.0.0.1", shot.port
        )
        for _ in range(shot.connections)
    ]
    connections = [connection for _, connection in made]
    await asyncio.gather(*(connection.over for connection in connections))
    took = [each for connection in connections for each in connection.took]
    return {
        "answers": len(took),
        "per_s": round(len(took) / (time.perf_counter() - began)),
        "refused": sum(connection.refused for connection in connections),
        "p50_ms": percentile(took, 50),
        "p99_ms": percentile(took, 99),
        "max_ms": percentile(took, 100),
        "cpu_s": round(time.process_time(), 2),
    }


async def stream(port: int, path: str, count: int, token: str | None) -> dict[str, Any]:
    """Send so many jobs as lines of one request; how long it took, and the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(_head("POST", path, token, "transfer-encoding: chunked"))
    for piece in _pieces(count):
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    answer = await reader.readexactly(_length(head.encode().rstrip()))
    took = time.perf_counter() - began
    writer.close()
    return {
        "status": int(head.split(" ", 2)[1]),
        "seconds": round(took, 3),
        "per_s": round(count / took),
        "answer": json.loads(answer),
        "cpu_s": round(time.process_time(), 2),
    }


def _pieces(count: int) -> Iterator[bytes]:
    piece = bytearray()
    for number in range(count):
        piece += b'{"kind": "nothing", "payload": {"number": %d}}\n' % number
        if len(piece) >= PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


async def run_beside(what: str, **arguments: Any) -> dict[str, Any]:
    """`shoot` or `stream` in a process of its own; what it returned."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, what, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await child.communicate(json.dumps(arguments).encode())
    if child.returncode:
        raise RuntimeError("the generator of the load failed")
    told: dict[str, Any] = json.loads(out)
    return told


def arguments_of(shot: Shot) -> dict[str, Any]:
    """A shot as `run_beside` takes it."""
    return asdict(shot)


async def _main(arguments: Sequence[str]) -> dict[str, Any]:
    given = json.load(sys.stdin)
    if arguments[0] == "shoot":
        return await shoot(Shot(**given))
    return await stream(**given)


if __name__ == "__main__":
    from haulier.cli.output import run_coroutine

    print(json.dumps(run_coroutine(_main(sys.argv[1:]))))  # noqa: T201
