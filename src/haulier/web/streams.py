"""Bodies that come line by line: NDJSON, plain or by gzip, in flat memory."""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from haulier.exceptions import RateLimitError
from haulier.services.ahead import PART
from haulier.services.ndjson import LONGEST_LINE

NDJSON = "application/x-ndjson"
MEDIA_TYPES = frozenset({NDJSON, "application/ndjson", "application/jsonl"})

SILENCE = 30.0
"""Seconds that a stream may send nothing: who has nothing to say yet opens it later."""

PIECE = 64 << 10
"""Bytes that are taken out of a compressed body at a time."""

_PATHS = re.compile(r"/api/v1/(jobs/stream|batches/[^/]+/items)")

Numbered = tuple[int, bytes]
"""A line and its number, counted from 1."""


def takes_lines(scope: Scope) -> bool:
    """Whether the body of a request is lines, which has a limit of its own."""
    # Whatever the method: one that is not served is told as that, not as a body of a wrong type.
    return _PATHS.fullmatch(scope["path"]) is not None


def described(example: str) -> dict[str, Any]:
    """What OpenAPI tells of such a body."""
    return {
        "requestBody": {
            "required": False,
            "description": "JSON objects, one per line; `Content-Encoding: gzip` is understood.",
            "content": {NDJSON: {"schema": {"type": "string"}, "example": example}},
        }
    }


class Streams:
    """How many streams each caller has; `most` at the same time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """One more, for as long as the block lasts; raises RateLimitError."""
        if self._open[caller] >= self._most:
            raise RateLimitError(f"at most {self._most} streams at the same time are served")
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


async def lines_of(request: Request, most: int) -> AsyncGenerator[list[Numbered], None]:
    """The lines of a body that are not empty, a few at a time.

    `most` bytes are taken of one that is compressed. Raises HTTPException: 408 for one that says
    nothing for long, 413, 415 for an encoding that is not understood, 400 for a broken one.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    pieces = _received(request)
    if encoding == "gzip":
        pieces = _unpacked(pieces, most)
    elif encoding != "identity":
        raise HTTPException(415, "Only gzip is understood", {"Accept-Encoding": "gzip, identity"})
    number, rest = 0, bytearray()
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if b"\n" in piece:
                whole = (bytes(rest) + piece).split(b"\n")
                rest = bytearray(whole.pop())
                for begin in range(0, len(whole), PART):
                    found, number = _numbered(whole[begin : begin + PART], number)
                    if found:
                        yield found
            else:
                # Put behind, not together: a long line may come byte by byte.
                rest += piece
            if len(rest) > LONGEST_LINE:
                raise _too_long(number + 1)
    found, _ = _numbered([bytes(rest)], number)
    if found:
        yield found


def _numbered(lines: list[bytes], number: int) -> tuple[list[Numbered], int]:
    found = []
    for line in lines:
        number += 1
        if len(line) > LONGEST_LINE:
            raise _too_long(number)
        bare = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if bare and not bare.isspace():
            found.append((number, bare))
    return found, number


def _too_long(number: int) -> HTTPException:
    return HTTPException(413, f"Line {number:,} is longer than {LONGEST_LINE >> 20} MiB")


async def _received(request: Request) -> AsyncGenerator[bytes, None]:
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HTTPException(408, f"Nothing came for {SILENCE:g} seconds") from None
        except ClientDisconnect:
            # Nobody is there to be answered; that it ended half-way is no fault of ours to log.
            raise HTTPException(400, "The connection broke") from None
        if piece:
            yield piece


async def _unpacked(pieces: AsyncGenerator[bytes, None], most: int) -> AsyncGenerator[bytes, None]:
    """The body out of gzip, which may consist of several members; never much of it at a time."""
    seen = 0
    unzip, begun = _gzip(), False
    async with contextlib.aclosing(pieces):
        async for packed in pieces:
            left = packed
            while left:
                begun, piece = True, _unzipped(unzip, left)
                seen += len(piece)
                if seen > most:
                    raise HTTPException(413, f"At most {most:,} bytes are taken, unpacked")
                if piece:
                    yield piece
                left = unzip.unconsumed_tail
                if unzip.eof:
                    left, unzip, begun = unzip.unused_data, _gzip(), False
    # All may have been read already without all having been told.
    while begun and (piece := _unzipped(unzip, b"")):
        yield piece
    if begun and not unzip.eof:
        raise HTTPException(400, "The gzip of the body breaks off")


def _unzipped(unzip: Any, packed: bytes) -> bytes:
    try:
        piece: bytes = unzip.decompress(packed, PIECE)
    except zlib.error:
        raise HTTPException(400, "The body is not gzip") from None
    return piece


def _gzip() -> Any:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
