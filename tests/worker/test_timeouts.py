"""Jobs that take longer than they were given, in coroutines and in threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from test_stopping import Running

from haulier import (
    App,
    ConfigurationError,
    Context,
    Job,
    JobState,
    JobTimeoutError,
    LeaseLostError,
    RetryPolicy,
    WorkerOptions,
)
from support import SqliteMemory, wait_until

ONCE = RetryPolicy.never()
TWICE = RetryPolicy(max_attempts=2, delay=0, cap=0)


@pytest.fixture
def home_kind() -> Any:
    """One kind of store: timeouts are the worker's alone."""
    return SqliteMemory


async def outcome_of(app: App, task: Any, **payload: Any) -> Job:
    async with app.working():
        return await app.wait(await app.enqueue(task, payload), timeout=20, progress=False)


class TestSoftInCoroutines:
    async def test_what_escapes_is_a_timeout_and_the_policy_decides(self, app):
        attempts = []

        @app.task(timeout=0.05, retry=TWICE)
        async def slow(ctx: Context) -> None:
            attempts.append(ctx.job.attempt)
            await asyncio.Event().wait()

        job = await outcome_of(app, slow)
        assert (job.state, attempts) == (JobState.FAILED, [1, 2])
        assert (job.error.type, job.error.message) == ("JobTimeoutError", "took longer than 0.05 s")
        assert "in slow" in job.error.traceback

    async def test_a_policy_may_give_up_on_timeouts(self, app):
        @app.task(timeout=0.05, retry=RetryPolicy(delay=0, give_up_on=(JobTimeoutError,)))
        async def slow() -> None:
            await asyncio.Event().wait()

        job = await outcome_of(app, slow)
        assert (job.state, job.attempt) == (JobState.FAILED, 1)

    async def test_a_job_that_catches_it_may_still_succeed(self, app):
        @app.task(timeout=0.05)
        async def careful() -> str:
            try:
                await asyncio.Event().wait()
            except JobTimeoutError as error:
                # It has been dealt with: waiting works again.
                await asyncio.sleep(0)
                async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(0))
                assert asyncio.current_task().cancelling() == 0
                return f"{error}"

        job = await outcome_of(app, careful)
        assert (job.state, job.value) == (JobState.COMPLETED, "took longer than 0.05 s")

    async def test_one_that_catches_it_and_raises_something_else_has_failed_with_that(self, app):
        @app.task(timeout=0.05, retry=ONCE)
        async def clumsy() -> None:
            try:
                await asyncio.Event().wait()
            except JobTimeoutError:
                raise LookupError("while cleaning up") from None

        assert (await outcome_of(app, clumsy)).error.type == "LookupError"

    async def test_task_groups_and_scopes_inside_the_job_clean_up(self, app):
        ended = []

        async def inner(name: str) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(name)
                raise

        @app.task(timeout=0.05, retry=ONCE)
        async def nested(how: str) -> None:
            if how == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(inner("one"))
                    await inner("two")
            elif how == "timeout":
                async with asyncio.timeout(20):
                    await inner("one")
            elif how == "gather":
                await asyncio.gather(inner("one"), inner("two"))
            elif how == "wait_for":
                await asyncio.wait_for(inner("one"), 20)
            else:
                async with anyio.create_task_group() as group:
                    group.start_soon(inner, "one")
                    with anyio.fail_after(20):
                        await inner("two")

        async with app.working():
            for how, count in (
                ("group", 2),
                ("timeout", 1),
                ("gather", 2),
                ("wait_for", 1),
                ("anyio", 2),
            ):
                ended.clear()
                job_id = await app.enqueue(nested, {"how": how})
                job = await app.wait(job_id, timeout=20, progress=False)
                assert (job.error.type, len(ended)) == ("JobTimeoutError", count), how

    async def test_a_timeout_of_the_jobs_own_is_not_confused_with_it(self, app):
        @app.task(timeout=20)
        async def own() -> str:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "mine"

        assert (await outcome_of(app, own)).value == "mine"

    async def test_a_job_that_is_done_in_time_knows_nothing_of_it(self, app):
        @app.task(timeout=20)
        async def quick(ctx: Context) -> list[Any]:
            await asyncio.sleep(0)
            return [ctx.cancelled, asyncio.current_task().cancelling()]

        assert (await outcome_of(app, quick)).value == [False, 0]

    async def test_a_cancel_on_request_stays_one(self, app):
        seen, began = [], asyncio.Event()

        @app.task(timeout=20)
        async def slow() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                seen.append(type(error))
                raise

        async with app.working():
            job_id = await app.enqueue(slow)
            await began.wait()
            await app.cancel(job_id)
            job = await app.wait(job_id, timeout=20, progress=False)
        assert (job.state, seen) == (JobState.CANCELLED, [asyncio.CancelledError])

    async def test_a_shutdown_is_not_taken_for_a_timeout(self, app):
        began = asyncio.Event()

        @app.task(timeout=20)
        async def slow() -> None:
            began.set()
            await asyncio.Event().wait()

        async with Running(app) as running:
            job_id = await app.enqueue(slow)
            await began.wait()
            running.worker.stop(now=True)
            await running.task
        job = await app.get(job_id)
        assert (job.state, job.attempt) == (JobState.PENDING, 0)

    async def test_exceptions_of_what_it_waits_for_reach_the_job(self, app):
        @app.task(timeout=20, retry=ONCE)
        async def waits() -> str:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_exception, LookupError("gone"))
            try:
                await future
            except LookupError:
                cancelled = asyncio.ensure_future(asyncio.sleep(20))
                asyncio.get_running_loop().call_soon(cancelled.cancel)
                try:
                    await cancelled
                except asyncio.CancelledError:
                    return "both"

        assert (await outcome_of(app, waits)).value == "both"


class TestSoftInThreads:
    async def test_check_and_progress_raise_from_then_on(self, app):
        seen = []

        @app.task(timeout=0.05, retry=ONCE)
        def slow(ctx: Context) -> None:
            while not ctx.cancelled:
                threading.Event().wait(0.005)
            for ask in (ctx.check, lambda: ctx.progress(5)):
                try:
                    ask()
                except JobTimeoutError as error:
                    seen.append(str(error))
            ctx.check()

        job = await outcome_of(app, slow)
        assert (job.error.type, job.error.message) == ("JobTimeoutError", "took longer than 0.05 s")
        assert seen == ["took longer than 0.05 s"] * 2

    async def test_one_that_does_not_ask_is_not_disturbed(self, app):
        @app.task(timeout=0.02)
        def heedless() -> str:
            threading.Event().wait(0.1)
            return "done"

        assert (await outcome_of(app, heedless)).value == "done"


class TestHard:
    async def test_a_coroutine_is_cancelled(self, app):
        ended = []

        @app.task(hard_timeout=0.05, retry=ONCE)
        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise LookupError("cleaning up") from None

        job = await outcome_of(app, slow)
        assert (job.error.type, job.error.message) == ("JobTimeoutError", "took longer than 0.05 s")
        assert ended == ["cancelled"]

    async def test_a_coroutine_that_does_not_heed_it_is_abandoned_and_its_result_dropped(
        self, app, monkeypatch
    ):
        monkeypatch.setattr("haulier.worker.running.ABANDON_AFTER", 0.05)
        go_on, ended = asyncio.Event(), []

        @app.task(hard_timeout=0.05, retry=ONCE)
        async def deaf() -> str:
            while not go_on.is_set():
                try:
                    await go_on.wait()
                except asyncio.CancelledError:
                    continue
            ended.append(1)
            return "too late"

        @app.task
        async def other() -> str:
            return "fine"

        with capture_logs() as lines:
            async with app.working(WorkerOptions(concurrency=1)) as worker:
                job_id = await app.enqueue(deaf)
                job = await app.wait(job_id, timeout=20, progress=False)
                assert await app.result(await app.enqueue(other), timeout=20) == "fine"
                assert worker.abandoned == 1
                go_on.set()
                await wait_until(lambda: not worker.abandoned)
        assert ended == [1]
        assert (job.state, job.error.type) == (JobState.FAILED, "JobTimeoutError")
        assert (await app.get(job_id)).state is JobState.FAILED
        (line,) = [line for line in lines if line["event"] == "job abandoned"]
        assert (line["job"], line["kind"], line["why"]) == (job_id, "deaf", "timeout")

    async def test_a_coroutine_that_does_not_heed_the_shutdown_does_not_hold_it_up(
        self, app, monkeypatch
    ):
        monkeypatch.setattr("haulier.worker.running.ABANDON_AFTER", 0.05)
        go_on, began = asyncio.Event(), asyncio.Event()

        @app.task
        async def deaf() -> None:
            began.set()
            while not go_on.is_set():
                try:
                    await go_on.wait()
                except asyncio.CancelledError:
                    continue

        async with Running(app) as running:
            job_id = await app.enqueue(deaf)
            await began.wait()
            running.worker.stop(now=True)
            await running.task
            job = await app.get(job_id)
            go_on.set()
            await wait_until(lambda: not running.worker.abandoned)
        assert (job.state, job.attempt) == (JobState.PENDING, 0)

    async def test_a_thread_is_told_and_abandoned_at_once(self, app):
        go_on, seen = threading.Event(), []

        @app.task(hard_timeout=0.05, retry=ONCE)
        def deaf(ctx: Context) -> None:
            go_on.wait(20)
            try:
                ctx.check()
            except LeaseLostError:
                seen.append("lost")

        async with app.working(WorkerOptions(threads=1)):
            job = await app.wait(await app.enqueue(deaf), timeout=20, progress=False)
            go_on.set()
            await wait_until(lambda: seen)
        assert job.error.message == (
            "took longer than 0.05 s; its thread cannot be stopped and goes on"
        )

    async def test_abandoned_threads_are_bounded(self, app):
        go_on, started = threading.Event(), []

        @app.task(hard_timeout=0.05, retry=ONCE)
        def deaf() -> None:
            started.append(1)
            go_on.wait(20)

        @app.task
        async def tick() -> None: ...

        async with app.working(WorkerOptions(threads=2)):
            ids = await app.enqueue_many(deaf, [{}] * 8)
            try:
                # Two for nothing, and two more that withhold the two slots.
                await wait_until(lambda: len(started) == 4)
                for _ in range(5):
                    await app.result(await app.enqueue(tick), timeout=20)
                assert len(started) == 4
            finally:
                go_on.set()
            for job_id in ids:
                await app.wait(job_id, timeout=20, progress=False)

    async def test_a_job_without_a_timeout_of_its_own_is_stopped_by_the_scan(
        self, app, monkeypatch
    ):
        monkeypatch.setattr("haulier.worker.running.LONGEST_RUN", 0.2)
        monkeypatch.setattr("haulier.worker.running.SCAN_EVERY", 0.05)

        @app.task(retry=ONCE)
        async def hangs() -> None:
            await asyncio.Event().wait()

        job = await outcome_of(app, hangs)
        assert (job.error.type, job.error.message) == ("JobTimeoutError", "took longer than 0.2 s")

    async def test_soft_comes_first_and_hard_ends_what_ignores_it(self, app):
        seen = []

        @app.task(timeout=0.05, hard_timeout=0.2, retry=ONCE)
        async def stubborn() -> None:
            try:
                await asyncio.Event().wait()
            except JobTimeoutError:
                seen.append("soft")
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError as error:
                    seen.append(type(error).__name__)
                    raise

        job = await outcome_of(app, stubborn)
        assert (seen, job.error.message) == (["soft", "CancelledError"], "took longer than 0.2 s")


class TestDefinition:
    @pytest.mark.parametrize("name", ["timeout", "hard_timeout"])
    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", True], ids=repr)
    def test_senseless_times_are_refused(self, app, name, seconds):
        with pytest.raises(ConfigurationError, match=f"{name} must be a number of seconds above 0"):

            @app.task(**{name: seconds})
            async def task() -> None: ...

    @pytest.mark.parametrize(
        "times", [{"timeout": 5, "hard_timeout": 4}, {"timeout": 90_000}], ids=["both", "default"]
    )
    def test_a_soft_timeout_above_the_hard_one_is_refused(self, app, times):
        with pytest.raises(ConfigurationError, match="must not be above hard_timeout"):

            @app.task(**times)
            async def task() -> None: ...

    def test_unknown_options_are_refused(self, app):
        with pytest.raises(ConfigurationError, match="no option timeouts"):

            @app.task(timeouts=5)
            async def task() -> None: ...
