"""The store's server dies and comes back, again and again: workers and API go on by themselves."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from statistics import median

import pytest

import servers
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

BOUND = 3.0
RESTARTS = 30
AGAIN = 5.0


async def test_workers_and_api_outlive_every_restart_and_claim_again_within_five_seconds(
    nursery, served, dice, faults_long, tell
):
    restarts = RESTARTS if faults_long else 3
    url = served.url("jobs")
    async with Run(nursery, served.folder, url, ttl=TTL) as run, api(run, PATIENCE) as web:
        told = await restarted(run, served.server, web, dice, restarts)
        await run.rest()
        tell(f"{served.kind}: {told}; {await run.prove()}")


@pytest.mark.faults_long
async def test_a_redis_that_writes_to_disk_once_a_second_comes_back_as_well(
    nursery, tmp_path, dice, tell
):
    """It may lose what it answered in its last second, so what is proved is that work goes on."""
    with servers.or_skip(), servers.private("redis") as server:
        url = f"{server.url}?prefix=jobs:"
        async with Run(nursery, tmp_path, url, ttl=TTL) as run, api(run, PATIENCE) as web:
            told = await restarted(run, server, web, dice, RESTARTS)
            await run.rest()
            tell(f"redis, everysec: {told}")


async def restarted(
    run: Run, server: servers.Server, web: Api, dice: random.Random, restarts: int
) -> str:
    """Kill and start the server so many times under work; what came of it."""
    workers = [run.start(concurrency=4) for _ in range(2)]
    producer = run.produce(dice, longest=0.3)
    back = []
    for _ in range(restarts):
        await wait_until(lambda least=run.sink.over + 20: run.sink.over >= least, 60)
        back.append(await restart(run, server, web, dice.uniform(0.0, 1.5)))
    assert all(child.alive for child in (*workers, producer))
    assert web.daemon.process.poll() is None
    assert (await web.ask()).status_code == 200
    run.kill(producer)
    assert max(back) < AGAIN
    assert web.longest < BOUND
    return (
        f"{restarts} restarts; claimed again after p50 {median(back):.2f} s max {max(back):.2f} s; "
        f"the API answered within {web.longest:.2f} s"
    )


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
