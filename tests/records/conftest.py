"""Records to test against: a file, memory, a schema of PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import servers
from haulier.records import open_records
from haulier.records.database import Records

PLACES = ("file", "memory", "postgres")


@pytest.fixture
def schema() -> Iterator[Callable[[], str]]:
    """Makes URLs of schemas that are not there yet; they go with the test."""
    made: list[str] = []

    def make() -> str:
        with servers.or_skip():
            base = servers.server_url("postgres")
        made.append(f"records_{uuid.uuid4().hex[:12]}")
        return f"{base}?schema={made[-1]}"

    yield make
    if made:
        with psycopg.connect(servers.server_url("postgres"), autocommit=True) as db:
            for name in made:
                db.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Path, schema: Callable[[], str]) -> str:
    """Where there are no records yet."""
    if request.param == "postgres":
        return schema()
    return "sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/x.records.db"


@pytest.fixture(params=[place for place in PLACES if place != "memory"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path, schema: Callable[[], str]) -> str:
    """The same, for what needs several that are open at once."""
    return schema() if request.param == "postgres" else f"sqlite:///{tmp_path}/x.records.db"


@pytest.fixture
async def records(url: str) -> AsyncIterator[Records]:
    async with open_records(url) as opened:
        yield opened
