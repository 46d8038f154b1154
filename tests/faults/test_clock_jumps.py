"""Wall clocks differ and jump by an hour while workers run: no lease is lost, no job runs twice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from faults.daemons import STARTING, command
from faults.log import read
from faults.run import Run
from faults.script import TOLD, Names
from haulier.services.ids import new_id
from support import wait_until

TTL = 10.0
"""So long that no busy machine comes near it, and far from the hour that clocks jump by."""

HOUR = 3600
LONG = 4.0
EACH = 25
"""Jobs between two jumps."""
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


async def test_no_jump_of_a_wall_clock_costs_a_lease(nursery, place, faketime, faults_long):
    clocks = [
        Clock(faketime, place.folder / f"clock-{n}", start) for n, start in enumerate(HOURS[:2])
    ]
    if place.server is None:
        # What has no server is on one machine, and that has one clock.
        clocks = clocks[:1] * 2
    async with Run(nursery, place.folder, place.url("jobs"), ttl=TTL) as run:
        with (
            command(run, "worker", "--concurrency", "8", **clocks[0].env) as one,
            command(run, "worker", "--concurrency", "8", **clocks[1].env) as other,
        ):
            await wait_until(lambda: both_alive(run), STARTING)
            names = Names(new_id())
            # The first jumps meet jobs that run, however fast the others are.
            await run.store.insert(names.jobs("long", 4, seconds=LONG))
            turns = HOURS * (6 if faults_long else 1)
            items = names.items("batch", EACH * len(turns), seconds=0.1)
            await run.store.open_batch(names.head("batch"), items, policy=TOLD, sealed=True)
            for turn, offset in enumerate(turns):
                await wait_until(lambda least=turn * EACH: run.sink.over >= least, 60)
                clocks[turn % 2].turn(offset)
            await run.rest()
            report = await run.prove()
            assert (report.taken, report.repeated) == (0, 0), one.says() + other.says()
            assert [row.alive for row in await run.store.workers()] == [True, True]
            seen = wall_clocks(run)
            assert (min(seen), max(seen)) == (
                pytest.approx(-HOUR, abs=5),
                pytest.approx(HOUR, abs=5),
            )
            for daemon in (one, other):
                assert "incarnation lost" not in daemon.says()


def wall_clocks(run: Run) -> list[float]:
    """By how many seconds the wall clock of a worker differed from ours, at each start of a job."""
    offset = time.time() - time.monotonic()
    return [
        line["wall"] - line["at"] / 1e6 - offset
        for line in read(run.path)
        if line["what"] == "start"
    ]


async def both_alive(run: Run) -> bool:
    return sum(row.alive for row in await run.store.workers()) == 2
