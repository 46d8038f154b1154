"""arq.

A job's key goes only when it has run, and one whose worker was lost is taken again when its
in-progress key has expired: at least once. Results are not kept (`keep_result=0`) nor logged.
`concurrency` is `max_jobs`; it looks for jobs every `poll` milliseconds (500 by default, which
would be its limit here). No bulk call: 100 calls at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from contract import SERVER, TALLY, main_async, option

AT_A_TIME = 100


async def job(_ctx: dict[str, Any], number: float) -> None:
    TALLY.one(number)


class Peer:
    async def open(self) -> None:
        self._pool = await create_pool(RedisSettings.from_dsn(SERVER))

    async def produce(self, numbers: Iterable[int]) -> None:
        rest = iter(numbers)
        while chunk := list(islice(rest, AT_A_TIME)):
            await asyncio.gather(*(self._pool.enqueue_job("job", number) for number in chunk))

    async def send(self, number: float) -> None:
        await self._pool.enqueue_job("job", number)

    async def work(self) -> None:
        worker = Worker(
            [func(job, keep_result=0)],
            redis_pool=self._pool,
            max_jobs=option("concurrency", 100),
            poll_delay=option("poll", 10) / 1000,
            handle_signals=False,
            log_results=False,
        )
        await worker.async_run()

    async def drained(self) -> bool:
        return not await self._pool.zcard("arq:queue")


if __name__ == "__main__":
    main_async(Peer())
