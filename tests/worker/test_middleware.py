"""Hooks around runs: when each is called, what it is told, and what it may change."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from child_tasks import add, fail
from structlog.testing import capture_logs

from counting import Counting
from haulier import (
    App,
    CancelJob,
    ConfigurationError,
    Context,
    JobState,
    Middleware,
    PermanentError,
    RetryLater,
    RetryPolicy,
    Secret,
    Snooze,
)
from haulier.testing import inline
from haulier.worker import around, running
from support import wait_until, work

AT_ONCE = RetryPolicy(max_attempts=2, delay=0, cap=0)
CANARY = "canary-7f3a-s3cr3t"


class Noting(Middleware):
    """Writes down what it is told."""

    def __init__(self, name: str, seen: list[Any]) -> None:
        self.name, self.seen = name, seen
        self.ended: list[Any] = []

    async def before(self, attempt):
        self.seen.append(f"{self.name} before")

    def after(self, attempt, ended):
        self.seen.append(f"{self.name} after {ended.move}")
        self.ended.append(ended)

    async def on_failure(self, attempt, ended):
        self.seen.append(f"{self.name} failure {ended.error.type}")

    def on_cancel(self, attempt, ended):
        self.seen.append(f"{self.name} cancel")


async def run(app: App, task: Any, **payload: Any):
    async with app.working():
        return await app.wait(await app.enqueue(task, payload), timeout=20, progress=False)


class TestOrder:
    async def test_the_first_is_the_outermost(self, app):
        seen: list[str] = []
        app.middleware(Noting("a", seen), Noting("b", seen))
        app.middleware(Noting("c", seen))

        @app.task
        async def task() -> None:
            seen.append("task")

        await run(app, task)
        assert seen == [
            *("a before", "b before", "c before", "task"),
            *("c after complete", "b after complete", "a after complete"),
        ]

    async def test_failures_come_before_after_and_say_whether_another_try_follows(self, app):
        note = Noting("a", seen := [])
        app.middleware(note)

        @app.task(retry=AT_ONCE)
        async def task() -> None:
            raise OSError("no")

        await run(app, task)
        assert seen == [
            *("a before", "a failure OSError", "a after retry"),
            *("a before", "a failure OSError", "a after fail"),
        ]
        first, last = note.ended
        assert (first.will_retry, first.retry_in, last.will_retry) == (True, 0.0, False)
        assert last.retry_in is None
        assert isinstance(first.exception, OSError)
        assert (first.error.message, first.result) == ("no", None)

    async def test_only_kinds_that_were_asked_for(self, app):
        seen: list[str] = []

        @app.task
        async def one() -> None: ...

        @app.task
        async def other() -> None: ...

        app.middleware(Noting("a", seen), kinds=[one])
        await run(app, other)
        assert seen == []
        await run(app, one)
        assert seen == ["a before", "a after complete"]

    async def test_what_is_no_middleware_or_no_kind_is_refused(self, app):
        with pytest.raises(ConfigurationError, match="not an instance of a Middleware"):
            app.middleware(Noting)
        app.middleware(Noting("a", []), kinds=["nonsense"])
        with pytest.raises(ConfigurationError, match="Noting is for the unknown kind 'nonsense'"):
            await app.worker().run()


class TestExecutors:
    async def test_state_and_context_variables_reach_coroutines_and_threads(self, app):
        number = contextvars.ContextVar("number", default=0)
        threads: list[bool] = []

        class Giving(Middleware):
            def before(self, attempt):
                threads.append(threading.current_thread() is threading.main_thread())
                attempt.state["session"] = attempt.job.kind
                number.set(7)

            def after(self, attempt, ended):
                threads.append(threading.current_thread() is threading.main_thread())
                attempt.state["value"] = ended.value
                values.append(dict(attempt.state))

        values: list[Any] = []
        app.middleware(Giving())

        @app.task
        async def one(ctx: Context) -> list[Any]:
            return [ctx.state["session"], number.get()]

        @app.task
        def two(ctx: Context) -> list[Any]:
            return [ctx.state["session"], number.get()]

        assert (await run(app, one)).value == ["one", 7]
        assert (await run(app, two)).value == ["two", 7]
        assert values == [
            {"session": "one", "value": ["one", 7]},
            {"session": "two", "value": ["two", 7]},
        ]
        assert threads == [True] * 4

    async def test_a_child_process_is_surrounded_in_the_worker(self, app):
        note = Noting("a", [])
        app.middleware(note)
        good = app.task(executor="process")(add)
        bad = app.task(executor="process", retry=RetryPolicy.never())(fail)
        job = await run(app, good, left=4)
        await run(app, bad, how="value")
        assert note.ended[0].value == job.value
        assert note.ended[0].exception is None
        assert note.ended[1].error.type == "ValueError"

    async def test_a_bulk_kind_hands_over_and_its_items_are_jobs_of_their_own(self, app):
        app.add_runner(Counting())
        note = Noting("a", [])
        app.middleware(note)
        async with app.working():
            head = await app.enqueue("counting", {"count": 2})
            await app.wait(head, timeout=20, progress=False)
        # Items run as soon as they are there, the first of them perhaps before the head is done.
        moves = sorted(str(ended.move) for ended in note.ended)
        assert moves == ["complete"] * 3 + ["hand_over"]

    async def test_jobs_that_run_in_a_test_are_surrounded_too(self, app):
        note = Noting("a", seen := [])

        @app.task(retry=RetryPolicy.never())
        async def task() -> None:
            raise ValueError("no")

        app.middleware(note)
        async with inline(app):
            await app.enqueue(task)
        assert seen == ["a before", "a failure ValueError", "a after fail"]


class TestBefore:
    @pytest.mark.parametrize(
        ("error", "state", "kind"),
        [
            (ValueError("no"), JobState.FAILED, "ValueError"),
            (PermanentError("no"), JobState.FAILED, "PermanentError"),
            (CancelJob("no"), JobState.CANCELLED, "CancelJob"),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_what_it_raises_is_the_attempts_own(self, app, error, state, kind):
        class Refusing(Middleware):
            def before(self, attempt):
                raise error

        ran = []
        app.middleware(Noting("a", seen := []), Refusing(), Noting("c", seen))

        @app.task(retry=RetryPolicy.never())
        async def task() -> None:
            ran.append(1)

        job = await run(app, task)
        assert (job.state, job.error.type, ran) == (state, kind, [])
        assert [text.split()[0] for text in seen] == ["a"] * 3, seen

    async def test_a_snooze_costs_no_attempt(self, app):
        class Later(Middleware):
            runs = 0

            def before(self, attempt):
                self.runs += 1
                if self.runs == 1:
                    raise Snooze(0)

        app.middleware(Later())

        @app.task
        async def task() -> None: ...

        job = await run(app, task)
        assert (job.state, job.attempt, job.lease) == (JobState.COMPLETED, 1, 2)

    async def test_a_payload_that_is_refused_is_a_failure_that_hooks_see(self, app, store):
        app.middleware(Noting("a", seen := []))

        @app.task
        async def task(n: int) -> None: ...

        new = work("task", payload=b'{"n":"x"}')
        await store.insert([new])
        async with app.working():
            await app.wait(new.id, timeout=20, progress=False)
        assert seen == ["a before", "a failure ValidationError", "a after fail"]


class TestAfter:
    async def test_what_hooks_raise_is_logged_and_changes_nothing(self, app):
        class Broken(Middleware):
            async def on_failure(self, attempt, ended):
                raise KeyError("failure")

            def after(self, attempt, ended):
                raise CancelJob("after")

        outer = Noting("a", seen := [])
        app.middleware(outer, Broken())

        @app.task
        async def good() -> int:
            return 1

        @app.task(retry=RetryPolicy.never())
        async def bad() -> None:
            raise OSError("no")

        with capture_logs() as logs:
            assert (await run(app, good)).state is JobState.COMPLETED
            job = await run(app, bad)
        assert (job.state, job.error.type) == (JobState.FAILED, "OSError")
        told = [(log["hook"].rpartition(".")[2], log["error"]) for log in logs if "hook" in log]
        assert told == [
            ("after", "CancelJob: after"),
            ("on_failure", "KeyError: 'failure'"),
            ("after", "CancelJob: after"),
        ]
        assert seen[-2:] == ["a failure OSError", "a after fail"]

    @pytest.mark.parametrize(
        ("error", "state", "attempts"),
        [
            (PermanentError("enough"), JobState.FAILED, 1),
            (CancelJob("enough"), JobState.CANCELLED, 1),
            (RetryLater("again", delay=0), JobState.FAILED, 2),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_a_failure_may_be_changed_by_saying_so(self, app, error, state, attempts):
        class Judging(Middleware):
            def on_failure(self, attempt, ended):
                raise error

        outer = Noting("a", seen := [])
        app.middleware(outer, Judging())

        @app.task(retry=AT_ONCE)
        async def task() -> None:
            raise OSError("no")

        job = await run(app, task)
        assert (job.state, job.attempt, job.error.type) == (state, attempts, type(error).__name__)
        assert outer.ended[-1].error.type == type(error).__name__
        if state is JobState.CANCELLED:
            assert seen == ["a before", "a cancel", "a after cancel"]

    async def test_a_hook_that_hangs_is_given_up(self, app, monkeypatch):
        monkeypatch.setattr(around, "HOOK_PATIENCE", 0.05)

        class Hanging(Middleware):
            async def after(self, attempt, ended):
                await asyncio.Event().wait()

        app.middleware(Hanging())

        @app.task
        async def task() -> None: ...

        with capture_logs() as logs:
            assert (await run(app, task)).state is JobState.COMPLETED
        assert [log["error"] for log in logs if "hook" in log] == ["TimeoutError: "]

    async def test_revealed_secrets_are_masked(self, app):
        class Telling(Middleware):
            def on_failure(self, attempt, ended):
                raise RetryLater(str(ended.exception), delay=0)

            def after(self, attempt, ended):
                raise ValueError(str(ended.exception))

        app.middleware(Telling())

        @app.task(retry=RetryPolicy.never())
        async def task(password: Secret) -> None:
            raise ValueError(password.reveal())

        with capture_logs() as logs:
            job = await run(app, task, password=CANARY)
        assert CANARY not in job.error.message + str(logs)
        assert any("hook" in log for log in logs)


class TestStopping:
    async def test_a_cancelled_coroutine_is_told_to_the_hooks(self, app):
        class Awaiting(Noting):
            async def on_cancel(self, attempt, ended):
                await asyncio.sleep(0)
                super().on_cancel(attempt, ended)

        app.middleware(Awaiting("a", seen := []))
        began = asyncio.Event()

        @app.task
        async def task() -> None:
            began.set()
            await asyncio.Event().wait()

        async with app.working():
            job_id = await app.enqueue(task)
            await began.wait()
            await app.cancel(job_id)
            job = await app.wait(job_id, timeout=20, progress=False)
        assert job.state is JobState.CANCELLED
        assert seen == ["a before", "a cancel", "a after cancel"]

    async def test_a_hard_timeout_is_a_failure(self, app):
        app.middleware(Noting("a", seen := []))

        @app.task(hard_timeout=0.05, retry=RetryPolicy.never())
        async def task() -> None:
            await asyncio.Event().wait()

        job = await run(app, task)
        assert job.error.type == "JobTimeoutError"
        assert seen == ["a before", "a failure JobTimeoutError", "a after fail"]

    async def test_also_of_a_job_that_does_not_listen(self, app, monkeypatch):
        monkeypatch.setattr(running, "ABANDON_AFTER", 0.05)
        app.middleware(Noting("a", seen := []))
        let_go = asyncio.Event()

        @app.task(hard_timeout=0.05, retry=RetryPolicy.never())
        async def task() -> None:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue

        async with app.working() as worker:
            job = await app.wait(await app.enqueue(task), timeout=20, progress=False)
            assert (job.state, worker.abandoned) == (JobState.FAILED, 1)
            let_go.set()
            await wait_until(lambda: worker.abandoned == 0)
        assert seen == ["a before", "a failure JobTimeoutError", "a after fail"]

    async def test_a_job_that_is_given_back_is_no_failure(self, app):
        app.middleware(Noting("a", seen := []))
        began = asyncio.Event()

        @app.task
        async def task() -> None:
            began.set()
            await asyncio.Event().wait()

        async with app.working() as worker:
            job_id = await app.enqueue(task)
            await began.wait()
            worker.stop(now=True)
        assert (await app.get(job_id)).state is JobState.PENDING
        assert seen == ["a before", "a after give_back"]

    async def test_a_worker_that_stops_lets_hooks_finish(self, app):
        let_go, ending = asyncio.Event(), asyncio.Event()

        class Slow(Middleware):
            async def after(self, attempt, ended):
                ending.set()
                await let_go.wait()

        app.middleware(Slow())

        @app.task
        async def task() -> int:
            return 1

        async with app.working() as worker:
            job_id = await app.enqueue(task)
            await ending.wait()
            worker.stop(now=True)
            await app.cancel(job_id)
            let_go.set()
        assert (await app.get(job_id)).state is JobState.COMPLETED
