"""The library's face: define, enqueue, wait, from asynchronous and from plain code."""

from __future__ import annotations

import asyncio
import threading

import pytest
from pydantic import BaseModel

from haulier import (
    App,
    ConfigurationError,
    Context,
    InvalidTaskTypeError,
    JobExecutionError,
    JobFilter,
    JobNotFoundError,
    JobState,
    ResultExpiredError,
    Retention,
    RetryPolicy,
    ValidationError,
)
from haulier.exceptions import StoreUnavailableError
from haulier.testing import inline, run_until_idle
from support import wait_until


class Order(BaseModel):
    number: int


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/app.db"


@pytest.fixture
def closed(url, tmp_path) -> App:
    """An app that nobody has opened, with a task."""
    app = App(url, secret_key_file=tmp_path / "secret.key")

    @app.task
    def double(n: int) -> int:
        return 2 * n

    return app


async def jobs_in(url: str) -> int:
    async with App(url) as app:
        return len((await app.find()).jobs)


class TestTasks:
    async def test_a_task_is_still_the_function_it_was(self, app):
        @app.task
        async def double(n: int) -> int:
            """Twice as much."""
            return 2 * n

        assert await double(4) == 8
        assert (double.__name__, double.__doc__, double.kind) == (
            "double",
            "Twice as much.",
            "double",
        )

    async def test_it_runs_and_its_result_comes_back(self, app):
        @app.task(kind="maths.double")
        async def double(n: int) -> int:
            return 2 * n

        async with app.working():
            assert await app.result(await double.enqueue(n=4), timeout=20) == 8
            assert await app.result(await app.enqueue("maths.double", {"n": 5}), timeout=20) == 10
            job = await app.wait(await app.enqueue(double, {"n": 6}), timeout=20, progress=False)
        assert (job.state, job.value) == (JobState.COMPLETED, 12)

    async def test_a_model_may_be_given_as_it_is(self, app):
        @app.task
        async def ship(order: Order) -> int:
            return order.number

        async with inline(app):
            assert await app.result(await app.enqueue(ship, Order(number=7))) == 7

    async def test_the_result_of_a_failed_or_cancelled_job_is_its_error(self, app):
        @app.task
        async def fail() -> None:
            raise LookupError("no such thing")

        with pytest.raises(JobNotFoundError):
            await app.get("01234567-89ab-7def-8123-456789abcdef")
        job_id = await app.enqueue(fail)
        assert await app.cancel(job_id) is JobState.CANCELLED
        with pytest.raises(JobExecutionError, match="cancelled"):
            await app.result(job_id, timeout=20)

    async def test_a_result_is_kept_for_a_while_and_then_told_as_expired(self, app):
        @app.task
        async def double(n: int) -> int:
            return 2 * n

        @app.task
        async def nothing() -> None: ...

        async with app.working():
            ids = [await app.enqueue(double, {"n": 4}), await app.enqueue(nothing)]
            assert [await app.result(job_id, timeout=20) for job_id in ids] == [8, None]
        rule = Retention(result_ttl=0)
        await app.store.prune({"double": rule, "nothing": rule})
        with pytest.raises(ResultExpiredError, match=ids[0]):
            await app.result(ids[0])
        assert (await app.get(ids[0])).result_expired
        # That there is nothing is no result that could be lost.
        assert await app.result(ids[1]) is None

    async def test_errors_of_all_attempts_are_told(self, app):
        @app.task(retry=RetryPolicy(max_attempts=3, delay=0))
        async def fail(ctx: Context) -> None:
            raise LookupError(f"attempt {ctx.job.attempt}")

        async with app.working():
            job = await app.wait(await app.enqueue(fail), timeout=20)
        errors = await app.errors(job.id)
        assert [error.message for error in errors] == ["attempt 3", "attempt 2", "attempt 1"]
        assert errors[0] == job.error

    async def test_a_bad_payload_never_reaches_the_store(self, app):
        @app.task
        async def double(n: int) -> int:
            return 2 * n

        for payload in ({"n": "x"}, {}, {"n": 1, "m": 2}, [1]):
            with pytest.raises(ValidationError):
                await app.enqueue(double, payload)
        with pytest.raises(InvalidTaskTypeError):
            await app.enqueue("dubble", {"n": 1})
        assert (await app.find()).jobs == ()

    async def test_a_batch_runs_to_its_callback(self, app):
        told = []

        @app.task
        async def double(n: int) -> int:
            return 2 * n

        @app.task
        async def afterwards(batch_id: str, state: str, counts: dict[str, int]) -> None:
            told.append((batch_id, state, counts["completed"]))

        async with app.working():
            batch = await app.enqueue_batch(
                double, ({"n": n} for n in range(1500)), on_finish=afterwards
            )
            head = await app.wait(batch, timeout=30)
        assert head.state is JobState.COMPLETED
        assert told == [(batch, "completed", 1500)]
        assert (await app.batch(batch)).progress == 100
        where = JobFilter(batch_id=batch, states=frozenset({JobState.COMPLETED}))
        assert len((await app.find(where, limit=2000)).jobs) == 1500

    async def test_what_failed_is_retried_by_one_call(self, app):
        broken = True

        @app.task
        async def fragile(n: int) -> int:
            if broken and n % 2:
                raise ValidationError("odd numbers are not welcome")
            return n

        batch = await app.enqueue_batch(fragile, [{"n": n} for n in range(6)])
        await run_until_idle(app)
        assert (await app.batch(batch)).counts.failed == 3
        broken = False
        assert await app.batches.retry_failed(batch) == 3
        await run_until_idle(app)
        assert (await app.batch(batch)).counts.completed == 6

    async def test_an_error_in_the_block_leaves_as_itself_and_stops_the_worker(self, app):
        with pytest.raises(KeyError, match="mine"):
            async with app.working():
                await wait_until(app.store.workers)
                raise KeyError("mine")
        assert [row.alive for row in await app.store.workers()] == [False]

    async def test_an_error_in_the_block_keeps_what_caused_it(self, app):
        with pytest.raises(KeyError, match="mine") as caused:
            async with app.working():
                try:
                    int("deeper")
                except ValueError as deeper:
                    raise KeyError("mine") from deeper
        assert isinstance(caused.value.__cause__, ValueError)
        with pytest.raises(KeyError, match="mine") as followed:
            async with app.working():
                try:
                    int("deeper")
                except ValueError:
                    raise KeyError("mine")  # noqa: B904 - for its context
        assert isinstance(followed.value.__context__, ValueError)
        assert not followed.value.__suppress_context__


class TestPlainCode:
    async def test_inside_an_event_loop_it_is_refused(self, closed):
        with pytest.raises(ConfigurationError, match="await enqueue"):
            closed.enqueue_sync("double", {"n": 1})

    def test_it_opens_the_store_for_each_call_if_need_be(self, closed, url):
        ids = [closed.enqueue_sync("double", {"n": n}) for n in range(3)]
        assert len(set(ids)) == 3
        assert asyncio.run(jobs_in(url)) == 3

    def test_threads_may_do_so_at_once(self, closed, url):
        made: list[str] = []

        def enqueue() -> None:
            made.extend(closed.enqueue_sync("double", {"n": n}) for n in range(8))

        threads = [threading.Thread(target=enqueue, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert len(set(made)) == asyncio.run(jobs_in(url)) == 32

    def test_within_a_plain_with_block_the_store_stays_open(self, closed, url):
        with closed as app:
            for n in range(3):
                app.enqueue_sync("double", {"n": n})
        with closed as app:
            app.enqueue_sync("double", {"n": 4})
        assert asyncio.run(jobs_in(url)) == 4

    def test_refusals_come_through(self, closed, url):
        with pytest.raises(ValidationError):
            closed.enqueue_sync("double", {"n": "x"})
        with closed, pytest.raises(ValidationError):
            closed.enqueue_sync("double", {"n": "x"})
        assert asyncio.run(jobs_in(url)) == 0

    def test_a_store_that_cannot_be_opened_or_closed_leaves_no_thread_behind(
        self, closed, tmp_path, monkeypatch
    ):
        before = set(threading.enumerate())
        nowhere = App(f"sqlite:///{tmp_path}/nowhere/app.db")
        with pytest.raises(StoreUnavailableError) as not_opened, nowhere:
            raise AssertionError("it was opened")
        assert set(threading.enumerate()) == before, not_opened

        async def broken(*_: object) -> None:
            await leave(None, None, None)
            raise StoreUnavailableError("it would not close")

        leave = closed.store.__aexit__
        monkeypatch.setattr(type(closed), "__aexit__", broken)
        with pytest.raises(StoreUnavailableError, match="would not close") as not_closed, closed:
            pass
        assert set(threading.enumerate()) == before, not_closed

    async def test_from_another_thread_it_uses_the_loop_that_holds_the_app(self, closed):
        async with closed as app:
            ids = await asyncio.gather(
                *(asyncio.to_thread(app.enqueue_sync, "double", {"n": n}) for n in range(10))
            )
            assert {job.id for job in (await app.find()).jobs} == set(ids)

    async def test_a_plain_task_can_enqueue_further_jobs(self, app):
        seen = threading.Event()

        @app.task
        def first() -> str:
            return app.enqueue_sync(second)

        @app.task
        def second() -> None:
            seen.set()

        async with app.working():
            followed = await app.result(await app.enqueue(first), timeout=20)
            await app.wait(followed, timeout=20)
        assert seen.is_set()
