"""Stores of their own on running PostgreSQL servers."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

import servers
from haulier.stores.postgres import PostgresStore


@pytest.fixture(params=["postgres", "postgres-wheel"])
def server(request: pytest.FixtureRequest) -> str:
    """The URL of a running server."""
    with servers.or_skip():
        return servers.server_url(request.param)


@pytest.fixture
def admin(server: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server, autocommit=True) as connection:
        yield connection


@pytest.fixture
def url(server: str, admin: psycopg.Connection) -> Iterator[str]:
    """The URL of a store that is not there yet."""
    schema = f"t_{secrets.token_hex(4)}"
    yield f"{server}?schema={schema}"
    admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    async with PostgresStore.from_url(url) as opened:
        yield opened
