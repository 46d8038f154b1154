"""Workers tick in time, once each, and ask nothing while nothing is scheduled."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import child_tasks
import pytest

from haulier import App, Context, Interval, JobState, Tick
from haulier.domain.job import MICROSECOND
from haulier.domain.tick import TickState
from haulier.exceptions import StoreUnavailableError
from haulier.ports import JobFilter
from haulier.worker import ticking
from support import TroubledStore, wait_until


class Asked(TroubledStore):
    """A store that counts how often its schedules are asked for, and may fail to tell."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.looks = 0
        self.failures = 0

    def schedules(self) -> Any:
        return _Asked(self, self._store.schedules())


class _Asked:
    def __init__(self, owner: Asked, schedules: Any) -> None:
        self._owner = owner
        self._schedules = schedules

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._schedules, verb)

    async def due(self, limit: int = 100) -> Any:
        if limit:
            self._owner.looks += 1
        if self._owner.failures:
            self._owner.failures -= 1
            raise StoreUnavailableError("due: trouble")
        return await self._schedules.due(limit)


def ticking_app(store: Any) -> tuple[App, list[Tick]]:
    app = App(store)
    seen: list[Tick] = []

    @app.task
    async def beat(ctx: Context) -> None:
        seen.append(await ctx.tick())

    return app, seen


class TestInTime:
    async def test_each_tick_is_done_within_a_fraction_of_a_second(self, store):
        app, seen = ticking_app(store)
        await app.schedules.set("each", "beat", 0.25)
        async with app.working():
            await wait_until(lambda: len(seen) >= 6)
        ticks = sorted(await app.schedules.ticks("each"), key=lambda tick: tick.tick)
        fired = [tick for tick in ticks if tick.state is TickState.FIRED]
        late = sorted((tick.at - tick.tick) / MICROSECOND for tick in fired)
        assert late[len(late) // 2] < 0.2

    async def test_one_that_is_made_while_nothing_happens_is_noticed_at_once(self, store):
        app, seen = ticking_app(store)
        async with app.working():
            await asyncio.sleep(0.2)
            made = await app.schedules.set("each", "beat", 0.3)
            await wait_until(lambda: seen, timeout=5)
        assert seen[0].tick <= made.next + 5 * 300_000

    async def test_a_declared_one_is_stored_and_ticks(self, store):
        app, seen = ticking_app(store)
        app.schedule("declared", "beat", Interval(0.2))
        async with app.working():
            await wait_until(lambda: len(seen) >= 2)
        assert (await app.schedules.get("declared")).changed_by == "code"

    async def test_a_change_counts_from_the_next_tick_on(self, store):
        app, seen = ticking_app(store)
        await app.schedules.set("each", "beat", 3600)
        async with app.working():
            await asyncio.sleep(0.1)
            await app.schedules.set("each", "beat", 0.2)
            await wait_until(lambda: len(seen) >= 2)
            await app.schedules.pause("each")
            await wait_until(lambda: _nothing_waits(app))
            done = len(seen)
            await asyncio.sleep(0.6)
            assert len(seen) == done

    async def test_several_workers_do_each_tick_once(self, store):
        app, seen = ticking_app(store)
        await app.schedules.set("each", "beat", 0.2, missed="all:100")
        async with AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(app.working())
            await wait_until(lambda: len(seen) >= 8)
            await app.schedules.pause("each")
            await wait_until(lambda: _nothing_waits(app))
        ticks = sorted(tick.tick for tick in seen)
        assert ticks == list(range(ticks[0], ticks[-1] + 1, 200_000))
        jobs = (await app.find(JobFilter(kind="beat"), limit=500)).jobs
        assert len(jobs) == len(seen)


async def _nothing_waits(app: App) -> bool:
    states = frozenset({JobState.PENDING, JobState.RUNNING})
    return not (await app.find(JobFilter(states=states))).jobs


class TestCost:
    @pytest.fixture(autouse=True)
    def half_as_far_apart(self, monkeypatch):
        monkeypatch.setattr(ticking, "LOOK_APART", 0.5)

    async def test_next_to_nothing_is_asked_while_nothing_is_scheduled(self, store):
        asked = Asked(store)
        app, _ = ticking_app(asked)
        async with app.working():
            await wait_until(lambda: asked.looks)
            await asyncio.sleep(ticking.LOOK_APART + 0.3)
            before = asked.looks
            await asyncio.sleep(1.25)
        # On a file a heartbeat is a commit like any other, once in 3 seconds.
        assert asked.looks - before <= 1

    async def test_little_is_asked_while_much_happens(self, store):
        asked = Asked(store)
        app, _ = ticking_app(asked)
        loop = asyncio.get_running_loop()
        async with app.working():
            await wait_until(lambda: asked.looks)
            before, end = asked.looks, loop.time() + 1.25
            while loop.time() < end:
                await app.enqueue("beat")
            assert asked.looks - before <= 4


class TestTrouble:
    async def test_a_store_that_was_away_is_asked_again(self, store):
        asked = Asked(store)
        app, seen = ticking_app(asked)
        await app.schedules.set("each", "beat", 0.2)
        asked.failures = 3
        async with app.working():
            await wait_until(lambda: len(seen) >= 2)
        assert asked.failures == 0

    async def test_a_schedule_that_cannot_tick_here_keeps_no_other_from_it(
        self, store, monkeypatch
    ):
        app, seen = ticking_app(store)
        await app.schedules.set("broken", "beat", 0.2)
        await app.schedules.set("each", "beat", 0.2)
        whole = ticking.tick_once.__globals__["plan"]

        def plan(schedule: Any, now: int) -> Any:
            if schedule.name == "broken":
                raise StoreUnavailableError("its time zone is not known here")
            return whole(schedule, now)

        monkeypatch.setitem(ticking.tick_once.__globals__, "plan", plan)
        async with app.working():
            await wait_until(lambda: len(seen) >= 3)
        assert {tick.schedule for tick in seen} == {"each"}


@pytest.mark.parametrize("executor", ["async", "thread", "process"])
async def test_a_job_knows_its_tick_wherever_it_runs(store, executor):
    app = App(store)
    if executor == "async":

        @app.task
        async def say(ctx: Context) -> list[Any]:
            with pytest.raises(RuntimeError, match="would block the event loop"):
                ctx.tick_sync()
            tick = await ctx.tick()
            return [] if tick is None else [tick.schedule, tick.tick, tick.state, tick.job]

    else:
        app.task(kind="say", executor=executor)(child_tasks.say_tick)
    await app.schedules.set("each", "say", 3600)
    async with app.working():
        job_id = await app.schedules.run("each")
        (tick,) = await app.schedules.ticks("each")
        said = await app.result(job_id, timeout=30)
        assert said == ["each", tick.tick, "manual", job_id]
        assert await app.result(await app.enqueue("say"), timeout=30) == []


@pytest.mark.parametrize("overlap", ["skip", "cancel"])
async def test_overlap_while_a_job_really_runs(store, overlap):
    app = App(store)
    started: list[str] = []

    @app.task
    async def slow(ctx: Context) -> None:
        started.append(ctx.job.id)
        await asyncio.sleep(0.5 if overlap == "skip" else 60)

    await app.schedules.set("slow", "slow", 0.15, overlap=overlap)
    async with app.working():
        await wait_until(lambda: len(started) >= 3)
        await app.schedules.pause("slow")
        if overlap == "cancel":
            states = {(await app.get(job_id)).state for job_id in started[:-1]}
            assert states <= {JobState.CANCELLED, JobState.RUNNING}
            for job_id in started:
                await app.cancel(job_id)
            job = await app.wait(started[0], progress=False, timeout=10)
            assert job.state is JobState.CANCELLED
        await wait_until(lambda: _nothing_waits(app))
    states = [tick.state for tick in await app.schedules.ticks("slow")]
    assert (TickState.OVERLAP in states) == (overlap == "skip")
