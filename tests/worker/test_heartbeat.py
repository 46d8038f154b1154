"""The thread that keeps an incarnation alive, and gives it up in time."""

from __future__ import annotations

import threading
import time

from haulier.domain.worker import Renewal
from haulier.worker.heartbeat import HeartbeatThread
from support import wait_until


class Hanging:
    """Renews until it is told to hang, as on a dead network."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.released = threading.Event()

    def renew(self) -> Renewal:
        if self.hangs.is_set():
            self.released.wait(30)
        return Renewal(alive=True)

    def close(self) -> None: ...


async def test_a_renewal_that_hangs_does_not_keep_it_from_giving_itself_up():
    heartbeat, expired, renewed = Hanging(), [], []
    ttl = 1.0
    thread = HeartbeatThread(
        heartbeat,
        ttl,
        renewed=renewed.append,
        failing=lambda: None,
        expired=lambda: expired.append(time.monotonic()),
    )
    async with thread:
        await wait_until(lambda: len(renewed) > 6)
        assert expired == []
        heartbeat.hangs.set()
        began = time.monotonic()
        try:
            await wait_until(lambda: expired)
            assert expired[0] - began < ttl
        finally:
            heartbeat.released.set()
    assert len(expired) == 1
