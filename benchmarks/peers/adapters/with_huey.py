"""Huey on SQLite or on Redis.

It takes a task off its store before it runs it, so a lost worker's tasks are lost: at most once,
and there is no setting for more. Results are not kept. On SQLite `fsync=True` makes each commit
durable (`synchronous=FULL`), as haulier's are; its journal is the WAL. On Redis `blocking=True`
takes tasks by a blocking read. `threads` worker threads; when the queue is empty they look again
every millisecond. No bulk call.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from huey import RedisHuey, SqliteHuey

from contract import SERVER, TALLY, main, option

if SERVER.startswith("redis:"):
    huey = RedisHuey("peers", url=SERVER, results=False, blocking=True)
else:
    huey = SqliteHuey("peers", filename=f"{SERVER}/huey.db", results=False, fsync=True)


@huey.task(retries=1)
def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    def produce(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            job(number)

    def send(self, number: float) -> None:
        job(number)

    def work(self) -> None:
        consumer = huey.create_consumer(
            workers=option("threads", 1), periodic=False, initial_delay=0.001, max_delay=0.001
        )
        consumer.start()
        while True:
            time.sleep(60)

    def drained(self) -> bool:
        return not len(huey)


if __name__ == "__main__":
    main(Peer())
