"""What a task does and raises, and what becomes of its job."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from haulier import (
    App,
    CancelJob,
    ConfigurationError,
    Context,
    Job,
    JobState,
    LeaseLostError,
    PermanentError,
    RetryLater,
    RetryPolicy,
    Secret,
    Snooze,
    ValidationError,
)
from support import wait_until, work

AT_ONCE = RetryPolicy(max_attempts=3, delay=0, cap=0)
CANARY = "canary-7f3a-s3cr3t"


async def outcome_of(app: App, task: Any, **payload: Any) -> Job:
    """Run one job of the task to its end."""
    async with app.working():
        return await app.wait(await app.enqueue(task, payload), timeout=20, progress=False)


def raising(app: App, how: str, error: BaseException, **options: Any) -> tuple[Any, list[int]]:
    """A task, coroutine or plain, that raises; and the attempts it was called with."""
    attempts: list[int] = []

    if how == "async":

        @app.task(kind="raising", **options)
        async def task(ctx: Context) -> None:
            attempts.append(ctx.job.attempt)
            raise error
    else:

        @app.task(kind="raising", **options)
        def task(ctx: Context) -> None:
            attempts.append(ctx.job.attempt)
            raise error

    return task, attempts


both = pytest.mark.parametrize("how", ["async", "plain"])


class TestSuccess:
    async def test_coroutines_and_plain_functions_return_results(self, app):
        @app.task
        async def one(n: int) -> dict[str, int]:
            return {"n": n}

        @app.task
        def two(n: int) -> list[str]:
            return [threading.current_thread().name, str(n)]

        async with app.working():
            first = await app.enqueue(one, {"n": 1})
            second = await app.enqueue(two, {"n": 2})
            assert await app.result(first, timeout=20) == {"n": 1}
            name, n = await app.result(second, timeout=20)
        assert (name.startswith("haulier-job"), n) == (True, "2")
        assert (await app.get(first)).attempt == 1

    async def test_a_result_that_json_does_not_know_fails_the_job_without_another_try(self, app):
        @app.task(retry=AT_ONCE)
        async def strange() -> object:
            return object()

        job = await outcome_of(app, strange)
        assert (job.state, job.attempt) == (JobState.FAILED, 1)
        assert "cannot be written as JSON" in job.error.message

    async def test_a_stored_payload_that_no_longer_fits_fails_at_once(self, app, store):
        @app.task(retry=AT_ONCE)
        async def task(n: int) -> int:
            return n

        job = work("task", payload=b'{"n": "many"}')
        await store.insert([job])
        async with app.working():
            done = await app.wait(job.id, timeout=20, progress=False)
        assert (done.state, done.attempt, done.error.type) == (
            JobState.FAILED,
            1,
            "ValidationError",
        )


class TestContext:
    @both
    async def test_a_task_knows_its_job_and_its_lease(self, app, how):
        if how == "async":

            @app.task(kind="look")
            async def look(ctx: Context) -> list[Any]:
                return [ctx.job.id, ctx.job.attempt, ctx.lease, ctx.cancelled]
        else:

            @app.task(kind="look")
            def look(ctx: Context) -> list[Any]:
                return [ctx.job.id, ctx.job.attempt, ctx.lease, ctx.cancelled]

        job = await outcome_of(app, look)
        assert job.value == [job.id, 1, 1, False]

    @both
    async def test_progress_is_stored_while_the_job_runs(self, app, how):
        go_on = threading.Event()

        if how == "async":

            @app.task(kind="slow")
            async def slow(ctx: Context) -> None:
                ctx.progress(40.7, "four of ten")
                await asyncio.to_thread(go_on.wait)
        else:

            @app.task(kind="slow")
            def slow(ctx: Context) -> None:
                ctx.progress(40.7, "four of ten")
                go_on.wait()

        async with app.working():
            job_id = await app.enqueue(slow)
            try:
                await wait_until(lambda: _reports(app, job_id, 40, "four of ten"))
            finally:
                go_on.set()

    async def test_the_last_word_is_stored_although_the_job_ends_right_after_it(self, app):
        @app.task
        async def quick(ctx: Context) -> None:
            ctx.progress(10, "beginning")
            ctx.progress(100, "done with it")

        job = await outcome_of(app, quick)
        assert (job.progress, job.message) == (100, "done with it")

    @pytest.mark.parametrize("percent", [-1, 100.5, float("nan")])
    async def test_a_percentage_that_is_none_fails_the_attempt(self, app, percent):
        @app.task(retry=RetryPolicy.never())
        async def wild(ctx: Context) -> None:
            ctx.progress(percent)

        job = await outcome_of(app, wild)
        assert (job.state, job.error.type) == (JobState.FAILED, "ValueError")

    @pytest.mark.parametrize(
        ("message", "kept"),
        [
            ("half a \ud800 character", "half a ? character"),
            (7, "7"),
            ("x" * 5000, "x" * 500),
        ],
    )
    async def test_odd_messages_hurt_nobody(self, app, message, kept):
        @app.task
        async def chatty(ctx: Context) -> str:
            ctx.progress(50, message)
            return "fine"

        job = await outcome_of(app, chatty)
        assert (job.value, job.message) == ("fine", kept)

    async def test_log_lines_carry_the_job(self, app):
        @app.task
        async def talk(ctx: Context) -> None:
            ctx.log.info("hello", who="world")

        with capture_logs() as lines:
            job = await outcome_of(app, talk)
        (line,) = [line for line in lines if line["event"] == "hello"]
        assert (line["job"], line["kind"], line["attempt"], line["lease"], line["who"]) == (
            job.id,
            "talk",
            1,
            1,
            "world",
        )


class TestSignals:
    @both
    async def test_retry_later_counts_as_an_attempt_and_waits_as_long_as_it_says(self, app, how):
        task, attempts = raising(app, how, RetryLater("not yet", delay=0), retry=AT_ONCE)
        job = await outcome_of(app, task)
        assert (job.state, attempts) == (JobState.FAILED, [1, 2, 3])
        assert (job.error.type, job.error.message, job.error.attempt) == (
            "RetryLater",
            "not yet",
            3,
        )

    async def test_a_retry_waits_in_the_store(self, app):
        task, attempts = raising(app, "async", RetryLater(delay=3600))
        async with app.working():
            job_id = await app.enqueue(task)
            await wait_until(lambda: _state(app, job_id, JobState.PENDING, attempts=1))
        job = await app.get(job_id)
        assert (job.attempt, attempts) == (1, [1])
        assert job.run_at - job.started_at > 3_590_000_000

    async def test_a_retry_runs_when_its_time_has_come(self, app):
        task, attempts = raising(app, "async", RetryLater(delay=0.05), retry=AT_ONCE)
        assert (await outcome_of(app, task)).state is JobState.FAILED
        assert attempts == [1, 2, 3]

    @both
    async def test_a_snooze_costs_no_attempt(self, app, how):
        calls: list[int] = []

        def body(ctx: Context) -> str:
            calls.append(ctx.job.attempt)
            if len(calls) < 5:
                raise Snooze(0)
            return "awake"

        async def coroutine(ctx: Context) -> str:
            return body(ctx)

        task = app.task(kind="sleepy", retry=AT_ONCE)(coroutine if how == "async" else body)
        job = await outcome_of(app, task)
        assert (job.value, job.attempt, job.lease, calls) == ("awake", 1, 5, [1] * 5)

    @both
    async def test_a_task_can_cancel_itself_with_a_reason(self, app, how):
        task, attempts = raising(app, how, CancelJob("nothing to do"), retry=AT_ONCE)
        job = await outcome_of(app, task)
        assert (job.state, attempts) == (JobState.CANCELLED, [1])
        assert job.error.message == "nothing to do"

    @both
    @pytest.mark.parametrize(
        "error", [PermanentError("never"), ValidationError("bad"), ConfigurationError("wrong")]
    )
    async def test_errors_that_come_back_every_time_are_not_tried_again(self, app, how, error):
        task, attempts = raising(app, how, error, retry=AT_ONCE)
        job = await outcome_of(app, task)
        assert (job.state, attempts, job.error.type) == (
            JobState.FAILED,
            [1],
            type(error).__name__,
        )


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class TestFailures:
    @both
    @pytest.mark.parametrize(
        "error",
        [
            LookupError("gone"),
            SystemExit(3),
            KeyboardInterrupt(),
            GeneratorExit(),
            asyncio.CancelledError("mine"),
            StopIteration(5),
            StopAsyncIteration(),
            TimeoutError("slow"),
            ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
            UnprintableError(),
            BaseException("bare"),
            LeaseLostError("says who?"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_whatever_is_raised_fails_the_attempt_and_not_the_worker(self, app, how, error):
        task, attempts = raising(app, how, error, retry=AT_ONCE)

        @app.task
        async def neighbour() -> str:
            return "fine"

        async with app.working():
            job_id = await app.enqueue(task)
            job = await app.wait(job_id, timeout=20, progress=False)
            assert await app.result(await app.enqueue(neighbour), timeout=20) == "fine"
        assert (job.state, attempts) == (JobState.FAILED, [1, 2, 3])
        assert job.error.attempt == 3
        assert len(await app.store.workers()) == 1

    async def test_a_task_that_cancels_its_own_asyncio_task_has_failed(self, app):
        attempts = []

        @app.task(retry=AT_ONCE)
        async def suicidal() -> None:
            attempts.append(1)
            asyncio.current_task().cancel()
            await asyncio.Event().wait()

        job = await outcome_of(app, suicidal)
        assert (job.state, len(attempts), job.error.type) == (
            JobState.FAILED,
            3,
            "CancelledError",
        )

    async def test_the_error_tells_where_it_happened_and_leaves_out_our_own_frames(self, app):
        @app.task(retry=RetryPolicy.never())
        async def deep() -> None:
            def inner() -> None:
                raise LookupError("down here")

            inner()

        error = (await outcome_of(app, deep)).error
        assert (error.type, error.message) == ("LookupError", "down here")
        assert "in inner" in error.traceback
        assert "haulier/worker" not in error.traceback

    async def test_long_errors_are_cut(self, app):
        def sink(depth: int) -> None:
            if depth:
                sink(depth - 1)
            raise LookupError("x" * 100_000)

        @app.task(retry=RetryPolicy.never())
        async def verbose() -> None:
            sink(100)

        error = (await outcome_of(app, verbose)).error
        assert len(error.message) == 2000
        assert len(error.traceback) <= 8000

    async def test_half_characters_in_an_error_are_replaced(self, app):
        @app.task(retry=RetryPolicy.never())
        async def odd() -> None:
            raise LookupError("file \udcff is gone")

        assert (await outcome_of(app, odd)).error.message == "file ? is gone"

    async def test_a_job_has_its_own_policy_if_it_was_given_one(self, app):
        task, attempts = raising(app, "async", LookupError("gone"), retry=AT_ONCE)
        async with app.working():
            once = RetryPolicy.never()
            await app.wait(await app.enqueue(task, retry=once), timeout=20, progress=False)
        assert attempts == [1]

    async def test_a_success_after_failures_forgets_the_error(self, app):
        @app.task(retry=AT_ONCE)
        async def third_time(ctx: Context) -> int:
            if ctx.job.attempt < 3:
                raise LookupError("not yet")
            return ctx.job.attempt

        job = await outcome_of(app, third_time)
        assert (job.state, job.value, job.error) == (JobState.COMPLETED, 3, None)


class Login(BaseModel):
    user: str
    password: Secret


class TestSecrets:
    @both
    async def test_a_revealed_secret_is_masked_in_errors_and_messages(self, app, how):
        def body(ctx: Context, login: Login) -> None:
            plain = login.password.reveal()
            ctx.progress(5, f"trying {plain}")
            raise LookupError(f"login failed: {login.user}:{plain}@host")

        async def coroutine(ctx: Context, login: Login) -> None:
            body(ctx, login)

        task = app.task(kind="login", retry=RetryPolicy.never())(
            coroutine if how == "async" else body
        )
        job = await outcome_of(app, task, user="u", password=CANARY)
        assert job.error.message == "login failed: u:******@host"
        assert job.message == "trying ******"
        assert CANARY not in repr(job)

    async def test_a_task_gets_what_was_enqueued(self, app):
        seen = []

        @app.task
        async def use(login: Login, token: Secret) -> str:
            seen.append((login.password.reveal(), token.reveal()))
            return f"{login} {token}"

        payload = {"login": {"user": "u", "password": CANARY}, "token": "tok-en"}
        job = await outcome_of(app, use, **payload)
        assert seen == [(CANARY, "tok-en")]
        assert CANARY.encode() not in job.payload + job.result

    async def test_a_job_sealed_with_another_key_fails_with_the_reason(self, app, store, tmp_path):
        @app.task(retry=RetryPolicy.never())
        async def use(token: Secret) -> str:
            return token.reveal()

        other = App(store, secret_key_file=tmp_path / "other.key", registry=app.registry)
        job_id = await other.enqueue(use.kind, {"token": CANARY})
        async with app.working():
            job = await app.wait(job_id, timeout=20, progress=False)
        assert (job.state, job.error.type) == (JobState.FAILED, "AuthenticationError")
        assert "sealed with key" in job.error.message


async def _reports(app: App, job_id: str, progress: int, message: str) -> bool:
    job = await app.get(job_id)
    return (job.state, job.progress, job.message) == (JobState.RUNNING, progress, message)


async def _state(app: App, job_id: str, state: JobState, attempts: int) -> bool:
    job = await app.get(job_id)
    return job.state is state and job.attempt == attempts
