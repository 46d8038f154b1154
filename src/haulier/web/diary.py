"""The audit log's entries on their way to the records, off the path of the requests they are of."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from haulier.exceptions import HaulierError
from haulier.services.audit import Entry

GATHER = 0.1
"""Seconds in which entries gather for one transaction: what a crash may lose."""

AT_ONCE = 1000
MOST_WAITING = 20_000
"""Entries that wait for records which cannot be written; then requests are refused instead."""

PAUSE = 0.5
"""Seconds between two tries."""

CLOSING = 5.0
"""Seconds that a stop waits for records which cannot be written."""

SELDOM = 60.0
"""Seconds between two writes of when a credential was last used."""

_log = structlog.get_logger("haulier.web")


@dataclass(frozen=True, slots=True)
class Book:
    """Where entries are written, and when credentials were last used (microseconds, UTC)."""

    append: Callable[[Sequence[Entry]], Awaitable[None]]
    mark_used: Callable[[Mapping[str, int]], Awaitable[None]]


class Diary:
    """Takes entries at once and writes them soon, in their order. Without a book it takes none."""

    def __init__(self, book: Book | None) -> None:
        self._book = book
        self._entries: list[Entry] = []
        self._used: dict[str, int] = {}
        self._marked: dict[str, float] = {}
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def full(self) -> bool:
        """Whether nothing more may be done that would have to be written down."""
        return len(self._entries) >= MOST_WAITING

    def write(self, entry: Entry) -> None:
        """Take an entry."""
        if self._book is not None:
            self._entries.append(entry)
            self._wake()

    def used(self, credential: str) -> None:
        """Take note that a credential was used just now."""
        at = time.monotonic()
        if self._book is None or at - self._marked.get(credential, -SELDOM) < SELDOM:
            return
        self._marked[credential] = at
        self._used[credential] = time.time_ns() // 1000
        self._wake()

    async def close(self) -> None:
        """Write what still waits. Entries that cannot be written go to the log of the process."""
        self._closing = True
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=CLOSING)
            self._writer.cancel()
            await asyncio.wait([self._writer])
        for entry in self._entries:
            _log.error("audit entry not written", **entry.row())
        self._entries.clear()

    def _wake(self) -> None:
        if self._writer is None or self._writer.done():
            # In a context of its own: not with the deadline of the request that came first.
            self._writer = asyncio.get_running_loop().create_task(
                self._write_all(), context=contextvars.Context()
            )

    async def _write_all(self) -> None:
        assert self._book is not None
        if not self._closing:
            await asyncio.sleep(GATHER)
        while self._entries or self._used:
            try:
                await self._write_some(self._book)
            except HaulierError as error:
                _log.error("audit log not written", waiting=len(self._entries), error=str(error))
                await asyncio.sleep(PAUSE)

    async def _write_some(self, book: Book) -> None:
        batch = self._entries[:AT_ONCE]
        if batch:
            await book.append(batch)
            # Only now: what was not written is tried again.
            del self._entries[: len(batch)]
        used, self._used = self._used, {}
        if used:
            await book.mark_used(used)
