"""streaQ.

Tasks are acknowledged when they have run and taken over when idle for a minute: at least once.
Results are not kept (`ttl=0`). `concurrency` tasks at once, `prefetch` beyond them. Its Redis
client is coredis. Bulk: `enqueue_many`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice

from streaq import Worker

from contract import SERVER, TALLY, main_async, option

CHUNK = 1000
CONCURRENCY = option("concurrency", 100)

worker = Worker(
    redis_url=SERVER,
    concurrency=CONCURRENCY,
    prefetch=option("prefetch", CONCURRENCY),
    handle_signals=False,
)


@worker.task(ttl=0)
async def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    async def open(self) -> None:
        # A worker enters itself when it runs, and must not be entered twice.
        if sys.argv[1] in {"produce", "send"}:
            await worker.__aenter__()

    async def produce(self, numbers: Iterable[int]) -> None:
        rest = iter(numbers)
        while chunk := list(islice(rest, CHUNK)):
            await worker.enqueue_many([job.enqueue(number) for number in chunk])

    async def send(self, number: float) -> None:
        await job.enqueue(number)

    async def work(self) -> None:
        await worker.run_async()

    async def drained(self) -> bool:
        stream = worker.stream_key + "normal"
        return not await worker.redis.xlen(stream)


if __name__ == "__main__":
    main_async(Peer())
