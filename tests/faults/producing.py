"""A process that enqueues jobs and batches as fast as they are worked off, until it is killed."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from faults.log import Log
from faults.script import TOLD, Names
from faults.witness import Crash, Witness
from haulier.exceptions import StoreError
from haulier.services.ids import new_id
from haulier.stores import open_store

AT_ONCE = 48
"""Unfinished jobs up to which more are enqueued: so few that one that is free again is claimed."""

PAUSE = 0.02


def produce(spec: dict[str, Any]) -> None:
    """The whole life of a producer."""
    asyncio.run(_produce(spec))


async def _produce(spec: dict[str, Any]) -> None:
    log = Log(spec["log"])
    dice = random.Random(spec["seed"])
    store = Witness(open_store(spec["store"], ttl=spec["ttl"]), log, Crash("", 0, log))
    async with store:
        while True:
            try:
                if await _unfinished(store) < AT_ONCE:
                    await _enqueue(store, dice, spec["longest"])
            except StoreError:
                # What it was about to enqueue may be there or not, which the log says.
                pass
            await asyncio.sleep(PAUSE)


async def _unfinished(store: Witness) -> int:
    counts = await store.counts()
    return sum(n for (*_, state), n in counts.items() if not state.final)


async def _enqueue(store: Witness, dice: random.Random, longest: float) -> None:
    names = Names(new_id())
    seconds = dice.uniform(0.0, longest)
    how = dice.choice(("well", "well", "well", "flaky"))
    count = dice.randint(1, 20)
    match dice.randrange(4):
        case 0:
            items = names.items("batch", count, how=how, seconds=seconds)
            head = names.head("batch")
            await store.open_batch(head, items, policy=TOLD, sealed=dice.random() < 0.5)
            await store.seal(head.id)
        case 1:
            bulk = names.head("bulk", "bulk", items=count, seconds=seconds)
            await store.insert([bulk], policy=TOLD)
        case 2:
            await store.insert(names.jobs("thread", 2, "thread_work", seconds=seconds))
        case _:
            await store.insert(names.jobs("job", count, how=how, seconds=seconds))
