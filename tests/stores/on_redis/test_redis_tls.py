"""Servers and Sentinels that are spoken to by TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trustme

import servers
from haulier.exceptions import StoreUnavailableError
from haulier.stores import open_store
from haulier.stores.redis import RedisStore
from support import Hand, works


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Path:
    """The file of what our side trusts."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def certified(authority: trustme.CA, trusted: Path, tmp_path: Path) -> dict[str, str]:
    """Settings of a server whose name is certified; its port for TLS is yet to be told."""
    certificate = authority.issue_cert("127.0.0.1")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(key)
    certificate.cert_chain_pems[0].write_to_path(chain)
    return {
        "tls-cert-file": str(chain),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(trusted),
        "tls-auth-clients": "no",
    }


@pytest.fixture
def tls_port(certified: dict[str, str]) -> Iterator[int]:
    """Where a Redis speaks TLS."""
    with servers.or_skip():
        binary = servers.machine_redis()
    port = servers.free_port()
    made = servers.RedisServer("redis", binary, **certified, **{"tls-port": str(port)})
    try:
        made.start()
        yield port
    finally:
        made.stop()


class Sentinel(servers.Server):
    """Watches one primary by TLS; speaks TLS itself, or clear text."""

    def __init__(self, primary: int, certified: dict[str, str], *, tls: bool) -> None:
        super().__init__("sentinel")
        self.tls = tls
        self.url = f"rediss+sentinel://127.0.0.1:{self.port}/main/0"
        ports = {"port": 0, "tls-port": self.port} if tls else {"port": self.port}
        settings = {"bind": "127.0.0.1", "tls-replication": "yes", **ports, **certified}
        lines = [f"{name} {value}" for name, value in settings.items()]
        self.config = self.folder / "sentinel.conf"
        self.config.write_text(
            "\n".join([*lines, f"sentinel monitor main 127.0.0.1 {primary} 1", ""])
        )

    def _command(self) -> list[str]:
        return [str(servers.machine_redis()), str(self.config), "--sentinel"]

    def _answers(self) -> bool:
        secured = {"ssl": True, "ssl_cert_reqs": "none"} if self.tls else {}
        with redis.Redis(port=self.port, socket_timeout=2, **secured) as control:
            try:
                (main,) = control.sentinel_masters().values()
                return not main["is_sdown"]
            except redis.RedisError:
                return False


async def works_off(url: str) -> None:
    """A store at this URL serves producers, workers, watchers and heartbeats."""
    async with open_store(url) as store:
        hand = await Hand.enlist(store)
        told = asyncio.Event()
        with store.watch(told.set, ready=True):
            await store.insert(works(2))
            assert await hand.work_off() == 2
        assert hand.renew().alive


async def test_the_store_and_heartbeats_speak_it(tls_port, trusted):
    url = f"rediss://127.0.0.1:{tls_port}/0"
    await works_off(f"{url}?ssl_ca_certs={trusted}")
    with pytest.raises(StoreUnavailableError, match=r"TLS|certificate"):
        await RedisStore(url).__aenter__()


class TestSentinel:
    @pytest.fixture(params=[True, False], ids=["tls", "clear"])
    def sentinel(self, request, tls_port, certified) -> Iterator[Sentinel]:
        made = Sentinel(tls_port, certified, tls=request.param)
        try:
            made.start()
            yield made
        finally:
            made.stop()

    async def test_it_is_asked_by_tls_unless_the_url_says_otherwise(self, sentinel, trusted):
        url = f"{sentinel.url}?ssl_ca_certs={trusted}"
        right, wrong = url, f"{url}&sentinel_tls=no"
        if not sentinel.tls:
            right, wrong = wrong, right
        await works_off(right)
        with pytest.raises(StoreUnavailableError, match="main"):
            await RedisStore(wrong, deadline=5).__aenter__()

    async def test_one_that_nobody_vouches_for_is_not_believed(self, sentinel):
        with pytest.raises(StoreUnavailableError, match="main"):
            await RedisStore(sentinel.url, deadline=5).__aenter__()
