"""Keeps a worker incarnation alive from a thread of its own.

A job that blocks the event loop with pure Python does not stop this thread, so it loses nothing. A
second thread watches it: a renewal that hangs (on a dead network, in a name lookup) must not keep
the incarnation from giving itself up in time.
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

    The callbacks run in its threads. `expired` is called once, then renewing stops.
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
        self._expiring = threading.Lock()
        self._good_until = 0.0
        self._thread = threading.Thread(target=self._beat, name="haulier-heartbeat", daemon=True)
        self._watch = threading.Thread(target=self._look, name="haulier-expiry", daemon=True)

    async def __aenter__(self) -> Self:
        # Counted from before any call: the store's ttl may have begun at any time within it.
        self._good_until = time.monotonic() + self._ttl * SAFETY
        self._thread.start()
        self._watch.start()
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
        await asyncio.to_thread(self._watch.join)

    def _beat(self) -> None:
        try:
            while not self._closing.wait(self._ttl / RENEWALS_PER_TTL):
                began = time.monotonic()
                try:
                    renewal = self._heartbeat.renew()
                except HaulierError as error:
                    _log.warning("renewal failed", error=str(error))
                    self._failing()
                else:
                    if not renewal.alive or not self._put_forward(began):
                        self._expire()
                        return
                    self._renewed(renewal)
        finally:
            self._heartbeat.close()

    def _put_forward(self, began: float) -> bool:
        """Whether a renewal that was sent at `began` still came in time."""
        with self._expiring:
            if time.monotonic() > self._good_until:
                return False
            self._good_until = began + self._ttl * SAFETY
            return True

    def _look(self) -> None:
        while not self._closing.wait(max(0.0, self._good_until - time.monotonic())):
            if time.monotonic() >= self._good_until:
                self._expire()
                return

    def _expire(self) -> None:
        with self._expiring:
            if self._closing.is_set():
                return
            self._closing.set()
        self._expired()
