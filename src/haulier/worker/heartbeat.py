"""Keeps a worker incarnation alive from a thread of its own.

A job that blocks the event loop with pure Python does not stop this thread, so it loses nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from haulier.domain.worker import Renewal
from haulier.exceptions import HaulierError
from haulier.ports import Heartbeat

RENEWALS_PER_TTL = 5
SAFETY = 0.8
"""The part of a ttl after which an incarnation that could not renew gives itself up. The rest is
for stopping its jobs before the store declares them lost and another worker starts them."""

_log = structlog.get_logger("haulier.worker")


class HeartbeatThread:
    """Renews until it is closed, and says when a renewal worked, failed, or came too late.

    The callbacks run in this thread. `expired` is called once, then renewing stops.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        ttl: float,
        *,
        renewed: Callable[[Renewal], object],
        failing: Callable[[], object],
        expired: Callable[[], object],
    ) -> None:
        self._heartbeat = heartbeat
        self._ttl = ttl
        self._renewed = renewed
        self._failing = failing
        self._expired = expired
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="haulier-heartbeat", daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._closing.set()
        # A renewal under way may have to wait for the store; the event loop must not.
        await asyncio.to_thread(self._thread.join)

    def _beat(self) -> None:
        # Counted from before the call: the store's ttl may have begun at any time within it.
        good_until = time.monotonic() + self._ttl * SAFETY
        try:
            while not self._closing.wait(self._ttl / RENEWALS_PER_TTL):
                began = time.monotonic()
                try:
                    renewal = self._heartbeat.renew()
                except HaulierError as error:
                    _log.warning("renewal failed", error=str(error))
                    self._failing()
                else:
                    if not renewal.alive:
                        self._expired()
                        return
                    good_until = began + self._ttl * SAFETY
                    self._renewed(renewal)
                if time.monotonic() > good_until:
                    self._expired()
                    return
        finally:
            self._heartbeat.close()
