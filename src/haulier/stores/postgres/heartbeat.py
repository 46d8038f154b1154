"""Renews one worker incarnation, whatever the worker's own event loop is doing."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from haulier.domain.worker import Renewal
from haulier.exceptions import StoreUnavailableError
from haulier.ports import Clock
from haulier.stores.postgres.connection import Connection, Place, translated

_RENEW = """
SELECT renew($1, $2, $3)::text[], coalesce((SELECT version FROM configuration), 0)
"""


class PostgresHeartbeat:
    """A connection of its own on an event loop of its own, in a thread of its own."""

    def __init__(
        self, place: Place, worker_id: str, ttl: int, deadline: float, clock: Clock | None
    ) -> None:
        self._place = place
        self._worker_id = worker_id
        self._ttl = ttl
        self._deadline = deadline
        self._clock = clock
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def renew(self) -> Renewal:
        """Put the expiry forward by the ttl; blocking. Raises StoreError."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="haulier-postgres-heartbeat", daemon=True
            )
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._renew(), self._loop).result()

    async def _renew(self) -> Renewal:
        try:
            async with asyncio.timeout(self._deadline):
                with translated(self._place):
                    cancels, version = await self._ask()
        except BaseException as error:
            # What did not answer is not asked again.
            self._hang_up()
            if isinstance(error, TimeoutError):
                raise StoreUnavailableError(
                    f"the store {self._place.shown} did not answer within {self._deadline:g} s"
                ) from None
            raise
        if cancels is None:
            return Renewal(alive=False)
        return Renewal(alive=True, cancels=tuple(cancels), version=version)

    async def _ask(self) -> tuple[list[str] | None, int]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._place.connect("heartbeat", self._deadline)
        now = None if self._clock is None else self._clock.now()
        async with self._place.session(self._connection):
            cancels, version = await self._connection.fetchrow(
                _RENEW, now, self._worker_id, self._ttl
            )
        return cancels, version

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(1.0)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()

    async def _close(self) -> None:
        if self._connection is not None:
            await self._connection.close(timeout=0.5)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
