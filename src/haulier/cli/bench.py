"""`haulier bench`: what one process does on a store, measured with jobs that do nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.output import command_body, emit_fields, emit_json, json_option

if TYPE_CHECKING:
    from haulier.app import App

FSYNCS = 200
PAGE = 4096
LATENCY_RATE = 100


@click.command()
@click.option("--jobs", default=100_000, show_default=True, type=click.IntRange(100, 10_000_000))
@click.option(
    "--singles",
    default=300,
    show_default=True,
    type=click.IntRange(10, 100_000),
    help="Jobs whose latency is measured, one by one.",
)
@click.option("--concurrency", default=1000, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--store", help="A store of its own for the run.  [default: a new SQLite file]")
@json_option
@command_body
async def bench(
    jobs: int, singles: int, concurrency: int, store: str | None, as_json: bool
) -> None:
    """Measure one process: no-op jobs enqueued and run, and the latency of single ones.

    A benchmark, not a test: run it on a quiet machine, several times, and compare ratios.
    """
    with _own_store(store) as (url, folder):
        figures = {
            "store": url,
            "python": sys.version.split()[0],
            "cores": os.cpu_count(),
            "jobs": jobs,
            "concurrency": concurrency,
            **_fsync(folder),
            **await _measure(url, jobs, singles, concurrency),
        }
    figures["latency_p50_beyond_fsync_ms"] = round(
        figures["latency_p50_ms"] - figures["fsync_p50_ms"], 3
    )
    figures["peak_memory_mb"] = round(_peak_memory() / 1e6, 1)
    if as_json:
        emit_json(figures)
    else:
        emit_fields(_readable(figures))


@contextlib.contextmanager
def _own_store(url: str | None) -> Iterator[tuple[str, Path]]:
    if url is not None:
        yield url, Path.cwd()
        return
    with tempfile.TemporaryDirectory(prefix="haulier-bench-") as folder:
        yield f"sqlite:///{folder}/bench.db", Path(folder)


async def _measure(url: str, jobs: int, singles: int, concurrency: int) -> dict[str, Any]:
    from haulier.app import App
    from haulier.worker.lanes import WorkerOptions

    app = App(url)
    done = _Countdown(jobs)
    started: dict[int, asyncio.Future[float]] = {}

    @app.task
    async def noop(number: int) -> None:
        del number
        done.one()

    @app.task
    async def stamp(number: int) -> None:
        started[number].set_result(time.perf_counter())

    async with app:
        began = time.perf_counter()
        await app.enqueue_many(noop, ({"number": number} for number in range(jobs)))
        enqueued = time.perf_counter()
        async with app.working(WorkerOptions(concurrency=concurrency)):
            await done.wait()
            await _all_settled(app)
            finished = time.perf_counter()
            latencies = [await _latency(app, number, started) for number in range(singles)]
    return {
        "enqueue_per_s": round(jobs / (enqueued - began)),
        "run_per_s": round(jobs / (finished - enqueued)),
        "latency_p50_ms": _percentile(latencies, 50),
        "latency_p99_ms": _percentile(latencies, 99),
    }


class _Countdown:
    """Set when so many jobs have run."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._event = asyncio.Event()

    def one(self) -> None:
        self._left -= 1
        if not self._left:
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


async def _all_settled(app: App) -> None:
    """Wait until the store has every finish: only then is the work really done."""
    changed = asyncio.Event()
    with app.store.watch(changed.set, settled=True):
        while True:
            changed.clear()
            counts = await app.store.counts()
            if not any(n for (*_, state), n in counts.items() if not state.final):
                return
            await changed.wait()


async def _latency(app: App, number: int, started: dict[int, asyncio.Future[float]]) -> float:
    """Seconds from the call of enqueue to the first line of the task, the worker being idle."""
    started[number] = asyncio.get_running_loop().create_future()
    asked = time.perf_counter()
    await app.enqueue("stamp", {"number": number})
    latency = await started[number] - asked
    await asyncio.sleep(max(1 / LATENCY_RATE - latency, 0))
    return latency


def _fsync(folder: Path) -> dict[str, float]:
    """What the disk itself takes to make one page durable."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            file.write(b"\0" * PAGE)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return {"fsync_p50_ms": _percentile(times, 50), "fsync_p99_ms": _percentile(times, 99)}


def _percentile(seconds: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile, in milliseconds."""
    ordered = sorted(seconds)
    rank = max(0, -(-len(ordered) * percent // 100) - 1)
    return round(ordered[int(rank)] * 1000, 3)


def _peak_memory() -> int:
    """The most bytes this process has held; producer and worker are both in it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _readable(figures: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("store", f"{figures['store']}  (synchronous=FULL)"),
        ("machine", f"{figures['cores']} cores, Python {figures['python']}"),
        ("enqueue", f"{figures['enqueue_per_s']:,} jobs/s"),
        ("run", f"{figures['run_per_s']:,} jobs/s"),
        (
            "enqueue to start",
            f"p50 {figures['latency_p50_ms']:.2f} ms, p99 {figures['latency_p99_ms']:.2f} ms",
        ),
        (
            "disk's own fsync",
            f"p50 {figures['fsync_p50_ms']:.2f} ms, p99 {figures['fsync_p99_ms']:.2f} ms",
        ),
        ("beyond the fsync", f"p50 {figures['latency_p50_beyond_fsync_ms']:.2f} ms"),
        ("peak memory", f"{figures['peak_memory_mb']:.0f} MB"),
    ]
