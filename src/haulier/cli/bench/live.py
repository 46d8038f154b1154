"""What viewers who do not read cost those who do, and the server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from haulier.app import App
from haulier.cli.bench.measure import Figures, percentile, resident_memory
from haulier.cli.echo import http_server, listen
from haulier.services.ids import new_id

if TYPE_CHECKING:
    from haulier.cli.bench.command import Lines, Load

PROBES = 100
"""Single jobs a second whose event is waited for."""

BESIDE = 5
"""Jobs that are enqueued beside each of them."""

SMALL = 16 * 1024
"""Bytes of the system's buffers: else it would read megabytes for those who do not."""

FILL = 20_000
"""Events after which the buffers of those who do not read are full."""

CHUNK = 500

_JOB_ID = re.compile(rb'"job_id":"([^"]+)"')


async def live(url: str, load: Load) -> tuple[Figures, Lines]:
    """How late one viewer hears of a job: alone, and beside many who stopped reading."""
    app = App(url)

    @app.task
    async def noop(number: int) -> None:
        del number

    async with app, _serving(app, load.readers) as (port, viewers):
        alone = await _lateness(app, port, load.seconds / 2)
        async with contextlib.AsyncExitStack() as stack:
            began = time.perf_counter()
            for _ in range(load.readers):
                stack.enter_context(await _open(port))
            opened = time.perf_counter() - began
            for _ in range(FILL // CHUNK):
                await app.enqueue_many("noop", [{"number": 0}] * CHUNK)
            await _lateness(app, port, load.seconds / 10)
            before = resident_memory()
            beside = await _lateness(app, port, load.seconds / 2)
            after = resident_memory()
            held = viewers()
    figures: Figures = {
        "readers": load.readers,
        "readers_held": held,
        "opened_per_s": round(load.readers / opened),
        "alone_p50_ms": percentile(alone, 50),
        "alone_p99_ms": percentile(alone, 99),
        "beside_p50_ms": percentile(beside, 50),
        "beside_p99_ms": percentile(beside, 99),
        "events_meanwhile": len(beside) * (1 + BESIDE),
        "memory_before_mb": round(before / 1e6, 1),
        "memory_after_mb": round(after / 1e6, 1),
    }
    told = "p50 {0:.2f} ms, p99 {1:.2f} ms"
    memory = (
        "{memory_before_mb:.0f} MB -> {memory_after_mb:.0f} MB over {events_meanwhile:,} events"
    )
    return figures, [
        ("from enqueue to viewer", told.format(figures["alone_p50_ms"], figures["alone_p99_ms"])),
        (
            f"beside {load.readers:,} who stall",
            told.format(figures["beside_p50_ms"], figures["beside_p99_ms"]),
        ),
        ("memory meanwhile", memory.format_map(figures)),
    ]


@asynccontextmanager
async def _serving(app: App, readers: int) -> AsyncIterator[tuple[int, Callable[[], int]]]:
    """The HTTP API over an app's store; its port, and what tells how many streams are open."""
    from haulier.web.app import WebOptions, create_app
    from haulier.web.live.options import LiveOptions
    from haulier.web.live.socket import SOCKETS

    with tempfile.TemporaryDirectory(prefix="haulier-bench-") as folder:
        options = WebOptions(
            media_root=Path(folder),
            output_root=Path(folder),
            version="bench",
            no_token=True,
            live=LiveOptions(most=readers + 10, per_caller=readers + 10, gather=0),
        )
        api = create_app(jobs=app.jobs, options=options)
        with contextlib.closing(listen("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            server = http_server(api, ending=api.state.live.close, **SOCKETS)
            async with asyncio.TaskGroup() as group:
                group.create_task(server.serve(sockets=[listener]))
                try:
                    yield listener.getsockname()[1], lambda: api.state.live.viewers
                finally:
                    server.should_exit = True


async def _open(port: int) -> socket.socket:
    """Ask for a stream, and read no more than that it begins."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, _request(port, ""))
    if not (await loop.sock_recv(sock, 64)).startswith(b"HTTP/1.1 200 "):
        raise RuntimeError("the server refuses a stream")
    return sock


async def _lateness(app: App, port: int, seconds: float) -> list[float]:
    """How many seconds after each enqueue a viewer hears of it."""
    source, sink = await asyncio.open_connection("127.0.0.1", port)
    sink.write(_request(port, "?topics=jobs&queue=probes"))
    while b"event: snapshot" not in await source.readline():
        pass
    probes = _Probes()
    reading = asyncio.create_task(probes.read(source))
    ended = time.perf_counter() + seconds
    while time.perf_counter() < ended:
        due = time.perf_counter() + 1 / PROBES
        job_id = probes.sent()
        await app.enqueue("noop", {"number": 0}, queue="probes", job_id=job_id)
        await app.enqueue_many("noop", [{"number": 0}] * BESIDE)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    async with asyncio.timeout(60):
        await probes.all_heard.wait()
    reading.cancel()
    sink.close()
    return probes.late


class _Probes:
    """Jobs that a viewer should hear of, and how late it did."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.all_heard = asyncio.Event()
        self._sent: dict[bytes, float] = {}

    def sent(self) -> str:
        """The id of one that is about to be enqueued."""
        job_id = new_id()
        self._sent[job_id.encode()] = time.perf_counter()
        self.all_heard.clear()
        return job_id

    async def read(self, source: asyncio.StreamReader) -> None:
        """Hear of them."""
        rest = b""
        while piece := await source.read(1 << 16):
            now = time.perf_counter()
            whole, _, rest = (rest + piece).rpartition(b"\n")
            for job_id in _JOB_ID.findall(whole):
                if (began := self._sent.pop(job_id, None)) is not None:
                    self.late.append(now - began)
            if not self._sent:
                self.all_heard.set()


def _request(port: int, query: str) -> bytes:
    head = f"GET /api/v1/events/stream{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    return head.encode()
