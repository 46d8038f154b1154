"""docket (pydocket).

Streams with renewed leases, acknowledged when the task has run: at least once. Executions are not
kept (`execution_ttl=0`). `concurrency` tasks at once; a look for more at least every `check`
milliseconds (`minimum_check_interval`). Bulk: `add_many`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from docket import Docket, Worker

from contract import SERVER, TALLY, main_async, option

CONCURRENCY = option("concurrency", 100)


async def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    async def open(self) -> None:
        # Its Redis client allows 100 connections unless the URL says otherwise.
        url = f"{SERVER}?max_connections={2 * CONCURRENCY + 20}"
        self._docket = Docket(name="peers", url=url, execution_ttl=timedelta(0))
        await self._docket.__aenter__()
        self._docket.register(job)

    async def produce(self, numbers: Iterable[int]) -> None:
        # Each call has a key of its own, by which it is deduplicated.
        await self._docket.add_many(self._docket.call(job)(number) for number in numbers)

    async def send(self, number: float) -> None:
        await self._docket.add(job)(number)

    async def work(self) -> None:
        check = timedelta(milliseconds=option("check", 250))
        async with Worker(
            self._docket, concurrency=CONCURRENCY, minimum_check_interval=check
        ) as worker:
            await worker.run_forever()

    async def drained(self) -> bool:
        async with self._docket.redis() as redis:
            return not await redis.xlen(self._docket.stream_key)


if __name__ == "__main__":
    main_async(Peer())
