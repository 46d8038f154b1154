"""The stores that are put under trouble: each is a row of `STORES`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import servers


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the stores of one test lie: below a folder, or on a server that the test may kill."""

    kind: str
    folder: Path
    server: servers.Server | None = None

    def url(self, name: str, port: int | None = None) -> str:
        """An empty store; with a `port` that of the same one behind a proxy."""
        return STORES[self.kind].place(self, name, port)


@dataclass(frozen=True, slots=True)
class Kind:
    """make: the server, if there is one. place: the URL of the store of that name."""

    place: Callable[[Ground, str, int | None], str]
    make: Callable[[], servers.Server] | None = None


def _file(ground: Ground, name: str, port: int | None) -> str:
    assert port is None
    return f"sqlite:///{ground.folder}/{name}.db"


def _prefix(ground: Ground, name: str, port: int | None) -> str:
    return f"redis://127.0.0.1:{port or _port(ground)}/0?prefix={name}:"


def _schema(ground: Ground, name: str, port: int | None) -> str:
    schema = name.replace("-", "_")
    return f"postgresql://haulier@127.0.0.1:{port or _port(ground)}/postgres?schema={schema}"


def _port(ground: Ground) -> int:
    assert ground.server is not None
    return ground.server.port


def _postgres() -> servers.Server:
    return servers.PostgresServer("postgres", servers.any_postgres())


def _redis() -> servers.Server:
    # What was answered is on the disk: only so a server that is killed loses nothing for sure.
    return servers.RedisServer("redis", servers.any_redis(), appendfsync="always")


STORES: dict[str, Kind] = {
    "sqlite": Kind(_file),
    "postgres": Kind(_schema, _postgres),
    "redis": Kind(_prefix, _redis),
}

WITH_SERVER = [name for name, kind in STORES.items() if kind.make is not None]


@contextlib.contextmanager
def ground(kind: str, folder: Path) -> Iterator[Ground]:
    """A store's ground for one test; its server, if it has one, ends with it."""
    make = STORES[kind].make
    if make is None:
        yield Ground(kind, folder)
        return
    with servers.or_skip():
        server = make()
    try:
        server.start()
        yield Ground(kind, folder, server)
    finally:
        server.stop()
