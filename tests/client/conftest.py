"""A real server over a store in memory, and both clients behind one face."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from haulier.cli.echo import http_server
from haulier.client import AsyncClient, Client
from haulier.domain.retry import RetryPolicy
from haulier.records import open_records
from haulier.runners.base import register_runner
from haulier.runners.proxy_diagnostics import ProxyDiagnosticsTaskRunner
from haulier.services.context import Context
from haulier.services.jobs import JobManager
from haulier.services.registry import Registry, define_task
from haulier.services.secrets import Sealer
from haulier.stores.sqlite import SqliteStore
from haulier.web.app import WebOptions, create_app
from haulier.worker.worker import Worker
from support import wait_until


async def add(a: int, b: int) -> int:
    return a + b


async def fail(reason: str) -> None:
    raise ValueError(reason)


async def by_steps(ctx: Context) -> str:
    ctx.log("one ☕")
    await ctx.step("list", lambda: {"found": 3})
    return "done"


@dataclass
class Faults:
    """What stands between the server and who asks it: answers instead of its own."""

    inner: Any
    instead: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)

    def say(self, status: int, body: Any = None, **headers: str) -> None:
        """The next request is answered like this, and goes no further."""
        content = b"" if body is None else json.dumps(body).encode()
        kind = {"content-type": "application/problem+json"} if body is not None else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.instead.append((status, kind | named, content))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            self.seen.append(headers | {":path": scope["raw_path"].decode()})
            if self.instead:
                status, headers, body = self.instead.pop(0)
                pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
                await send({"type": "http.response.start", "status": status, "headers": pairs})
                await send({"type": "http.response.body", "body": body})
                return
        await self.inner(scope, receive, send)


@dataclass
class Wire:
    """A connection to the server that can break once the server has answered."""

    port: int
    losing: int = 0
    lost: int = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server, from_client = await asyncio.open_connection("127.0.0.1", self.port)

        async def up() -> None:
            while data := await reader.read(65536):
                from_client.write(data)

        task = asyncio.create_task(up())
        try:
            while data := await to_server.read(65536):
                if self.losing:
                    self.losing -= 1
                    self.lost += 1
                    break
                writer.write(data)
        finally:
            task.cancel()
            for each in (writer, from_client):
                each.close()
            await asyncio.gather(task, return_exceptions=True)


@dataclass
class Serving:
    """The server, and how it is reached."""

    url: str
    lossy_url: str
    jobs: JobManager
    faults: Faults
    wire: Wire
    api: FastAPI


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for function in (add, fail, by_steps):
        registry.add(define_task(function, retry=RetryPolicy.never()))
    register_runner(registry, ProxyDiagnosticsTaskRunner())
    return registry


@pytest.fixture
async def records():
    async with open_records("sqlite://") as records:
        yield records


@pytest.fixture
async def server(registry, records, tmp_path: Path) -> AsyncIterator[Serving]:
    async with SqliteStore(":memory:") as store:
        jobs = JobManager(store, registry, Sealer(lambda: b"k" * 32))
        options = WebOptions(
            media_root=tmp_path, output_root=tmp_path, version="9.9", no_token=True
        )
        api = create_app(jobs=jobs, options=options, records=records)
        async with _served(api, jobs) as serving:
            yield serving


@asynccontextmanager
async def _served(api: FastAPI, jobs: JobManager) -> AsyncIterator[Serving]:
    faults = Faults(api)
    server = http_server(faults, ending=api.state.live.close)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            await wait_until(lambda: server.started)
            wire = Wire(port)
            lossy = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
            lossy_port = lossy.sockets[0].getsockname()[1]
            try:
                yield Serving(
                    f"http://127.0.0.1:{port}",
                    f"http://127.0.0.1:{lossy_port}",
                    *(jobs, faults, wire, api),
                )
            finally:
                lossy.close()
                server.should_exit = True


class Face:
    """One of the clients: each thing is asked of both in the same words, and lists are lists."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.ask(name, *args, **kwargs)

    async def ask(self, name: str, *args: Any, first: int | None = None, **kwargs: Any) -> Any:
        """What a method answers; of a list the `first` so many."""
        method = getattr(self.client, name)
        if isinstance(self.client, Client):
            return await asyncio.to_thread(lambda: _whole(method(*args, **kwargs), first))
        answer = method(*args, **kwargs)
        if inspect.isawaitable(answer):
            return await answer
        found = []
        async with contextlib.aclosing(answer):
            async for each in answer:
                found.append(each)
                if len(found) == first:
                    break
        return found

    async def close(self) -> None:
        if isinstance(self.client, Client):
            self.client.close()
        else:
            await self.client.close()


def _whole(answer: Any, first: int | None) -> Any:
    if not isinstance(answer, Iterator):
        return answer
    with contextlib.closing(answer):
        return list(islice(answer, first))


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
async def connect(request):
    """Makes clients of both kinds, and closes them."""
    made: list[Face] = []

    def make(url: str, **options: Any) -> Face:
        made.append(Face(request.param(url, **options)))
        return made[-1]

    yield make
    for face in made:
        await face.close()


@pytest.fixture
def client(connect, server) -> Face:
    return connect(server.url)


@pytest.fixture
def working(server):
    """A worker beside a block."""

    @asynccontextmanager
    async def run() -> AsyncIterator[Worker]:
        worker = Worker(server.jobs)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.stop(now=True)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])

    return run
