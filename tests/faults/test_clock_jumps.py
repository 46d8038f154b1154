"""Wall clocks that differ and jump by an hour while workers run: no lease is lost, no job runs twice."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.nursery import TESTS
from faults.run import Run
from faults.script import TOLD, Names
from haulier.services.ids import new_id
from processes import Daemon, running
from support import wait_until

TTL = 2.0
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
HOURS = ("+3600", "-3600", "+0", "-3600", "+3600")


@pytest.fixture
def faketime() -> Path:
    if not LIBRARIES:
        if os.environ.get("CI") == "true":
            pytest.fail("the package faketime is not installed")
        pytest.skip("needs the package faketime")
    return LIBRARIES[0]


class Clock:
    """The wall clock of one process, turned by a file; its monotonic clock stays as it is."""

    def __init__(self, library: Path, file: Path, start: str) -> None:
        self._file = file
        self.env = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.turn(start)

    def turn(self, offset: str) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(offset)
        draft.replace(self._file)


@contextlib.contextmanager
def worker(run: Run, clock: Clock) -> Iterator[Daemon]:
    spec = run.folder / "spec.json"
    spec.write_text(json.dumps(run.spec()))
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    more = {"FAULTS_SPEC": str(spec), "PYTHONPATH": path, **clock.env}
    with running(run.folder, "worker", "faults.work:app", "--concurrency", "8", **more) as daemon:
        yield daemon


async def test_no_jump_of_a_wall_clock_costs_a_lease(nursery, place, faketime, faults_long):
    clocks = [
        Clock(faketime, place.folder / f"clock-{n}", start) for n, start in enumerate(HOURS[:2])
    ]
    if place.server is None:
        # What has no server is on one machine, and that has one clock.
        clocks = clocks[:1] * 2
    async with Run(nursery, place.folder, place.url("jobs"), ttl=TTL) as run:
        with worker(run, clocks[0]) as one, worker(run, clocks[1]) as other:
            await wait_until(lambda: both_alive(run), 30)
            names = Names(new_id())
            # Each jump meets jobs that run: these last longer than the ttl.
            await run.store.insert(names.jobs("long", 4, seconds=TTL * 2))
            items = names.items("batch", 150, seconds=0.2)
            await run.store.open_batch(names.head("batch"), items, policy=TOLD, sealed=True)
            for turn, offset in enumerate(HOURS * (6 if faults_long else 1)):
                over = run.sink.over
                await wait_until(lambda least=over + 25: run.sink.over >= least or all_over(run), 30)
                clocks[turn % 2].turn(offset)
            await run.rest()
            report = await run.prove()
            assert (report.taken, report.repeated) == (0, 0), one.says() + other.says()
            assert [row.alive for row in await run.store.workers()] == [True, True]
            for daemon in (one, other):
                assert "incarnation lost" not in daemon.says()


def all_over(run: Run) -> bool:
    return not any(run.sink.busy.values())


async def both_alive(run: Run) -> bool:
    return sum(row.alive for row in await run.store.workers()) == 2
