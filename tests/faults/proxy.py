"""A TCP proxy between processes and a server, which does to connections what networks do.

It runs in the event loop of a test, or by itself: `python -m faults.proxy SERVER_PORT` prints its
own port, and does what the lines of its standard input say (`blackhole`, `heal`, `delay 0.2`, …).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

CHUNK = 65_536
HOST = "127.0.0.1"


class Dialect(Protocol):
    """Reads what a client sends."""

    def feed(self, data: bytes) -> list[str]:
        """The requests that are complete with this data, each as a text to tell it by."""
        ...


class RedisDialect:
    """Commands as arrays of strings; a request is told by its first two words."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[str]:
        self._data += data
        found = []
        while (command := self._command()) is not None:
            found.append(" ".join(word.decode("latin-1") for word in command[:2]))
        return found

    def _command(self) -> list[bytes] | None:
        head, end, rest = self._data.partition(b"\r\n")
        if not end:
            return None
        words = []
        for _ in range(int(head[1:])):
            size, end, rest = rest.partition(b"\r\n")
            length = int(size[1:] or 0) if end else 0
            if not end or len(rest) < length + 2:
                return None
            words.append(rest[:length])
            rest = rest[length + 2 :]
        self._data = rest
        return words


class PostgresDialect:
    """The extended protocol: an execution is told by the SQL that its statement was made from."""

    def __init__(self) -> None:
        self._data = b""
        self._begun = False
        self._statements: dict[bytes, str] = {}

    def feed(self, data: bytes) -> list[str]:
        self._data += data
        found = []
        while (message := self._message()) is not None:
            kind, body = message
            if kind == b"P":
                name, text, _ = body.split(b"\0", 2)
                self._statements[name] = text.decode()
            elif kind == b"B":
                _, name, _ = body.split(b"\0", 2)
                found.append(self._statements.get(name, ""))
            elif kind == b"Q":
                found.append(body.rstrip(b"\0").decode())
        return found

    def _message(self) -> tuple[bytes, bytes] | None:
        # The first messages of a connection have no kind: the start, or the wish for TLS before it.
        skip = 1 if self._begun else 0
        if len(self._data) < skip + 4:
            return None
        (length,) = struct.unpack_from("!i", self._data, skip)
        if len(self._data) < skip + length:
            return None
        kind, body = self._data[:skip], self._data[skip + 4 : skip + length]
        self._data = self._data[skip + length :]
        self._begun = self._begun or len(body) > 4
        return kind, body


@dataclass(eq=False, slots=True)
class _Link:
    """One connection through the proxy. swallowing: its next answer is the one to get lost."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    dialect: Dialect | None
    swallowing: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def abort(self) -> None:
        """Cut it as a crashed host or an eager firewall does: with a reset."""
        for writer in (self.client, self.server):
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            writer.transport.abort()


class Proxy:
    """Passes everything on until it is told otherwise. `port` is where clients connect to.

    swallowed: how many answers it has taken away so far.
    """

    def __init__(self, server_port: int, dialect: Callable[[], Dialect] | None = None) -> None:
        self.port = 0
        self.swallowed = 0
        self._server_port = server_port
        self._dialect = dialect
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._accepted: set[asyncio.Task[None]] = set()
        self._delay = 0.0
        self._cut_after: int | None = None
        self._open = {"requests": asyncio.Event(), "answers": asyncio.Event()}
        self._swallow: tuple[int, Callable[[str], bool]] | None = None
        for event in self._open.values():
            event.set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        # One that was just being accepted is passed on only now.
        while self._accepted:
            await asyncio.wait(self._accepted, timeout=0.05)
            await self.reset()

    @property
    def connections(self) -> int:
        return len(self._links)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    # ── What it does to connections ──────────────────────────────────────────────────────────

    async def refuse(self) -> None:
        """Accept no connection any more, and reset those that are there."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self.reset()

    async def reset(self) -> None:
        """Reset all connections; new ones are passed on."""
        tasks = [task for link in self._links for task in link.tasks]
        for link in tuple(self._links):
            link.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def blackhole(self, *, requests: bool = True, answers: bool = True) -> None:
        """Pass nothing on any more, both ways or one. Connections stay open, new ones are made.

        What is sent meanwhile is not gone: it arrives when the hole is closed, late.
        """
        if requests:
            self._open["requests"].clear()
        if answers:
            self._open["answers"].clear()

    def delay(self, seconds: float) -> None:
        """Pass everything on that much later."""
        self._delay = seconds

    def cut(self, after: int) -> None:
        """Cut each connection once so many bytes of answers have come through it from now on."""
        self._cut_after = after

    def swallow(self, nth: int, matches: Callable[[str], bool] = lambda _: True) -> None:
        """Let the n-th matching request from now on be served, take its answer, and cut."""
        self._swallow = nth, matches

    async def heal(self) -> None:
        """Be an ordinary network again."""
        self._delay, self._cut_after, self._swallow = 0.0, None, None
        for event in self._open.values():
            event.set()
        if self._listener is None:
            await self._listen()

    # ── Connections ──────────────────────────────────────────────────────────────────────────

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)
        try:
            answers, server = await asyncio.open_connection(HOST, self._server_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server, self._dialect() if self._dialect is not None else None)
        link.tasks = [
            asyncio.create_task(self._requests(link, reader)),
            asyncio.create_task(self._answers(link, answers)),
        ]
        self._links.add(link)
        try:
            await asyncio.wait(link.tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in link.tasks:
                task.cancel()
            await asyncio.gather(*link.tasks, return_exceptions=True)
            for end in (link.client, link.server):
                end.close()
            self._links.discard(link)

    async def _requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            await self._held_up("requests")
            if link.dialect is not None and self._is_to_lose(link.dialect.feed(data)):
                link.swallowing = True
            link.server.write(data)
            await link.server.drain()

    async def _answers(self, link: _Link, reader: asyncio.StreamReader) -> None:
        passed = 0
        while data := await reader.read(CHUNK):
            await self._held_up("answers")
            if link.swallowing:
                self.swallowed += 1
                link.abort()
                return
            limit = self._cut_after
            if limit is not None and passed + len(data) > limit:
                link.client.write(data[: max(0, limit - passed)])
                await link.client.drain()
                link.abort()
                return
            passed = passed + len(data) if limit is not None else 0
            link.client.write(data)
            await link.client.drain()

    async def _held_up(self, way: str) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        await self._open[way].wait()

    def _is_to_lose(self, requests: list[str]) -> bool:
        if self._swallow is None:
            return False
        left, matches = self._swallow
        left -= sum(map(matches, requests))
        self._swallow = (left, matches) if left > 0 else None
        return left <= 0


DIALECTS: dict[str, Callable[[], Dialect]] = {"postgres": PostgresDialect, "redis": RedisDialect}


async def obey(server_port: int) -> None:
    """The whole life of a proxy that is a process of its own."""
    loop = asyncio.get_running_loop()
    async with Proxy(server_port) as proxy:
        print(proxy.port, flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            verb, *numbers = line.split()
            done = getattr(proxy, verb)(*map(float, numbers))
            if done is not None:
                await done
            print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(obey(int(sys.argv[1])))
