"""Server-sent events, line by line, and where a broken stream goes on."""

from __future__ import annotations

import json
from typing import Any

import httpx

from haulier.client.answers import Message
from haulier.client.attempts import request_of, unreachable
from haulier.client.call import Call
from haulier.client.faults import Told
from haulier.client.server import Server

SILENCE = 60.0
"""Seconds without a sign of life after which a connection is taken for dead."""

LONGEST_PAUSE = 30.0


class Following:
    """One reader of a live stream over all its connections."""

    def __init__(self, server: Server, call: Call[bytes], after: str | None) -> None:
        self._server, self._call = server, call
        self.cursor = after
        self._retry, self._failures = 2.0, 0
        self._type = ""
        self._id: str | None = None
        self._data: list[str] = []

    def request(self) -> dict[str, Any]:
        """The request of the next connection."""
        self._type, self._id, self._data = "", None, []
        request = request_of(self._server, self._call)
        request["headers"]["Accept"] = "text/event-stream"
        if self.cursor is not None:
            request["headers"]["Last-Event-ID"] = self.cursor
        request["timeout"] = httpx.Timeout(self._server.timeout, read=SILENCE)
        return request

    def take(self, line: str) -> Message | None:
        """The message that a line ends, if it does."""
        self._failures = 0
        if line:
            name, _, value = line.partition(":")
            self._field(name, value.removeprefix(" "))
            return None
        if self._id is not None:
            self.cursor = self._id
        data, kind, cursor = self._data, self._type, self._id
        self._type, self._id, self._data = "", None, []
        if not data:
            return None
        return Message(type=kind or "message", cursor=cursor, data=json.loads("\n".join(data)))

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._type = value
        elif name == "id":
            self._id = value
        elif name == "data":
            self._data.append(value)
        elif name == "retry" and value.isascii() and value.isdigit():
            self._retry = int(value) / 1000

    def pause_after_end(self, error: httpx.TransportError | None = None) -> float:
        """Seconds until the next connection; raises after too many in a row that told nothing."""
        self._failures += 1
        if self._failures > self._server.retries and error is not None:
            raise unreachable(self._server, error) from None
        whole: float = self._retry * 2 ** min(self._failures - 1, 10)
        return min(whole, LONGEST_PAUSE)

    def pause_after_refusal(self, reply: httpx.Response) -> float:
        """The same after an answer that is no stream."""
        told = Told(reply, self._call.subject)
        self._failures += 1
        passing = told.status in (429, 502, 503, 504)
        if not passing or self._failures > self._server.retries:
            raise told.error()
        return max(told.retry_after or 0.0, self._retry)
