"""The helpers for users' own tests."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from haulier import (
    App,
    BaseTaskRunner,
    Context,
    JobExecutionError,
    JobState,
    PermanentError,
    RetryPolicy,
    Secret,
    Snooze,
)
from haulier.domain.job import MICROSECOND
from haulier.testing import (
    FakeClock,
    assert_enqueued,
    enqueued,
    in_memory,
    inline,
    memory_store,
    refute_enqueued,
    run_until_idle,
)

PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text()
STEADY = RetryPolicy(max_attempts=3, delay=10, jitter=False)


def thread_name() -> str:
    return threading.current_thread().name


class Start(BaseModel):
    names: list[str]


class Item(BaseModel):
    name: str


class Greeter(BaseTaskRunner[Start, Item]):
    task_type, start_model, item_model = "greeting", Start, Item

    def __init__(self) -> None:
        self.told: list[dict[str, int]] = []

    def expand(self, ctx, start):
        for name in start.names:
            if not name:
                raise LookupError("somebody has no name")
            yield Item(name=name)

    def run_item(self, ctx, item):
        return f"hello {item.name}"

    async def finish(self, ctx, start, finished):
        self.told.append(finished.counts)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def app(clock, tmp_path) -> AsyncIterator[App]:
    async with App(memory_store(clock), secret_key_file=tmp_path / "secret.key") as opened:
        yield opened


@pytest.fixture
def log(app) -> list[str]:
    """What the task `say` was told, in the order in which it ran."""
    said: list[str] = []

    @app.task
    async def say(text: str) -> str:
        said.append(text)
        return text

    @app.task(retry=STEADY)
    def stumble(times: int, ctx: Context) -> int:
        said.append(f"try {ctx.job.attempt}")
        if ctx.job.attempt <= times:
            raise LookupError(f"stumbled {ctx.job.attempt}")
        return ctx.job.attempt

    @app.task
    async def wait(seconds: float) -> None:
        raise Snooze(seconds)

    return said


@pytest.mark.parametrize("name", re.findall(r"async def (test_\w+)", PAGE))
async def test_the_example_of_the_documentation_passes(name):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict = {}
    exec(compile(block, "docs/testing.md", "exec"), scope)
    await scope[name]()


class TestRunUntilIdle:
    async def test_what_is_ready_runs_in_the_order_of_a_worker_with_one_slot(self, app, log):
        for text, priority in (("b", 0), ("a", 10), ("c", 0)):
            await app.enqueue("say", {"text": text}, priority=priority)
        ran = await run_until_idle(app)
        assert log == ["a", "b", "c"]
        assert [(job.value, job.state, job.attempt) for job in ran] == [
            (text, JobState.COMPLETED, 1) for text in log
        ]
        assert await run_until_idle(app) == []

    async def test_all_queues_are_worked_on(self, app, log):
        await app.enqueue("say", {"text": "a"}, queue="slow")
        await app.enqueue("say", {"text": "b"})
        await run_until_idle(app)
        assert log == ["a", "b"]

    async def test_without_the_clock_what_is_due_later_stays(self, app, log):
        later = await app.enqueue("say", {"text": "later"}, delay=3600)
        once = await app.enqueue("stumble", {"times": 1})
        (ran,) = await run_until_idle(app)
        assert (ran.id, ran.state, ran.error.type) == (once, JobState.PENDING, "LookupError")
        assert (await app.get(later)).state is JobState.PENDING

    async def test_the_clock_moves_on_to_each_job_that_is_due(self, app, clock, log):
        began = clock.now()
        await app.enqueue("stumble", {"times": 2})
        await app.enqueue("say", {"text": "later"}, delay=15)
        ran = await run_until_idle(app, clock=clock)
        assert log == ["try 1", "try 2", "later", "try 3"]
        assert [(job.started_at - began) / MICROSECOND for job in ran] == [0, 10, 15, 30]
        assert ran[-1].value == 3

    async def test_a_job_that_never_ends_is_found_out(self, app, clock, log):
        await app.enqueue("wait", {"seconds": 60})
        with pytest.raises(AssertionError, match=r"after 20 attempts; the next is wait"):
            await run_until_idle(app, clock=clock, limit=20)
        # What it was about to run was given back.
        (job,) = await enqueued(app, "wait")
        assert (job.state, job.attempt) == (JobState.PENDING, 0)

    async def test_a_failure_leaves_as_itself_if_asked_for(self, app, log):
        await app.enqueue("stumble", {"times": 3}, retry=RetryPolicy.never())
        with pytest.raises(LookupError, match="stumbled 1"):
            await run_until_idle(app, raises=True)
        (job,) = await enqueued(app, "stumble")
        assert (job.state, job.error.message) == (JobState.FAILED, "stumbled 1")

    async def test_a_batch_of_a_bulk_kind_runs_to_its_finish(self, app):
        greeter = Greeter()
        app.add_runner(greeter)
        head = await app.enqueue("greeting", {"names": ["ada", "bob"]})
        ran = await run_until_idle(app)
        assert [job.kind for job in ran] == [
            "greeting", "greeting.item", "greeting.item", "greeting.finish",
        ]  # fmt: skip
        assert (await app.get(head)).state is JobState.COMPLETED
        assert greeter.told == [{"total": 2, "completed": 2, "failed": 0, "cancelled": 0}]

    async def test_a_head_that_cannot_expand_fails_and_says_why(self, app):
        app.add_runner(Greeter())
        await app.enqueue("greeting", {"names": [""]}, retry=RetryPolicy.never())
        with pytest.raises(JobExecutionError, match="LookupError: somebody has no name"):
            await run_until_idle(app, raises=True)

    async def test_a_task_for_a_process_runs_in_a_thread(self, app):
        await app.enqueue(app.task(executor="process")(thread_name))
        (job,) = await run_until_idle(app)
        assert job.value.startswith("haulier-job-")

    @pytest.mark.parametrize("how", ["async", "plain"])
    async def test_steps_and_log_lines_are_kept(self, app, clock, how):
        done = []

        if how == "async":

            @app.task(retry=STEADY)
            async def task(ctx: Context) -> int:
                ctx.log(f"attempt {ctx.job.attempt}")
                number = await ctx.step("number", lambda: done.append(1) or 7)
                if ctx.job.attempt == 1:
                    raise ValueError("once more")
                return number
        else:

            @app.task(retry=STEADY)
            def task(ctx: Context) -> int:
                ctx.log(f"attempt {ctx.job.attempt}")
                number = ctx.step_sync("number", lambda: done.append(1) or 7)
                if ctx.job.attempt == 1:
                    raise ValueError("once more")
                return number

        job_id = await app.enqueue(task)
        *_, job = await run_until_idle(app, clock=clock)
        assert (job.attempt, job.value, done) == (2, 7, [1])
        assert [step.name for step in await app.steps(job_id)] == ["number"]
        assert [line.text for line in await app.lines(job_id)] == ["attempt 1", "attempt 2"]

    async def test_progress_is_kept(self, app):
        @app.task
        def half(ctx: Context) -> None:
            ctx.progress(50, "half way")
            raise PermanentError("enough")

        await app.enqueue(half)
        (job,) = await run_until_idle(app)
        assert (job.progress, job.message) == (50, "half way")

    async def test_a_job_that_turns_the_clock_beyond_the_ttl_still_counts(self, app, clock, log):
        @app.task
        async def sleep_long() -> None:
            clock.advance(3600)

        await app.enqueue(sleep_long)
        await app.enqueue("say", {"text": "good morning"})
        ran = await run_until_idle(app)
        assert [job.state for job in ran] == [JobState.COMPLETED] * 2

    async def test_jobs_of_a_kind_that_the_app_does_not_know_are_left_alone(self, app, clock):
        other = App(app.store)

        @other.task
        async def strange() -> None: ...

        job_id = await other.enqueue(strange)
        assert await run_until_idle(app, clock=clock) == []
        assert (await app.get(job_id)).state is JobState.PENDING


class TestInline:
    async def test_it_has_run_when_enqueue_returns(self, app, log):
        async with inline(app):
            job_id = await app.enqueue("say", {"text": "now"})
            assert log == ["now"]
            assert await app.result(job_id) == "now"
            await app.enqueue_many("say", [{"text": "one"}, {"text": "two"}])
            assert log == ["now", "one", "two"]
        await app.enqueue("say", {"text": "not now"})
        assert log == ["now", "one", "two"]

    async def test_what_a_job_enqueues_runs_before_it_goes_on(self, app, log):
        @app.task
        async def outer(n: int) -> str:
            log.append(f"begin {n}")
            inner = await app.enqueue("say", {"text": f"inner {n}"})
            log.append(f"end {n}")
            return await app.result(inner)

        async with inline(app):
            ids = await app.enqueue_many(outer, [{"n": 1}, {"n": 2}])
        assert log == ["begin 1", "inner 1", "end 1", "begin 2", "inner 2", "end 2"]
        assert (await app.get(ids[1])).value == "inner 2"

    async def test_plain_functions_enqueue_from_their_threads(self, app, log):
        @app.task
        def outer() -> None:
            app.enqueue_sync("say", {"text": "from a thread"})
            log.append("after it")

        async with inline(app):
            await app.enqueue(outer)
        assert log == ["from a thread", "after it"]

    async def test_many_that_each_enqueue_one_do_not_pile_up(self, app, log):
        @app.task
        async def outer(n: int) -> None:
            await app.enqueue("say", {"text": str(n)})

        async with inline(app):
            await app.enqueue_many(outer, ({"n": n} for n in range(300)))
        assert log == [str(n) for n in range(300)]

    async def test_enqueued_side_by_side_each_has_run(self, app, log):
        async with inline(app):
            ids = await asyncio.gather(*(app.enqueue("say", {"text": str(n)}) for n in range(5)))
            assert sorted(log) == list("01234")
        assert [(await app.get(job_id)).state for job_id in ids] == [JobState.COMPLETED] * 5

    async def test_a_batch_has_settled_and_called_back(self, app, log):
        told = []

        @app.task
        async def afterwards(batch_id: str, state: str, counts: dict[str, int]) -> None:
            told.append((batch_id, state, counts["completed"]))

        async with inline(app):
            batch = await app.enqueue_batch(
                "say", ({"text": str(n)} for n in range(3)), on_finish=afterwards
            )
            assert told == [(batch, "completed", 3)]
        assert log == ["0", "1", "2"]

    async def test_a_bulk_kind_too(self, app):
        greeter = Greeter()
        app.add_runner(greeter)
        async with inline(app):
            head = await app.enqueue("greeting", {"names": ["ada"]})
        assert (await app.batch(head)).counts.completed == 1
        assert len(greeter.told) == 1

    async def test_retries_run_at_once_and_the_error_stays_on_the_job(self, app, clock, log):
        began = clock.now()
        async with inline(app):
            fails = await app.get(await app.enqueue("stumble", {"times": 3}))
            works = await app.get(await app.enqueue("stumble", {"times": 2}))
        assert (fails.state, fails.attempt, fails.error.message) == ("failed", 3, "stumbled 3")
        assert (works.state, works.value) == ("completed", 3)
        assert clock.now() == began

    async def test_a_failure_leaves_as_itself_if_asked_for(self, app, log):
        async with inline(app, raises=True):
            await app.enqueue("stumble", {"times": 2})
            with pytest.raises(LookupError, match="stumbled 1"):
                await app.enqueue_many(
                    "stumble", [{"times": 3}, {"times": 0}], retry=RetryPolicy.never()
                )
            states = [job.state for job in await enqueued(app, "stumble")]
            assert states == ["completed", "failed", "pending"]
            # The one that was given back goes with the next.
            await app.enqueue("say", {"text": "on"})
        assert [job.attempt for job in await enqueued(app, "stumble")] == [3, 1, 1]

    async def test_what_is_to_run_later_is_left(self, app, clock, log):
        async with inline(app):
            await app.enqueue("say", {"text": "later"}, delay=60)
            await app.enqueue("wait", {"seconds": 60})
        assert log == []
        assert [job.state for job in await enqueued(app)] == [JobState.PENDING] * 2
        clock.advance(60)
        async with inline(app):
            await app.enqueue("say", {"text": "now"})
        assert log == ["later", "now"]

    async def test_one_that_enqueues_itself_for_ever_is_found_out(self, app):
        @app.task
        async def again() -> None:
            await app.enqueue("again")

        async with inline(app, limit=30, raises=True):
            with pytest.raises(AssertionError, match="after 30 attempts"):
                await app.enqueue(again)

    async def test_other_tasks_may_still_be_cancelled_meanwhile(self, app, log):
        entered = asyncio.Event()

        @app.task
        async def hang() -> None:
            entered.set()
            await asyncio.Event().wait()

        async with inline(app):
            calling = asyncio.create_task(app.enqueue(hang))
            await entered.wait()
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            (job,) = await enqueued(app, hang)
            assert (job.state, job.attempt, job.lost) == (JobState.PENDING, 0, 0)


class TestInMemory:
    async def test_the_apps_own_store_is_not_touched(self, tmp_path, clock):
        app = App(f"sqlite:///{tmp_path}/own.db")

        @app.task
        def open_it(word: Secret) -> str:
            return word.reveal()

        store = app.store
        async with in_memory(app, clock):
            job_id = await app.enqueue(open_it, {"word": "sesame"})
            (job,) = await run_until_idle(app)
            assert (job.id, job.value, job.created_at) == (job_id, "sesame", clock.now())
        assert app.store is app.jobs.store is store
        assert list(tmp_path.iterdir()) == []
        async with in_memory(app):
            assert await enqueued(app) == []


class TestEnqueued:
    async def test_the_named_part_of_the_payload_is_compared(self, app):
        @app.task
        async def ship(order: Start, to: str = "home", tags: list[str] | None = None) -> None: ...

        first = await app.enqueue(ship, {"order": {"names": ["tea"]}})
        second = await app.enqueue(ship, {"order": {"names": []}, "to": "work", "tags": ["a"]})
        assert [job.id for job in await enqueued(app)] == [first, second]
        assert [job.id for job in await enqueued(app, ship, {"to": "home"})] == [first]
        assert [job.id for job in await enqueued(app, "ship", {"tags": ["a"]})] == [second]
        assert [job.id for job in await enqueued(app, ship, {"order": {"names": []}})] == [second]
        assert await enqueued(app, ship, {"order": {"names": ["tea"]}, "to": "work"}) == []
        assert await enqueued(app, ship, {"nothing": None}) == []

    async def test_of_a_batch_its_items(self, app, log):
        await app.enqueue_batch("say", [{"text": "a"}, {"text": "b"}])
        app.add_runner(Greeter())
        head = await app.enqueue("greeting", {"names": ["ada"]})
        assert len(await assert_enqueued(app, "say", count=2)) == 2
        assert (await assert_enqueued(app, "greeting", count=1))[0].id == head

    async def test_what_became_of_them_makes_no_difference(self, app, log):
        await app.enqueue("say", {"text": "a"})
        await run_until_idle(app)
        await assert_enqueued(app, "say", {"text": "a"}, count=1)

    async def test_the_messages_say_what_there_was_instead(self, app, log):
        with pytest.raises(AssertionError) as none:
            await assert_enqueued(app, "say", {"text": "a"}, queue="slow")
        assert str(none.value) == (
            'expected at least one of say {"text":"a"}, queue slow, found none; '
            "nothing was enqueued"
        )
        await app.enqueue("say", {"text": "b"}, priority=5)
        with pytest.raises(AssertionError) as other:
            await assert_enqueued(app, "say", {"text": "a"})
        assert str(other.value).endswith(
            'what there is:\n  say {"text":"b"}, queue default, priority 5, pending'
        )
        with pytest.raises(AssertionError, match=r"expected 2 of say, found 1"):
            await assert_enqueued(app, "say", count=2)
        with pytest.raises(AssertionError, match=r"expected none of say, priority 5, found 1"):
            await refute_enqueued(app, "say", priority=5)
        await refute_enqueued(app, "say", priority=4)
        await assert_enqueued(app, "say", count=1, queue="default", priority=5)
