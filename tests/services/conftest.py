"""A job manager over a real store, and an app over one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from haulier import App
from haulier.ports import JobStore
from haulier.services.jobs import JobManager
from haulier.services.registry import Registry
from haulier.services.secrets import Sealer


@pytest.fixture
def manager(store: JobStore) -> JobManager:
    return JobManager(store, Registry(), Sealer(lambda: bytes(32)))


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with App("sqlite://", secret_key_file=tmp_path / "secret.key") as opened:
        yield opened
