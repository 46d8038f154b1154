"""Redis and Valkey for tests of what only they have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

import servers
from support import RedisPrefix

BOTH = ["redis", "valkey"]


@pytest.fixture(params=BOTH)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> RedisPrefix:
    with servers.or_skip():
        return RedisPrefix(request.param, tmp_path)


@pytest.fixture
def client(home: RedisPrefix) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(home.server, decode_responses=True) as opened:
        yield opened


@pytest.fixture(params=BOTH)
def server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """One for the test alone."""
    with servers.or_skip(), servers.private(request.param) as started:
        yield started
