"""An SQLite file that another program has locked for longer than a worker may go unrenewed."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from faults.run import Run
from faults.script import TOLD, Names
from faults.stores import ground
from haulier.services.ids import new_id
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


async def test_while_it_is_locked_nothing_is_lost_and_afterwards_work_goes_on(nursery, tmp_path):
    with ground("sqlite", tmp_path) as place:
        async with Run(nursery, tmp_path, place.url("jobs"), ttl=TTL) as run:
            names = Names(new_id())
            items = names.items("batch", 60, seconds=0.2)
            await run.store.open_batch(names.head("batch"), items, policy=TOLD, sealed=True)
            workers = [run.start(concurrency=4) for _ in range(2)]
            await wait_until(lambda: run.sink.over > 10, 30)
            with run.trouble(after=TTL * 2):
                other = subprocess.Popen(
                    [sys.executable, "-c", LOCK, str(tmp_path / "jobs.db")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                await asyncio.to_thread(other.stdout.readline)
                late = asyncio.create_task(run.store.insert(names.jobs("late", 1)))
                await asyncio.sleep(LOCKED)
                assert not late.done()
                other.communicate()
            # Who enqueues waits for as long as the store's deadline lets him.
            assert (await late).new == 1
            await run.rest()
            report = await run.prove()
            print(report)
            assert all(worker.alive for worker in workers)
            assert all("incarnation lost" in worker.says() for worker in workers)
            assert report.taken > 0
