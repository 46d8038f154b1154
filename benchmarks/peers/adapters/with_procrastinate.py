"""Procrastinate.

Jobs are rows that a worker marks `doing` and later `succeeded`; those of a lost worker are found by
its missed heartbeats and retried by a periodic task that its documentation gives: at least once.
`concurrency` jobs at once, as many connections; finished jobs are deleted (`delete=1`) or kept, its
default. Bulk: `batch_defer_async`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from procrastinate import App, PsycopgConnector

from contract import SERVER, TALLY, main_async, option

CHUNK = 1000
CONCURRENCY = option("concurrency", 10)

app = App(connector=PsycopgConnector(conninfo=SERVER, min_size=2, max_size=CONCURRENCY + 2))


@app.task(name="job")
async def job(number: float) -> None:
    TALLY.one(number)


class Peer:
    async def open(self) -> None:
        await app.open_async()
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()

    async def produce(self, numbers: Iterable[int]) -> None:
        rest = iter(numbers)
        while chunk := list(islice(rest, CHUNK)):
            await job.batch_defer_async(*({"number": number} for number in chunk))

    async def send(self, number: float) -> None:
        await job.defer_async(number=number)

    async def work(self) -> None:
        await app.run_worker_async(
            concurrency=CONCURRENCY,
            delete_jobs="always" if option("delete", 1) else "never",
            install_signal_handlers=False,
        )

    async def drained(self) -> bool:
        row = await app.connector.execute_query_one_async(
            "SELECT count(*) AS left FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        )
        return not row["left"]


if __name__ == "__main__":
    main_async(Peer())
