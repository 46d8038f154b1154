"""Cancelling jobs that run, and stopping the worker: nothing is lost, and nothing goes on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Self

import pytest
from pydantic import BaseModel

from haulier import App, BaseTaskRunner, CancelJob, Context, JobState, WorkerOptions
from haulier.worker.worker import Worker
from support import TroubledStore, wait_until


class Scene:
    """A task that stays until it is let go, and what it saw."""

    def __init__(self, app: App, how: str) -> None:
        self.app = app
        self.started: list[int] = []
        self.ended: list[str] = []
        self.go_on = threading.Event()
        if how == "async":

            @app.task(kind="staying")
            async def staying(ctx: Context) -> str:
                self.started.append(ctx.job.attempt)
                try:
                    await wait_until(self.go_on.is_set, timeout=30)
                except asyncio.CancelledError:
                    self.ended.append("cancelled")
                    raise
                self.ended.append("done")
                return "done"
        else:

            @app.task(kind="staying")
            def staying(ctx: Context) -> str:
                self.started.append(ctx.job.attempt)
                try:
                    while not self.go_on.wait(0.01):
                        ctx.check()
                except BaseException as error:
                    self.ended.append(type(error).__name__)
                    raise
                self.ended.append("done")
                return "done"

        self.task = staying

    async def begin(self, jobs: int = 1) -> list[str]:
        ids = await self.app.enqueue_many(self.task, [{}] * jobs)
        await wait_until(lambda: len(self.started) >= jobs)
        return ids

    async def states(self, ids: list[str]) -> list[JobState]:
        return [(await self.app.get(job_id)).state for job_id in ids]


both = pytest.mark.parametrize("how", ["async", "plain"])


class Running:
    """A worker in a task of its own, to be stopped by the test."""

    def __init__(self, app: App, **options: Any) -> None:
        self.worker: Worker = app.worker(WorkerOptions(**options))
        self.task = asyncio.ensure_future(self.worker.run())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.worker.stop(now=True)
        await asyncio.wait([self.task], timeout=20)
        assert self.task.done()


class TestCancel:
    @both
    async def test_a_running_job_is_stopped_and_becomes_cancelled(self, app, how):
        scene = Scene(app, how)
        async with app.working():
            (job_id,) = await scene.begin()
            assert await app.cancel(job_id) is JobState.RUNNING
            job = await app.wait(job_id, timeout=20, progress=False)
        assert (job.state, job.error.message) == (JobState.CANCELLED, "cancelled on request")
        assert scene.ended == ["cancelled" if how == "async" else "CancelJob"]

    async def test_a_thread_keeps_its_slot_until_it_really_stops(self, app):
        scene, deaf = Scene(app, "plain"), threading.Event()

        @app.task
        def stubborn() -> str:
            scene.started.append(0)
            deaf.wait(30)
            return "finished anyway"

        async with app.working(WorkerOptions(threads=1)):
            job_id = await app.enqueue(stubborn)
            await wait_until(lambda: scene.started)
            await app.cancel(job_id)
            other = await app.enqueue(scene.task)
            await wait_until(lambda: _cancel_requested(app, job_id))
            assert (await app.get(other)).state is JobState.PENDING
            deaf.set()
            scene.go_on.set()
            done = await app.wait(job_id, timeout=20, progress=False)
            await app.wait(other, timeout=20, progress=False)
        assert (done.state, done.value) == (JobState.COMPLETED, "finished anyway")

    async def test_a_coroutine_may_finish_in_spite_of_it(self, app):
        began = asyncio.Event()

        @app.task
        async def insistent() -> str:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "finished anyway"

        async with app.working():
            job_id = await app.enqueue(insistent)
            await began.wait()
            await app.cancel(job_id)
            job = await app.wait(job_id, timeout=20, progress=False)
        assert (job.state, job.value) == (JobState.COMPLETED, "finished anyway")

    @both
    async def test_a_whole_batch_is_stopped(self, app, how):
        scene = Scene(app, how)
        async with app.working(WorkerOptions(concurrency=3, threads=3)):
            batch = await app.enqueue_batch(scene.task, [{}] * 50)
            await wait_until(lambda: len(scene.started) == 3)
            await app.cancel(batch)
            head = await app.wait(batch, timeout=20, progress=False)
        assert head.state is JobState.CANCELLED
        assert (await app.batch(batch)).counts.cancelled == 50
        assert len(scene.started) == 3

    async def test_a_batch_is_stopped_while_it_is_expanded(self, app):
        go_on, taken = threading.Event(), []

        class Start(BaseModel):
            pass

        class Item(BaseModel):
            n: int

        class Endless(BaseTaskRunner[Start, Item]):
            task_type = "endless"
            start_model = Start
            item_model = Item

            def expand(self, ctx: Context, start: Start):
                n = 0
                while n < 1_000_000:
                    taken.append(n)
                    yield Item(n=n)
                    n += 1
                    if n > 2500:
                        go_on.wait(30)

            async def run_item(self, ctx: Context, item: Item) -> None: ...

        app.add_runner(Endless())
        async with app.working():
            head = await app.enqueue("endless", {})
            await wait_until(lambda: len(taken) > 2500)
            await app.cancel(head)
            go_on.set()
            job = await app.wait(head, timeout=20, progress=False)
            await wait_until(lambda: _settled(app, head))
        assert job.state is JobState.CANCELLED
        assert len(taken) < 10_000


class TestGracefulStop:
    @both
    async def test_running_jobs_finish_and_no_more_are_claimed(self, app, how):
        scene = Scene(app, how)
        async with Running(app, concurrency=2, threads=2) as running:
            ids = await app.enqueue_many(scene.task, [{}] * 5)
            await wait_until(lambda: len(scene.started) == 2)
            running.worker.stop()
            scene.go_on.set()
            await running.task
        states = await scene.states(ids)
        assert (states.count(JobState.COMPLETED), states.count(JobState.PENDING)) == (2, 3)
        assert [row.alive for row in await app.store.workers()] == [False]

    @both
    async def test_what_outlasts_the_grace_is_given_back_without_an_attempt(self, app, how):
        scene = Scene(app, how)
        async with Running(app, grace=0.1) as running:
            (job_id,) = await scene.begin()
            running.worker.stop()
            await running.task
        job = await app.get(job_id)
        assert (job.state, job.attempt, job.lost, job.error) == (JobState.PENDING, 0, 0, None)
        await wait_until(lambda: scene.ended)
        assert scene.ended == ["cancelled" if how == "async" else "LeaseLostError"]

    @both
    async def test_stop_now_gives_everything_back_at_once(self, app, how):
        scene = Scene(app, how)
        async with Running(app) as running:
            ids = await scene.begin(3)
            running.worker.stop(now=True)
            await running.task
        for job_id in ids:
            job = await app.get(job_id)
            assert (job.state, job.attempt, job.lost) == (JobState.PENDING, 0, 0)
        await wait_until(lambda: len(scene.ended) == 3)
        assert "done" not in scene.ended

    async def test_a_second_stop_shortens_the_grace(self, app):
        scene = Scene(app, "async")
        async with Running(app, grace=3600) as running:
            (job_id,) = await scene.begin()
            running.worker.stop()
            running.worker.stop()
            assert (await app.get(job_id)).state is JobState.RUNNING
            running.worker.stop(now=True)
            await running.task
        assert (await app.get(job_id)).state is JobState.PENDING

    async def test_a_thread_that_does_not_listen_does_not_hold_up_the_stop(self, app):
        deaf, began = threading.Event(), threading.Event()

        @app.task
        def stubborn() -> None:
            began.set()
            deaf.wait(30)

        async with Running(app) as running:
            job_id = await app.enqueue(stubborn)
            await wait_until(began.is_set)
            running.worker.stop(now=True)
            await running.task
        job = await app.get(job_id)
        deaf.set()
        assert (job.state, job.attempt) == (JobState.PENDING, 0)

    async def test_jobs_claimed_while_the_worker_is_told_to_stop_now_are_given_back(
        self, store, tmp_path
    ):
        claims = SlowAnswers(store)
        app = App(claims, secret_key_file=tmp_path / "secret.key")
        scene = Scene(app, "async")
        ids = await app.enqueue_many(scene.task, [{}] * 3)
        async with Running(app) as running:
            await claims.claimed.wait()
            running.worker.stop(now=True)
            claims.deliver.set()
            await running.task
        assert await scene.states(ids) == [JobState.PENDING] * 3
        assert scene.started == []
        assert [(await app.get(job_id)).lost for job_id in ids] == [0, 0, 0]

    async def test_a_cancel_that_was_requested_wins_over_giving_back(self, app):
        scene = Scene(app, "async")

        @app.task
        def heedless() -> None:
            scene.started.append(1)
            scene.go_on.wait(30)

        async with Running(app) as running:
            job_id = await app.enqueue(heedless)
            await wait_until(lambda: scene.started)
            await app.cancel(job_id)
            running.worker.stop(now=True)
            await running.task
        scene.go_on.set()
        assert (await app.get(job_id)).state is JobState.CANCELLED

    async def test_a_worker_stopped_before_it_ran_does_nothing(self, app):
        worker = app.worker()
        worker.stop()
        await worker.run()
        assert await app.store.workers() == []


class SlowAnswers(TroubledStore):
    """A store that has claimed jobs and is slow to say so."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.claimed, self.deliver = asyncio.Event(), asyncio.Event()

    async def exchange(self, *arguments: Any, **options: Any) -> Any:
        reply = await self._store.exchange(*arguments, **options)
        if reply.jobs:
            self.claimed.set()
            await self.deliver.wait()
        return reply


class TestEmbedded:
    """The program around the worker cancels it."""

    @both
    async def test_running_jobs_are_given_back(self, app, how):
        scene = Scene(app, how)
        async with Running(app) as running:
            ids = await scene.begin(3)
            running.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running.task
        for job_id in ids:
            job = await app.get(job_id)
            assert (job.state, job.attempt, job.lost) == (JobState.PENDING, 0, 0)
        await wait_until(lambda: len(scene.ended) == 3)
        assert "done" not in scene.ended
        assert [row.alive for row in await app.store.workers()] == [False]

    async def test_what_had_finished_is_handed_in(self, store, tmp_path):
        slow = SlowFinish(store)
        app = App(slow, secret_key_file=tmp_path / "secret.key")
        runs = []

        @app.task
        async def quick() -> str:
            runs.append(1)
            return "done"

        async with Running(app) as running:
            job_id = await app.enqueue(quick)
            await slow.asked.wait()
            running.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running.task
        job = await app.get(job_id)
        assert (job.state, job.value, job.lost, len(runs)) == (JobState.COMPLETED, "done", 0, 1)

    async def test_jobs_whose_claim_was_just_being_answered_are_given_back(self, store, tmp_path):
        claims = SlowAnswers(store)
        app = App(claims, secret_key_file=tmp_path / "secret.key")
        scene = Scene(app, "async")
        ids = await app.enqueue_many(scene.task, [{}] * 3)
        async with Running(app) as running:
            await claims.claimed.wait()
            running.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running.task
        for job_id in ids:
            job = await app.get(job_id)
            assert (job.state, job.attempt, job.lost) == (JobState.PENDING, 0, 0)
        assert scene.started == []

    async def test_a_task_that_raises_its_own_cancel_signal_is_not_confused_with_it(self, app):
        @app.task
        async def enough() -> None:
            raise CancelJob("enough")

        async with app.working():
            job = await app.wait(await app.enqueue(enough), timeout=20, progress=False)
        assert job.error.message == "enough"


class SlowFinish(TroubledStore):
    """A store that does not get round to the first exchange that hands something in."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.asked = asyncio.Event()

    async def exchange(self, worker_id: str, finished: Any, demands: Any, **options: Any) -> Any:
        if finished and not self.asked.is_set():
            self.asked.set()
            await asyncio.Event().wait()
        return await self._store.exchange(worker_id, finished, demands, **options)


async def _cancel_requested(app: App, job_id: str) -> bool:
    return (await app.get(job_id)).cancel_requested


async def _settled(app: App, batch: str) -> bool:
    counts = (await app.batch(batch)).counts
    return counts.done == counts.total
