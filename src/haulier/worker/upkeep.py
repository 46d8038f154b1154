"""What every worker does for the store beside its jobs: sweeping and pruning."""

from __future__ import annotations

import asyncio
import random

import structlog

from haulier.exceptions import StoreError
from haulier.ports import JobStore
from haulier.services.registry import Registry
from haulier.worker.heartbeat import RENEWALS_PER_TTL

PRUNE_FIRST = 5.0
PRUNE_EVERY = 60.0

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


async def prune_often(store: JobStore, registry: Registry) -> None:
    """Remove finished jobs that their kinds keep no longer, about once a minute."""
    rules = {definition.kind: definition.retention for definition in registry}
    await _uneven(PRUNE_FIRST)
    while True:
        try:
            await store.prune(rules)
        except StoreError as error:
            _log.warning("prune failed", error=str(error))
        await _uneven(PRUNE_EVERY)


async def _uneven(seconds: float) -> None:
    # So that many workers do not work in step.
    await asyncio.sleep(seconds * random.uniform(0.7, 1.3))
