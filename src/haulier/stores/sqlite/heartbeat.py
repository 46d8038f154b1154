"""The renewer of one incarnation, for a thread of its own."""

from __future__ import annotations

from collections.abc import Callable

import apsw

from haulier.domain.worker import Renewal
from haulier.stores.sqlite.connection import MEMORY, connect, translated
from haulier.stores.sqlite.engine import Lane

DEADLINE = 15.0


class SqliteHeartbeat:
    """Renews one incarnation on a connection of the calling thread's own.

    In memory there is only the writer's connection, so there it waits for the writer's thread.
    """

    def __init__(self, path: str, renew: Callable[[apsw.Connection], Renewal], lane: Lane) -> None:
        self._path = path
        self._renew = renew
        self._lane = lane
        self._db: apsw.Connection | None = None

    def renew(self) -> Renewal:
        if self._path == MEMORY:
            return self._lane.call_blocking(self._renew, deadline=DEADLINE)
        with translated(self._path):
            if self._db is None:
                self._db = connect(self._path)
            return self._renew(self._db)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
