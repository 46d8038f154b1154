"""When a request is repeated, and what its last answer comes to: the same for both clients."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import httpx
import pydantic

from haulier.client.call import Call
from haulier.client.faults import Told
from haulier.client.server import Server
from haulier.exceptions import ConfigurationError, JobTimeoutError, StoreUnavailableError

T = TypeVar("T")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Errors before anything was sent."""

_AWAY = frozenset({502, 503, 504})


class Attempts(Generic[T]):
    """The attempts at one call.

    A call that was refused by a limit, or never reached the server, is made again. One whose answer
    was lost may have been carried out: it is made again if that does no harm.
    """

    def __init__(self, server: Server, call: Call[T]) -> None:
        self._server, self._call = server, call
        self._made, self._unsure = 0, False

    def request(self) -> dict[str, Any]:
        """The request, as HTTP clients take it."""
        return request_of(self._server, self._call)

    def lines(self, content: Any) -> dict[str, Any]:
        """The request with lines of NDJSON as its body."""
        request = self.request()
        request["content"] = content
        request["headers"]["Content-Type"] = "application/x-ndjson"
        return request

    def pause_after_error(self, error: httpx.TransportError) -> float:
        """Seconds until the next attempt at what met an error; raises when there is none."""
        sent = not isinstance(error, _UNSENT)
        if (sent and not self._harmless) or not self._again():
            raise unreachable(self._server, error) from None
        self._unsure = self._unsure or sent
        return pause(self._made)

    def pause_after_refusal(self, reply: httpx.Response) -> float:
        """Seconds until the next attempt at what was refused; raises when there is none."""
        told = Told(reply, self._call.subject)
        again = told.status == 429 or (told.status in _AWAY and self._harmless)
        wait = pause(self._made + 1) if told.retry_after is None else told.retry_after
        if not again or wait > self._server.patience or not self._again():
            raise told.error()
        self._unsure = self._unsure or told.status in _AWAY
        return wait

    def done(self, reply: httpx.Response) -> bool:
        """Whether the call was carried out; so is a removal of what an earlier attempt removed."""
        gone = reply.status_code == 404 and self._unsure and self._call.method == "DELETE"
        return reply.is_success or gone

    def value(self, reply: httpx.Response) -> T:
        """What was answered; raises ConfigurationError for what no haulier server says."""
        try:
            return self._call.read(reply.content)
        except (pydantic.ValidationError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"what answers at {self._server.url} is no haulier server, or of another version"
            ) from error

    @property
    def _harmless(self) -> bool:
        return self._call.repeatable or self._call.key is not None

    def _again(self) -> bool:
        self._made += 1
        return self._call.again and self._made <= self._server.retries


def request_of(server: Server, call: Call[Any]) -> dict[str, Any]:
    """A call as HTTP clients take it."""
    headers = {}
    if call.body is not None:
        headers["Content-Type"] = "application/json"
    if call.key is not None:
        headers["Idempotency-Key"] = call.key
    return {
        "method": call.method,
        "url": server.url + call.path,
        "params": dict(call.params),
        "content": call.body,
        "headers": headers,
    }


def unreachable(server: Server, error: httpx.TransportError) -> StoreUnavailableError:
    """What a connection that failed comes to."""
    why = str(error) or type(error).__name__
    return StoreUnavailableError(f"the server at {server.url} cannot be reached: {why}")


def pause(attempt: int) -> float:
    """Seconds before an attempt: longer each time, and never the same for all who wait."""
    whole: float = min(FIRST_PAUSE * 2 ** min(attempt, 10), LONGEST_PAUSE)
    return whole * (0.5 + random.random() / 2)


def looks(job_id: str, timeout: float | None, longest: float) -> Iterator[float]:
    """Pauses between looks at a job, from short to `longest`; raises when the time is over."""
    end = None if timeout is None else time.monotonic() + timeout
    step = min(0.05, longest)
    while True:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            raise JobTimeoutError(f"job {job_id} was not done within {timeout:g} s")
        yield step if left is None else min(step, left)
        step = min(2 * step, longest)
