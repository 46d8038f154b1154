"""Durable steps as tasks use them: done once, however often their job is tried."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import child_tasks
import pytest
from pydantic import BaseModel
from test_stopping import Running

from haulier import (
    App,
    BaseTaskRunner,
    Context,
    Job,
    JobState,
    JobTimeoutError,
    LeaseLostError,
    RetryPolicy,
    Snooze,
    ValidationError,
    WorkerOptions,
)
from haulier.domain.step import Step
from haulier.services import steps
from support import TroubledStore, wait_until

THRICE = RetryPolicy(max_attempts=3, delay=0, cap=0)

both = pytest.mark.parametrize("how", ["async", "plain"])


class Counting(TroubledStore):
    """A store that counts what it is asked about steps, and may be slow to keep them."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.reads = 0
        self.kept: list[list[Step]] = []
        self.gate: asyncio.Event | None = None
        self.reading: asyncio.Event | None = None

    async def steps(self, job_id: str) -> list[Step]:
        self.reads += 1
        if self.reading is not None:
            await self.reading.wait()
        return await self._store.steps(job_id)

    async def keep(self, given: Any) -> list[Step]:
        self.kept.append(list(given))
        if self.gate is not None:
            await self.gate.wait()
        return await self.__getattr__("keep")(given)


@pytest.fixture
def counting(store) -> Counting:
    return Counting(store)


@pytest.fixture
def counted(counting: Counting, tmp_path) -> App:
    return App(counting, secret_key_file=tmp_path / "secret.key")


def three_steps(app: App, how: str, fail: Any = ValueError) -> Counter[str]:
    """A task of three steps that fails after each of them once; how often each was done."""
    done: Counter[str] = Counter()

    def do(name: str, value: Any) -> Any:
        done[name] += 1
        return value

    async def do_async(name: str, value: Any) -> Any:
        return do(name, value)

    if how == "async":

        @app.task(kind="three", retry=THRICE)
        async def three(ctx: Context) -> list[Any]:
            found = []
            for number in range(3):
                value = {"number": number, "pair": (1, None)}
                function = do_async if number else do
                found.append(await ctx.step(f"step {number}", function, f"{number}", value))
                if ctx.lease == number + 1 < 3:
                    raise fail("between two steps")
            return found
    else:

        @app.task(kind="three", retry=THRICE)
        def three(ctx: Context) -> list[Any]:
            found = []
            for number in range(3):
                value = {"number": number, "pair": (1, None)}
                found.append(ctx.step_sync(f"step {number}", do, f"{number}", value))
                if ctx.lease == number + 1 < 3:
                    raise fail("between two steps")
            return found

    return done


async def outcome_of(app: App, kind: Any, **payload: Any) -> Job:
    async with app.working():
        return await app.wait(await app.enqueue(kind, payload), timeout=20, progress=False)


EXPECTED = [{"number": number, "pair": [1, None]} for number in range(3)]


class TestOnce:
    @both
    async def test_each_is_done_once_over_all_attempts_and_comes_back_the_same(self, app, how):
        done = three_steps(app, how)
        job = await outcome_of(app, "three")
        assert (job.state, job.attempt, job.value) == (JobState.COMPLETED, 3, EXPECTED)
        assert done == {"0": 1, "1": 1, "2": 1}
        assert [(each.name, each.lease) for each in await app.steps(job.id)] == [
            ("step 0", 1),
            ("step 1", 2),
            ("step 2", 3),
        ]

    @both
    async def test_a_snooze_keeps_them_too(self, app, how):
        done = three_steps(app, how, lambda _: Snooze(0))
        job = await outcome_of(app, "three")
        assert (job.state, job.attempt, job.value) == (JobState.COMPLETED, 1, EXPECTED)
        assert done == {"0": 1, "1": 1, "2": 1}

    async def test_a_retry_by_hand_goes_on_where_it_was(self, app):
        done: Counter[str] = Counter()

        @app.task(retry=RetryPolicy.never())
        async def once(ctx: Context) -> int:
            number = await ctx.step("number", lambda: done.update(["step"]) or 7)
            done["tail"] += 1
            if done["tail"] == 1:
                raise ValueError("the first time")
            return number

        async with app.working():
            job_id = await app.enqueue(once)
            assert (await app.wait(job_id, timeout=20, progress=False)).state is JobState.FAILED
            await app.retry(job_id)
            assert await app.result(job_id, timeout=20) == 7
        assert done == {"step": 1, "tail": 2}

    async def test_a_job_in_a_process_that_dies_between_two(self, app, tmp_path, monkeypatch):
        monkeypatch.setenv("HAULIER_TEST_SCENE", str(tmp_path))
        task = app.task(executor="process", retry=THRICE)(child_tasks.stepping)
        job = await outcome_of(app, task)
        assert (job.state, job.attempt, job.value) == (JobState.COMPLETED, 2, ["first", "second"])
        assert (tmp_path / f"{job.id}.steps").read_text() == "first\nsecond\n"
        assert [line.text for line in await app.lines(job.id)] == ["attempt 1", "attempt 2"]

    async def test_a_model_a_nan_and_nothing_are_what_json_makes_of_them(self, app):
        class Found(BaseModel):
            name: str

        @app.task(retry=THRICE)
        async def odd(ctx: Context) -> list[Any]:
            values = {"model": Found(name="ü"), "nan": float("nan"), "none": None}
            found = [await ctx.step(name, lambda v=value: v) for name, value in values.items()]
            if ctx.job.attempt == 1:
                raise ValueError("once more")
            return found

        job = await outcome_of(app, odd)
        assert (job.attempt, job.value) == (2, [{"name": "ü"}, None, None])

    async def test_those_of_one_job_may_run_at_the_same_time(self, counted, counting):
        meeting = asyncio.Barrier(5)

        async def meet(number: int) -> int:
            await meeting.wait()
            return number

        @counted.task
        async def together(ctx: Context) -> list[int]:
            return await asyncio.gather(*(ctx.step(f"{n}", meet, n) for n in range(5)))

        job = await outcome_of(counted, together)
        assert job.value == [0, 1, 2, 3, 4]
        assert len(await counted.steps(job.id)) == 5
        # The first goes alone; the others have gathered while it was under way.
        assert len(counting.kept) <= 3


class Start(BaseModel):
    names: list[str]


class Item(BaseModel):
    name: str


class Lister(BaseTaskRunner[Start, Item]):
    task_type, start_model, item_model, retry = "lister", Start, Item, THRICE

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    def expand(self, ctx: Context, start: Start) -> Iterator[Item]:
        for name in ctx.step_sync("list", self.look, start.names):
            yield Item(name=name)
        if ctx.job.attempt == 1:
            raise ValueError("the first expansion fails")

    def look(self, names: list[str]) -> list[str]:
        self.done["list"] += 1
        return [name.upper() for name in names]

    async def run_item(self, ctx: Context, item: Item) -> str:
        greeting = await ctx.step("greet", self.greet, item.name)
        if ctx.job.attempt == 1:
            raise ValueError("the first attempt fails")
        return greeting

    async def greet(self, name: str) -> str:
        self.done[name] += 1
        return f"hello {name}"


class TestBulkKinds:
    async def test_the_head_and_each_item_have_steps_of_their_own(self, app):
        lister = Lister()
        app.add_runner(lister)
        head = await outcome_of(app, "lister", names=["ada", "bob"])
        assert (head.state, head.attempt, head.value["completed"]) == (JobState.COMPLETED, 2, 2)
        assert lister.done == {"list": 1, "ADA": 1, "BOB": 1}
        assert [step.result for step in await app.steps(head.id)] == [b'["ADA","BOB"]']


class TestCost:
    async def test_jobs_without_steps_ask_nothing_and_first_attempts_read_nothing(
        self, counted, counting
    ):
        @counted.task(retry=THRICE)
        async def plain(ctx: Context) -> None:
            if ctx.job.attempt == 1:
                raise ValueError("once more")

        await outcome_of(counted, plain)
        assert (counting.reads, counting.kept) == (0, [])
        three_steps(counted, "async")
        await outcome_of(counted, "three")
        # Once for each later attempt, however many steps it has.
        assert (counting.reads, len(counting.kept)) == (2, 3)


class TestRefusals:
    @both
    @pytest.mark.parametrize(
        ("names", "complaint"),
        [
            (["again", "again"], r"step 'again': is used twice in one attempt"),
            ([""], "must not be empty"),
            ([" "], "must not be empty"),
            (["n" * 201], "has 201 characters, at most 200 are allowed"),
            (["a\nb"], "printable"),
            (["a\0"], "printable"),
            (["\ud800"], "printable"),
            ([7], "must be a text, not int"),
        ],
    )
    async def test_bad_names_fail_the_job_at_once_and_name_the_step(
        self, app, how, names, complaint
    ):
        ran = []

        if how == "async":

            @app.task(retry=THRICE)
            async def bad(ctx: Context) -> None:
                for name in names:
                    await ctx.step(name, ran.append, name)
        else:

            @app.task(retry=THRICE)
            def bad(ctx: Context) -> None:
                for name in names:
                    ctx.step_sync(name, ran.append, name)

        job = await outcome_of(app, bad)
        assert (job.state, job.attempt, job.error.type) == (
            JobState.FAILED,
            1,
            "ValidationError",
        )
        with pytest.raises(ValidationError, match=complaint):
            raise ValidationError(job.error.message)
        assert len(ran) == len(names) - 1

    async def test_twice_in_a_process_too(self, app):
        task = app.task(executor="process", retry=THRICE)(child_tasks.step_twice)
        job = await outcome_of(app, task)
        assert (job.attempt, job.error.type) == (1, "ValidationError")
        assert "step 'again': is used twice" in job.error.message

    async def test_twice_at_the_same_time(self, app):
        ran = []

        @app.task
        async def bad(ctx: Context) -> None:
            await asyncio.gather(*(ctx.step("same", ran.append, n) for n in range(2)))

        job = await outcome_of(app, bad)
        assert job.error.type == "ValidationError"
        assert ran == [0]

    @pytest.mark.parametrize(
        ("value", "complaint"),
        [
            ("x" * (256 * 1024 - 1), "has 262,145 bytes, at most 262,144 are allowed"),
            (object(), "cannot be written as JSON"),
            (lambda: 1, "cannot be written as JSON"),
        ],
        ids=["too long", "no json", "a function"],
    )
    async def test_a_result_that_cannot_be_kept_fails_the_job_for_good(self, app, value, complaint):
        @app.task(retry=THRICE)
        async def bad(ctx: Context) -> None:
            await ctx.step("the one", lambda: value)

        job = await outcome_of(app, bad)
        assert (job.state, job.attempt, job.error.type) == (JobState.FAILED, 1, "PermanentError")
        assert "step 'the one'" in job.error.message
        assert complaint in job.error.message
        assert await app.steps(job.id) == []

    async def test_one_step_too_many_and_one_byte_too_many(self, app, monkeypatch):
        ran = []

        def do(name: str) -> str:
            ran.append(name)
            return "x" * 100

        @app.task
        async def greedy(ctx: Context) -> None:
            for number in range(100):
                await ctx.step(f"{number}", do, f"{number}")

        monkeypatch.setattr(steps, "MOST_STEPS", 5)
        job = await outcome_of(app, greedy)
        assert "step '5': is one too many: a job may have 5 steps" in job.error.message
        assert ran == ["0", "1", "2", "3", "4"]
        monkeypatch.setattr(steps, "MOST_STEPS", 1000)
        monkeypatch.setattr(steps, "MOST_BYTES", 250)
        ran.clear()
        job = await outcome_of(app, greedy)
        assert "step '3': cannot be kept" in job.error.message
        assert ran == ["0", "1", "2"]

    async def test_the_blocking_form_is_not_for_coroutines(self, app):
        @app.task(retry=RetryPolicy.never())
        async def blocks(ctx: Context) -> None:
            ctx.step_sync("one", list)

        @app.task(retry=RetryPolicy.never())
        def awaits(ctx: Context) -> None:
            ctx.step_sync("one", asyncio.sleep, 0)

        assert "use `await ctx.step(" in (await outcome_of(app, blocks)).error.message
        assert "is a coroutine" in (await outcome_of(app, awaits)).error.message


class TestFailingFunctions:
    @both
    async def test_nothing_is_kept_and_it_may_be_tried_again_at_once(self, app, how):
        tries: Counter[str] = Counter()

        def do() -> str:
            tries["do"] += 1
            if tries["do"] < 3:
                raise OSError("not yet")
            return "done"

        if how == "async":

            @app.task
            async def patient(ctx: Context) -> str:
                while True:
                    try:
                        return await ctx.step("one", do)
                    except OSError:
                        continue
        else:

            @app.task
            def patient(ctx: Context) -> str:
                while True:
                    try:
                        return ctx.step_sync("one", do)
                    except OSError:
                        continue

        job = await outcome_of(app, patient)
        assert (job.value, tries["do"]) == ("done", 3)

    async def test_a_step_that_was_finished_when_its_wait_was_cut_short_is_not_done_again(
        self, counted, counting
    ):
        done: list[int] = []
        counting.gate = asyncio.Event()

        @counted.task(timeout=0.2)
        async def slow(ctx: Context) -> int:
            try:
                await ctx.step("one", lambda: done.append(1) or 5)
            except JobTimeoutError:
                counting.gate.set()
                ctx._control.late = None
                return await ctx.step("one", lambda: done.append(2) or 6)
            return 0

        job = await outcome_of(counted, slow)
        assert (job.value, done) == (5, [1])

    async def test_one_that_is_given_up_takes_no_other_along(self, counted, counting):
        counting.reading = asyncio.Event()

        @counted.task(retry=THRICE)
        async def two(ctx: Context) -> list[Any]:
            if ctx.job.attempt == 1:
                raise ValueError("so that there is something to read")
            patient = asyncio.ensure_future(ctx.step("patient", lambda: 1))
            try:
                async with asyncio.timeout(0.05):
                    await ctx.step("impatient", lambda: 2)
            except TimeoutError:
                counting.reading.set()
            return [await patient, await ctx.step("impatient", lambda: 3)]

        job = await outcome_of(counted, two)
        assert (job.attempt, job.value) == (2, [1, 3])
        assert counting.reads == 1

    async def test_a_process_that_is_told_while_its_step_is_kept_hears_it_afterwards(
        self, counted, counting, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("HAULIER_TEST_SCENE", str(tmp_path))
        task = counted.task(executor="process", retry=THRICE, timeout=0.3)(child_tasks.slow_to_keep)
        counting.gate = asyncio.Event()

        async def open_late() -> None:
            await wait_until(lambda: counting.kept, 20)
            asyncio.get_running_loop().call_later(0.6, counting.gate.set)

        opening = asyncio.ensure_future(open_late())
        job = await outcome_of(counted, task)
        await opening
        assert (job.state, job.attempt, job.value) == (JobState.COMPLETED, 2, 7)
        assert (tmp_path / "done").read_text() == "once\n"
        assert [error.type for error in await counted.errors(job.id)] == ["JobTimeoutError"]


class TestTrouble:
    @both
    @pytest.mark.parametrize("after", [False, True], ids=["unasked", "unanswered"])
    async def test_a_store_that_is_away_is_waited_for(self, counted, counting, how, after):
        done = three_steps(counted, how)
        counting.trouble("keep", times=2, after=after)
        job = await outcome_of(counted, "three")
        assert counting.over
        assert (job.state, job.attempt, job.value) == (JobState.COMPLETED, 3, EXPECTED)
        assert done == {"0": 1, "1": 1, "2": 1}

    @both
    async def test_whoever_lost_the_job_does_not_go_on(self, app, store, how):
        raised: list[BaseException] = []
        ready, go_on = threading.Event(), threading.Event()

        def wait() -> str:
            ready.set()
            go_on.wait(20)
            return "late"

        async def wait_async() -> str:
            ready.set()
            await wait_until(go_on.is_set)
            return "late"

        def heard(error: BaseException) -> None:
            raised.append(error)

        if how == "async":

            @app.task
            async def losing(ctx: Context) -> str:
                try:
                    return await ctx.step("one", wait_async if ctx.lease == 1 else str)
                except BaseException as error:
                    heard(error)
                    raise
        else:

            @app.task
            def losing(ctx: Context) -> str:
                try:
                    return ctx.step_sync("one", wait if ctx.lease == 1 else str)
                except BaseException as error:
                    heard(error)
                    raise

        async with app.working():
            job_id = await app.enqueue(losing)
            await wait_until(ready.is_set)
            (row,) = [each for each in await store.workers() if each.alive]
            await store.retire(row.id)
            go_on.set()
            job = await app.wait(job_id, timeout=20, progress=False)
            await wait_until(lambda: raised)
        assert (job.state, job.value) == (JobState.COMPLETED, "")
        assert isinstance(raised[0], LeaseLostError | asyncio.CancelledError)
        assert [(each.lease, each.result) for each in await app.steps(job_id)] == [
            (job.lease, b'""')
        ]

    async def test_a_step_on_its_way_is_kept_before_its_job_is_given_back(self, counted, counting):
        done: list[int] = []
        counting.gate = asyncio.Event()

        @counted.task
        async def one(ctx: Context) -> int:
            return await ctx.step("one", lambda: done.append(ctx.lease) or 5)

        running = Running(counted)
        async with running:
            job_id = await counted.enqueue(one)
            await wait_until(lambda: counting.kept)
            running.worker.stop(now=True)
            asyncio.get_running_loop().call_later(0.3, counting.gate.set)
        assert (await counted.get(job_id)).state is JobState.PENDING
        assert [each.name for each in await counted.steps(job_id)] == ["one"]
        async with counted.working(WorkerOptions()):
            assert await counted.result(job_id, timeout=20) == 5
        assert done == [1]
