"""Callers that wait less long than the store would, as those of the HTTP API do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

import servers
from haulier.exceptions import StoreUnavailableError
from haulier.services.deadlines import at_most
from haulier.stores import open_store
from support import work

SHORT = 0.4
SOON = 1.0
"""Seconds within which such a caller has its error, on a machine that has other things to do."""


@dataclass
class Stuck:
    """A store's URL, and what keeps it from answering for the length of a block."""

    url: str
    standstill: Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def sqlite_file(folder: Path) -> Iterator[Stuck]:
    path = folder / "jobs.db"

    @contextlib.contextmanager
    def locked() -> Iterator[None]:
        with contextlib.closing(apsw.Connection(str(path))) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    yield Stuck(f"sqlite:///{path}", locked)


def server(name: str) -> Callable[[Path], AbstractContextManager[Stuck]]:
    @contextlib.contextmanager
    def make(folder: Path) -> Iterator[Stuck]:
        with servers.private(name) as private:

            @contextlib.contextmanager
            def paused() -> Iterator[None]:
                private.pause()
                try:
                    yield
                finally:
                    private.unpause()

            yield Stuck(private.url, paused)

    return make


STUCK = {"sqlite-file": sqlite_file, "redis": server("redis"), "postgres": server("postgres")}


@pytest.fixture(params=STUCK)
def stuck(request, tmp_path) -> Iterator[Stuck]:
    with servers.or_skip(), STUCK[request.param](tmp_path) as made:
        yield made


async def test_a_caller_that_cannot_wait_gets_its_error_and_the_others_go_on_waiting(stuck):
    async with open_store(stuck.url) as store:
        await store.insert([work()])
        with stuck.standstill():
            patient = asyncio.create_task(store.insert([work()]))
            await asyncio.sleep(0)
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(StoreUnavailableError, match=r"within 0\.4 s"), at_most(SHORT):
                    await store.insert([work()])
                assert time.monotonic() - began < SOON
            assert not patient.done()
        assert (await patient).new == 1


async def test_connections_that_it_opened_keep_the_deadline_of_the_store():
    with servers.or_skip():
        url = servers.server_url("postgres")
    async with open_store(f"{url}?pool=1") as store:
        store._pool._drop_idle()
        with at_most(SHORT):
            await store.counts()
        (told,) = await store._pool.run(lambda db: db.fetchrow("SHOW statement_timeout"))
    assert told == "15s"
