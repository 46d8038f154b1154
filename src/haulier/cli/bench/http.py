"""The HTTP API under load: a server and a generator of requests, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from haulier.cli.bench.generator import Shot, arguments_of, run_beside
from haulier.cli.bench.measure import Figures, all_settled
from haulier.cli.bench.processes import environment_of, make_app, workers
from haulier.domain.job import MICROSECOND

if TYPE_CHECKING:
    from haulier.app import App
    from haulier.cli.bench.command import Lines, Load

CONNECTIONS = 64
"""That post single jobs. Those that wait for the same commit share it."""

HOUR = 3600 * MICROSECOND
"""So long the token of a run is good."""

WATCHERS = 10
WATCH_EVERY = 0.05
FEED_EVERY = 0.05

_JOB = '{"kind": "nothing", "payload": {"number": 1}}'


class _Server(NamedTuple):
    """Where a server is, what it is asked with, and its process id."""

    port: int
    token: str
    pid: int


async def http(url: str, load: Load) -> tuple[Figures, Lines]:
    """Jobs posted one by one, jobs line by line, and status while a worker is half busy."""
    figures: Figures = {}
    environment = environment_of(url)
    async with _server(environment) as server:
        before = _memory(server.pid)
        posted = await run_beside(
            "shoot",
            **arguments_of(
                Shot(
                    port=server.port,
                    token=server.token,
                    method="POST",
                    path="/api/v1/jobs",
                    body=_JOB,
                    connections=CONNECTIONS,
                    seconds=load.seconds,
                )
            ),
        )
        streamed = await run_beside(
            "stream",
            port=server.port,
            path="/api/v1/jobs/stream",
            count=load.jobs,
            token=server.token,
        )
        figures["server_memory_grew_mb"] = round((_memory(server.pid) - before) / 1e6, 1)
        own = make_app(url)
        async with own:
            watched, peak = await _watched(own, server, environment, load)
    figures |= {
        "post_per_s": posted["per_s"],
        "post_p50_ms": posted["p50_ms"],
        "post_p99_ms": posted["p99_ms"],
        "ndjson_per_s": streamed["per_s"],
        "ndjson_taken": streamed["answer"]["taken"],
        "worker_peak_per_s": peak,
        "status_per_s": watched["per_s"],
        "status_p50_ms": watched["p50_ms"],
        "status_p99_ms": watched["p99_ms"],
        "refused": posted["refused"] + watched["refused"],
    }
    return figures, [
        (
            "POST, one by one",
            (
                f"{figures['post_per_s']:,} jobs/s on {CONNECTIONS} connections, "
                f"p50 {figures['post_p50_ms']:.1f} ms, p99 {figures['post_p99_ms']:.1f} ms"
            ),
        ),
        ("POST, line by line", f"{figures['ndjson_per_s']:,} jobs/s"),
        (
            "GET status",
            (
                f"p50 {figures['status_p50_ms']:.1f} ms, p99 {figures['status_p99_ms']:.1f} ms at "
                f"{figures['status_per_s']:,}/s, beside a worker at half of its "
                f"{figures['worker_peak_per_s']:,} jobs/s"
            ),
        ),
        ("server's memory", f"grew by {figures['server_memory_grew_mb']:.0f} MB"),
    ]


async def _watched(
    own: App, server: _Server, environment: dict[str, str], load: Load
) -> tuple[Figures, int]:
    """How fast status is told while a worker process runs at half its peak; and that peak."""
    async with workers(own, environment, replace(load, processes=1)):
        await all_settled(own)
        # What waits behind a paused queue is the peak's measure.
        await own.queues.pause("default")
        await own.enqueue_many("nothing", [{"number": number} for number in range(load.jobs)])
        began = time.perf_counter()
        await own.queues.resume("default")
        await all_settled(own)
        peak = load.jobs / (time.perf_counter() - began)
        job_id = await own.enqueue("nothing", {"number": 1})
        feeding = asyncio.create_task(_feed(own, peak / 2))
        try:
            watched = await run_beside(
                "shoot",
                **arguments_of(
                    Shot(
                        port=server.port,
                        token=server.token,
                        method="GET",
                        path=f"/api/v1/jobs/{job_id}/status",
                        connections=WATCHERS,
                        seconds=load.seconds,
                        pause=WATCH_EVERY,
                    )
                ),
            )
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding
        return watched, round(peak)


async def _feed(own: App, per_second: float) -> None:
    """Enqueue so many jobs a second until cancelled."""
    began, fed = time.perf_counter(), 0
    while True:
        due = int((time.perf_counter() - began) * per_second) - fed
        if due > 0:
            await own.enqueue_many("nothing", [{"number": number} for number in range(due)])
            fed += due
        await asyncio.sleep(FEED_EVERY)


@contextlib.asynccontextmanager
async def _server(environment: dict[str, str]) -> AsyncIterator[_Server]:
    """A server process without a worker, which asks for a token."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    try:
        port, token = (await child.stdout.readline()).decode().split()
        yield _Server(int(port), token, child.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


def _memory(pid: int) -> int:
    """The most bytes that a process has held so far; 0 where that is not told."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


async def serve(url: str) -> None:
    """What the server process does: on a free port, which it prints, until it is told to stop."""
    from haulier.cli.echo import http_server, listen
    from haulier.cli.recorded import this_user
    from haulier.cli.worker import stopped_by_signals
    from haulier.domain.access import Access
    from haulier.records import open_records
    from haulier.records.credentials import Credentials
    from haulier.web.app import WebOptions, create_app

    app = make_app(url)
    options = WebOptions(media_root=Path(), output_root=Path(), version="bench")
    with (
        tempfile.TemporaryDirectory(prefix="haulier-bench-") as folder,
        contextlib.closing(listen("127.0.0.1", 0)) as listener,
    ):
        async with open_records(f"sqlite:///{folder}/records.db") as records, app:
            _, minted = await Credentials(records).create_token(
                this_user(), "bench", Access.ADMIN, HOUR
            )
            server = http_server(create_app(jobs=app.jobs, options=options, records=records))
            print(listener.getsockname()[1], minted.text, flush=True)  # noqa: T201
            with stopped_by_signals(lambda _: setattr(server, "should_exit", True)):
                await server.serve(sockets=[listener])


if __name__ == "__main__":
    from haulier.cli.output import run_coroutine

    run_coroutine(serve(os.environ["HAULIER_STORE"]))
