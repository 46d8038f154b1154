"""What every worker does for schedules: it stores what code declares, and ticks when it is time.

Any number of workers do so at once; the store makes each tick happen once. While nothing is
scheduled next to nothing is asked, until somebody puts a schedule, which wakes workers like a new
job.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from haulier.exceptions import HaulierError, StoreError
from haulier.ports import JobStore
from haulier.services.schedules import ScheduleManager, tick_once
from haulier.worker.patience import pause_after

LOOK_APART = 1.0
"""Seconds from one look to the next, when nothing is due: a busy store wakes its workers often."""

LONGEST_WAIT = 30.0
"""Seconds after which a worker looks by itself, should a wake-up ever be missed."""

SPREAD = 0.01
"""Seconds over which workers come to a tick, so that few of them come in vain."""

_log = structlog.get_logger("haulier.worker")


async def tick_often(store: JobStore, manager: ScheduleManager) -> None:
    """Store the declared schedules, then do what is due when it is due."""
    loop = asyncio.get_running_loop()
    declared, trouble = False, 0
    while True:
        changed = asyncio.Event()
        looked_at = loop.time()
        # Watched before the look, so that nothing is put unseen between the two; and no longer than
        # needed: a busy store would call again and again.
        with store.watch(changed.set, ready=True):
            try:
                if not declared:
                    declared = await _declare(manager)
                ticks, wait = await tick_once(store)
                trouble = 0
            except StoreError as error:
                trouble += 1
                ticks, wait = [], pause_after(trouble) + SPREAD
                _log.warning("tick failed", error=str(error), times=trouble)
            for tick in ticks:
                if tick.job is None:
                    _log.info("tick left out", schedule=tick.schedule, why=tick.state.value)
            until = looked_at + LONGEST_WAIT
            if wait is not None:
                until = min(until, loop.time() + wait + random.uniform(0, SPREAD))
            try:
                async with asyncio.timeout_at(until):
                    await changed.wait()
            except TimeoutError:
                continue
        await asyncio.sleep(min(until, looked_at + LOOK_APART) - loop.time())


async def _declare(manager: ScheduleManager) -> bool:
    try:
        await manager.store_declared()
    except StoreError:
        raise
    except HaulierError as error:
        _log.error("a declared schedule was refused", error=str(error))
    return True
