"""Chunk after chunk into the store: while one is inserted, the next one is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from time import monotonic
from types import TracebackType
from typing import Self

from haulier.domain.job import NewJob

Insert = Callable[[Sequence[NewJob]], Awaitable[object]]

PART = 50
"""Jobs that are made at a stretch: half a millisecond, then others have their turn."""

LARGE = 4 << 20
"""Bytes of payloads that fill a call too: large ones would keep its transaction open for long."""

LINGER = 1.0
"""Seconds after which jobs are inserted with the next part, though they do not fill a call."""


async def insert_all(
    insert: Insert,
    parts: Iterable[Sequence[NewJob]] | AsyncIterable[Sequence[NewJob]],
    size: int,
    *,
    ahead: bool,
) -> None:
    """Insert the jobs of all parts in their order, `size` or a few more to a call.

    There is one call at a time. With `ahead` the next jobs are made meanwhile; not for plain parts
    that may be long in coming, since the call's transaction would stay open so long. When a part
    cannot be made, those before it that fill a call are inserted all the same. Of parts that come
    slowly, one by one, a call takes those of a second.
    """
    made: list[NewJob] = []
    weight = 0
    since = monotonic()
    async with _Calls(insert) as calls:
        async for part in _one_by_one(parts):
            made += part
            weight += sum([len(job.payload) for job in part])
            full = len(made) >= size or weight >= LARGE
            if full or (made and monotonic() - since > LINGER):
                await calls.begin(made)
                made, weight = [], 0
                if not ahead:
                    await calls.end()
                since = monotonic()
        if made:
            await calls.begin(made)
        await calls.end()


async def _one_by_one(
    parts: Iterable[Sequence[NewJob]] | AsyncIterable[Sequence[NewJob]],
) -> AsyncIterator[Sequence[NewJob]]:
    if isinstance(parts, AsyncIterable):
        async for part in parts:
            yield part
            await asyncio.sleep(0)
    else:
        for part in parts:
            yield part
            await asyncio.sleep(0)


class _Calls:
    """Calls one after the other, the last of which may be under way; none is left behind."""

    def __init__(self, insert: Insert) -> None:
        self._insert = insert
        self._under_way: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        task = self._under_way
        if task is not None and isinstance(exc, asyncio.CancelledError):
            task.cancel()
            await asyncio.wait([task])
        else:
            # Should it fail as well, that counts: it is about earlier jobs.
            await self.end()

    async def begin(self, jobs: Sequence[NewJob]) -> None:
        await self.end()
        self._under_way = asyncio.create_task(self._call(jobs))

    async def end(self) -> None:
        """Wait for what is under way; raises what it raised. To be cancelled here cancels it."""
        task, self._under_way = self._under_way, None
        if task is not None:
            await task

    async def _call(self, jobs: Sequence[NewJob]) -> None:
        await self._insert(jobs)
