"""Schedules as their operators see them: declared in code, changed at run time, refused early."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import islice

import pytest

import haulier
from haulier import (
    App,
    Cron,
    Interval,
    InvalidTaskTypeError,
    JobState,
    JobStateError,
    Missed,
    Overlap,
    ScheduleNotFoundError,
    Secret,
    ValidationError,
)
from haulier.domain.event import SCHEDULE_PAUSED, SCHEDULE_RESUMED, SCHEDULE_SET
from haulier.domain.job import MICROSECOND, Role
from haulier.domain.tick import TickState
from haulier.testing import FakeClock, memory_store, run_until_idle


@pytest.fixture
def time():
    return FakeClock()


@pytest.fixture
def app(time):
    return with_tasks(App(memory_store(time)))


def with_tasks(app: App) -> App:
    @app.task(queue="nightly", priority=3, version=2)
    async def report(day: str = "today") -> str:
        return day

    @app.task
    async def login(password: Secret, user: str = "ada") -> str:
        return user

    @app.task
    async def maybe(password: Secret | None = None) -> None: ...

    return app


@pytest.fixture
async def opened(app):
    async with app:
        yield app


class TestSet:
    async def test_one_that_is_new(self, opened, time):
        made = await opened.schedules.set(
            *("nightly", "report", Cron("0 3 * * *", "Europe/Berlin"), {"day": "monday"}),
            by="ada",
            overlap="skip",
            missed="all:3",
            key="k",
        )
        assert made == await opened.schedules.get("nightly")
        assert (made.changed_by, made.changed_at) == ("ada", time.now())
        assert (made.overlap, made.missed) == (Overlap.SKIP, Missed.all(3))
        assert made.next == next(made.cadence.after(time.now()))
        template = made.template
        assert (template.kind, template.payload) == ("report", b'{"day":"monday"}')
        assert (template.queue, template.priority, template.key) == ("nightly", 3, "k")
        assert (template.version, template.role, made.declared) == (2, Role.SINGLE, None)
        assert [each.name for each in await opened.schedules.all()] == ["nightly"]

    async def test_short_forms_of_a_cadence(self, opened, time):
        for given, wanted in (
            ("*/5 * * * *", Cron("*/5 * * * *")),
            (90, Interval(90, time.now())),
            (timedelta(hours=2), Interval(7200.0, time.now())),
            (Interval(5, 17), Interval(5, 17)),
        ):
            made = await opened.schedules.set("short", "report", given)
            assert made.cadence == wanted

    async def test_a_change_keeps_what_it_is_not_about(self, opened, time):
        first = await opened.schedules.set("each", "report", 60)
        time.advance(70)
        assert await opened.schedules.tick() == 1
        before = await opened.schedules.get("each")
        time.advance(5)
        # Another payload: neither its grid nor its next tick move.
        after = await opened.schedules.set("each", "report", 60, {"day": "other"}, by="bob")
        assert (after.id, after.next, after.cadence) == (first.id, before.next, first.cadence)
        assert (after.last_job, after.changed_by) == (before.last_job, "bob")
        # Another cadence: counted from now on.
        after = await opened.schedules.set("each", "report", 10)
        assert after.next == time.now() + 10 * MICROSECOND

    async def test_a_paused_one_stays_paused(self, opened):
        await opened.schedules.set("each", "report", 60)
        await opened.schedules.pause("each", by="ada")
        after = await opened.schedules.set("each", "report", 10)
        assert after.paused

    @pytest.mark.parametrize(
        ("arguments", "options", "field"),
        [
            (("a b", "report", 60), {}, "name"),
            (("", "report", 60), {}, "name"),
            (("x" * 201, "report", 60), {}, "name"),
            (("x", "report", 0), {}, "interval"),
            (("x", "report", -5), {}, "interval"),
            (("x", "report", "0 0 30 2 *"), {}, "cron"),
            (("x", "report", None), {}, "interval"),
            (("x", "report", 60), {"missed": "all:0"}, "missed"),
            (("x", "report", 60), {"overlap": "maybe"}, "overlap"),
            (("x", "report", 60), {"by": ""}, "by"),
            (("x", "report", 60), {"by": "a\nb"}, "by"),
            (("x", "report", 60), {"delay": 5}, "delay"),
            (("x", "report", 60), {"unique": "u"}, "unique"),
            (("x", "report", 60), {"priority": "very"}, "priority"),
            (("x", "report", 60), {"concurrency": 2}, "concurrency"),
            (("x", "report", 60, {"day": []}), {}, "day"),
            (("x", "login", 60, {"password": "p"}), {}, "payload"),
        ],
    )
    async def test_bad_input_is_refused_with_its_field(self, opened, arguments, options, field):
        with pytest.raises(ValidationError) as refused:
            await opened.schedules.set(*arguments, **options)
        assert [problem.field for problem in refused.value.problems] == [field]
        assert await opened.schedules.all() == []

    async def test_an_unknown_zone_and_an_unknown_kind(self, opened):
        with pytest.raises(ValidationError, match="zone: 'Mars' is no time zone"):
            await opened.schedules.set("x", "report", Cron("* * * * *", "Mars"))
        with pytest.raises(InvalidTaskTypeError):
            await opened.schedules.set("x", "reprot", 60)

    async def test_a_kind_with_a_secret_that_is_not_given(self, opened, time):
        await opened.schedules.set("each", "maybe", 60)
        time.advance(60)
        await opened.schedules.tick()
        assert [job.state for job in await run_until_idle(opened)] == [JobState.COMPLETED]

    async def test_several_who_change_it_at_once_all_do(self, opened):
        first = await opened.schedules.set("each", "report", 60)
        await asyncio.gather(
            *(opened.schedules.set("each", "report", 60, {"day": str(n)}) for n in range(10))
        )
        assert (await opened.schedules.get("each")).revision == first.revision + 10


class TestOperate:
    async def test_pause_and_resume(self, opened, time):
        first = await opened.schedules.set("each", "report", 60)
        before = await opened.last_event()
        paused = await opened.schedules.pause("each", by="ada")
        assert (paused.next, paused.changed_by) == (None, "ada")
        assert await opened.schedules.pause("each", by="bob") == paused
        time.advance(150)
        assert await opened.schedules.tick() == 0
        resumed = await opened.schedules.resume("each", by="bob")
        assert (resumed.next, resumed.changed_by) == (first.next + 120 * MICROSECOND, "bob")
        assert await opened.schedules.resume("each", by="eve") == resumed
        assert await opened.schedules.tick() == 0
        time.advance(30)
        assert await opened.schedules.tick() == 1
        events = await opened.store.events(after=before)
        assert [event.type for event in events[:2]] == [SCHEDULE_PAUSED, SCHEDULE_RESUMED]

    async def test_run_now(self, opened, time):
        first = await opened.schedules.set("each", "report", 60, overlap="skip")
        time.advance(1)
        job_id = await opened.schedules.run("each")
        (tick,) = await opened.schedules.ticks("each")
        assert (tick.job, tick.state, tick.tick) == (job_id, TickState.MANUAL, time.now())
        assert await opened.schedules.tick_of(job_id) == tick
        assert (await opened.schedules.get("each")).next == first.next
        time.advance(1)
        with pytest.raises(JobStateError, match=f"the job {job_id} of each is not done"):
            await opened.schedules.run("each")
        await run_until_idle(opened)
        time.advance(1)
        assert await opened.schedules.run("each") != job_id

    async def test_what_is_not_there(self, opened):
        for verb in ("get", "pause", "resume", "run", "delete"):
            with pytest.raises(ScheduleNotFoundError, match="nobody"):
                await getattr(opened.schedules, verb)("nobody")

    async def test_a_job_knows_its_tick(self, opened, time):
        seen = []

        @opened.task
        async def look(ctx: haulier.Context) -> None:
            seen.append(await ctx.tick())

        made = await opened.schedules.set("each", "look", 60)
        time.advance(60)
        await opened.schedules.tick()
        await opened.enqueue(look)
        await run_until_idle(opened)
        assert [tick and (tick.schedule, tick.tick) for tick in seen] == [("each", made.next), None]


class TestDeclare:
    async def test_a_declaration_is_stored_once_and_not_over_what_was_changed(self, opened):
        opened.schedule("nightly", "report", Cron("0 3 * * *"), {"day": "monday"})
        await opened.schedules.store_declared()
        made = await opened.schedules.get("nightly")
        assert (made.changed_by, made.template.payload) == ("code", b'{"day":"monday"}')
        assert made.declared
        await opened.schedules.store_declared()
        assert await opened.schedules.get("nightly") == made
        changed = await opened.schedules.set("nightly", "report", 60, by="ada")
        await opened.schedules.store_declared()
        assert await opened.schedules.get("nightly") == changed

    async def test_a_changed_declaration_is_stored_and_a_paused_one_stays_paused(self, time):
        store = memory_store(time)
        async with store:
            for declared in ("0 3 * * *", "0 4 * * *"):
                app = with_tasks(App(store))
                app.schedule("nightly", "report", declared)
                await app.schedules.store_declared()
                stored = await app.schedules.get("nightly")
                assert stored.cadence == Cron(declared)
                await app.schedules.pause("nightly")
            assert (await app.schedules.get("nightly")).paused
            assert stored.paused

    async def test_several_workers_that_start_at_once_store_it_once(self, opened):
        opened.schedule("nightly", "report", 60)
        before = await opened.last_event()
        await asyncio.gather(*(opened.schedules.store_declared() for _ in range(8)))
        events = await opened.store.events(after=before)
        assert [event.type for event in events] == [SCHEDULE_SET]

    async def test_on_the_task_itself(self, opened):
        @opened.task(schedule=Cron("0 3 * * *", "America/New_York"), queue="later")
        async def tidy() -> None: ...

        await opened.schedules.store_declared()
        made = await opened.schedules.get("tidy")
        assert (made.cadence, made.template.queue) == (
            Cron("0 3 * * *", "America/New_York"),
            "later",
        )

    async def test_what_is_wrong_is_said_where_it_is_written(self, app):
        with pytest.raises(ValidationError, match="cron"):
            app.schedule("x", "report", "every day")
        with pytest.raises(ValidationError, match="day"):
            app.schedule("x", "report", 60, {"day": 1})
        with pytest.raises(InvalidTaskTypeError):
            app.schedule("x", "reprot", 60)
        app.schedule("x", "report", 60)
        with pytest.raises(ValidationError, match="declared twice"):
            app.schedule("x", "report", 60)
        with pytest.raises(ValidationError, match="n: Field required"):

            @app.task(schedule=60)
            async def needs(n: int) -> None: ...


async def test_what_many_have_to_make_up_for_is_done_part_by_part(opened, time, monkeypatch):
    for n in range(20):
        await opened.schedules.set(f"s{n:02}", "report", 1, missed="all:60")
    sizes = []
    kept = opened.store.schedules()

    class Counted:
        def __getattr__(self, verb):
            return getattr(kept, verb)

        async def fire(self, firings):
            sizes.append(sum(len(firing.ticks) for firing in firings))
            return await kept.fire(firings)

    monkeypatch.setattr(opened.store, "schedules", Counted)
    time.advance(60)
    assert await opened.schedules.tick() == 20 * 60
    assert sizes == [180] * 6 + [120]


async def test_a_cron_over_the_end_of_daylight_saving_ticks_once_a_day(opened, time):
    await opened.schedules.set("daily", "report", Cron("30 2 * * *", "Europe/Berlin"))
    wanted = list(islice((await opened.schedules.get("daily")).cadence.after(time.now()), 300))
    found = []
    for _ in wanted:
        due = await opened.store.schedules().due()
        time.advance(due.wait / MICROSECOND)
        assert await opened.schedules.tick() == 1
        (last,) = await opened.schedules.ticks("daily", limit=1)
        found.append(last.tick)
    assert found == wanted
