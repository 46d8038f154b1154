"""An app with a worker beside the test, over each kind of store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from haulier import App
from haulier.ports import JobStore
from support import StoreHome


@pytest.fixture
def ttl() -> float:
    """How long a worker lives without renewal."""
    return 15.0


@pytest.fixture
async def store(home: StoreHome, ttl: float) -> AsyncIterator[JobStore]:
    async with home.client(ttl=ttl, real_time=True) as opened:
        yield opened


@pytest.fixture
def app(store: JobStore, tmp_path: Path) -> App:
    """An app over the open store. Tasks are defined in the test, then `app.working()` runs them."""
    return App(store, secret_key_file=tmp_path / "secret.key")
