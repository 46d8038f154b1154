"""Dramatiq on Redis.

It acknowledges after the work and requeues what a lost worker held: at least once, which cannot be
turned off. One process with `threads` worker threads, what `dramatiq --processes 1 --threads N`
starts. `prefetch` is its environment variable `dramatiq_queue_prefetch` (default: twice the
threads). Middleware for age, time limits and callbacks is left out, as nothing here needs it. It
has no bulk call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from contract import SERVER, TALLY, main, option

if option("prefetch", 0):
    # Read when Dramatiq is imported.
    os.environ["dramatiq_queue_prefetch"] = str(option("prefetch", 0))  # noqa: SIM112

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries, ShutdownNotifications
from redis import Redis

broker = RedisBroker(url=SERVER, middleware=[ShutdownNotifications(), Retries()])
dramatiq.set_broker(broker)


@dramatiq.actor
def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    def __init__(self) -> None:
        self._redis = Redis.from_url(SERVER)

    def produce(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            job.send(number)

    def send(self, number: float) -> None:
        job.send(number)

    def work(self) -> None:
        dramatiq.Worker(broker, worker_threads=option("threads", 8)).start()
        while True:
            time.sleep(60)

    def drained(self) -> bool:
        return not self._redis.hlen("dramatiq:default.msgs")


if __name__ == "__main__":
    main(Peer())
