"""An SQLite store without its threads: each call is one transaction, made at once by the caller.

A simulation makes hundreds of thousands of calls; going to a thread and back takes longer than
what is done there.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import apsw

from haulier.stores.sqlite import SqliteStore
from haulier.stores.sqlite.connection import connect, prepare, transaction, translated
from haulier.stores.sqlite.engine import Writer
from haulier.testing import FakeClock

MEMORY = ":memory:"


class DirectWriter(Writer):
    """Runs operations in the calling thread."""

    def __init__(self) -> None:
        super().__init__(MEMORY, create=True)
        self._db = connect(MEMORY)
        self._db.deserialize("main", _empty_store())

    async def call(
        self,
        run: Callable[[apsw.Connection], Any],
        *,
        deadline: float,
        change: object = None,
        probe: Callable[[apsw.Connection], Any] | None = None,
    ) -> Any:
        if probe is not None and (seen := probe(self._db)) is not None:
            return seen
        return self.call_blocking(run, deadline=deadline)

    def call_blocking(self, run: Callable[[apsw.Connection], Any], *, deadline: float) -> Any:
        with translated(self.path), transaction(self._db):
            return run(self._db)

    def close(self) -> None:
        self._db.close()


@functools.cache
def _empty_store() -> bytes:
    """A store as it is created, made once: its schema takes longer than a whole short run."""
    db = prepare(MEMORY, create=True)
    try:
        return db.serialize("main")
    finally:
        db.close()


@asynccontextmanager
async def direct_store(clock: FakeClock, ttl: float) -> AsyncIterator[SqliteStore]:
    """An open, empty store in memory."""
    store = SqliteStore(MEMORY, ttl=ttl, clock=clock)
    writer = DirectWriter()
    store._writer = store._reader = writer
    try:
        yield store
    finally:
        writer.close()
