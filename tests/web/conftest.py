"""An API over a store in memory, and a client that reaches it without a network."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from haulier.domain.retry import RetryPolicy
from haulier.ports import JobStore
from haulier.records import open_records
from haulier.records.database import Records
from haulier.runners.base import register_runner
from haulier.runners.media_uniq import MediaUniqTaskRunner
from haulier.runners.proxy_diagnostics import ProxyDiagnosticsTaskRunner
from haulier.services.context import Context
from haulier.services.jobs import JobManager
from haulier.services.outbound import Guard
from haulier.services.registry import Registry, define_task
from haulier.services.secrets import Sealer, Secret
from haulier.stores.sqlite import SqliteStore
from haulier.web.app import WebOptions, create_app
from haulier.web.live.options import LiveOptions
from haulier.worker.worker import Worker

PROBLEM = "application/problem+json"
GUARD = Guard(["127.0.0.0/8", "10.0.0.0/8"])


async def add(a: int, b: int) -> int:
    return a + b


async def linger() -> None:
    await asyncio.Event().wait()


async def fail(reason: str) -> None:
    raise ValueError(reason)


async def only_even(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


async def login(user: str, password: Secret) -> str:
    password.reveal()
    return user


async def report(ctx: Context) -> None:
    ctx.progress(40, "under way")
    await asyncio.Event().wait()


async def by_steps(ctx: Context) -> None:
    ctx.log("one ☕")
    await ctx.step("list", lambda: {"found": (1, "ü")})
    await ctx.step("nothing", lambda: None)
    ctx.log("two")


async def tell_end(batch_id: str, state: str, counts: dict[str, int]) -> str:
    return f"{batch_id} {state} {counts['total']}"


async def tell(value: Any) -> Any:
    return float("nan") if value == "nan" else value


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for function in (add, linger, fail, only_even, login, report, by_steps, tell, tell_end):
        registry.add(define_task(function, retry=RetryPolicy.never()))
    register_runner(registry, MediaUniqTaskRunner())
    register_runner(registry, ProxyDiagnosticsTaskRunner(GUARD))
    return registry


@pytest.fixture
async def store() -> AsyncIterator[JobStore]:
    async with SqliteStore(":memory:") as store:
        yield store


@pytest.fixture
def jobs(store: JobStore, registry: Registry) -> JobManager:
    return JobManager(store, registry, Sealer(lambda: b"k" * 32))


@pytest.fixture
def options(tmp_path: Path) -> WebOptions:
    media = tmp_path / "media"
    media.mkdir()
    Image.new("RGB", (64, 48), "#336699").save(media / "sea.png")
    (tmp_path / "output").mkdir()
    output = tmp_path / "output"
    return WebOptions(
        media_root=media, output_root=output, version="9.9", no_token=True, guard=GUARD
    )


@pytest.fixture
async def api(jobs: JobManager, options: WebOptions) -> AsyncIterator[FastAPI]:
    api = create_app(jobs=jobs, options=options)
    yield api
    # No server ends it: the client reaches it without one.
    await api.state.meter.close()


@pytest.fixture
def api_with(jobs, options):
    """The API with options of its streams."""
    return lambda **live: create_app(
        jobs=jobs, options=dataclasses.replace(options, live=LiveOptions(**live))
    )


@pytest.fixture
async def records() -> AsyncIterator[Records]:
    async with open_records("sqlite://") as records:
        yield records


@pytest.fixture
def serving(
    jobs: JobManager, options: WebOptions, records: Records
) -> Callable[..., AbstractAsyncContextManager[FastAPI]]:
    """An API with records, for as long as the block lasts; with other options if any are named."""

    @asynccontextmanager
    async def serve(**changes: Any) -> AsyncIterator[FastAPI]:
        api = create_app(
            jobs=jobs, options=dataclasses.replace(options, **changes), records=records
        )
        async with api.router.lifespan_context(api):
            yield api

    return serve


def client_of(api: FastAPI, **settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=api)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", **settings)


@pytest.fixture
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(api) as client:
        yield client


@pytest.fixture
def ask_with(jobs: JobManager) -> Callable[[WebOptions], AbstractAsyncContextManager[Any]]:
    """A client of an API over the same jobs with other options."""
    return lambda options: client_of(create_app(jobs=jobs, options=options))


@dataclass(frozen=True)
class Checks:
    """What tests say again and again about answers."""

    def problem(self, answer: httpx.Response, status: int) -> dict[str, Any]:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == PROBLEM
        assert answer.headers["x-request-id"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        body = answer.json()
        assert body["status"] == status
        assert body["type"] == "about:blank" or body["type"].startswith("urn:haulier:problem:")
        assert body["title"]
        return body

    def refused(self, answer: httpx.Response) -> list[tuple[str, int | None]]:
        """The fields and lines of a 422."""
        errors = self.problem(answer, 422)["errors"]
        assert all(error["reason"] for error in errors)
        return [(error["field"], error.get("line")) for error in errors]


@pytest.fixture
def check() -> Checks:
    return Checks()


@pytest.fixture
def working(jobs: JobManager) -> Callable[[], AbstractAsyncContextManager[Worker]]:
    """A worker beside a block; what still runs at the end of the block is given back."""

    @asynccontextmanager
    async def run() -> AsyncIterator[Worker]:
        worker = Worker(jobs)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.stop(now=True)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])

    return run
