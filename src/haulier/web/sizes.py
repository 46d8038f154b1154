"""How much a request may send, and of what type."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from haulier.web.problems import problem_response
from haulier.web.streams import MEDIA_TYPES, takes_lines

LONGEST_LENGTH = 20
"""Digits of a Content-Length that are read: thousands of them would be slow to understand."""

JSON = frozenset({"application/json"})


class Sizes:
    """The limits of bodies, in bytes as they come over the wire.

    `most` is for all, but `most_lines` for those that are read line by line.
    """

    def __init__(self, most: int, most_lines: int) -> None:
        self._most = most
        self._most_lines = most_lines

    def refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Why the head of a request is enough to refuse its body, None if it is not."""
        most, types = self._limits(scope)
        length = headers.get("content-length", "")[:LONGEST_LENGTH]
        size = int(length) if length.isdecimal() else 0
        if size > most:
            return problem_response(413, detail=_told(most))
        if not size and "transfer-encoding" not in headers:
            return None
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in types:
            return problem_response(415, detail=f"A body must be {max(types)}")
        if types is JSON and headers.get("content-encoding", "identity").lower() != "identity":
            return problem_response(
                415, detail="Only lines may be compressed", headers={"Accept-Encoding": "identity"}
            )
        return None

    def limited(self, scope: Scope, receive: Receive) -> Receive:
        """Counts what is really received: a length need not be declared, nor be true."""
        most, _ = self._limits(scope)
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                # Of all errors only this kind passes through the reading of a body unchanged.
                raise HTTPException(413, _told(most))
            return message

        return limited

    def _limits(self, scope: Scope) -> tuple[int, frozenset[str]]:
        return (self._most_lines, MEDIA_TYPES) if takes_lines(scope) else (self._most, JSON)


def _told(most: int) -> str:
    return f"At most {most:,} bytes are taken"
