"""taskiq with taskiq-redis.

`RedisStreamBroker` is the broker that acknowledges; acknowledged when the task has run
(`when_executed`), so at least once. No result backend. `concurrency` is `--max-async-tasks`,
`prefetch` is `--max-prefetch`, and as many messages are read at a time (`xread_count`). The worker
is the receiver that `taskiq worker` runs in each process. No bulk call: 100 sends at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from redis.asyncio import Redis
from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from contract import SERVER, TALLY, main_async, option

AT_A_TIME = 100
CONCURRENCY = option("concurrency", 100)
PREFETCH = option("prefetch", 100)
STREAM = "taskiq"

broker = RedisStreamBroker(SERVER, queue_name=STREAM, consumer_id="0", xread_count=max(PREFETCH, 1))


@broker.task(task_name="job")
async def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    async def open(self) -> None:
        self._redis = Redis.from_url(SERVER)
        broker.is_worker_process = True
        await broker.startup()

    async def produce(self, numbers: Iterable[int]) -> None:
        rest = iter(numbers)
        while chunk := list(islice(rest, AT_A_TIME)):
            await asyncio.gather(*(job.kiq(number) for number in chunk))

    async def send(self, number: float) -> None:
        await job.kiq(number)

    async def work(self) -> None:
        receiver = Receiver(
            broker,
            executor=ThreadPoolExecutor(1),
            max_async_tasks=CONCURRENCY,
            max_prefetch=PREFETCH,
            run_startup=False,
            ack_type=AcknowledgeType.WHEN_EXECUTED,
        )
        await receiver.listen(asyncio.Event())

    async def drained(self) -> bool:
        (group,) = await self._redis.xinfo_groups(STREAM)
        return not group["pending"] and not group["lag"]


if __name__ == "__main__":
    main_async(Peer())
