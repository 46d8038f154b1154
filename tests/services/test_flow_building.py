"""Flows as producers build them: what is inserted, what is refused, what is left of half of one."""

from __future__ import annotations

import pytest

from haulier import After, App, JobFilter, JobState, Otherwise, ValidationError
from haulier.exceptions import StoreUnavailableError
from haulier.services.flow import STARTER
from haulier.services.ids import new_id
from haulier.testing import run_until_idle


@pytest.fixture
def task(app: App):
    @app.task
    async def work(n: int = 0) -> int:
        return n

    return work


def reason_of(refusal: pytest.ExceptionInfo[ValidationError]) -> tuple[str, str]:
    (problem,) = refusal.value.problems
    return problem.field, problem.reason


class TestEnqueue:
    async def test_a_job_waits_for_those_given_as_after(self, app, task):
        first = await app.enqueue(task)
        second = await app.enqueue(task, after=first)
        third = await app.enqueue(task, after=[first, After(second, Otherwise.RUN)])
        assert [(each.job_id, each.otherwise) for each in await app.parents(third)] == [
            (first, "cancel"),
            (second, "run"),
        ]
        assert (await app.get(third)).waiting
        assert [job.id for job in (await app.children(first)).jobs] == [second, third]
        await run_until_idle(app)
        assert (await app.get(third)).state is JobState.COMPLETED

    async def test_many_may_wait_for_the_same(self, app, task):
        first = await app.enqueue(task)
        rest = await app.enqueue_many(task, [{"n": n} for n in range(5)], after=first)
        assert [job.id for job in (await app.children(first)).jobs] == rest

    @pytest.mark.parametrize(
        ("after", "field"),
        [
            ("nonsense", "after[0]"),
            (["nonsense"], "after[0]"),
            ([new_id(), 7], "after[1]"),
            (7, "after"),
            ([After(new_id(), "perhaps")], "after[0]"),
        ],
    )
    async def test_what_is_no_job_is_refused(self, app, task, after, field):
        with pytest.raises(ValidationError) as refusal:
            await app.enqueue(task, after=after)
        assert reason_of(refusal)[0] == field
        assert not (await app.find()).jobs

    async def test_a_job_that_is_not_there_is_refused(self, app, task):
        missing = new_id()
        with pytest.raises(ValidationError) as refusal:
            await app.enqueue(task, after=missing)
        assert reason_of(refusal) == ("after", f"there is no job {missing}")

    async def test_a_job_cannot_wait_for_itself(self, app, task):
        own = new_id()
        with pytest.raises(ValidationError) as refusal:
            await app.enqueue(task, job_id=own, after=own)
        assert "waits for itself" in reason_of(refusal)[1]

    async def test_a_batch_that_its_producer_fills_cannot_wait(self, app, task):
        first = await app.enqueue(task)
        with pytest.raises(ValidationError) as refusal:
            await app.enqueue_batch(task, [{"n": 1}], after=first)
        assert reason_of(refusal)[0] == "after"


class TestFlow:
    async def test_fan_out_and_fan_in(self, app, task):
        flow = app.flow()
        first = flow.add(task)
        middle = flow.add_many(task, [{"n": n} for n in range(10)], after=first)
        last = flow.add(task, after=middle)
        ids = await flow.start()
        assert ids == [first.id, *(node.id for node in middle), last.id]
        assert [each.job_id for each in await app.parents(last.id)] == [node.id for node in middle]
        await run_until_idle(app)
        assert (await app.get(last.id)).state is JobState.COMPLETED

    async def test_nothing_is_there_before_it_is_started(self, app, task):
        app.flow().add(task)
        assert not (await app.find()).jobs

    async def test_starting_it_twice_changes_nothing(self, app, task):
        flow = app.flow()
        flow.chain((task, {}), (task, {}))
        assert await flow.start() == await flow.start()
        assert len((await app.find()).jobs) == 2

    async def test_a_circle_is_refused_by_its_names(self, app, task):
        flow = app.flow()
        one = flow.add(task, name="one")
        two = flow.add(task, name="two", after=one)
        three = flow.add(task, name="three", after=two)
        flow.wait_for(one, three)
        with pytest.raises(ValidationError) as refusal:
            await flow.start()
        assert reason_of(refusal) == (
            "after",
            "its jobs wait in a circle: one waits for three waits for two waits for one",
        )
        assert not (await app.find()).jobs

    @pytest.mark.parametrize(
        "options", [{"unique": "x"}, {"idempotency_key": "x"}, {"delay": -1}, {"nonsense": 1}]
    )
    async def test_options_that_do_not_fit_are_refused_at_once(self, app, task, options):
        with pytest.raises(ValidationError) as refusal:
            app.flow().add(task, **options)
        assert reason_of(refusal)[0] == next(iter(options))

    async def test_bad_payloads_are_refused_at_once(self, app, task):
        with pytest.raises(ValidationError):
            app.flow().add(task, {"n": "many"})


class TestLargeFlows:
    """More than one transaction may take: none of it runs before all of it is there."""

    @pytest.fixture(autouse=True)
    def small_chunks(self, app, monkeypatch):
        monkeypatch.setattr(app.store, "chunk", 7)

    def build(self, app, task):
        flow = app.flow()
        last = flow.add(task, {"n": 99}, name="last")
        first = flow.add(task)
        middle = flow.add_many(task, [{"n": n} for n in range(20)], after=first)
        flow.wait_for(last, middle)
        return flow, last

    async def test_all_of_it_runs(self, app, task):
        flow, last = self.build(app, task)
        ids = await flow.start()
        assert len(ids) == 22
        await run_until_idle(app)
        assert (await app.get(last.id)).state is JobState.COMPLETED

    async def test_of_one_that_could_not_be_inserted_whole_nothing_runs(
        self, app, task, monkeypatch
    ):
        flow, _ = self.build(app, task)
        real, calls = app.store.insert, 0

        async def insert(jobs, **options):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise StoreUnavailableError("gone")
            return await real(jobs, **options)

        monkeypatch.setattr(app.store, "insert", insert)
        with pytest.raises(StoreUnavailableError):
            await flow.start()
        found = (await app.find(JobFilter(kind="work"))).jobs
        assert len(found) == 14
        assert {job.state for job in found} == {JobState.CANCELLED}

    async def test_while_it_is_being_inserted_nothing_runs(self, app, task, monkeypatch):
        flow, _ = self.build(app, task)
        real = app.store.insert

        async def insert(jobs, **options):
            inserted = await real(jobs, **options)
            assert all(job.waiting for job in (await app.find(JobFilter(kind="work"))).jobs)
            return inserted

        monkeypatch.setattr(app.store, "insert", insert)
        await flow.start()
        (starter,) = (await app.find(JobFilter(kind=STARTER))).jobs
        assert starter.state is JobState.COMPLETED
