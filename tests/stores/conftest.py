"""Here the time of stores stands still until a test moves it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from haulier.ports import JobStore
from support import TTL, Hand, StoreHome, StoreTime

pytest.register_assert_rewrite("conformance")


@pytest.fixture
def ttl() -> float:
    """How long a worker lives without renewal; a theme that lets hours pass makes it longer."""
    return TTL


@pytest.fixture
async def store(home: StoreHome, ttl: float) -> AsyncIterator[JobStore]:
    async with home.client(ttl=ttl) as opened:
        yield opened


@pytest.fixture
def clock(home: StoreHome) -> StoreTime:
    return home.clock


@pytest.fixture
async def hand(store: JobStore) -> Hand:
    return await Hand.enlist(store)


@pytest.fixture
def other_home(home: StoreHome) -> StoreHome:
    """Where a second store of the same kind lives."""
    return home.beside("other")


@pytest.fixture
async def other(other_home: StoreHome, ttl: float) -> AsyncIterator[JobStore]:
    """A second, empty store of the same kind."""
    async with other_home.client(ttl=ttl) as opened:
        yield opened


@pytest.fixture
async def third(home: StoreHome, ttl: float) -> AsyncIterator[JobStore]:
    """One more."""
    async with home.beside("third").client(ttl=ttl) as opened:
        yield opened
