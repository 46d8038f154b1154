"""A real server whose streams are read over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from haulier.cli.echo import http_server, listen
from haulier.web.live.socket import SOCKETS
from support import wait_until

STREAM = "/api/v1/events/stream"
SOCKET = "/api/v1/ws"
SMALL = 16 * 1024


@dataclass
class Message:
    """One event of a stream, or one message of a socket."""

    type: str
    id: str | None
    data: Any

    @property
    def seq(self) -> int:
        return int(self.id.rpartition(":")[2])


@dataclass
class Reader:
    """Parses an event stream as a browser does."""

    source: asyncio.StreamReader
    last_id: str | None = None
    comments: list[str] = field(default_factory=list)
    retry: int | None = None
    _rest: bytes = b""

    async def next(self) -> Message:
        async with asyncio.timeout(10):
            return await self._next()

    async def until(self, found: Callable[[Message], bool]) -> list[Message]:
        """All messages up to the first that is meant."""
        messages = [await self.next()]
        while not found(messages[-1]):
            messages.append(await self.next())
        return messages

    async def ended(self) -> list[Message]:
        """What still comes until the server ends the stream."""
        messages = []
        try:
            while True:
                messages.append(await self.next())
        except EOFError:
            return messages

    async def _next(self) -> Message:
        name, data, cursor = "", [], None
        while True:
            line = await self._line()
            if not line:
                if data:
                    return Message(name, cursor, json.loads("\n".join(data)))
                name, cursor = "", None
                continue
            kind, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not kind:
                self.comments.append(value)
            elif kind == "id":
                self.last_id = cursor = value
            elif kind == "event":
                name = value
            elif kind == "retry":
                self.retry = int(value)
            else:
                assert kind == "data", line
                data.append(value)

    async def _line(self) -> str:
        while b"\n" not in self._rest:
            size = int(await self.source.readline() or b"0", 16)
            if not size:
                raise EOFError
            self._rest += (await self.source.readexactly(size + 2))[:-2]
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


def request(params: dict[str, Any], *headers: str) -> bytes:
    path = httpx.URL(STREAM, params=params).raw_path.decode()
    lines = (f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", "")
    return "\r\n".join(lines).encode()


@dataclass
class Served:
    """A server that runs, and how to reach it."""

    api: FastAPI
    server: Any
    client: httpx.AsyncClient
    port: int

    @asynccontextmanager
    async def stream(self, last_id: str | None = None, **params: Any) -> AsyncIterator[Reader]:
        source, sink = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            sink.write(request(params, *([f"Last-Event-ID: {last_id}"] if last_id else [])))
            head = await source.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            yield Reader(source)
        finally:
            sink.close()
            await sink.wait_closed()

    async def narrow(self) -> socket.socket:
        """A connection for which the system keeps little."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return sock

    @asynccontextmanager
    async def stalled(self, **params: Any):
        """Somebody who opens a stream and then reads nothing of it."""
        with await self.narrow() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, request(params))
            yield sock

    @asynccontextmanager
    async def socket(self, name: str | None = None, **options: Any) -> AsyncIterator[Talk]:
        url = f"ws://{name or '127.0.0.1'}:{self.port}{SOCKET}"
        async with connect(url, **options) as connection:
            yield Talk(connection)

    async def until_open(self, streams: int) -> None:
        await wait_until(lambda: self.api.state.live.viewers == streams)


@dataclass
class Talk:
    """A WebSocket and what is said on it."""

    connection: ClientConnection

    async def say(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def hear(self) -> Message:
        async with asyncio.timeout(10):
            told = json.loads(await self.connection.recv())
        assert told.keys() <= {"type", "id", "data"}
        return Message(told["type"], told.get("id"), told.get("data"))

    async def until(self, found: Callable[[Message], bool]) -> list[Message]:
        messages = [await self.hear()]
        while not found(messages[-1]):
            messages.append(await self.hear())
        return messages

    async def subscribe(self, *topics: str, **options: Any) -> Message:
        await self.say(type="subscribe", topics=topics, **options)
        return (await self.until(lambda each: each.type == "subscribed"))[-1]

    async def closed(self) -> tuple[int | None, str | None]:
        """With which code and why the server closes it."""
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(10):
                while True:
                    await self.connection.recv()
        return self.connection.close_code, self.connection.close_reason


@asynccontextmanager
async def served(api: FastAPI) -> AsyncIterator[Served]:
    """The API as `haulier serve` serves it, until the end of the block."""
    server = http_server(api, ending=api.state.live.close, **SOCKETS)
    with listen("127.0.0.1", 0) as listener:
        # Else the system would read megabytes for those who do not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        port = listener.getsockname()[1]
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            await wait_until(lambda: server.started)
            try:
                url = f"http://127.0.0.1:{port}"
                async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                    yield Served(api, server, client, port)
            finally:
                server.should_exit = True
