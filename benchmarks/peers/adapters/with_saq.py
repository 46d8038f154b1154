"""SAQ on Redis.

A job moves to the list of active ones and is swept back from there when its worker is lost;
`retries` allows the second attempt: at least once. Finished jobs are not kept (`ttl=-1`).
`concurrency` jobs at once; `max_concurrent_ops` lets as many producers enqueue together. No bulk
call: 100 calls at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any

from saq import Queue, Worker

from contract import SERVER, TALLY, main_async, option

AT_A_TIME = 100
KEPT = {"ttl": -1, "retries": 2}


async def job(_ctx: dict[str, Any], *, number: float) -> None:
    TALLY.one(number)


class Peer:
    async def open(self) -> None:
        self._queue = Queue.from_url(SERVER, max_concurrent_ops=AT_A_TIME)
        await self._queue.connect()

    async def produce(self, numbers: Iterable[int]) -> None:
        rest = iter(numbers)
        while chunk := list(islice(rest, AT_A_TIME)):
            await asyncio.gather(
                *(self._queue.enqueue("job", number=number, **KEPT) for number in chunk)
            )

    async def send(self, number: float) -> None:
        await self._queue.enqueue("job", number=number, **KEPT)

    async def work(self) -> None:
        await Worker(self._queue, [job], concurrency=option("concurrency", 100)).start()

    async def drained(self) -> bool:
        return not await self._queue.count("incomplete")


if __name__ == "__main__":
    main_async(Peer())
