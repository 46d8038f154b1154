"""BullMQ's package for Python.

A job is locked by its worker and moved back when the lock was not renewed: at least once. Finished
jobs are not kept (`removeOnComplete`). `concurrency` jobs at once. Bulk: `addBulk`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any

from bullmq import Queue, Worker

from contract import SERVER, TALLY, main_async, option

CHUNK = 1000
KEPT = {"removeOnComplete": True}


async def job(given: Any, _token: str) -> None:
    TALLY.one(given.data["number"])


class Peer:
    async def open(self) -> None:
        self._queue = Queue("peers", {"connection": SERVER})

    async def produce(self, numbers: Iterable[int]) -> None:
        rest = iter(numbers)
        while chunk := list(islice(rest, CHUNK)):
            await self._queue.addBulk(
                [{"name": "job", "data": {"number": n}, "opts": KEPT} for n in chunk]
            )

    async def send(self, number: float) -> None:
        await self._queue.add("job", {"number": number}, KEPT)

    async def work(self) -> None:
        options = {"connection": SERVER, "concurrency": option("concurrency", 100)}
        Worker("peers", job, options)
        await asyncio.Event().wait()

    async def drained(self) -> bool:
        counts = await self._queue.getJobCounts("wait", "active", "delayed", "prioritized")
        return not any(counts.values())


if __name__ == "__main__":
    main_async(Peer())
