"""Proxies on loopback for the demo and the tests: real protocols, chosen faults, no other host.

Each speaks HTTP forwarding and CONNECT (RFC 9110, RFC 9112) and SOCKS5 with user name and password
(RFC 1928, RFC 1929) on one port, and tells them apart by the first byte. Only 127.0.0.1 is bound.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import secrets
import socket
import ssl
import struct
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, NoReturn, Self
from urllib.parse import quote, urlsplit

from haulier.runners.proxy_diagnostics import Verdict

LOOPBACK = "127.0.0.1"
_CHUNK = 64 * 1024
_SOCKS = 5


class Fault(StrEnum):
    """What a proxy does instead of its work."""

    HANG = "hang"
    """Takes the connection and never says a word."""
    CLOSE = "close"
    """Closes the connection at once."""
    REFUSE_AUTH = "refuse_auth"
    """Refuses every user name and password."""
    REFUSE_TUNNEL = "refuse_tunnel"
    """Opens no tunnel; forwards HTTP all the same."""
    GARBAGE = "garbage"
    """Answers with something that is neither HTTP nor SOCKS."""
    DROP_TUNNEL = "drop_tunnel"
    """Agrees to the tunnel and closes the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How a demo proxy behaves.

    `delay` is in seconds, before anything is said. `exit_address` is the loopback address that
    targets see. `headers` are added to forwarded requests, "{client}" in a value standing for the
    client's address. `fault_every` n applies the fault to every n-th connection alone. `tls` is
    spoken towards the client. `leak_credentials` passes Proxy-Authorization on. `piecemeal` sends
    the answer to CONNECT in two packets. `says` is appended to what a refusal says.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    delay: float = 0.0
    exit_address: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    fault: Fault | None = None
    fault_every: int = 1
    tls: ssl.SSLContext | None = None
    leak_credentials: bool = False
    piecemeal: bool = False
    says: str = field(default="", repr=False)


class _RefusedError(Exception):
    """The request was answered with a refusal; close the connection."""


class _Streams(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class DemoProxy:
    """One proxy on a free port of 127.0.0.1, open for as long as the block lasts."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.connections = 0
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._server.is_serving():
            # Accepted before the end and told only now: the tasks were gathered already.
            writer.transport.abort()
            return
        self.connections += 1
        faulty = self.connections % self.behaviour.fault_every == 0
        session = _Session(
            self.behaviour if faulty else replace(self.behaviour, fault=None), reader, writer
        )
        task = asyncio.create_task(session.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before its first step closes nothing itself.
        task.add_done_callback(lambda _: writer.transport.abort())


class _Session:
    """One client's connection to a demo proxy."""

    def __init__(
        self, behaviour: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._behaviour = behaviour
        self._reader = reader
        self._writer = writer
        self._upstream: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        behaviour, graceful = self._behaviour, False
        try:
            if behaviour.tls:
                # Here and not in start_server, so that a client that gives up within the
                # handshake leaves nothing behind that only the server knows of.
                await self._writer.start_tls(behaviour.tls)
            await asyncio.sleep(behaviour.delay)
            await self._serve()
            graceful = True
        except _RefusedError:
            graceful = True
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            # The client went away or talks nonsense: a proxy just closes.
            pass
        finally:
            # First and without waiting: a second cancellation would cut off what comes later.
            if self._upstream:
                self._upstream.transport.abort()
            await _close(self._writer, graceful=graceful)

    async def _serve(self) -> None:
        match self._behaviour.fault:
            case Fault.CLOSE:
                return
            case Fault.HANG:
                while await self._reader.read(_CHUNK):
                    pass
                return
            case Fault.GARBAGE:
                await self._reader.read(_CHUNK)
                self._writer.write(b"220 mail ready" + self._said() + b"\r\n\r\n")
                return
        first = await self._reader.readexactly(1)
        if first[0] == _SOCKS:
            await self._serve_socks()
        else:
            head = first + await self._reader.readuntil(b"\r\n\r\n")
            await self._serve_http(head[:-4].decode("latin-1").split("\r\n"))

    async def _serve_socks(self) -> None:
        await self._socks_auth()
        host, port = await self._socks_request()
        if self._behaviour.fault is Fault.REFUSE_TUNNEL:
            self._refuse(_socks_reply(2))
        try:
            upstream = await self._dial(host, port)
        except ConnectionRefusedError:
            self._refuse(_socks_reply(5))
        except OSError:
            self._refuse(_socks_reply(4))
        self._writer.write(_socks_reply(0))
        await self._relay(upstream)

    async def _socks_auth(self) -> None:
        offered = await self._reader.readexactly((await self._reader.readexactly(1))[0])
        wanted = 0 if self._behaviour.username is None else 2
        if wanted not in offered:
            self._refuse(b"\x05\xff")
        self._writer.write(bytes([_SOCKS, wanted]))
        if not wanted:
            return
        await self._reader.readexactly(1)
        username = await self._reader.readexactly((await self._reader.readexactly(1))[0])
        password = await self._reader.readexactly((await self._reader.readexactly(1))[0])
        if not self._admits(username + b":" + password):
            self._refuse(b"\x01\x01")
        self._writer.write(b"\x01\x00")

    async def _socks_request(self) -> tuple[str, int]:
        _, command, _, kind = await self._reader.readexactly(4)
        if command != 1:
            self._refuse(_socks_reply(7))
        match kind:
            case 1 | 4:
                packed = await self._reader.readexactly(4 if kind == 1 else 16)
                host = str(ipaddress.ip_address(packed))
            case 3:
                length = (await self._reader.readexactly(1))[0]
                host = (await self._reader.readexactly(length)).decode("idna")
            case _:
                self._refuse(_socks_reply(8))
        (port,) = struct.unpack(">H", await self._reader.readexactly(2))
        return host, port

    async def _serve_http(self, lines: list[str]) -> None:
        method, target, _ = lines[0].split(" ")
        headers = [
            (name, value.strip()) for name, _, value in (x.partition(":") for x in lines[1:])
        ]
        if not self._admits(_basic_credentials(headers)):
            self._refuse_http("407 Proxy Authentication Required", 'Basic realm="demo"')
        if method != "CONNECT":
            await self._forward(method, target, headers)
            return
        if self._behaviour.fault is Fault.REFUSE_TUNNEL:
            self._refuse_http("403 Forbidden")
        host, _, port = target.rpartition(":")
        upstream = await self._dial_for_http(host.strip("[]"), int(port))
        self._writer.write(b"HTTP/1.1 200 Connection established\r\n")
        if self._behaviour.piecemeal:
            await self._writer.drain()
            await asyncio.sleep(0.01)
        self._writer.write(b"Via: 1.1 demo\r\n\r\n")
        await self._relay(upstream)

    async def _forward(self, method: str, target: str, headers: Sequence[tuple[str, str]]) -> None:
        url = urlsplit(target)
        if url.scheme != "http" or not url.hostname:
            self._refuse_http("400 Bad Request")
        upstream = await self._dial_for_http(url.hostname or "", url.port or 80)
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        kept = [
            (name, value)
            for name, value in headers
            if name.lower() not in {"connection", "proxy-connection", "proxy-authorization"}
            or (self._behaviour.leak_credentials and name.lower() == "proxy-authorization")
        ]
        client = self._writer.get_extra_info("peername")[0]
        added = [(name, value.format(client=client)) for name, value in self._behaviour.headers]
        sent = [*kept, *added, ("Connection", "close")]
        head = "".join(f"{name}: {value}\r\n" for name, value in sent)
        upstream.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
        await self._relay(upstream)

    async def _dial_for_http(self, host: str, port: int) -> _Streams:
        try:
            return await self._dial(host, port)
        except OSError:
            self._refuse_http("502 Bad Gateway")

    def _admits(self, given: bytes | None) -> bool:
        behaviour = self._behaviour
        if behaviour.fault is Fault.REFUSE_AUTH:
            return False
        if behaviour.username is None:
            return True
        return given == f"{behaviour.username}:{behaviour.password}".encode("latin-1")

    def _said(self) -> bytes:
        return self._behaviour.says.encode("latin-1")

    def _refuse(self, reply: bytes) -> NoReturn:
        self._writer.write(reply)
        raise _RefusedError

    def _refuse_http(self, status: str, challenge: str | None = None) -> NoReturn:
        asked = f"Proxy-Authenticate: {challenge}\r\n" if challenge else ""
        head = f"HTTP/1.1 {status} {self._behaviour.says}\r\n{asked}"
        self._refuse(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode("latin-1"))

    async def _dial(self, host: str, port: int) -> _Streams:
        address = self._behaviour.exit_address
        if address is None:
            upstream = _Streams(*await asyncio.open_connection(host, port))
        else:
            local = (address, 0)
            upstream = _Streams(
                *await asyncio.open_connection(host, port, local_addr=local, family=socket.AF_INET)
            )
        self._upstream = upstream.writer
        return upstream

    async def _relay(self, upstream: _Streams) -> None:
        """Carry bytes both ways until either side ends."""
        if self._behaviour.fault is Fault.DROP_TUNNEL:
            return
        pumps = [
            asyncio.create_task(_pump(self._reader, upstream.writer)),
            asyncio.create_task(_pump(upstream.reader, self._writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


async def _close(writer: asyncio.StreamWriter, *, graceful: bool) -> None:
    try:
        if graceful:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def _socks_reply(code: int) -> bytes:
    """A reply of RFC 1928 section 6 with 0.0.0.0:0 as the bound address."""
    return bytes([_SOCKS, code, 0, 1]) + bytes(6)


def _basic_credentials(headers: Sequence[tuple[str, str]]) -> bytes | None:
    """`user:password` of a Proxy-Authorization header in the Basic scheme (RFC 7617)."""
    for name, value in headers:
        if name.lower() == "proxy-authorization" and value.startswith("Basic "):
            return base64.b64decode(value.removeprefix("Basic "))
    return None


class DeadPort:
    """A port of 127.0.0.1 that refuses connections and that nobody else can get meanwhile."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One proxy of a fleet before it runs; no behaviour means a port that refuses connections.

    `verdict` is what a diagnosis of three or more tries must come to.
    """

    kind: str
    scheme: str = "http"
    behaviour: Behaviour | None = Behaviour()
    credentials: bool = False
    wrong_password: bool = False
    verdict: Verdict = Verdict.HEALTHY


@dataclass(frozen=True, slots=True)
class Member:
    """One running proxy of a fleet; `line` is how an operator's list names it, password and all."""

    plan: Plan
    port: int
    line: str = field(repr=False)


_OPEN = Plan(kind="open")
_WITH_PASSWORD = Plan(kind="with password", credentials=True)
_SOCKS_OPEN = Plan(kind="open", scheme="socks5")
_SOCKS_WITH_PASSWORD = Plan(kind="with password", scheme="socks5", credentials=True)
_DEAD = Verdict.DEAD

MIX: tuple[Plan, ...] = (
    _OPEN,
    _WITH_PASSWORD,
    _SOCKS_OPEN,
    _SOCKS_WITH_PASSWORD,
    Plan(kind="dead port", behaviour=None, verdict=_DEAD),
    _OPEN,
    _WITH_PASSWORD,
    _SOCKS_OPEN,
    _SOCKS_WITH_PASSWORD,
    Plan(kind="slow", behaviour=Behaviour(delay=0.3)),
    _OPEN,
    _WITH_PASSWORD,
    _SOCKS_OPEN,
    _SOCKS_WITH_PASSWORD,
    Plan(kind="wrong password", credentials=True, wrong_password=True, verdict=_DEAD),
    _OPEN,
    Plan(
        kind="transparent",
        behaviour=Behaviour(headers=(("Via", "1.1 demo"), ("X-Forwarded-For", "{client}"))),
    ),
    Plan(kind="anonymous", behaviour=Behaviour(headers=(("Via", "1.1 demo"),))),
    Plan(
        kind="flaky",
        behaviour=Behaviour(fault=Fault.CLOSE, fault_every=3),
        verdict=Verdict.DEGRADED,
    ),
    Plan(kind="hanging", behaviour=Behaviour(fault=Fault.HANG), verdict=_DEAD),
)
"""Twenty proxies, 13 of them with nothing special: `demo_fleet` repeats them."""


class ProxyFleet:
    """Many demo proxies, open for as long as the block lasts. `members` is filled on entry.

    Each has an exit address of its own where the machine's loopback network allows it: Linux does,
    elsewhere all exit as 127.0.0.1. Passwords are made afresh each time.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._plans = tuple(plans)
        self.members: tuple[Member, ...] = ()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.members = tuple(
                [await self._start(stack, n, plan) for n, plan in enumerate(self._plans)]
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def as_text(self) -> str:
        """The fleet as an operator's list, one proxy a line. It holds the passwords."""
        return "".join(f"{member.line}\n" for member in self.members)

    async def _start(self, stack: AsyncExitStack, number: int, plan: Plan) -> Member:
        if plan.behaviour is None:
            port = stack.enter_context(DeadPort()).port
            return Member(plan, port, f"{plan.scheme}://{LOOPBACK}:{port}")
        behaviour = replace(plan.behaviour, exit_address=_exit_address(number))
        userinfo = ""
        if plan.credentials:
            username, password = f"user{number + 1}", secrets.token_urlsafe(12)
            behaviour = replace(behaviour, username=username, password=password)
            given = secrets.token_urlsafe(12) if plan.wrong_password else password
            userinfo = f"{quote(username, safe='')}:{quote(given, safe='')}@"
        proxy = await stack.enter_async_context(DemoProxy(behaviour))
        return Member(plan, proxy.port, f"{plan.scheme}://{userinfo}{LOOPBACK}:{proxy.port}")


def demo_fleet(size: int = 40) -> ProxyFleet:
    """A fleet of the given size: `MIX` over and over."""
    return ProxyFleet([MIX[number % len(MIX)] for number in range(size)])


def _exit_address(number: int) -> str | None:
    """One of 127.0.0.2 to 127.0.0.251, if this machine lets it be bound."""
    address = f"127.0.0.{2 + number % 250}"
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return None
    return address
