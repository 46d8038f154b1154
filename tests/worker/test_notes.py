"""What running jobs say on the way, and what a worker does for the store beside them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs
from test_stopping import Running, Scene

from haulier import App, ConfigurationError, Context, JobState, StoreError
from haulier.domain.job import OnLost
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
