"""Nothing waits longer for Redis than it may: renewals, and questions to Sentinels."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import servers
from haulier.exceptions import StoreUnavailableError
from haulier.stores.redis import RedisStore
from support import Hand, wait_until, work


@pytest.fixture
def server() -> Iterator[servers.Server]:
    with servers.or_skip(), servers.private("redis") as started:
        yield started


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where calls are taken, but nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def sentinel(server, tmp_path: Path) -> Iterator[int]:
    """A Sentinel that watches the server."""
    port = servers.free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nsentinel monitor main 127.0.0.1 {server.port} 1\n")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [servers.machine_redis(), config, "--sentinel"], stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        yield port
    finally:
        process.kill()
        process.wait(10)


async def test_a_renewal_that_gets_no_answer_ends_long_before_its_ttl(server):
    async with RedisStore(server.url, ttl=5) as store:
        hand = await Hand.enlist(store)
        heartbeat = store.heartbeat(hand.id)
        assert heartbeat.renew().alive
        server.pause()
        try:
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                await asyncio.to_thread(heartbeat.renew)
            assert time.monotonic() - began < 2.5
        finally:
            server.unpause()
            heartbeat.close()


async def test_a_dead_sentinel_does_not_keep_callers_from_the_next(server, sentinel, silent):
    url = f"redis+sentinel://127.0.0.1:{silent},127.0.0.1:{sentinel}/main/0"
    probe = RedisStore(f"redis+sentinel://127.0.0.1:{sentinel}/main/0")

    async def found() -> bool:
        try:
            async with probe:
                return True
        except StoreUnavailableError:
            return False

    await wait_until(found)
    store = RedisStore(url, ttl=15, deadline=6)
    async with store:
        await store.insert([work()])
        hand = await Hand.enlist(store)
        heartbeat = store.heartbeat(hand.id)
        began = time.monotonic()
        assert (await asyncio.to_thread(heartbeat.renew)).alive
        heartbeat.close()
        assert time.monotonic() - began < 5
