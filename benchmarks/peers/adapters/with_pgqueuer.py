"""PgQueuer with asyncpg.

Rows are picked, kept alive by heartbeats, and picked again when those stop; finished jobs are
deleted and logged in batches: at least once. `batch` is its `batch_size`, both of a claim and of a
flush of finished jobs. The schema is its durable one (logged tables), with its own autovacuum
settings. Bulk: `enqueue` with lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from contract import SERVER, TALLY, main_async, option

CHUNK = 1000


class Peer:
    async def open(self) -> None:
        pool = await asyncpg.create_pool(SERVER, min_size=2, max_size=4)
        self._driver = AsyncpgPoolDriver(pool)
        self._queries = Queries(self._driver)
        if not await self._queries.has_table("pgqueuer"):
            await self._queries.install()
            await self._queries.optimize_autovacuum()

    async def produce(self, numbers: Iterable[int]) -> None:
        rest = iter(numbers)
        while chunk := list(islice(rest, CHUNK)):
            payloads = [str(number).encode() for number in chunk]
            await self._queries.enqueue(["job"] * len(chunk), payloads, [0] * len(chunk))

    async def send(self, number: float) -> None:
        await self._queries.enqueue("job", str(number).encode())

    async def work(self) -> None:
        worker = PgQueuer(self._driver)

        @worker.entrypoint("job")
        async def job(given: Job) -> None:
            TALLY.one(float(given.payload or b"0"))

        await worker.run(batch_size=option("batch", 10))

    async def drained(self) -> bool:
        (row,) = await self._driver.fetch("SELECT EXISTS (SELECT FROM pgqueuer) AS left")
        return not row["left"]


if __name__ == "__main__":
    main_async(Peer())
