"""Stores to test against, and the watch over what a test leaves behind."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import processes
import servers
from haulier.ports import JobStore
from haulier.testing import FakeClock
from support import STORE_HOMES, RedisPrefix, StoreHome

# The same examples in every run: a failure can be repeated by anyone who runs the suite.
settings.register_profile("haulier", derandomize=True, database=None, deadline=None)
settings.load_profile("haulier")

BLOCKS = 10

PATIENCE = 5.0
"""Seconds that a thread which is ending may still take."""

MEMORY = Path("/dev/shm")
"""A file system in memory, where Linux has one."""

ROOM = 2 * 1024**3
"""Bytes that have to be free there; containers often have 64 MiB."""


def pytest_configure(config: pytest.Config) -> None:
    """A shell that runs tests in the background has them ignore Ctrl-C, and what they start too."""
    processes.NEW = config.getoption("new_processes")
    _stay_in_memory()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stay_in_memory() -> None:
    """Put the folders of tests where nothing waits for a disk.

    What a killed process has written is there for others with or without a disk; a power cut,
    which alone makes the difference, no test can cause. PYTEST_DEBUG_TEMPROOT names another place.
    """
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model-examples", type=int, default=80, help="histories of a store's model")
    parser.addoption("--seeds", type=int, default=1000, help="how many histories are simulated")
    parser.addoption(
        "--servers",
        choices=("one", "others", "all"),
        default="one",
        help="run on one PostgreSQL and one Redis, on the other versions of them, or on all",
    )
    parser.addoption("--seed", type=int, help="draw this one history again")
    parser.addoption(
        "--new-processes", action="store_true", help="each command starts Python anew: slower"
    )
    parser.addoption("--schema-seed", type=int, default=1, help="draw other requests to the API")
    parser.addoption(
        "--schema-examples", type=int, default=1, help="requests to the API, per route and phase"
    )
    parser.addoption("--faults-long", action="store_true", help="the long runs of tests/faults")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Several blocks of seeds, so that a long run shows how far it is."""
    if "seeds" not in metafunc.fixturenames:
        return
    one, many = metafunc.config.getoption("seed"), metafunc.config.getoption("seeds")
    size = -(-many // BLOCKS)
    blocks = [range(start, min(start + size, many)) for start in range(0, many, size)]
    if one is not None:
        blocks = [range(one, one + 1)]
    metafunc.parametrize("seeds", blocks, ids=lambda block: f"{block.start}-{block.stop - 1}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs on versions of servers that were not asked for."""
    wanted = config.getoption("servers")
    if wanted == "all":
        return
    others = servers.second_versions()
    kept, left_out = [], []
    for item in items:
        call = getattr(item, "callspec", None)
        named = {value for value in call.params.values() if isinstance(value, str)} if call else {}
        (kept if (wanted == "others") == bool(others & set(named)) else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(params=STORE_HOMES)
def home_kind(request: pytest.FixtureRequest) -> Callable[[Path], StoreHome]:
    """Makes homes for stores, once per kind of store."""
    return STORE_HOMES[request.param]


@pytest.fixture(autouse=True)
def no_stray_keys() -> Iterator[None]:
    """Fail a test that leaves keys in Redis which the key map does not know, or orphans."""
    yield
    RedisPrefix.check_all()


@pytest.fixture
def home(home_kind: Callable[[Path], StoreHome], tmp_path: Path) -> StoreHome:
    """Where this test's jobs live."""
    with servers.or_skip():
        return home_kind(tmp_path)


def pytest_sessionfinish() -> None:
    processes.close()
    servers.stop_all()


@pytest.fixture
async def store(home: StoreHome) -> AsyncIterator[JobStore]:
    """An open store in real time. (Below tests/stores its time stands still.)"""
    async with home.client(real_time=True) as opened:
        yield opened


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves threads of ours, or threads that keep the process alive."""
    before = set(threading.enumerate())
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_open_tasks")
    yield
    left = [
        thread for thread in threading.enumerate() if thread not in before and _may_not_stay(thread)
    ]
    for thread in left:
        thread.join(PATIENCE)
    alive = [thread.name for thread in left if thread.is_alive()]
    assert not alive, f"the test left threads behind: {', '.join(alive)}"


def _may_not_stay(thread: threading.Thread) -> bool:
    # Those of asyncio's own pool end when the loop is closed, which is after this.
    of_the_loop = thread.name.startswith("asyncio_")
    return thread.name.startswith("haulier-") or not (thread.daemon or of_the_loop)


@pytest.fixture
async def no_open_tasks() -> AsyncIterator[None]:
    """Fail a test that leaves asyncio tasks running."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"the test left tasks behind: {left}"
