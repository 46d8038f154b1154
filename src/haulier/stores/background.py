"""Work that a store goes on with after it has answered its caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from haulier.exceptions import HaulierError


class Background:
    """Tasks that nobody waits for, until the store closes."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, object]) -> None:
        """Go on with this without keeping the caller; what fails here is left to a sweep."""
        task = asyncio.create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # One that is cut off before it began never awaits this.
        task.add_done_callback(lambda _: work.close())

    async def idle(self) -> None:
        """Wait until nothing is at work any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def end(self) -> None:
        """Cut off what is still at work: a sweep goes on with it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _quietly(work: Coroutine[Any, Any, object]) -> None:
    with contextlib.suppress(HaulierError):
        await work
