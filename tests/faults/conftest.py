"""The ground that stores stand on, and the nursery that processes come from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.stores import STORES, WITH_SERVER, Ground, ground
from nursery import Nursery
from processes import environment


@pytest.fixture(scope="package")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("nursery")
    loaded = ("faults.work", "faults.script", "faults.producing")
    with Nursery(folder, environment(folder), loaded) as opened:
        yield opened


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """Each kind of store, with a server of its own if it needs one."""
    with ground(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=WITH_SERVER)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """Each kind of store that has a server."""
    with ground(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def dice(request: pytest.FixtureRequest, tell: Callable[[str], None]) -> random.Random:
    """Dice from the seed that is told with a failure; `--seed` throws them again."""
    seed = request.config.getoption("seed")
    if seed is None:
        seed = random.randrange(1_000_000)
    tell(f"{request.node.name}: --seed {seed}")
    return random.Random(seed)


TOLD = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say what a run came to, at the end of the test and once more at the end of all."""

    def told(text: str) -> None:
        print(text)
        request.config.stash.setdefault(TOLD, []).append(text)

    return told


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The figures of the long runs."""
    if config.getoption("faults_long"):
        terminalreporter.section("what the runs came to")
        for text in config.stash.get(TOLD, []):
            terminalreporter.write_line(text)


@pytest.fixture
def faults_long(request: pytest.FixtureRequest) -> bool:
    """Whether the long runs are asked for."""
    return bool(request.config.getoption("faults_long"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what belongs to the long runs alone."""
    if config.getoption("faults_long"):
        return
    for item in [item for item in items if item.get_closest_marker("faults_long")]:
        items.remove(item)
