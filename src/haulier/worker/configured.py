"""What a worker takes over of the store's configuration, whenever it hears of another version.

Each answer to an exchange or a renewal brings the version, so nothing is asked while nothing
changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from haulier.domain.configuration import Configuration
from haulier.exceptions import StoreError
from haulier.ports import JobStore
from haulier.telemetry import override_level

AGAIN = 1.0
"""Seconds until the next try, when the store could not tell."""

LOOK = 3.0
"""Seconds between two looks of a process that runs no jobs itself."""

_log = structlog.get_logger("haulier.worker")


class Configured:
    """The configuration as this worker knows it; `apply` is called with each new one."""

    def __init__(self, store: JobStore, apply: Callable[[Configuration], None]) -> None:
        self.now = Configuration()
        self._store = store
        self._apply = apply
        self._other = asyncio.Event()

    def told(self, version: int | None) -> None:
        """The store has said which version there is."""
        # Another one, not a later one: a store that was restored counts from an earlier one.
        if version is not None and version != self.now.version:
            self._other.set()

    async def follow(self) -> None:
        """Read each version that the store has spoken of; never ends."""
        while True:
            await self._other.wait()
            self._other.clear()
            try:
                self.now = await self._store.configurable().configuration()
            except StoreError as error:
                _log.warning("configuration not read", error=str(error))
                self._other.set()
                await asyncio.sleep(AGAIN)
                continue
            override_level(self.now.log_level)
            self._apply(self.now)


async def follow_log_level(store: JobStore) -> None:
    """Log as the store says, in a process that only looks after others; never ends."""
    while True:
        try:
            override_level((await store.configurable().configuration()).log_level)
        except StoreError as error:
            _log.warning("configuration not read", error=str(error))
        await asyncio.sleep(LOOK)
