"""A server that is sent webhooks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Receiver:
    """A server that keeps what it is sent, byte by byte, and answers as it is told."""

    def __init__(self) -> None:
        self.port = 0
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[str] = []
        self.usual = "204 No Content"
        self.pause = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=k4nary-path"

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.messages]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in head[1:] if line)
                lower = {name.lower(): value for name, value in headers.items()}
                body = await reader.readexactly(int(lower["content-length"]))
                self.messages.append((headers, body))
                await asyncio.sleep(self.pause)
                answer = self.answers.pop(0) if self.answers else self.usual
                writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        finally:
            writer.transport.abort()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    yield receiver
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)
