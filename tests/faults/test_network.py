"""What networks do, between workers and the store's server: every job still has its one fate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from faults.daemons import api
from faults.proxy import DIALECTS, Proxy
from faults.run import Run
from faults.script import Names
from haulier.services.ids import new_id
from support import wait_until

TTL = 3.0
PATIENCE = 40.0
BOUND = 3.0
"""Seconds within which the API answers whatever its store does: 2, and one for a busy machine."""

COMMITS = {
    "postgres": lambda request: "exchange" in request or "insert" in request,
    "redis": lambda request: request.upper().startswith(("EVAL", "FCALL")),
}
"""Which requests change the store, as their dialect tells them."""


class Weather:
    """Faults of one network, drawn by dice."""

    def __init__(self, proxy: Proxy, kind: str, dice: random.Random) -> None:
        self.proxy = proxy
        self.commits = COMMITS[kind]
        self.dice = dice

    async def refuse(self) -> None:
        await self.proxy.refuse()
        await asyncio.sleep(self.dice.uniform(0.1, 1.0))

    async def reset(self) -> None:
        for _ in range(5):
            await self.proxy.reset()
            await asyncio.sleep(self.dice.uniform(0.0, 0.2))

    async def delay(self) -> None:
        self.proxy.delay(self.dice.uniform(0.02, 0.2))
        await asyncio.sleep(1.0)

    async def cut(self) -> None:
        self.proxy.cut(after=self.dice.randint(1, 3000))
        await asyncio.sleep(1.0)

    async def lose_answers(self) -> None:
        """Of commits, each time another one."""
        for nth in range(1, 6):
            before = self.proxy.swallowed
            self.proxy.swallow(nth, self.commits)
            await wait_until(lambda most=before: self.proxy.swallowed > most, 30)

    async def hole(self) -> None:
        """Both ways, for less than a ttl: what was sent arrives late."""
        self.proxy.blackhole()
        await asyncio.sleep(TTL * 0.5)

    async def deep_hole(self) -> None:
        """For more than a ttl: workers give themselves up, and what they had sent arrives late."""
        self.proxy.blackhole()
        await asyncio.sleep(TTL * 1.5)

    async def deaf(self) -> None:
        """Requests get through and no answer comes."""
        self.proxy.blackhole(requests=False)
        await asyncio.sleep(TTL * self.dice.uniform(0.3, 1.2))


FAULTS: tuple[Callable[[Weather], Awaitable[None]], ...] = (
    Weather.refuse,
    Weather.reset,
    Weather.delay,
    Weather.cut,
    Weather.lose_answers,
    Weather.hole,
    Weather.deep_hole,
    Weather.deaf,
)


def proxy_for(served) -> Proxy:
    return Proxy(served.server.port, DIALECTS[served.kind])


async def test_whatever_the_network_does_every_job_has_one_fate(
    nursery, served, dice, faults_long, tell
):
    async with proxy_for(served) as proxy:
        straight, over = served.url("jobs"), served.url("jobs", proxy.port)
        async with Run(nursery, served.folder, straight, url=over, ttl=TTL) as run:
            workers = [run.start(concurrency=4) for _ in range(2)]
            producer = run.produce(dice, longest=0.3)
            weather = Weather(proxy, served.kind, dice)
            for fault in dice.sample(FAULTS, len(FAULTS)) * (6 if faults_long else 1):
                await wait_until(lambda least=run.sink.over + 15: run.sink.over >= least, 40)
                with run.trouble(after=TTL * 2):
                    await fault(weather)
                    await proxy.heal()
            assert all(child.alive for child in (*workers, producer))
            run.kill(producer)
            await run.rest()
            report = await run.prove()
            tell(f"{served.kind}: {proxy.swallowed} answers lost; {report}")


async def test_a_long_black_hole_costs_no_process_and_the_api_never_hangs(
    nursery, served, faults_long, tell
):
    length = 30.0 if faults_long else TTL * 1.5
    async with proxy_for(served) as proxy:
        straight, over = served.url("jobs"), served.url("jobs", proxy.port)
        async with (
            Run(nursery, served.folder, straight, url=over, ttl=TTL) as run,
            api(run, PATIENCE) as web,
        ):
            worker = run.start(concurrency=4)
            assert (await web.ask()).status_code == 200
            with run.trouble(after=TTL * 2):
                proxy.blackhole()
                asking = asyncio.create_task(web.ask())
                await asyncio.sleep(length)
                await proxy.heal()
            answer = await asking
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            (job,) = Names(new_id()).jobs("first", 1)
            await run.store.insert([job])
            await wait_until(lambda: run.sink.over, 5)
            assert worker.alive
            assert web.daemon.process.poll() is None
            assert (await web.ask()).status_code == 200
            await run.rest()
            await run.prove()
            tell(f"{served.kind}: {length:g} s; the API answered within {web.longest:.2f} s")
            assert web.longest < BOUND
