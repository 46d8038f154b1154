"""Workers that run take over what operators change."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from structlog.testing import capture_logs

from haulier import ConfigurationError, JobFilter, JobState, Keep, Retention, WorkerOptions
from haulier.domain.configuration import Configuration
from haulier.exceptions import StoreUnavailableError
from haulier.worker import configured, upkeep
from haulier.worker.configured import Configured
from support import wait_until

HEARTBEAT = 3.0
"""Seconds within which a worker has to go by a change."""


class TestPausedQueues:
    async def test_a_running_worker_starts_nothing_of_a_paused_queue(self, app):
        ran: list[str] = []

        @app.task
        async def note(name: str) -> None:
            ran.append(name)

        async with app.working(WorkerOptions(queues=("default", "slow"))):
            await app.enqueue(note, {"name": "one"}, queue="slow")
            await wait_until(lambda: ran == ["one"])
            await app.queues.pause("slow", by="Ann")
            assert await app.queues.paused() == {"slow"}
            await app.enqueue(note, {"name": "two"}, queue="slow")
            await app.result(await app.enqueue(note, {"name": "three"}), timeout=10)
            assert ran == ["one", "three"]
            began = time.monotonic()
            await app.queues.resume("slow")
            await wait_until(lambda: ran == ["one", "three", "two"])
            assert time.monotonic() - began < HEARTBEAT

    async def test_what_runs_goes_on(self, app):
        go_on = asyncio.Event()

        @app.task
        async def stay() -> str:
            await go_on.wait()
            return "done"

        async with app.working():
            job = await app.enqueue(stay)
            await wait_until(lambda: _running(app))
            await app.queues.pause("default")
            go_on.set()
            assert await app.result(job, timeout=10) == "done"

    async def test_an_idle_worker_asks_no_more_than_ever(self, app, store, monkeypatch):
        """Jobs of a paused queue are no reason to come again."""

        @app.task
        async def never() -> None: ...

        await app.queues.pause("default")
        await app.enqueue_many(never, [{}] * 50)
        asked = Counter()
        exchange, configurable = type(store).exchange, type(store).configurable

        async def counted(self, *arguments, **options):
            asked["exchange"] += 1
            return await exchange(self, *arguments, **options)

        def read(self):
            asked["configurable"] += 1
            return configurable(self)

        monkeypatch.setattr(type(store), "exchange", counted)
        monkeypatch.setattr(type(store), "configurable", read)
        async with app.working():
            await wait_until(lambda: asked["configurable"])
            started = asked["exchange"]
            with pytest.raises(AssertionError, match="still not so"):
                await wait_until(lambda: asked["exchange"] > started + 3, timeout=1.5)
        # Read once, not with each exchange.
        assert asked["configurable"] == 1


class TestWeights:
    async def test_full_queues_are_shared_as_they_weigh(self, app):
        ran: list[str] = []

        @app.task
        async def note(queue: str) -> None:
            ran.append(queue)

        for queue in ("default", "critical"):
            await app.enqueue_many(note, [{"queue": queue}] * 120, queue=queue)
        options = WorkerOptions(queues={"critical": 5, "default": 1}, concurrency=6)
        async with app.working(options):
            await wait_until(lambda: len(ran) == 240, timeout=30)
        assert Counter(ran[:72]) == pytest.approx({"critical": 60, "default": 12}, abs=3)
        # What the empty one left went to the other.
        assert set(ran[-90:]) == {"default"}

    async def test_without_weights_the_queues_are_one_line(self, app):
        ran: list[str] = []

        @app.task
        async def note(queue: str) -> None:
            ran.append(queue)

        for queue in ("default", "critical"):
            await app.enqueue_many(note, [{"queue": queue}] * 20, queue=queue)
        async with app.working(WorkerOptions(queues=("critical", "default"), concurrency=2)):
            await wait_until(lambda: len(ran) == 40)
        assert ran == ["default"] * 20 + ["critical"] * 20

    async def test_those_of_the_store_come_first_and_reach_running_workers(self, app):
        ran: list[str] = []
        gate = asyncio.Semaphore(0)

        @app.task
        async def note(queue: str) -> None:
            await gate.acquire()
            ran.append(queue)

        for queue in ("default", "critical"):
            await app.enqueue_many(note, [{"queue": queue}] * 100, queue=queue)
        options = WorkerOptions(queues={"critical": 9, "default": 1}, concurrency=2)
        async with app.working(options):
            await _let(gate, ran, 40)
            assert Counter(ran)["critical"] >= 34
            await app.queues.weigh("default", 27, by="Ann")
            # It takes the change over beside its jobs, a few of which were claimed before.
            await _let(gate, ran, 20)
            before = len(ran)
            await _let(gate, ran, 40)
            assert Counter(ran[before:])["default"] >= 25
            for _ in range(1000):
                gate.release()
        assert await app.queues.weights() == {"default": 27}

    @pytest.mark.parametrize("weight", [0, -1, 1001, 1.5, True, "5"])
    def test_what_is_no_weight_is_refused(self, weight):
        with pytest.raises(ConfigurationError, match="queues: the weight of 'default'"):
            WorkerOptions(queues={"default": weight})


class TestRetention:
    async def test_a_rule_of_the_store_comes_before_that_of_the_task(self, app, monkeypatch):
        monkeypatch.setattr(upkeep, "PRUNE_FIRST", 0.01)

        @app.task(retention=Retention(completed=Keep()))
        async def quick() -> None: ...

        async with app.working():
            job = await app.enqueue(quick)
            await app.result(job, timeout=10)
            await app.settings.change({"retention.quick.completed": True}, by="Ann")
            await wait_until(lambda: _gone(app), timeout=2 * HEARTBEAT)


class TestFollowing:
    """A version is read once, and again only when another one is told."""

    async def test_what_cannot_be_read_is_asked_for_again(self, monkeypatch):
        monkeypatch.setattr(configured, "AGAIN", 0.0)
        answers = [StoreUnavailableError("away"), Configuration(3), Configuration(2)]

        class Store:
            def configurable(self):
                return self

            async def configuration(self):
                answer = answers.pop(0)
                if isinstance(answer, Exception):
                    raise answer
                return answer

        applied: list[int] = []
        known = Configured(Store(), lambda now: applied.append(now.version))
        with capture_logs() as logs:
            task = asyncio.create_task(known.follow())
            for version in (None, 0):
                known.told(version)
            known.told(3)
            await wait_until(lambda: applied == [3])
            known.told(3)
            # A store that was restored counts from an earlier one.
            known.told(2)
            await wait_until(lambda: applied == [3, 2])
            task.cancel()
        assert [entry["event"] for entry in logs] == ["configuration not read"]


async def _running(app) -> int:
    page = await app.find(JobFilter(states=frozenset({JobState.RUNNING})))
    return len(page.jobs)


async def _gone(app) -> bool:
    return not (await app.find()).jobs


async def _let(gate: asyncio.Semaphore, ran: list[str], count: int) -> None:
    """Let so many more jobs go, one after the other."""
    for _ in range(count):
        before = len(ran)
        gate.release()
        await wait_until(lambda before=before: len(ran) > before)
