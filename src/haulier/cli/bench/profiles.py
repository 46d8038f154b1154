"""What one process does: no-op jobs, a batch, retries, and the latency of single jobs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from haulier.app import App
from haulier.cli.bench.measure import Countdown, Figures, all_settled, percentile
from haulier.cli.bench.processes import end_to_end
from haulier.domain.retry import RetryPolicy
from haulier.services.context import Context
from haulier.worker.lanes import WorkerOptions

if TYPE_CHECKING:
    from haulier.cli.bench.command import Lines, Load

LATENCY_RATE = 100
WARM_UP = 50
"""The first single jobs, which are not counted: connections open, the server compiles."""

STATUS_CALLS = 300
STATUS_PAUSE = 0.02
ELSEWHERE = "elsewhere"


async def noop(url: str, load: Load) -> tuple[Figures, Lines]:
    """Jobs enqueued, then run; then the latency of single ones, the worker being idle."""
    app = App(url)
    done = Countdown(load.jobs)

    @app.task
    async def noop(number: int) -> None:
        del number
        done.one()

    async with app:
        began = time.perf_counter()
        await app.enqueue_many(noop, [{"number": number} for number in range(load.jobs)])
        enqueued = time.perf_counter()
        stamps = _Stamps(app)
        async with app.working(WorkerOptions(concurrency=load.concurrency)):
            await done.wait()
            await all_settled(app)
            finished = time.perf_counter()
            latencies = [await stamps.one_by_one(number) for number in range(load.singles)]
    figures: Figures = {
        "jobs": load.jobs,
        "concurrency": load.concurrency,
        "enqueue_per_s": round(load.jobs / (enqueued - began)),
        "run_per_s": round(load.jobs / (finished - enqueued)),
        **_latencies(latencies),
    }
    lines: Lines = [
        ("slots", f"{load.concurrency:,}"),
        ("enqueue", f"{figures['enqueue_per_s']:,} jobs/s"),
        ("run", f"{figures['run_per_s']:,} jobs/s"),
        _percentiles_line("enqueue to start", figures, "latency"),
    ]
    if load.processes:
        more, more_lines = await end_to_end(url, load)
        figures |= more
        lines += more_lines
    return figures, lines


async def batch(url: str, load: Load) -> tuple[Figures, Lines]:
    """One batch with its finish callback, asked for its status meanwhile; then a large one."""
    app = App(url)

    @app.task
    async def item(number: int) -> None:
        del number

    @app.task
    async def finish(batch_id: str, state: str, counts: dict[str, int]) -> None:
        del batch_id, state, counts

    def items(count: int) -> list[dict[str, int]]:
        return [{"number": number} for number in range(count)]

    async with app:
        began = time.perf_counter()
        batch_id = await app.enqueue_batch(item, items(load.jobs), on_finish=finish)
        enqueued = time.perf_counter()
        status = asyncio.create_task(_status_meanwhile(app, batch_id))
        async with app.working(WorkerOptions(concurrency=load.concurrency)):
            await app.wait(batch_id, progress=False)
            finished = time.perf_counter()
        while_running = await status
        present = await app.enqueue_batch(
            item, ({"number": number} for number in range(load.present)), queue=ELSEWHERE
        )
        large = [await _status(app, present) for _ in range(STATUS_CALLS)]
    figures: Figures = {
        "items": load.jobs,
        "items_present": load.present,
        "enqueue_per_s": round(load.jobs / (enqueued - began)),
        "items_per_s": round(load.jobs / (finished - enqueued)),
        "status_p50_ms": percentile(while_running, 50),
        "status_p99_ms": percentile(while_running, 99),
        "status_present_p50_ms": percentile(large, 50),
        "status_present_p99_ms": percentile(large, 99),
    }
    return figures, [
        ("enqueue", f"{figures['enqueue_per_s']:,} items/s"),
        ("run to the callback", f"{figures['items_per_s']:,} items/s"),
        _percentiles_line("status, running", figures, "status"),
        _percentiles_line(f"status, {load.present:,} items", figures, "status_present"),
    ]


async def _status_meanwhile(app: App, batch_id: str) -> list[float]:
    times: list[float] = []
    while not times or not (await app.batch(batch_id)).state.final:
        times.append(await _status(app, batch_id))
        await asyncio.sleep(STATUS_PAUSE)
    return times


async def _status(app: App, batch_id: str) -> float:
    began = time.perf_counter()
    await app.store.batch(batch_id)
    return time.perf_counter() - began


async def retry(url: str, load: Load) -> tuple[Figures, Lines]:
    """Every job fails at its first attempt and succeeds at its second."""
    app = App(url)
    policy = RetryPolicy(max_attempts=2, delay=0, jitter=False)

    @app.task(retry=policy)
    async def stumble(ctx: Context, number: int) -> None:
        if ctx.job.attempt == 1:
            raise LookupError(f"number {number} is not there yet")

    async with app:
        await app.enqueue_many(stumble, ({"number": number} for number in range(load.jobs)))
        began = time.perf_counter()
        async with app.working(WorkerOptions(concurrency=load.concurrency)):
            await all_settled(app)
            took = time.perf_counter() - began
    figures: Figures = {
        "jobs": load.jobs,
        "jobs_per_s": round(load.jobs / took),
        "attempts_per_s": round(2 * load.jobs / took),
    }
    return figures, [
        ("jobs failed once", f"{figures['jobs_per_s']:,} jobs/s"),
        ("attempts", f"{figures['attempts_per_s']:,} attempts/s"),
    ]


async def latency(url: str, load: Load) -> tuple[Figures, Lines]:
    """Single jobs, enqueued at a steady rate whether or not those before have started."""
    app = App(url)
    stamps = _Stamps(app)
    async with app, app.working():
        latencies = (await stamps.at_rate(WARM_UP + load.singles, LATENCY_RATE))[WARM_UP:]
    figures: Figures = {"singles": load.singles, "rate": LATENCY_RATE, **_latencies(latencies)}
    return figures, [_percentiles_line("enqueue to start", figures, "latency")]


class _Stamps:
    """Measures seconds from the call of enqueue to the first line of the task."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._started: dict[int, asyncio.Future[float]] = {}

        @app.task
        async def stamp(number: int) -> None:
            self._started[number].set_result(time.perf_counter())

    async def one(self, number: int) -> float:
        self._started[number] = asyncio.get_running_loop().create_future()
        asked = time.perf_counter()
        await self._app.enqueue("stamp", {"number": number})
        return await self._started[number] - asked

    async def one_by_one(self, number: int) -> float:
        """One, and a pause."""
        latency = await self.one(number)
        await asyncio.sleep(max(1 / LATENCY_RATE - latency, 0))
        return latency

    async def at_rate(self, count: int, rate: float) -> list[float]:
        """So many, each at its time."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number in range(count):
                await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
                tasks.append(group.create_task(self.one(number)))
        return [task.result() for task in tasks]


def _latencies(seconds: list[float]) -> Figures:
    return {
        "latency_p50_ms": percentile(seconds, 50),
        "latency_p99_ms": percentile(seconds, 99),
    }


def _percentiles_line(label: str, figures: Figures, name: str) -> tuple[str, str]:
    p50, p99 = figures[f"{name}_p50_ms"], figures[f"{name}_p99_ms"]
    return label, f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
