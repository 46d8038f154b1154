"""What is kept how long: finished jobs, whole batches, results, and old events."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain import event as ev
from haulier.domain.batch import BatchPolicy
from haulier.domain.job import MICROSECOND, Job, JobState, NewJob, Role
from haulier.domain.moves import Move
from haulier.domain.retention import DAY, Keep, Retention
from haulier.domain.unique import Scope, Uniqueness
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobFilter, JobStore
from support import Hand, filled_batch, head, items, work, works

FOREVER = Keep()
HOUR = 3600.0


def keep(**fields) -> Retention:
    """Keeps everything but what is named."""
    kept = {"completed": FOREVER, "failed": FOREVER, "cancelled": FOREVER, "result_ttl": None}
    return Retention(**{**kept, **fields})


async def ended(hand: Hand, job: NewJob, how: Move = Move.COMPLETE) -> Job:
    """A job that was inserted, run and finished."""
    await hand.store.insert([job])
    claimed = await hand.claim_one()
    assert claimed.id == job.id
    assert await hand.hand_in(claimed, how)
    return claimed


async def left(store: JobStore, **where) -> set[str]:
    page = await store.find(JobFilter(**where), limit=20_000)
    return {job.id for job in page.jobs}


class OverDays:
    """Days pass in these tests, and no heartbeat beats."""

    @pytest.fixture
    def ttl(self) -> float:
        return 1000 * DAY


class TestPrune(OverDays):
    """By age and by count, per kind and state."""

    @pytest.mark.parametrize(
        ("state", "how"),
        [("completed", Move.COMPLETE), ("failed", Move.FAIL), ("cancelled", Move.CANCEL)],
    )
    async def test_what_ended_longer_ago_than_its_age_goes(self, store, hand, clock, state, how):
        old = await ended(hand, work(), how)
        clock.advance(60)
        young = await ended(hand, work(), how)
        clock.advance(60)
        rules = {"work": keep(**{state: Keep(age=90)})}
        assert await store.prune(rules) == 1
        assert await left(store) == {young.id}
        with pytest.raises(JobNotFoundError):
            await store.get(old.id)
        assert sum((await store.counts()).values()) == 1
        assert await store.prune(rules) == 0
        clock.advance(60)
        assert await store.prune(rules) == 1
        assert await store.counts() == {}

    async def test_each_state_has_its_own_age(self, store, hand, clock):
        jobs = {
            how: await ended(hand, work(), how) for how in (Move.COMPLETE, Move.FAIL, Move.CANCEL)
        }
        rules = {"work": keep(completed=Keep(age=10), cancelled=Keep(age=20), failed=Keep(age=30))}
        gone = []
        for _ in range(3):
            clock.advance(11)
            assert await store.prune(rules) == 1
            kept = await left(store)
            gone.append(next(how for how in jobs if jobs[how].id not in kept))
            del jobs[gone[-1]]
        assert gone == [Move.COMPLETE, Move.CANCEL, Move.FAIL]

    async def test_it_counts_from_the_end_and_not_from_the_start(self, store, hand, clock):
        await store.insert([work()])
        job = await hand.claim_one()
        clock.advance(DAY)
        await hand.hand_in(job, Move.COMPLETE)
        assert await store.prune({"work": keep(completed=Keep(age=HOUR))}) == 0
        clock.advance(HOUR + 1)
        assert await store.prune({"work": keep(completed=Keep(age=HOUR))}) == 1

    async def test_only_the_latest_are_kept_of_many(self, store, hand, clock):
        jobs = []
        for _ in range(7):
            jobs.append(await ended(hand, work()))
            clock.advance(1)
        assert await store.prune({"work": keep(completed=Keep(count=3))}) == 4
        assert await left(store) == {job.id for job in jobs[-3:]}
        assert await store.prune({"work": keep(completed=Keep(count=3))}) == 0
        assert await store.prune({"work": keep(completed=Keep(count=0))}) == 3

    async def test_the_latest_to_end_count_and_not_the_latest_to_come(self, store, hand, clock):
        await store.insert(works(2))
        first, second = await hand.claim(2)
        await hand.hand_in(second, Move.COMPLETE)
        clock.advance(1)
        await hand.hand_in(first, Move.COMPLETE)
        assert await store.prune({"work": keep(completed=Keep(count=1))}) == 1
        assert await left(store) == {first.id}

    async def test_age_and_count_both_restrict(self, store, hand, clock):
        jobs = []
        for _ in range(6):
            jobs.append(await ended(hand, work()))
            clock.advance(10)
        assert await store.prune({"work": keep(completed=Keep(age=45, count=5))}) == 2
        assert await store.prune({"work": keep(completed=Keep(age=1000, count=2))}) == 2
        assert await left(store) == {job.id for job in jobs[-2:]}

    async def test_each_kind_goes_by_its_own_rule_and_others_by_none(self, store, clock):
        hand = await Hand.enlist(store, kinds=["a", "b", "c"])
        a, b, c = [await ended(hand, work(kind)) for kind in "abc"]
        clock.advance(100)
        rules = {"a": keep(completed=Keep(age=50)), "b": keep(completed=Keep(age=150))}
        assert await store.prune(rules) == 1
        assert await left(store) == {b.id, c.id}
        clock.advance(1000 * DAY)
        assert await store.prune({}) == 0
        assert await left(store) == {b.id, c.id}
        assert a.id not in await left(store)

    async def test_a_count_is_per_kind_and_state(self, store, clock):
        hand = await Hand.enlist(store, kinds=["a", "b"])
        for kind in "ab":
            for how in (Move.COMPLETE, Move.FAIL):
                for _ in range(2):
                    await ended(hand, work(kind), how)
                    clock.advance(1)
        one = Retention(completed=Keep(count=1), failed=Keep(count=1), result_ttl=None)
        assert await store.prune({"a": one}) == 2
        assert await store.prune({"a": one, "b": one}) == 2
        assert sum((await store.counts()).values()) == 4

    async def test_what_is_not_finished_stays(self, store, hand, clock):
        later = work(delay=round(500 * DAY * MICROSECOND))
        await store.insert([later, work(), work()])
        running, back = await hand.claim(2)
        await hand.hand_in(back, Move.RETRY, delay=500 * DAY)
        clock.advance(400 * DAY)
        none = Keep(count=0, age=0)
        rules = {"work": Retention(completed=none, failed=none, cancelled=none, result_ttl=0)}
        assert await store.prune(rules) == 0
        assert await left(store) == {later.id, running.id, back.id}

    async def test_what_was_requeued_is_not_finished(self, store, hand, clock):
        job = await ended(hand, work(), Move.FAIL)
        clock.advance(DAY)
        await store.requeue([job.id])
        assert await store.prune({"work": keep(failed=Keep(count=0))}) == 0

    async def test_errors_go_with_the_job_and_a_name_stays_for_its_period(self, store, hand, clock):
        name = Uniqueness("x", Scope.PERIOD, period=round(DAY * MICROSECOND))
        job = await ended(hand, work(unique=(name,)), Move.FAIL)
        other = work(unique=(name,))
        assert (await store.insert([other])).instead == {other.id: job.id}
        clock.advance(1)
        assert await store.prune({"work": keep(failed=Keep(age=0.5))}) == 1
        with pytest.raises(JobNotFoundError):
            await store.errors(job.id)
        assert (await store.insert([other])).instead == {other.id: job.id}
        clock.advance(DAY)
        assert (await store.insert([other])).new == 1
        assert await store.errors(other.id) == []

    async def test_each_leaves_an_event(self, store, hand, clock):
        jobs = [await ended(hand, work()) for _ in range(3)]
        cursor = await store.last_event()
        clock.advance(10)
        await store.prune({"work": keep(completed=Keep(age=5))})
        events = await store.events(after=cursor)
        assert {(event.type, event.job_id) for event in events} == {
            (ev.DELETED, job.id) for job in jobs
        }
        assert len(events) == 3

    async def test_many_go_in_slices_between_which_others_claim(self, store, hand, clock):
        count = 6000
        await store.insert(works(count))
        assert await hand.work_off() == count
        clock.advance(10)
        await store.insert(works(500, "bulk"))
        done = frozenset({JobState.COMPLETED})
        seen = set()
        pruning = asyncio.ensure_future(store.prune({"work": keep(completed=Keep(age=5))}))
        while not pruning.done():
            await hand.claim(1)
            counts = await store.counts()
            seen.add(counts.get(("default", "work", Role.SINGLE, JobState.COMPLETED), 0))
        assert await pruning == count
        assert seen - {0, count}
        assert await left(store, states=done) == set()

    async def test_two_that_prune_at_once_remove_each_job_once(self, store, hand, clock):
        await store.insert(works(3000))
        await hand.work_off()
        clock.advance(10)
        rules = {"work": keep(completed=Keep(age=5))}
        removed = await asyncio.gather(store.prune(rules), store.prune(rules))
        assert sum(removed) == 3000
        assert await store.counts() == {}


class TestResultTtl(OverDays):
    """The result of a single job may be gone before the job."""

    async def test_a_result_goes_after_its_time_and_the_job_stays(self, store, hand, clock):
        job = await ended(hand, work())
        rules = {"work": keep(result_ttl=HOUR)}
        clock.advance(HOUR - 1)
        assert await store.prune(rules) == 0
        assert (await store.get(job.id)).value == {"ok": True}
        clock.advance(2)
        assert await store.prune(rules) == 0
        kept = await store.get(job.id)
        assert (kept.state, kept.result) == (JobState.COMPLETED, None)

    async def test_without_a_time_it_stays_with_the_job(self, store, hand, clock):
        job = await ended(hand, work())
        clock.advance(500 * DAY)
        await store.prune({"work": keep(result_ttl=None), "other": keep(result_ttl=0)})
        assert (await store.get(job.id)).value == {"ok": True}

    async def test_those_of_batches_stay_as_long_as_these(self, store, hand, clock):
        batch = await filled_batch(store, 2)
        await hand.work_off()
        clock.advance(500 * DAY)
        rule = keep(result_ttl=0)
        await store.prune({"work": rule, "bulk": rule})
        assert (await store.get(batch)).value["completed"] == 2
        for item in items(batch, 2):
            assert (await store.get(item.id)).value == {"ok": True}

    async def test_an_error_is_no_result(self, store, hand, clock):
        job = await ended(hand, work(), Move.FAIL)
        clock.advance(500 * DAY)
        await store.prune({"work": keep(result_ttl=0)})
        assert (await store.get(job.id)).error.type == "Boom"
        assert len(await store.errors(job.id)) == 1

    async def test_thousands_of_results_go(self, store, hand, clock):
        await store.insert(works(5000))
        await hand.work_off()
        clock.advance(10)
        await store.prune({"work": keep(result_ttl=5)})
        page = await store.find(JobFilter(), limit=6000)
        assert {job.result for job in page.jobs} == {None}
        assert len(page.jobs) == 5000


class TestOldEvents(OverDays):
    """The stream is not kept for ever."""

    async def test_a_cursor_into_what_is_kept_no_longer_gets_a_reset_that_leads_on(
        self, store, hand, clock
    ):
        batch = await filled_batch(store, 3)
        (first, *_) = await store.events()
        await hand.work_off()
        clock.advance(500 * DAY)
        await store.prune({})
        assert (await store.batch(batch)).counts.completed == 3
        (reset,) = await store.events(after=first.cursor)
        assert reset.type == ev.RESET
        await store.insert(works(2))
        after = await store.events(after=reset.cursor)
        assert [event.type for event in after] == [ev.INSERTED] * 2
        assert after[0].seq > first.seq + 3
        assert await store.events() == after

    async def test_who_has_read_to_the_end_is_not_disturbed(self, store, clock):
        await store.open_batch(head(), [], policy=BatchPolicy(), sealed=False)
        cursor = await store.last_event()
        clock.advance(500 * DAY)
        await store.prune({})
        assert await store.last_event() == cursor
        assert await store.events(after=cursor) == []
        await store.insert([work()])
        (event,) = await store.events(after=cursor)
        assert event.type == ev.INSERTED
