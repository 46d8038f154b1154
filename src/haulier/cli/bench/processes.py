"""What several processes do on one store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from haulier.app import App
from haulier.cli.bench.measure import Figures, all_settled
from haulier.exceptions import ConfigurationError, HaulierError
from haulier.worker.lanes import WorkerOptions

if TYPE_CHECKING:
    from haulier.cli.bench.command import Lines, Load

LOOK_EVERY = 0.05
COUNT_EVERY = 20
START_PATIENCE = 60.0


def make_app(url: str = "sqlite://") -> App:
    """An app whose task does nothing, the same in every process."""
    app = App(url)

    @app.task
    async def nothing(number: int) -> None:
        del number

    return app


app = make_app()
"""What the further worker processes are pointed at; their environment names the store."""


async def end_to_end(url: str, load: Load) -> tuple[Figures, Lines]:
    """Jobs enqueued and run at the same time, by this process alone and with further workers."""
    environment = environment_of(url)
    own = make_app(url)
    async with own:
        alone = await _rate(own, load)
        async with workers(own, environment, load):
            together = await _rate(own, load)
    figures: Figures = {
        "more_processes": load.processes,
        "alone_per_s": round(alone),
        "together_per_s": round(together),
        "processes_ratio": round(together / alone, 3),
    }
    return figures, [
        ("enqueue and run, alone", f"{figures['alone_per_s']:,} jobs/s"),
        (
            f"with {load.processes} more",
            f"{figures['together_per_s']:,} jobs/s, {figures['processes_ratio']:.2f} times",
        ),
    ]


def environment_of(url: str) -> dict[str, str]:
    """What tells other processes the store: unlike an argument, nobody else can read it."""
    if url == "sqlite://":
        raise ConfigurationError("a store in memory cannot be shared with another process")
    return os.environ | {"HAULIER_STORE": url, "HAULIER_LOG_LEVEL": "error"}


async def _rate(own: App, load: Load) -> float:
    began = time.perf_counter()
    async with own.working(WorkerOptions(concurrency=load.concurrency)):
        await own.enqueue_many("nothing", ({"number": number} for number in range(load.jobs)))
        await all_settled(own)
        return load.jobs / (time.perf_counter() - began)


@contextlib.asynccontextmanager
async def workers(own: App, environment: dict[str, str], load: Load) -> AsyncIterator[None]:
    """Further worker processes, running when the block begins."""
    arguments = ("worker", f"{__name__}:app", "--concurrency", str(load.concurrency))
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "haulier", *arguments, env=environment
        )
        for _ in range(load.processes)
    ]
    try:
        async with asyncio.timeout(START_PATIENCE):
            # Of workers that come nothing tells, as nobody waits for one but a benchmark.
            while sum(row.alive for row in await own.store.workers()) < load.processes:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY)
        yield
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            await child.wait()


async def writers(url: str, load: Load) -> tuple[Figures, Lines]:
    """Several processes that only enqueue and count: no call may find the store locked."""
    environment = environment_of(url)
    async with make_app(url):
        children = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                __name__,
                str(load.seconds),
                stdout=asyncio.subprocess.PIPE,
                env=environment,
            )
            for _ in range(load.writers)
        ]
        answers = [json.loads((await child.communicate())[0]) for child in children]
    figures: Figures = {"writers": load.writers, "seconds": load.seconds} | {
        name: sum(answer[name] for answer in answers) for name in ("enqueued", "counted", "errors")
    }
    figures["slowest_ms"] = max(answer["slowest_ms"] for answer in answers)
    figures["enqueued_per_s"] = round(figures["enqueued"] / load.seconds)
    return figures, [
        (
            f"{load.writers} writers",
            f"{figures['enqueued']:,} jobs one by one, {figures['enqueued_per_s']:,} a second",
        ),
        ("slowest call", f"{figures['slowest_ms']:.1f} ms"),
        ("store unavailable", f"{figures['errors']} times"),
    ]


async def write_for(url: str, seconds: float) -> Figures:
    """What one of the writers does."""
    figures: Figures = {"enqueued": 0, "counted": 0, "errors": 0}
    slowest = 0.0
    async with make_app(url) as own:
        until = time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            try:
                await own.enqueue("nothing", {"number": 1})
                figures["enqueued"] += 1
                if figures["enqueued"] % COUNT_EVERY == 0:
                    await own.store.counts()
                    figures["counted"] += 1
            except HaulierError:
                figures["errors"] += 1
            slowest = max(slowest, time.monotonic() - began)
    return figures | {"slowest_ms": round(slowest * 1000, 1)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(write_for(os.environ["HAULIER_STORE"], float(sys.argv[1])))))  # noqa: T201
