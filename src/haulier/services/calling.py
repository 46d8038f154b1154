"""HTTP calls to addresses that a user gave: httpx, behind the guard.

Runner authors use `guarded_client` for every URL that comes from a payload.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpcore
import httpx
from typing_extensions import override

from haulier.domain.addresses import read_url
from haulier.exceptions import ForbiddenAddressError
from haulier.services.outbound import Guard

MOST_REDIRECTS = 5
MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read, unless told."""

TOTAL_SECONDS = 30.0
"""Seconds that a call may take in all, redirects and the body included, unless told."""

_DEADLINE = "haulier.deadline"
_KEPT = frozenset({"accept", "accept-encoding", "accept-language", "host", "user-agent"})
_OF_BODY = frozenset({"content-length", "content-type", "transfer-encoding"})
"""What a request to another origin keeps; all else may be a credential."""


class AnswerTooLargeError(httpx.TransportError):
    """The answer is larger than was asked for; what was read of it is thrown away."""


class _GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only. TLS goes on under the name, which httpcore knows."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._tcp = httpcore.AnyIOBackend()

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._guard.addresses(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("the host's name was not resolved in time") from error
        except OSError as error:
            raise httpcore.ConnectError(f"the host has no address: {error.strerror}") from error
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._tcp.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    @override
    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise ForbiddenAddressError("sockets of this machine are not called for users")

    @override
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class GuardedTransport(httpx.AsyncBaseTransport):
    """An httpx transport whose every connection passes the guard, with limits on the answer.

    On httpcore and not within httpx's own transport, whose connection pool is not public: were it
    renamed, calls would go out without a guard. Raises ForbiddenAddressError, AnswerTooLargeError
    and httpx's errors.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        verify: ssl.SSLContext | None = None,
        max_answer: int = MAX_ANSWER,
        total: float = TOTAL_SECONDS,
    ) -> None:
        self._max_answer = max_answer
        self._total = total
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify or httpx.create_ssl_context(trust_env=False),
            network_backend=_GuardedNetwork(guard),
        )

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _check_spelling(request.url)
        deadline = request.extensions.setdefault(
            _DEADLINE, asyncio.get_running_loop().time() + self._total
        )
        url = request.url
        assert isinstance(request.stream, httpx.AsyncByteStream)
        given = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            # A server name of the caller's would let it speak to another host than was checked.
            extensions={k: v for k, v in request.extensions.items() if k in {"timeout", "trace"}},
        )
        with _translated():
            async with asyncio.timeout_at(deadline):
                answer = await self._pool.handle_async_request(given)
        stream = _Limited(answer, deadline, self._max_answer)
        encoding = httpx.Headers(answer.headers).get("content-encoding", "identity")
        if encoding.strip().lower() not in {"", "identity"}:
            await stream.aclose()
            # A few bytes can stand for gigabytes.
            raise httpx.DecodingError("the answer is compressed, which was not asked for")
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=stream,
            extensions=dict(answer.extensions),
        )

    @override
    async def aclose(self) -> None:
        await self._pool.aclose()


class _Limited(httpx.AsyncByteStream):
    """A body that ends with an error when it is too large, or comes too slowly."""

    def __init__(self, answer: httpcore.Response, deadline: float, most: int) -> None:
        self._answer = answer
        self._deadline = deadline
        self._left = most

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = self._answer.aiter_stream()
        while True:
            with _translated():
                async with asyncio.timeout_at(self._deadline):
                    chunk = await anext(chunks, None)
            if chunk is None:
                return
            self._left -= len(chunk)
            if self._left < 0:
                raise AnswerTooLargeError("the answer is too large")
            yield chunk

    @override
    async def aclose(self) -> None:
        with _translated():
            await self._answer.aclose()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of httpcore as those of httpx, which have the same names."""
    try:
        yield
    except TimeoutError as error:
        raise httpx.ReadTimeout("the call took too long in all") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "httpcore":
            raise
        name = type(error).__name__
        raise getattr(httpx, name, httpx.TransportError)(str(error)) from error


def _check_spelling(url: httpx.URL) -> None:
    """Refuse what other libraries may read in another way, also after a redirect."""
    if url.scheme not in {"http", "https"}:
        raise ForbiddenAddressError("the URL must begin with http:// or https://")
    if url.userinfo:
        raise ForbiddenAddressError("the URL must not hold credentials")


class GuardedClient(httpx.AsyncClient):
    """An httpx client behind the guard; see `guarded_client`."""

    @override
    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """As httpx does, but with redirects that carry nothing secret to another origin."""
        follow = (
            self.follow_redirects
            if isinstance(follow_redirects, type(httpx.USE_CLIENT_DEFAULT))
            else follow_redirects
        )
        history: list[httpx.Response] = []
        # Redirects share their request's deadline; one that is sent again gets its own.
        request.extensions.pop(_DEADLINE, None)
        while True:
            _check_spelling(request.url)
            request.headers["accept-encoding"] = "identity"
            answer = await super().send(request, stream=True, auth=auth, follow_redirects=False)
            answer.history = list(history)
            following = answer.next_request
            if not follow or following is None:
                if not stream:
                    await _read(answer)
                return answer
            # The body of a redirect is nobody's.
            await answer.aclose()
            if len(history) >= self.max_redirects:
                raise httpx.TooManyRedirects("there are too many redirects", request=request)
            if _origin(following.url) != _origin(request.url):
                auth = None
                _strip(following)
            history.append(answer)
            request = following


async def _read(answer: httpx.Response) -> None:
    try:
        await answer.aread()
    except BaseException:
        await answer.aclose()
        raise


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _strip(request: httpx.Request) -> None:
    kept = _KEPT | _OF_BODY if request.headers.get("content-length", "0") != "0" else _KEPT
    for name in list(request.headers):
        if name.lower() not in kept:
            del request.headers[name]


def guarded_client(
    guard: Guard,
    *,
    verify: ssl.SSLContext | None = None,
    max_answer: int = MAX_ANSWER,
    total: float = TOTAL_SECONDS,
    **options: Any,
) -> GuardedClient:
    """An httpx client for URLs that users give; `options` are those of httpx.AsyncClient.

    Every connection, also one after a redirect, goes to an address that the guard has checked. Of
    redirects at most five are followed if `follow_redirects` is set, and to another origin neither
    credentials nor headers of one's own go along. The environment's proxies are not used. An answer
    has at most `max_answer` bytes and `total` seconds. Raises ForbiddenAddressError.
    """
    for name in ("transport", "mounts", "proxy", "app", "trust_env"):
        if name in options:
            raise TypeError(f"{name} would lead around the guard")
    if "base_url" in options:
        read_url(str(options["base_url"]))
    options.setdefault("timeout", httpx.Timeout(10.0))
    options.setdefault("max_redirects", MOST_REDIRECTS)
    return GuardedClient(
        transport=GuardedTransport(guard, verify=verify, max_answer=max_answer, total=total),
        trust_env=False,
        **options,
    )
