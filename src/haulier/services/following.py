"""Following the events of a store as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from haulier.domain.event import Event
from haulier.exceptions import StoreClosedError, StoreError
from haulier.ports import JobStore

POLL = 1.0
"""Seconds after which events are looked for, should a wake-up be missed or the store be away."""


async def follow(store: JobStore, after: str | int | None) -> AsyncGenerator[Event, None]:
    """Every event that follows a cursor, in order, without gap or repetition; never ends.

    A number is that of an event in the present epoch.
    Goes on by itself when the store was away for a while. Raises StoreClosedError once the store
    was closed, and ValidationError for a text that is no cursor.
    """
    changed = asyncio.Event()
    with store.watch(changed.set, events=True):
        cursor = await _in_this_epoch(store, after) if isinstance(after, int) else after
        while True:
            changed.clear()
            try:
                found = await store.events(after=cursor)
            except StoreClosedError:
                raise
            except StoreError:
                found = []
            for event in found:
                yield event
                cursor = event.cursor
            if not found:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await changed.wait()


async def _in_this_epoch(store: JobStore, number: int) -> str:
    epoch, _, _ = (await store.last_event()).partition(":")
    return f"{epoch}:{number}"
