"""The store's server dies and comes back, again and again: workers and API go on by themselves."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from faults.daemons import Api, api
from faults.run import Run
from faults.script import Names
from haulier.domain.job import JobState
from haulier.exceptions import StoreError
from haulier.services.ids import new_id
from support import wait_until

TTL = 3.0
PATIENCE = 20.0
"""Seconds after which an answer of the API counts as none."""

BOUND = 10.0
AGAIN = 5.0


async def test_workers_and_api_outlive_every_restart_and_claim_again_within_five_seconds(
    nursery, served, dice, faults_long
):
    restarts = 30 if faults_long else 3
    url = served.url("jobs")
    async with Run(nursery, served.folder, url, ttl=TTL) as run, api(run, PATIENCE) as web:
        workers = [run.start(concurrency=4) for _ in range(2)]
        seed = dice.randrange(1_000_000)
        run.start("producing:produce", seed=seed, longest=0.3)
        back = []
        for _ in range(restarts):
            least = run.sink.over + 20
            await wait_until(lambda goal=least: run.sink.over >= goal, 30)
            back.append(await restart(run, served.server, web, dice.uniform(0.0, 1.5)))
        assert all(worker.alive for worker in workers)
        assert web.daemon.process.poll() is None
        assert (await web.ask()).status_code == 200
        run.kill(run.children[-1])
        await run.rest()
        report = await run.prove()
        print(
            f"{served.kind}: {restarts} restarts; claimed again after p50 "
            f"{sorted(back)[len(back) // 2]:.2f} s max {max(back):.2f} s; the API answered within "
            f"{web.longest:.2f} s; {report}"
        )
        assert max(back) < AGAIN
        assert web.longest < BOUND


async def restart(run: Run, server, web: Api, away: float) -> float:
    """Kill the server, start it again; seconds from then until a job of ours was begun."""
    with run.trouble(after=TTL * 2):
        await asyncio.to_thread(server.kill)
        down = time.monotonic()
        answer = await web.ask()
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["content-type"] == "application/problem+json"
        await asyncio.sleep(max(0.0, away - (time.monotonic() - down)))
        await asyncio.to_thread(server.start)
        up = time.monotonic()
        (job,) = Names(new_id()).jobs("first", 1)
        job = job._replace(priority=100)

        async def begun() -> bool:
            with suppress(StoreError):
                await run.store.insert([job])
                return (await run.store.get(job.id)).state is not JobState.PENDING
            return False

        await wait_until(begun, PATIENCE)
        return time.monotonic() - up
