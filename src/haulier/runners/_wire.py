"""The two layers that a try through a proxy speaks over: the connection, and TLS within it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Self, TypeVar

T = TypeVar("T")

_READ = 16 * 1024


class Wire:
    """The connection to the proxy, shaped as python-socks wants it.

    It remembers the proxy's replies: whether a SOCKS proxy refused the credentials is told by its
    bytes, not by the wording of a library.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.replies: list[bytes] = []

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self) -> bytes:
        """The head of the answer to CONNECT, whole.

        It may come in several packets, and what follows it belongs to the target already.
        """
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            head = error.partial
        self.replies.append(head)
        return head

    async def read_exactly(self, count: int) -> bytes:
        reply = await self.reader.readexactly(count)
        self.replies.append(reply)
        return reply

    async def receive(self) -> bytes:
        """What comes next; empty at the end."""
        return await self.reader.read(_READ)

    async def close(self) -> None:
        # Not a graceful close: TLS would wait half a minute for a peer that hangs, and after a
        # failed handshake wait_closed() never returns. The loop closes the socket in its next turn.
        self.writer.transport.abort()
        await asyncio.sleep(0)


class TargetTls:
    """TLS with the target, inside the connection to the proxy, which may be TLS itself.

    asyncio's own start_tls breaks within TLS when a handshake fails (CPython issue 113214, in
    3.11 until 3.11.8).
    """

    def __init__(self, wire: Wire, context: ssl.SSLContext, host: str) -> None:
        self._wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    @classmethod
    async def start(cls, wire: Wire, context: ssl.SSLContext, host: str) -> Self:
        tls = cls(wire, context, host)
        await tls._drive(tls._tls.do_handshake)
        return tls

    async def write(self, data: bytes) -> None:
        await self._drive(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        try:
            return await self._drive(lambda: self._tls.read(_READ))
        except (ssl.SSLZeroReturnError, EOFError):
            return b""

    async def _drive(self, step: Callable[[], T]) -> T:
        """Repeat a step until it needs no more bytes; raises EOFError when none come."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._wire.write(self._outgoing.read())
                data = await self._wire.receive()
                if not data:
                    raise EOFError from None
                self._incoming.write(data)
            else:
                await self._wire.write(self._outgoing.read())
                return result
