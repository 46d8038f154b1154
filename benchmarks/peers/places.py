"""Where the jobs live: servers of this run alone, with the same durability for everyone."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import redis

from table import ROOT

sys.path.insert(0, str(ROOT / "tests"))

import servers

DURABILITY = {
    "sqlite": "haulier: WAL, synchronous=FULL; Huey: WAL, fsync=True (synchronous=FULL)",
    "postgres": "fsync=on, full_page_writes=on, synchronous_commit=on",
    "redis": "appendonly=yes, appendfsync=everysec",
}

POSTGRES = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # No checkpoint in the middle of a run; one is made before each.
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "512MB",
}
REDIS = {
    # The file is rewritten between runs, not in the middle of one.
    "auto-aof-rewrite-percentage": "0",
}


class Places:
    """The servers of a run; `fresh` empties one before each measurement."""

    def __init__(self, needed: set[str]) -> None:
        self._needed = needed
        self._servers: dict[str, servers.Server] = {}
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        try:
            if "postgres" in self._needed:
                self._start(
                    servers.PostgresServer("postgres", servers.machine_postgres(), **POSTGRES)
                )
            if "redis" in self._needed:
                self._start(servers.RedisServer("redis", servers.machine_redis(), **REDIS))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self, server: servers.Server) -> None:
        self._servers[server.name] = server
        server.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for server in self._servers.values():
            server.stop()
        self._remove_folder()

    def fresh(self, server: str) -> str:
        """An empty place of this kind; what an adapter finds in PEER_SERVER."""
        if server == "sqlite":
            self._remove_folder()
            self._folder = Path(tempfile.mkdtemp(prefix="peers-"))
            return str(self._folder)
        url = self._servers[server].url
        return _empty_postgres(url) if server == "postgres" else _empty_redis(url)

    def processor_time(self, server: str) -> float:
        """Seconds of processor time that a server's processes have taken, those that ended too."""
        if server not in self._servers:
            return 0.0
        # A client's process at PostgreSQL ends a moment after the client.
        time.sleep(0.3)
        return _group_time(self._servers[server].pid)

    def versions(self) -> dict[str, str]:
        """The versions of the servers that run."""
        found = {}
        if "postgres" in self._servers:
            with psycopg.connect(self._servers["postgres"].url) as connection:
                found["PostgreSQL"] = connection.info.parameter_status("server_version") or ""
        if "redis" in self._servers:
            with redis.Redis.from_url(self._servers["redis"].url) as client:
                found["Redis"] = str(client.info("server")["redis_version"])
        return found

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _group_time(leader: int) -> float:
    """That of a process and its children, with those it has waited for; proc(5)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if stat.parent.name == str(leader):
            ticks += sum(map(int, fields[11:15]))
        elif fields[1] == str(leader):
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _empty_postgres(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS peers WITH (FORCE)")
        connection.execute("CREATE DATABASE peers")
        connection.execute("CHECKPOINT")
    return url.rpartition("/")[0] + "/peers"


def _empty_redis(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.function_flush()
        client.config_resetstat()
        client.bgrewriteaof()
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.02)
    return url
