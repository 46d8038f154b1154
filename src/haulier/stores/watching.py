"""Who waits for changes of a store, and for which."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Flag


class Change(Flag):
    """What a commit may have changed, for those who wait."""

    NOTHING = 0
    READY = 1
    SETTLED = 2
    EVENTS = 4
    ANY = 7

    @classmethod
    def of(cls, *, ready: bool, settled: bool, events: bool) -> Change:
        """The changes that a watcher asks for by name."""
        wanted = ((ready, cls.READY), (settled, cls.SETTLED), (events, cls.EVENTS))
        change = cls.NOTHING
        for asked, flag in wanted:
            if asked:
                change |= flag
        return change


@dataclass(slots=True, eq=False)
class _Watcher:
    loop: asyncio.AbstractEventLoop
    notify: Callable[[], None]
    change: Change


class Watchers:
    """Those who wait. `tell` may be called from any thread; each is called on its own loop."""

    def __init__(self) -> None:
        self._watchers: list[_Watcher] = []

    def __bool__(self) -> bool:
        return bool(self._watchers)

    @contextlib.contextmanager
    def watch(self, notify: Callable[[], None], change: Change) -> Iterator[None]:
        """Within the block, call `notify` on the running loop whenever there was such a change."""
        watcher = _Watcher(asyncio.get_running_loop(), notify, change)
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    def tell(self, change: Change) -> None:
        """Wake those who wait for such a change."""
        for watcher in tuple(self._watchers):
            if watcher.change & change:
                # The loop may be gone when its program ended without closing the store.
                with contextlib.suppress(RuntimeError):
                    watcher.loop.call_soon_threadsafe(watcher.notify)
