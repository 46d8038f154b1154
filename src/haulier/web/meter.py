"""Counts events for whoever scrapes metrics, for as long as somebody does."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from contextlib import aclosing

import structlog

from haulier.exceptions import HaulierError
from haulier.ports import JobStore
from haulier.services.following import follow
from haulier.services.metrics import Metrics, Standing

IDLE = 900.0
"""Seconds without a scrape after which nothing is counted any more."""

_log = structlog.get_logger("haulier.web")


class Meter:
    """The metrics of a store, from the first scrape on."""

    def __init__(self, *, idle: float = IDLE) -> None:
        self._metrics = Metrics()
        self._idle = idle
        self._asked = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def scrape(self, store: JobStore) -> bytes:
        """All figures, as text; raises StoreError."""
        self._asked.set()
        if self._following is None or self._following.done():
            after = await store.last_event()
            self._following = asyncio.get_running_loop().create_task(
                self._follow(store, after), context=contextvars.Context()
            )
        return self._metrics.expose(await Standing.of(store, time.time_ns() // 1000))

    async def close(self) -> None:
        """Count no more."""
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following

    async def _follow(self, store: JobStore, after: str) -> None:
        watch = asyncio.get_running_loop().create_task(self._wait_for_idleness())
        counting = asyncio.get_running_loop().create_task(self._count(store, after))
        try:
            await asyncio.wait((watch, counting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watch, counting):
                task.cancel()
            await asyncio.wait((watch, counting))

    async def _count(self, store: JobStore, after: str) -> None:
        try:
            async with aclosing(follow(store, after)) as events:
                async for event in events:
                    self._metrics.observe(event)
        except HaulierError as error:
            _log.warning("events are not counted", error=str(error))

    async def _wait_for_idleness(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                self._asked.clear()
                async with asyncio.timeout(self._idle):
                    await self._asked.wait()
