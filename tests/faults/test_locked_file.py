"""An SQLite file that another program has locked for longer than a worker may go unrenewed."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from faults.daemons import api
from faults.run import Run
from faults.script import TOLD, Names
from faults.stores import Ground
from haulier.services.ids import new_id
from haulier.web.options import DEADLINE
from support import wait_until

TTL = 1.5
LOCKED = 3.0
LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.asynccontextmanager
async def locked(path: Path):
    """Within the block another program holds the file's lock."""
    other = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        await asyncio.to_thread(other.stdout.readline)
        yield
    finally:
        other.communicate()


async def test_while_it_is_locked_nothing_is_lost_and_afterwards_work_goes_on(
    nursery, tmp_path, tell
):
    place = Ground("sqlite", tmp_path)
    async with Run(nursery, tmp_path, place.url("jobs"), ttl=TTL) as run:
        names = Names(new_id())
        items = names.items("batch", 60, seconds=0.2)
        await run.store.open_batch(names.head("batch"), items, policy=TOLD, sealed=True)
        workers = [run.start(concurrency=4) for _ in range(2)]
        await wait_until(lambda: run.sink.over > 10, 30)
        with run.trouble(after=TTL * 2):
            async with locked(tmp_path / "jobs.db"):
                late = asyncio.create_task(run.store.insert(names.jobs("late", 1)))
                await asyncio.sleep(LOCKED)
                assert not late.done()
        # Who enqueues waits for as long as the store's deadline lets him.
        assert (await late).new == 1
        await run.rest()
        report = await run.prove()
        tell(f"sqlite, locked for {LOCKED:g} s: {report}")
        assert all(worker.alive for worker in workers)
        assert all("incarnation lost" in worker.says() for worker in workers)
        assert report.taken > 0


@pytest.mark.faults_long
async def test_the_api_refuses_what_it_cannot_write_within_the_deadline(nursery, tmp_path, tell):
    place = Ground("sqlite", tmp_path)
    async with Run(nursery, tmp_path, place.url("jobs")) as run, api(run, patience=60) as web:
        async with locked(tmp_path / "jobs.db"):
            answer = await web.ask("/api/v1/jobs", json={"kind": "work", "payload": {}})
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) > 0
            # What only reads waits for nobody.
            assert (await web.ask()).status_code == 200
        tell(f"sqlite, locked: the API answered within {web.longest:.2f} s")
        assert web.longest < DEADLINE + 1
        assert (await web.ask("/api/v1/jobs", json={"kind": "work"})).status_code < 300
        await run.rest()
