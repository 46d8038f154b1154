"""RQ.

`SimpleWorker` runs jobs in its own process instead of forking for each, which its documentation
recommends for speed. A job is moved to a list of its own and back to the queue when its worker is
lost: at least once. Results and finished jobs are not kept (`result_ttl=0`). Bulk: `enqueue_many`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from redis import Redis
from rq import Queue, SimpleWorker
from rq.intermediate_queue import IntermediateQueue
from rq.registry import StartedJobRegistry

from contract import SERVER, TALLY, main

CHUNK = 1000


def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    def __init__(self) -> None:
        self._redis = Redis.from_url(SERVER)
        self._queue = Queue(connection=self._redis)

    def produce(self, numbers: Iterable[int]) -> None:
        rest = iter(numbers)
        while chunk := list(islice(rest, CHUNK)):
            self._queue.enqueue_many(
                [Queue.prepare_data("with_rq.job", (number,), result_ttl=0) for number in chunk]
            )

    def send(self, number: float) -> None:
        self._queue.enqueue("with_rq.job", number, result_ttl=0)

    def work(self) -> None:
        SimpleWorker([self._queue], connection=self._redis).work(logging_level="WARNING")

    def drained(self) -> bool:
        with Redis.from_url(SERVER) as own:
            started = StartedJobRegistry(queue=Queue(connection=own)).key
            moved = IntermediateQueue.get_intermediate_queue_key(self._queue.key)
            return not (own.llen(self._queue.key) or own.llen(moved) or own.zcard(started))


if __name__ == "__main__":
    # The worker imports the task by name: it must be this module, not a second one.
    import with_rq

    main(with_rq.Peer())
