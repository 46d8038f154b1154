"""Stores that fail for a while, incarnations that are lost, and an event loop that stands still."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

from haulier import (
    App,
    BaseTaskRunner,
    Context,
    JobState,
    LeaseLostError,
    RetryPolicy,
    StoreError,
    WorkerOptions,
)
from haulier.domain.moves import Move
from haulier.ports import CHUNK
from support import Hand, TroubledStore, wait_until

VERBS = ["exchange", "note", "sweep"]


@pytest.fixture
def troubled(store) -> TroubledStore:
    return TroubledStore(store)


@pytest.fixture
def shaky(troubled: TroubledStore, tmp_path) -> App:
    """An app whose worker meets trouble when the test asks for it."""
    return App(troubled, secret_key_file=tmp_path / "secret.key")


def counting(app: App) -> Counter[int]:
    runs: Counter[int] = Counter()

    @app.task(kind="counting")
    async def task(ctx: Context, n: int) -> int:
        ctx.progress(50, f"number {n}")
        runs[n] += 1
        return n

    return runs


class TestStoreTrouble:
    @pytest.mark.parametrize("after", [False, True], ids=["unasked", "unanswered"])
    async def test_every_job_runs_once_and_none_is_lost_or_left(self, shaky, troubled, after):
        runs = counting(shaky)
        async with shaky.working(WorkerOptions(concurrency=7)):
            for _ in range(5):
                troubled.trouble(*VERBS, times=2, after=after)
                ids = await shaky.enqueue_many("counting", [{"n": n} for n in range(40)])
                for job_id in ids:
                    job = await shaky.wait(job_id, timeout=20, progress=False)
                    assert (job.state, job.attempt, job.lost) == (JobState.COMPLETED, 1, 0)
                await wait_until(lambda: not troubled._failures["exchange"])
        assert runs == Counter(dict.fromkeys(range(40), 5))

    @pytest.mark.parametrize("after", [False, True], ids=["unasked", "unanswered"])
    async def test_batches_settle_once_in_spite_of_it(self, shaky, troubled, after):
        runs = counting(shaky)
        called = []

        @shaky.task
        async def afterwards(batch_id: str, state: str, counts: dict[str, int]) -> None:
            called.append(counts["completed"])

        async with shaky.working():
            troubled.trouble("exchange", times=3, after=after)
            given = [{"n": n} for n in range(300)]
            batch = await shaky.enqueue_batch("counting", given, on_finish=afterwards)
            await shaky.wait(batch, timeout=20, progress=False)
        assert called == [300]
        assert set(runs.values()) == {1}

    async def test_a_worker_waits_for_a_store_that_is_not_there_yet(self, shaky, troubled):
        runs = counting(shaky)
        troubled.trouble("enlist", times=1)
        job_id = await shaky.enqueue("counting", {"n": 1})
        async with shaky.working():
            await shaky.wait(job_id, timeout=20, progress=False)
        assert runs == {1: 1}

    async def test_jobs_that_ran_during_the_trouble_are_handed_in_when_the_worker_stops(
        self, shaky, troubled
    ):
        began, go_on = asyncio.Event(), asyncio.Event()

        @shaky.task
        async def patient() -> str:
            began.set()
            await go_on.wait()
            return "done"

        async with shaky.working():
            job_id = await shaky.enqueue(patient)
            await began.wait()
            troubled.trouble("exchange", times=3)
            go_on.set()
        job = await shaky.get(job_id)
        assert (job.state, job.value, job.lost) == (JobState.COMPLETED, "done", 0)

    async def test_a_claim_whose_answer_got_lost_is_given_back_by_a_worker_that_stops(
        self, shaky, troubled
    ):
        runs = counting(shaky)
        ids = await shaky.enqueue_many("counting", [{"n": n} for n in range(5)])
        worker = shaky.worker()
        troubled.trouble("exchange", times=1, after=True)
        running = asyncio.ensure_future(worker.run())
        await wait_until(lambda: troubled.over)
        worker.stop(now=True)
        await running
        for job_id in ids:
            job = await shaky.get(job_id)
            assert job.lost == 0
            assert job.state in (JobState.PENDING, JobState.COMPLETED)
        assert max(runs.values(), default=0) <= 1

    async def test_an_error_that_is_not_the_stores_stops_the_worker_aloud(self, shaky, troubled):
        class Unexpected(TroubledStore):
            async def sweep(self) -> int:
                raise ZeroDivisionError("a bug")

        app = App(Unexpected(troubled))
        with pytest.raises(ExceptionGroup) as caught:
            await app.worker().run()
        assert caught.group_contains(ZeroDivisionError)
        assert [row.alive for row in await shaky.store.workers()] == [False]


class TestLostIncarnation:
    async def test_late_results_are_refused_and_the_worker_goes_on_as_another(self, app, store):
        began, go_on, seen = asyncio.Event(), threading.Event(), []

        @app.task
        def slow(ctx: Context) -> str:
            if ctx.job.lost:
                return "second"
            app_loop.call_soon_threadsafe(began.set)
            go_on.wait(30)
            try:
                ctx.check()
            except LeaseLostError as error:
                seen.append(error)
            return "first"

        app_loop = asyncio.get_running_loop()
        async with app.working():
            job_id = await app.enqueue(slow)
            await began.wait()
            (first,) = await store.workers()
            assert await store.retire(first.id) == 1
            job = await app.wait(job_id, timeout=20, progress=False)
            assert (job.value, job.lost, job.lease, job.attempt) == ("second", 1, 2, 1)
            assert job.worker is None
            go_on.set()
            await wait_until(lambda: seen)
            rows = await store.workers()
            assert [row.alive for row in rows] == [True, False]
        assert (await app.get(job_id)).value == "second"

    async def test_running_coroutines_are_cancelled_and_nothing_of_theirs_counts(self, app, store):
        began, ended = asyncio.Event(), []

        @app.task
        async def slow(ctx: Context) -> str:
            if ctx.job.lost:
                return "second"
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(ctx.cancelled)
            return "first"

        async with app.working():
            job_id = await app.enqueue(slow)
            await began.wait()
            (first,) = await store.workers()
            await store.retire(first.id)
            job = await app.wait(job_id, timeout=20, progress=False)
        assert (job.value, ended) == ("second", [True])

    async def test_a_head_that_lost_its_worker_is_expanded_again(self, app, store):
        go_on, rounds = threading.Event(), []

        class Start(BaseModel):
            pass

        class Item(BaseModel):
            n: int

        class Slow(BaseTaskRunner[Start, Item]):
            task_type = "slow"
            start_model = Start
            item_model = Item

            def expand(self, ctx: Context, start: Start):
                rounds.append(ctx.lease)
                yield from (Item(n=n) for n in range(CHUNK + 500))
                if len(rounds) == 1:
                    go_on.wait(30)
                yield from (Item(n=n) for n in range(CHUNK + 500, CHUNK + 600))

            async def run_item(self, ctx: Context, item: Item) -> int:
                return item.n

        app.add_runner(Slow())
        async with app.working():
            head = await app.enqueue("slow", {})
            await wait_until(lambda: _items(app, head, CHUNK))
            (first,) = await store.workers()
            await store.retire(first.id)
            go_on.set()
            job = await app.wait(head, timeout=20, progress=False)
        assert (job.state, job.value["completed"]) == (JobState.COMPLETED, CHUNK + 600)
        assert rounds == [1, 2]


class TestShortTtl:
    @pytest.fixture
    def ttl(self) -> float:
        return 1.0

    async def test_an_event_loop_that_stands_still_longer_than_the_ttl_loses_nothing(
        self, app, store
    ):
        @app.task(retry=RetryPolicy.never())
        async def blocking(seconds: float) -> str:
            time.sleep(seconds)  # noqa: ASYNC251 - the very mistake that must cost nothing
            return "done"

        async with app.working():
            job = await app.wait(
                await app.enqueue(blocking, {"seconds": 2.2}), timeout=20, progress=False
            )
            assert (job.value, job.attempt, job.lost) == ("done", 1, 0)
            (row,) = await store.workers()
            assert row.alive

    async def test_jobs_of_a_worker_that_vanished_are_taken_over(self, app, store):
        @app.task
        async def task() -> str:
            return "done"

        job_id = await app.enqueue(task)
        vanished = await Hand.enlist(store, kinds=["task"])
        held = await vanished.claim_one()
        async with app.working():
            job = await app.wait(job_id, timeout=20, progress=False)
        assert (job.value, job.lost) == ("done", 1)
        assert not await vanished.hand_in(held, Move.COMPLETE)

    async def test_a_worker_that_cannot_renew_stops_claiming_and_then_gives_itself_up(
        self, store, tmp_path
    ):
        deaf = DeafStore(store)
        app = App(deaf, secret_key_file=tmp_path / "secret.key")
        began, runs = asyncio.Event(), []

        @app.task
        async def slow(ctx: Context) -> str:
            runs.append(ctx.lease)
            if len(runs) == 1:
                began.set()
                await asyncio.Event().wait()
            return "done"

        async with app.working():
            job_id = await app.enqueue(slow)
            await began.wait()
            deaf.deaf = True
            await wait_until(lambda: deaf.refused >= 2)
            later = await app.enqueue(slow)
            await wait_until(lambda: _expired(store))
            assert (await app.get(later)).state is JobState.PENDING
            deaf.deaf = False
            for each in (job_id, later):
                assert (await app.wait(each, timeout=20, progress=False)).value == "done"
        assert (await app.get(job_id)).lost == 1


class DeafStore(TroubledStore):
    """A store that answers everything but heartbeats."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.deaf = False
        self.refused = 0

    def heartbeat(self, worker_id: str) -> Any:
        real, outer = self._store.heartbeat(worker_id), self

        class Deaf:
            def renew(self) -> Any:
                if outer.deaf:
                    outer.refused += 1
                    raise StoreError("nobody hears you")
                return real.renew()

            def close(self) -> None:
                real.close()

        return Deaf()


async def _items(app: App, head: str, count: int) -> bool:
    return (await app.batch(head)).counts.total >= count


async def _expired(store: Any) -> bool:
    return not any(row.alive for row in await store.workers())
