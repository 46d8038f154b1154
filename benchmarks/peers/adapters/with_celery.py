"""Celery on Redis.

At least once: `task_acks_late` and `task_reject_on_worker_lost`. Results are not kept, as its
optimising guide advises; events, remote control, gossip and mingle are off, so that nothing else
uses the connection. Prefetch is 4 times the pool's size unless told (`prefetch`). The pool `solo`
runs tasks in the main thread, `threads` in a pool of `concurrency` threads; prefork, its default,
would be several processes. A bulk call of its own it has none: one producer connection is kept
open for all calls.
"""

from __future__ import annotations

from collections.abc import Iterable

from celery import Celery
from redis import Redis

from contract import SERVER, TALLY, main, option

QUEUE = "celery"
THREADS = option("threads", 0)

app = Celery("peers", broker=SERVER, set_as_current=True)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=option("prefetch", 4),
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="job")
def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    def __init__(self) -> None:
        self._redis = Redis.from_url(SERVER)

    def produce(self, numbers: Iterable[int]) -> None:
        with app.producer_pool.acquire(block=True) as producer:
            for number in numbers:
                job.apply_async((number,), producer=producer)

    def send(self, number: float) -> None:
        job.delay(number)

    def work(self) -> None:
        pool = ["--pool=threads", f"--concurrency={THREADS}"] if THREADS else ["--pool=solo"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        app.worker_main(["worker", "--loglevel=WARNING", *pool, *quiet])

    def drained(self) -> bool:
        return not self._redis.llen(QUEUE) and not self._redis.hlen("unacked")


if __name__ == "__main__":
    main(Peer())
