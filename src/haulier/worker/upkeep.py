"""What every worker does for the store beside its jobs: sweeping and pruning."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping

import structlog

from haulier.domain.retention import Retention
from haulier.exceptions import StoreError
from haulier.ports import JobStore
from haulier.worker.heartbeat import RENEWALS_PER_TTL

PRUNE_FIRST = 5.0
PRUNE_EVERY = 60.0
PRUNE_SOON = 0.5

_log = structlog.get_logger("haulier.worker")


async def sweep_often(store: JobStore) -> None:
    """Release the jobs of expired workers, as often as a worker renews itself."""
    pause = store.ttl / RENEWALS_PER_TTL
    while True:
        try:
            released = await store.sweep()
            if released:
                _log.warning("released jobs of lost workers", jobs=released)
        except StoreError as error:
            _log.warning("sweep failed", error=str(error))
        await _uneven(pause)


async def prune_often(
    store: JobStore, rules: Callable[[], Mapping[str, Retention]], now: asyncio.Event
) -> None:
    """Remove finished jobs that are kept no longer, about once a minute, and soon after `now`."""
    await _uneven(PRUNE_FIRST)
    while True:
        now.clear()
        try:
            await store.prune(rules())
        except StoreError as error:
            _log.warning("prune failed", error=str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PRUNE_EVERY * random.uniform(0.7, 1.3)):
                await now.wait()
                await _uneven(PRUNE_SOON)


async def _uneven(seconds: float) -> None:
    # So that many workers do not work in step.
    await asyncio.sleep(seconds * random.uniform(0.7, 1.3))
