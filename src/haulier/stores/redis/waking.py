"""Being told of changes: by this process at once, by others over the server's channels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from haulier.stores.redis.history import History
from haulier.stores.watching import Change, Watchers


class Listener:
    def __init__(self, history: History) -> None:
        self._history = history
        self._watchers = Watchers()

    @contextlib.contextmanager
    def watch(self, notify: Callable[[], None], change: Change) -> Iterator[None]:
        with self._watchers.watch(notify, change):
            yield

    def tell(self, change: Change) -> None:
        self._watchers.tell(change)

    async def close(self) -> None:
        pass
