"""haulier on SQLite, PostgreSQL or Redis: what `haulier worker` runs, with `concurrency` slots.

A lost worker's jobs are released when its row expires: at least once, and fenced. Everything is on:
finished jobs and their results are kept, every move is an event, counters are exact. Bulk:
`enqueue_many`.
"""

from __future__ import annotations

from collections.abc import Iterable

from contract import SERVER, TALLY, option, run_async
from haulier import App
from haulier.cli.bench.measure import all_settled
from haulier.cli.output import run_coroutine
from haulier.worker.lanes import WorkerOptions

url = SERVER if "://" in SERVER else f"sqlite:///{SERVER}/haulier.db"
app = App(url)


@app.task
async def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    async def open(self) -> None:
        await app.__aenter__()

    async def produce(self, numbers: Iterable[int]) -> None:
        await app.enqueue_many(job, [{"number": number} for number in numbers])

    async def send(self, number: float) -> None:
        await app.enqueue(job, {"number": number})

    async def work(self) -> None:
        await app.worker(WorkerOptions(concurrency=option("concurrency", 1000))).run()

    async def drained(self) -> bool:
        await all_settled(app)
        return True


if __name__ == "__main__":
    run_coroutine(run_async(Peer()))
