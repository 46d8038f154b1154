"""One try through one proxy: dial, negotiate, ask, and say how long each phase took.

python-socks speaks to the proxy. Name resolution, the TCP dial and both TLS handshakes are done
here around it, because it would report them as one time and one error. No sentence made here
repeats what a proxy said: it knows the password and could put it into a reason phrase.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import h11
from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio.v2 import Proxy

from haulier.exceptions import ForbiddenAddressError
from haulier.runners._wire import TargetTls, Wire
from haulier.runners.proxy_input import ProxySpec, Scheme, Target
from haulier.services.outbound import Guard

MAX_BODY = 64 * 1024
"""The most bytes of an answer that are read."""

_NO_AUTH, _PASSWORD = 0, 2
"""Authentication methods of RFC 1928 section 3."""

_SOCKS_REPLIES = {
    1: "general failure",
    2: "connection not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused by the target",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}
"""Reply codes of RFC 1928 section 6."""


class ErrorClass(StrEnum):
    """Why a try through a proxy failed."""

    FORBIDDEN = "forbidden"
    DNS_FAILED = "dns_failed"
    DIAL_REFUSED = "dial_refused"
    DIAL_TIMEOUT = "dial_timeout"
    DIAL_FAILED = "dial_failed"
    PROXY_TLS_FAILED = "proxy_tls_failed"
    AUTH_REFUSED = "auth_refused"
    TUNNEL_REFUSED = "tunnel_refused"
    TARGET_TLS_FAILED = "target_tls_failed"
    CONNECTION_LOST = "connection_lost"
    TIMEOUT = "timeout"
    BAD_RESPONSE = "bad_response"
    UNSUPPORTED = "unsupported"


class Phase(StrEnum):
    """The phases of a try, in their order. All are timed."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    PROXY_TLS = "proxy_tls"
    TUNNEL = "tunnel"
    TLS = "tls"
    FIRST_BYTE = "first_byte"
    BODY = "body"


_DOING = {
    Phase.RESOLVE: "resolving the proxy's name",
    Phase.CONNECT: "connecting to the proxy",
    Phase.PROXY_TLS: "in the TLS handshake with the proxy",
    Phase.TUNNEL: "opening the tunnel",
    Phase.TLS: "in the TLS handshake with the target",
    Phase.FIRST_BYTE: "waiting for the target's answer",
    Phase.BODY: "reading the target's answer",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, and at most MAX_BODY bytes of the body."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one try came to. `spans` has milliseconds for each phase that was completed."""

    spans: dict[Phase, float]
    total: float | None = None
    answer: Answer | None = None
    error: ErrorClass | None = None
    detail: str | None = None


class _TryFailedError(Exception):
    """A failure that is already understood; never leaves this module."""

    def __init__(self, error: ErrorClass, detail: str) -> None:
        self.error = error
        self.detail = detail
        super().__init__(error)


@dataclass(slots=True)
class _Watch:
    """Which phase a try is in, and how long the completed ones took."""

    phase: Phase = Phase.RESOLVE
    spans: dict[Phase, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timing(self, phase: Phase) -> Iterator[None]:
        self.phase = phase
        begun = time.perf_counter()
        yield
        self.spans[phase] = _milliseconds(begun)


def _milliseconds(since: float) -> float:
    return (time.perf_counter() - since) * 1000


class _Connected(Proxy):
    """The first link of a chain of proxies that is a connection already."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def connect(self, *_: Any, **__: Any) -> Any:
        return self._wire


class Probe:
    """Tries through one proxy to one target. Each try ends within `timeout` seconds.

    `tls` is for https proxies and https targets alike. `guard` says which proxies may be dialled.
    """

    def __init__(
        self,
        proxy: ProxySpec,
        target: Target,
        *,
        timeout: float,
        tls: ssl.SSLContext,
        guard: Guard,
    ) -> None:
        self._guard = guard
        self._proxy = proxy
        self._target = target
        self._timeout = timeout
        self._tls = tls

    async def attempt(self) -> Attempt:
        """Ask for the target through a tunnel (RFC 9110 section 9.3.6, RFC 1928)."""
        return await self._try(self._through_tunnel)

    async def forward(self) -> Attempt:
        """Ask an HTTP proxy for the target itself, in absolute form (RFC 9112 section 3.2.2)."""
        return await self._try(self._by_forwarding)

    async def _try(self, ask: Callable[[_Watch], Awaitable[Answer]]) -> Attempt:
        watch = _Watch()
        try:
            async with asyncio.timeout(self._timeout):
                answer = await ask(watch)
        except _TryFailedError as error:
            return Attempt(watch.spans, error=error.error, detail=error.detail)
        except TimeoutError:
            error_class, detail = self._timed_out(watch.phase)
        except ssl.SSLError as error:
            error_class, detail = self._tls_failed(watch.phase, error)
        except (OSError, EOFError):
            lost_tls = watch.phase is Phase.PROXY_TLS
            error_class = ErrorClass.PROXY_TLS_FAILED if lost_tls else ErrorClass.CONNECTION_LOST
            detail = f"The connection was closed while {_DOING[watch.phase]}."
        else:
            return Attempt(watch.spans, total=_milliseconds(watch.started), answer=answer)
        return Attempt(watch.spans, error=error_class, detail=detail)

    async def _through_tunnel(self, watch: _Watch) -> Answer:
        target = self._target
        async with self._connection(watch) as wire:
            with watch.timing(Phase.TUNNEL):
                await self._open_tunnel(wire)
            stream: Wire | TargetTls = wire
            if target.tls:
                with watch.timing(Phase.TLS):
                    stream = await TargetTls.start(wire, self._tls, target.host)
            answer = await _ask(stream, watch, _request(target.path, target.authority))
        return _accepted(answer)

    async def _by_forwarding(self, watch: _Watch) -> Answer:
        credentials = _credentials(self._proxy)
        extra = [("Proxy-Authorization", _basic(*credentials))] if credentials else []
        async with self._connection(watch) as wire:
            request = _request(self._target.url, self._target.authority, extra)
            answer = await _ask(wire, watch, request)
        if answer.status == 407:
            raise self._auth_refused()
        return _accepted(answer)

    @asynccontextmanager
    async def _connection(self, watch: _Watch) -> AsyncIterator[Wire]:
        wire = Wire(*await self._dial(watch))
        try:
            if self._proxy.scheme is Scheme.HTTPS:
                with watch.timing(Phase.PROXY_TLS):
                    await wire.writer.start_tls(self._tls, server_hostname=self._proxy.host)
            yield wire
        finally:
            await wire.close()

    async def _dial(self, watch: _Watch) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._proxy.host, self._proxy.port
        with watch.timing(Phase.RESOLVE):
            try:
                # What is dialled below are these addresses: the name is not looked up again.
                found = await self._guard.addresses(host, port)
            except ForbiddenAddressError as error:
                detail = f"The proxy may not be used: {error}."
                raise _TryFailedError(ErrorClass.FORBIDDEN, detail) from None
            except OSError:
                detail = "The proxy's name does not resolve."
                raise _TryFailedError(ErrorClass.DNS_FAILED, detail) from None
        failures: list[OSError] = []
        with watch.timing(Phase.CONNECT):
            # One address after the other: asyncio's own loop over them hides the error numbers.
            for address in found:
                try:
                    return await asyncio.open_connection(address, port)
                except OSError as error:
                    failures.append(error)
            raise _dial_failed(failures)

    async def _open_tunnel(self, wire: Wire) -> None:
        username, password = _credentials(self._proxy) or (None, None)
        # Given as fields: a URL with the password in it could end up in an error's text.
        proxy = Proxy(
            ProxyType.SOCKS5 if self._proxy.scheme is Scheme.SOCKS5 else ProxyType.HTTP,
            self._proxy.host,
            self._proxy.port,
            username,
            password,
            rdns=True,
            forward=_Connected(wire),
        )
        try:
            await proxy.connect(self._target.host, self._target.port, timeout=self._timeout)
        except ProxyError as error:
            raise self._tunnel_refused(wire.replies, error.error_code) from None
        except (asyncio.LimitOverrunError, ValueError):
            raise self._not_understood() from None

    def _tunnel_refused(self, replies: list[bytes], code: int | None) -> _TryFailedError:
        """What a negotiation that failed means, told by the proxy's code or by its bytes."""
        if self._proxy.scheme is Scheme.SOCKS5:
            if _socks_auth_refused(replies, offered=self._proxy.has_credentials):
                return self._auth_refused()
            if code in _SOCKS_REPLIES:
                detail = f"The proxy refused the tunnel: {_SOCKS_REPLIES[code]}."
                return _TryFailedError(ErrorClass.TUNNEL_REFUSED, detail)
            return self._not_understood()
        if replies == [b""]:
            raise EOFError
        if code == 407:
            return self._auth_refused()
        if code is not None and 200 < code <= 599:
            detail = f"The proxy answered CONNECT with status {code}."
            return _TryFailedError(ErrorClass.TUNNEL_REFUSED, detail)
        return self._not_understood()

    def _auth_refused(self) -> _TryFailedError:
        if self._proxy.has_credentials:
            detail = "The proxy refused the credentials."
        else:
            detail = "The proxy asks for credentials and none are given."
        return _TryFailedError(ErrorClass.AUTH_REFUSED, detail)

    def _not_understood(self) -> _TryFailedError:
        spoken = "SOCKS5" if self._proxy.scheme is Scheme.SOCKS5 else "HTTP"
        detail = f"The proxy's answer is not {spoken}."
        return _TryFailedError(ErrorClass.BAD_RESPONSE, detail)

    def _timed_out(self, phase: Phase) -> tuple[ErrorClass, str]:
        detail = f"Nothing within {self._timeout:g} s while {_DOING[phase]}."
        special = {Phase.RESOLVE: ErrorClass.DNS_FAILED, Phase.CONNECT: ErrorClass.DIAL_TIMEOUT}
        return special.get(phase, ErrorClass.TIMEOUT), detail

    def _tls_failed(self, phase: Phase, error: ssl.SSLError) -> tuple[ErrorClass, str]:
        of_proxy = phase in (Phase.PROXY_TLS, Phase.TUNNEL) or not self._target.tls
        whose = "proxy" if of_proxy else "target"
        if isinstance(error, ssl.SSLCertVerificationError):
            why = error.verify_message.removesuffix(".")
            detail = f"The {whose}'s certificate is not trusted: {why}."
        else:
            why = (error.reason or "unknown reason").lower().replace("_", " ")
            detail = f"TLS with the {whose} failed: {why}."
        failed = ErrorClass.PROXY_TLS_FAILED if of_proxy else ErrorClass.TARGET_TLS_FAILED
        return failed, detail


def _dial_failed(failures: list[OSError]) -> _TryFailedError:
    """The plainest of the failures to reach each of the proxy's addresses."""
    if any(isinstance(failure, ConnectionRefusedError) for failure in failures):
        return _TryFailedError(ErrorClass.DIAL_REFUSED, "The proxy's port refuses connections.")
    if any(isinstance(failure, TimeoutError) for failure in failures):
        return _TryFailedError(ErrorClass.DIAL_TIMEOUT, "The proxy's machine does not answer.")
    why = os.strerror(failures[0].errno) if failures and failures[0].errno else "no route"
    return _TryFailedError(ErrorClass.DIAL_FAILED, f"The proxy cannot be dialled: {why}.")


def _socks_auth_refused(replies: list[bytes], *, offered: bool) -> bool:
    """Whether a SOCKS5 proxy took none of the offered methods, or not this password.

    The method reply is (5, method), RFC 1928 section 3; the password reply (1, status) with any
    status but 0 being a failure, RFC 1929 section 2.
    """
    if not replies or replies[0][0] != 5:
        return False
    method = replies[0][1]
    if method != _NO_AUTH and not (offered and method == _PASSWORD):
        return True
    return method == _PASSWORD and len(replies) > 1 and replies[1][0] == 1 and replies[1][1] != 0


def _credentials(proxy: ProxySpec) -> tuple[str, str] | None:
    """User name and password in the clear, for the connection that is being made."""
    if proxy.username is None or proxy.password is None:
        return None
    password = proxy.password.reveal()
    if proxy.scheme is Scheme.SOCKS5:
        fits = all(text.isascii() and 0 < len(text) < 256 for text in (proxy.username, password))
        limits = "SOCKS5 carries user names and passwords of 1 to 255 ASCII characters only."
    else:
        fits = all(ord(character) < 256 for character in proxy.username + password)
        limits = "HTTP Basic carries user names and passwords in Latin-1 only."
    if not fits:
        raise _TryFailedError(ErrorClass.UNSUPPORTED, limits)
    return proxy.username, password


def _basic(username: str, password: str) -> str:
    """Credentials in the Basic scheme, RFC 7617."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode("latin-1")).decode()


SENT_HEADERS = frozenset({"host", "user-agent", "accept", "accept-encoding", "connection"})
"""What a request of ours holds: anything else that arrives was added on the way."""


def _request(target: str, authority: str, extra: Sequence[tuple[str, str]] = ()) -> h11.Request:
    headers = [
        ("Host", authority),
        ("User-Agent", "haulier-proxy-diagnostics"),
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        *extra,
    ]
    return h11.Request(method="GET", target=target, headers=headers)


async def _ask(stream: Wire | TargetTls, watch: _Watch, request: h11.Request) -> Answer:
    connection = h11.Connection(h11.CLIENT)
    outgoing = connection.send(request) or b""
    outgoing += connection.send(h11.EndOfMessage()) or b""
    with watch.timing(Phase.FIRST_BYTE):
        await stream.write(outgoing)
        first = await stream.receive()
        if not first:
            raise EOFError
    with watch.timing(Phase.BODY):
        return await _read_answer(connection, stream, first)


async def _read_answer(connection: h11.Connection, stream: Wire | TargetTls, data: bytes) -> Answer:
    status, body = 0, bytearray()
    connection.receive_data(data)
    while len(body) < MAX_BODY:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            if not data:
                raise EOFError from None
            raise _TryFailedError(ErrorClass.BAD_RESPONSE, "The answer is not HTTP.") from None
        if event is h11.NEED_DATA:
            data = await stream.receive()
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            break
    return Answer(status, bytes(body[:MAX_BODY]))


def _accepted(answer: Answer) -> Answer:
    if 200 <= answer.status <= 299:
        return answer
    detail = f"The target answered with status {answer.status}."
    raise _TryFailedError(ErrorClass.BAD_RESPONSE, detail)
