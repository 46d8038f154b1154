"""What running jobs say on the way, and what a worker does for the store beside them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import child_tasks
import pytest
from structlog.testing import capture_logs
from test_stopping import Running, Scene

from haulier import (
    App,
    ConfigurationError,
    Context,
    JobState,
    RetryPolicy,
    Secret,
    Snooze,
    StoreError,
)
from haulier.domain.job import OnLost
from haulier.domain.line import KEPT_LINES, Said
from haulier.domain.retention import Keep, Retention
from haulier.domain.worker import Note
from haulier.worker.notes import Notes
from support import TroubledStore, wait_until


class Noted(TroubledStore):
    """A store that remembers the notes and the rules it was given."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.notes: list[Note] = []
        self.rules: list[dict[str, Retention]] = []
        self.refuse = 0

    async def note(self, notes: Any) -> None:
        if self.refuse:
            self.refuse -= 1
            raise StoreError("not now")
        self.notes += notes

    async def prune(self, rules: Any) -> int:
        self.rules.append(rules)
        if self.refuse:
            self.refuse -= 1
            raise StoreError("not now")
        return 0


@pytest.fixture
def noted(store) -> Noted:
    return Noted(store)


@pytest.fixture
def listening(noted, tmp_path) -> App:
    return App(noted, secret_key_file=tmp_path / "secret.key")


async def merged(noted: Noted, *said: Note) -> list[Note]:
    notes = Notes(noted)
    for note in said:
        notes.take(note)
    noted.notes.clear()
    await notes.flush()
    return noted.notes


class TestMerging:
    async def test_the_latest_progress_counts_and_hearing_is_not_forgotten(self, noted):
        heard, early, late = (
            Note("a", 1, heard=True),
            Note("a", 1, 10, "early"),
            Note("a", 1, 20),
        )
        for order in ((heard, early, late), (early, heard, late), (early, late, heard)):
            assert await merged(noted, *order) == [Note("a", 1, 20, None, heard=True)]

    async def test_notes_of_different_jobs_and_leases_are_not_mixed(self, noted):
        told = await merged(
            noted, Note("a", 1, heard=True), Note("a", 2, 5), Note("b", 1, 7, "seven")
        )
        assert told == [Note("a", 2, 5), Note("b", 1, 7, "seven")]

    async def test_what_could_not_be_stored_is_kept_below_what_came_later(self, noted):
        notes = Notes(noted)
        notes.take(Note("a", 1, 10, "early"))
        notes.take(Note("b", 1, 1, heard=True))
        noted.refuse = 1
        with pytest.raises(StoreError):
            await notes.flush()
        notes.take(Note("b", 1, 2))
        await notes.flush()
        assert noted.notes == [Note("a", 1, 10, "early"), Note("b", 1, 2, heard=True)]

    async def test_a_flush_waits_for_what_another_has_on_its_way(self, noted):
        """Found by a log that was empty: the job was handed in before its last note."""
        notes, store = Notes(noted), noted.note
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def slow(given: Any) -> None:
            arrived.set()
            await go_on.wait()
            await store(given)

        noted.note = slow
        notes.take(Note("a", 1, 10))
        first = asyncio.ensure_future(notes.flush())
        await arrived.wait()
        second = asyncio.ensure_future(notes.flush())
        done, _ = await asyncio.wait([second], timeout=0.1)
        assert not done
        go_on.set()
        await asyncio.gather(first, second)
        assert noted.notes == [Note("a", 1, 10)]

    async def test_no_note_of_many_threads_is_lost(self, noted):
        notes = Notes(noted)

        def talk(name: str) -> None:
            for percent in range(101):
                notes.take(Note(name, 1, percent, heard=percent == 50))

        threads = [threading.Thread(target=talk, args=(str(n),)) for n in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await notes.flush()
            await asyncio.sleep(0)
        await notes.flush()
        last = {note.job_id: note.progress for note in noted.notes}
        assert last == dict.fromkeys("0123", 100)
        assert {note.job_id for note in noted.notes if note.heard} == set("0123")


class TestGatheringLines:
    async def test_lines_of_a_job_gather_with_how_long_ago_they_were_said(self, noted, monkeypatch):
        now = 1_000_000
        monkeypatch.setattr("haulier.worker.notes._now", lambda: now)
        notes = Notes(noted)
        notes.take(Note("a", 1, lines=(Said(1, "one"),)))
        now += 300
        notes.take(Note("a", 1, 50, "half", lines=(Said(2, "two"), Said(3, "three"))))
        notes.take(Note("b", 4, lines=(Said(1, "other"),)))
        now += 20
        await notes.flush()
        own = (Said(1, "one", 320), Said(2, "two", 20), Said(3, "three", 20))
        assert noted.notes == [
            Note("a", 1, 50, "half", lines=own),
            Note("b", 4, lines=(Said(1, "other", 20),)),
        ]
        await notes.flush()
        assert len(noted.notes) == 2

    async def test_those_that_could_not_be_stored_come_before_later_ones(self, noted, monkeypatch):
        now = 0
        monkeypatch.setattr("haulier.worker.notes._now", lambda: now)
        notes = Notes(noted)
        notes.take(Note("a", 1, lines=(Said(1, "one"),)))
        noted.refuse = 1
        with pytest.raises(StoreError):
            await notes.flush()
        now += 9
        notes.take(Note("a", 1, lines=(Said(2, "two"),)))
        await notes.flush()
        assert noted.notes == [Note("a", 1, lines=(Said(1, "one", 9), Said(2, "two", 0)))]

    async def test_no_more_are_held_than_are_kept_and_leases_are_not_mixed(self, noted):
        notes = Notes(noted)
        for number in range(1, 3 * KEPT_LINES):
            notes.take(Note("a", 1, lines=(Said(number, "old"),)))
        notes.take(Note("a", 2, lines=(Said(1, "new"),)))
        await notes.flush()
        by_lease = {note.lease: [line.number for line in note.lines] for note in noted.notes}
        assert by_lease == {1: [*range(2 * KEPT_LINES, 3 * KEPT_LINES)], 2: [1]}


class TestLogLines:
    """`ctx.log("…")`: kept with the job, and off its way."""

    @pytest.mark.parametrize("how", ["async", "plain"])
    async def test_they_are_there_when_the_job_has_ended(self, app, how):
        def say(ctx: Context) -> None:
            ctx.log("first")
            ctx.log(7)
            ctx.progress(50, "half")
            ctx.log("last\0 \ud800")

        if how == "async":

            @app.task
            async def talker(ctx: Context) -> None:
                say(ctx)
        else:
            talker = app.task(kind="talker")(say)

        async with app.working():
            job_id = await app.enqueue(talker)
            job = await app.wait(job_id, timeout=20, progress=False)
        found = await app.lines(job_id)
        assert [line.text for line in found] == ["first", "7", "last\N{REPLACEMENT CHARACTER} ?"]
        assert [line.number for line in found] == [1, 2, 3]
        assert job.progress == 50
        assert all(job.created_at <= line.at <= job.finished_at for line in found)

    async def test_they_are_shown_while_it_runs_and_go_on_with_the_next_attempt(self, app):
        go_on = asyncio.Event()

        @app.task(retry=RetryPolicy(max_attempts=2, delay=0, cap=0))
        async def talker(ctx: Context) -> None:
            ctx.log(f"attempt {ctx.job.attempt}")
            if ctx.job.attempt == 1:
                await go_on.wait()
                raise ValueError("once more")

        async with app.working():
            job_id = await app.enqueue(talker)
            await wait_until(lambda: app.lines(job_id))
            assert (await app.get(job_id)).state is JobState.RUNNING
            go_on.set()
            await app.wait(job_id, timeout=20, progress=False)
        assert [(line.text, line.lease) for line in await app.lines(job_id)] == [
            ("attempt 1", 1),
            ("attempt 2", 2),
        ]

    async def test_a_loop_that_logs_costs_few_writes_and_the_last_lines_are_kept(
        self, listening, noted
    ):
        @listening.task
        async def chatty(ctx: Context) -> None:
            for number in range(10_000):
                ctx.log("x" * 3000 if number == 9_999 else f"{number}")

        written = 0
        original = noted._store.note

        async def counted(notes: Any) -> None:
            nonlocal written
            written += 1
            await original(notes)

        noted.note = counted
        async with listening.working():
            job_id = await listening.enqueue(chatty)
            job = await listening.wait(job_id, timeout=20, progress=False)
        found = await listening.lines(job_id)
        assert job.state is JobState.COMPLETED
        assert written < 20
        assert len(found) == KEPT_LINES
        assert found[0].text == f"{10_000 - KEPT_LINES}"
        assert found[-1].text == "x" * 2000

    async def test_what_was_revealed_is_masked_also_in_a_process(self, app):
        @app.task
        async def here(ctx: Context, password: Secret) -> None:
            ctx.log(f"signing in with {password.reveal()}")

        there = app.task(executor="process")(child_tasks.says)
        canary = "canary-7f3a-s3cr3t"
        async with app.working():
            first = await app.enqueue(here, {"password": canary})
            second = await app.enqueue(there, {"user": "ada", "password": canary})
            for job_id in (first, second):
                job = await app.wait(job_id, timeout=20, progress=False)
                assert job.state is JobState.COMPLETED
        texts = [line.text for line in [*await app.lines(first), *await app.lines(second)]]
        assert len(texts) == 5
        assert not any(canary in text for text in texts)
        assert texts[0].startswith("signing in with ")
        assert [text[:3] for text in texts[1:]] == ["0: ", "1: ", "2: ", "xxx"]
        assert len(texts[-1]) == 2000

    async def test_a_job_that_is_cancelled_can_still_say_why_it_takes_so_long(self, app):
        began = asyncio.Event()

        @app.task
        async def tidy(ctx: Context) -> None:
            try:
                began.set()
                await asyncio.Event().wait()
            finally:
                ctx.log("tidying up")

        async with app.working():
            job_id = await app.enqueue(tidy)
            await began.wait()
            await app.cancel(job_id)
            job = await app.wait(job_id, timeout=20, progress=False)
        assert job.state is JobState.CANCELLED
        assert [line.text for line in await app.lines(job_id)] == ["tidying up"]

    async def test_the_logger_is_still_one(self, app):
        @app.task
        async def both(ctx: Context) -> None:
            ctx.log("kept")
            ctx.log.info("logged", n=3)
            ctx.log.bind(more=1).warning("bound")

        with capture_logs() as lines:
            async with app.working():
                job_id = await app.enqueue(both)
                await app.wait(job_id, timeout=20, progress=False)
        told = [line for line in lines if line.get("job") == job_id]
        assert [(line["event"], line["kind"], line["lease"]) for line in told] == [
            ("logged", "both", 1),
            ("bound", "both", 1),
        ]
        assert [line.text for line in await app.lines(job_id)] == ["kept"]


class TestProgress:
    @pytest.mark.parametrize(
        "percent", [-1, -0.001, 100.001, 101, float("nan"), float("inf"), -float("inf")]
    )
    async def test_what_is_no_percentage_is_refused(self, app, percent):
        @app.task(retry=RetryPolicy.never())
        async def odd(ctx: Context) -> None:
            ctx.progress(percent)

        async with app.working():
            job = await app.wait(await app.enqueue(odd), timeout=20, progress=False)
        assert (job.state, job.error.type, job.progress) == (JobState.FAILED, "ValueError", None)
        assert "percentage from 0 to 100" in job.error.message

    async def test_a_loop_that_reports_costs_few_writes_and_the_last_report_stays(
        self, listening, noted
    ):
        @listening.task
        async def eager(ctx: Context) -> None:
            for number in range(20_000):
                ctx.progress(number * 100 / 19_999, f"{number} of 20,000")

        async with listening.working():
            job_id = await listening.enqueue(eager)
            await listening.wait(job_id, timeout=20, progress=False)
        assert len(noted.notes) < 20
        assert (noted.notes[-1].progress, noted.notes[-1].message) == (100, "19999 of 20,000")


class TestSnooze:
    @pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
    def test_what_is_no_delay_is_refused(self, delay):
        with pytest.raises(ValueError, match="0 seconds or more"):
            Snooze(delay)


class TestHearing:
    @pytest.mark.parametrize("how", ["async", "plain"])
    @pytest.mark.parametrize("draining", [False, True], ids=["working", "draining"])
    async def test_a_worker_says_that_it_heard_a_cancel(self, listening, noted, how, draining):
        scene = Scene(listening, how)
        async with Running(listening, grace=3600) as running:
            (job_id,) = await scene.begin()
            if draining:
                running.worker.stop()
            await listening.cancel(job_id)
            job = await listening.wait(job_id, timeout=20, progress=False)
            assert job.state is JobState.CANCELLED
        assert [(note.job_id, note.lease) for note in noted.notes if note.heard] == [(job_id, 1)]

    async def test_it_is_said_while_the_job_still_stops(self, listening, noted):
        go_on, began = threading.Event(), threading.Event()

        @listening.task
        def deaf() -> None:
            began.set()
            go_on.wait(20)

        async with listening.working():
            job_id = await listening.enqueue(deaf)
            await wait_until(began.is_set)
            await listening.cancel(job_id)
            await wait_until(lambda: any(note.heard for note in noted.notes))
            assert (await listening.get(job_id)).state is JobState.RUNNING
            go_on.set()

    async def test_the_store_knows_it(self, app):
        go_on, began = threading.Event(), threading.Event()

        @app.task
        def deaf(ctx: Context) -> None:
            ctx.progress(40, "four of ten")
            began.set()
            go_on.wait(20)

        async with app.working():
            job_id = await app.enqueue(deaf)
            await wait_until(began.is_set)
            assert not (await app.get(job_id)).cancel_heard
            await app.cancel(job_id)
            try:
                job = await wait_until(lambda: _heard(app, job_id))
            finally:
                go_on.set()
        assert (job.state, job.progress, job.message) == (JobState.RUNNING, 40, "four of ten")


async def _heard(app: App, job_id: str) -> Any:
    job = await app.get(job_id)
    return job if job.cancel_heard else None


class TestUpkeep:
    async def test_finished_jobs_are_pruned_by_the_rules_of_their_kinds(
        self, listening, noted, monkeypatch
    ):
        monkeypatch.setattr("haulier.worker.upkeep.PRUNE_FIRST", 0.01)
        monkeypatch.setattr("haulier.worker.upkeep.PRUNE_EVERY", 0.01)
        own = Retention(completed=Keep(age=5))

        @listening.task(retention=own)
        async def one() -> None: ...

        @listening.task(remove_on_complete=True, remove_on_fail={"age": 60})
        async def two() -> None: ...

        noted.refuse = 2
        with capture_logs() as lines:
            async with listening.working():
                await wait_until(lambda: len(noted.rules) > 3)
        short = Retention(completed=Keep(count=0), failed=Keep(age=60))
        assert noted.rules[0] == {"one": own, "two": short}
        failed = [line for line in lines if line["event"] == "prune failed"]
        assert [line["error"] for line in failed] == ["not now"] * 2


class TestDefinitions:
    def test_what_becomes_of_a_lost_job_is_said_at_the_task(self, app):
        @app.task(on_lost="fail")
        async def once() -> None: ...

        @app.task
        async def again() -> None: ...

        assert app.registry.get("once").on_lost is OnLost.FAIL
        assert app.registry.get("again").on_lost is OnLost.RETRY

    def test_senseless_options_are_refused(self, app):
        with pytest.raises(ConfigurationError, match="on_lost"):

            @app.task(on_lost="shrug")
            async def one() -> None: ...

        with pytest.raises(ConfigurationError, match="together"):

            @app.task(retention=Retention(), remove_on_fail=True)
            async def two() -> None: ...

        with pytest.raises(ConfigurationError, match="count"):

            @app.task(remove_on_complete=-3)
            async def three() -> None: ...
