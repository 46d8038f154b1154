"""Unique names: how long a job holds one, and that no two jobs ever hold the same."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import MICROSECOND, JobState, OnLost
from haulier.domain.moves import Move
from haulier.domain.unique import Conflict, Scope, Uniqueness
from haulier.exceptions import DuplicateJobError, JobNotFoundError
from haulier.ports import Fence, Inserted, JobStore
from support import Hand, filled_batch, head, items, work

HOUR = 3600.0
ENDS = [Move.COMPLETE, Move.FAIL, Move.CANCEL]
BACK = [Move.RETRY, Move.SNOOZE, Move.GIVE_BACK]


def name(text: str = "the-one", **fields) -> tuple[Uniqueness, ...]:
    return (Uniqueness(text, **fields),)


def for_a_while(seconds: float, text: str = "the-one") -> tuple[Uniqueness, ...]:
    return name(text, scope=Scope.PERIOD, period=round(seconds * MICROSECOND))


async def holder(store: JobStore, text: str = "the-one") -> str | None:
    """The id of the job that holds a name now; None when it is free."""
    probe = work("probe", unique=name(text, scope=Scope.PENDING))
    reply = await store.insert([probe])
    if reply.instead:
        assert (reply.new, set(reply.instead)) == (0, {probe.id})
        with pytest.raises(JobNotFoundError):
            await store.get(probe.id)
        return reply.instead[probe.id]
    await store.delete(probe.id)
    return None


class TestPendingNames:
    """Held until a worker first claims the job."""

    async def test_it_is_free_again_with_the_first_claim(self, store, hand):
        job = work(unique=name(scope=Scope.PENDING))
        await store.insert([job])
        assert await holder(store) == job.id
        await hand.claim_one()
        assert await holder(store) is None

    @pytest.mark.parametrize("how", BACK)
    async def test_a_job_that_is_put_back_does_not_take_it_again(self, store, hand, how):
        await store.insert([work(unique=name(scope=Scope.PENDING))])
        await hand.hand_in(await hand.claim_one(), how, delay=0)
        assert await holder(store) is None

    async def test_nor_does_one_whose_worker_was_lost(self, store, hand):
        await store.insert([work(unique=name(scope=Scope.PENDING))])
        await hand.claim_one()
        await store.retire(hand.id)
        assert await holder(store) is None

    async def test_nor_does_one_that_is_requeued(self, store, hand):
        job = work(unique=name(scope=Scope.PENDING))
        await store.insert([job])
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        await store.requeue([job.id])
        assert await holder(store) is None

    async def test_it_is_free_when_the_job_is_cancelled_or_deleted(self, store):
        for end in (lambda job: store.cancel([job.id]), lambda job: store.delete(job.id)):
            job = work(unique=name(scope=Scope.PENDING))
            await store.insert([job])
            assert await holder(store) == job.id
            await end(job)
            assert await holder(store) is None


class TestActiveNames:
    """Held until the job is completed, failed or cancelled."""

    @pytest.mark.parametrize("how", ENDS)
    async def test_it_is_held_while_the_job_waits_and_runs_and_free_when_it_ends(
        self, store, hand, how
    ):
        job = work(unique=name())
        await store.insert([job])
        assert await holder(store) == job.id
        claimed = await hand.claim_one()
        assert await holder(store) == job.id
        await hand.hand_in(claimed, how)
        assert await holder(store) is None

    async def test_it_is_free_when_the_job_is_dropped_before_it_ran(self, store):
        job = work(unique=name())
        await store.insert([job])
        await store.cancel([job.id])
        assert await holder(store) is None

    async def test_a_job_that_was_asked_to_stop_holds_it_until_it_has_stopped(self, store, hand):
        job = work(unique=name())
        await store.insert([job])
        claimed = await hand.claim_one()
        await store.cancel([job.id])
        assert await holder(store) == job.id
        await hand.hand_in(claimed, Move.RETRY)
        assert (await store.get(job.id)).state is JobState.CANCELLED
        assert await holder(store) is None

    @pytest.mark.parametrize("how", BACK)
    async def test_it_is_held_over_what_puts_the_job_back(self, store, hand, how):
        job = work(unique=name())
        await store.insert([job])
        await hand.hand_in(await hand.claim_one(), how, delay=0)
        assert await holder(store) == job.id
        await hand.hand_in(await hand.claim_one(), Move.COMPLETE)
        assert await holder(store) is None

    async def test_it_is_held_over_the_loss_of_a_worker_but_not_over_the_last(self, store, hand):
        job = work(unique=name())
        last = work(unique=name("last"), on_lost=OnLost.FAIL)
        await store.insert([job, last])
        assert len(await hand.claim(2)) == 2
        await store.retire(hand.id)
        assert await holder(store) == job.id
        assert (await store.get(last.id)).state is JobState.FAILED
        assert await holder(store, "last") is None

    async def test_a_refused_finish_frees_nothing(self, store, hand):
        job = work(unique=name())
        await store.insert([job])
        old = await hand.claim_one()
        await hand.hand_in(old, Move.GIVE_BACK)
        assert not await hand.hand_in(old, Move.COMPLETE)
        assert await holder(store) == job.id

    async def test_a_scheduled_job_holds_it_too(self, store):
        job = work(unique=name(), delay=60 * MICROSECOND)
        await store.insert([job])
        assert await holder(store) == job.id

    async def test_it_is_free_when_the_job_is_deleted(self, store):
        job = work(unique=name())
        await store.insert([job])
        await store.delete(job.id)
        assert await holder(store) is None


class TestPeriodNames:
    """Held for a fixed time after the job was enqueued, whatever becomes of it."""

    @pytest.fixture
    def ttl(self) -> float:
        return 24 * HOUR

    @pytest.mark.parametrize("how", [None, *ENDS, *BACK])
    async def test_it_is_held_for_exactly_that_time(self, store, hand, clock, how):
        job = work(unique=for_a_while(HOUR))
        await store.insert([job])
        if how is not None:
            clock.advance(1)
            await hand.hand_in(await hand.claim_one(), how)
        clock.advance(HOUR - (how is not None) - 0.001)
        assert await holder(store) == job.id
        clock.advance(0.001)
        assert await holder(store) is None

    async def test_a_cancel_does_not_end_it(self, store):
        job = work(unique=for_a_while(HOUR))
        await store.insert([job])
        await store.cancel([job.id])
        assert await holder(store) == job.id

    async def test_who_comes_after_it_holds_it_for_a_time_of_its_own(self, store, clock):
        first, second = work(unique=for_a_while(HOUR)), work(unique=for_a_while(HOUR))
        await store.insert([first])
        clock.advance(HOUR)
        assert await store.insert([second]) == Inserted(1)
        clock.advance(HOUR - 1)
        assert await holder(store) == second.id
        clock.advance(1)
        assert await holder(store) is None

    async def test_what_ends_late_does_not_free_the_name_of_who_came_after(
        self, store, hand, clock
    ):
        first, second = work(unique=for_a_while(HOUR)), work(unique=for_a_while(HOUR))
        await store.insert([first])
        claimed = await hand.claim_one()
        clock.advance(HOUR)
        await store.insert([second])
        await hand.hand_in(claimed, Move.COMPLETE)
        assert await holder(store) == second.id
        await store.delete(first.id)
        assert await holder(store) == second.id

    async def test_it_is_free_when_the_job_is_deleted(self, store, hand):
        job = work(unique=for_a_while(HOUR))
        await store.insert([job])
        await hand.work_off()
        await store.delete(job.id)
        assert await holder(store) is None


class TestOneHolder:
    """Whatever happens at once, a name has one holder."""

    async def test_of_many_that_insert_it_at_once_one_gets_it(self, store):
        jobs = [work(unique=name()) for _ in range(32)]
        replies = await asyncio.gather(*(store.insert([job]) for job in jobs))
        assert sum(reply.new for reply in replies) == 1
        winner = await holder(store)
        for job, reply in zip(jobs, replies, strict=True):
            assert reply.instead == ({} if job.id == winner else {job.id: winner})
        assert sum((await store.counts()).values()) == 1

    async def test_of_many_clients_that_insert_it_at_once_one_gets_it(self, home, store, ttl):
        if not home.several:
            pytest.skip("this store has a single client: it lives in that client's memory")
        async with home.client(ttl=ttl) as other:
            jobs = [work(unique=name()) for _ in range(32)]
            replies = await asyncio.gather(
                *((store, other)[n % 2].insert([job]) for n, job in enumerate(jobs))
            )
            assert sum(reply.new for reply in replies) == 1
            assert sum((await other.counts()).values()) == 1

    async def test_of_two_in_one_call_the_first_has_it(self, store):
        first, second, plain = work(unique=name()), work(unique=name()), work()
        reply = await store.insert([first, second, plain])
        assert (reply.new, reply.instead) == (2, {second.id: first.id})
        with pytest.raises(JobNotFoundError):
            await store.get(second.id)

    async def test_a_repeated_insert_is_no_conflict_with_itself(self, store, hand):
        job = work(unique=name(conflict=Conflict.REJECT))
        for new in (1, 0):
            reply = await store.insert([job])
            assert (reply.new, reply.instead) == (new, {})
        await hand.work_off()
        other = work(unique=name())
        await store.insert([other])
        reply = await store.insert([job])
        assert (reply.new, reply.instead) == (0, {})
        assert await holder(store) == other.id

    async def test_one_id_twice_in_one_call_is_no_conflict(self, store):
        job = work(unique=name(conflict=Conflict.REJECT))
        reply = await store.insert([job, job])
        assert (reply.new, reply.instead) == (1, {})

    async def test_other_names_are_free(self, store):
        await store.insert([work(unique=name())])
        assert await holder(store, "The-One") is None
        assert await holder(store, "the-one ") is None
        assert await holder(store, "zoë") is None

    async def test_jobs_tell_whether_they_have_a_name(self, store):
        named, plain = work(unique=name()), work()
        await store.insert([named, plain])
        assert (await store.get(named.id)).unique
        assert not (await store.get(plain.id)).unique

    async def test_of_several_names_a_job_has_all_or_none(self, store, hand):
        first = work(unique=name("b"))
        await store.insert([first])
        both = work(unique=(*name("a"), *name("b"), *name("c")))
        assert (await store.insert([both])).instead == {both.id: first.id}
        assert await holder(store, "a") is None
        assert await holder(store, "c") is None
        await hand.work_off()
        assert (await store.insert([both])).new == 1
        assert {await holder(store, text) for text in "abc"} == {both.id}
        await hand.work_off()
        assert {await holder(store, text) for text in "abc"} == {None}

    async def test_each_of_several_names_has_its_own_scope(self, store, hand, clock):
        job = work(
            unique=(*name("p", scope=Scope.PENDING), *name("a"), *for_a_while(HOUR, "t")),
        )
        await store.insert([job])
        claimed = await hand.claim_one()
        assert [await holder(store, text) for text in "pat"] == [None, job.id, job.id]
        await hand.hand_in(claimed, Move.COMPLETE)
        assert [await holder(store, text) for text in "pat"] == [None, None, job.id]
        clock.advance(HOUR)
        assert await holder(store, "t") is None


class TestNamesOfRequeuedJobs:
    """A requeue takes active names back, if nobody else has them by now."""

    @pytest.mark.parametrize("how", [Move.FAIL, Move.CANCEL])
    async def test_a_free_name_is_taken_back(self, store, hand, how):
        job = work(unique=name())
        await store.insert([job])
        await hand.hand_in(await hand.claim_one(), how)
        assert await store.requeue([job.id]) == {job.id: JobState.PENDING}
        assert await holder(store) == job.id
        await hand.work_off()
        assert await holder(store) is None

    async def test_while_another_job_has_it_the_job_stays_as_it_is(self, store, hand):
        job, other = work(unique=name()), work(unique=name())
        await store.insert([job])
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        await store.insert([other])
        before = await store.get(job.id)
        assert await store.requeue([job.id]) == {job.id: JobState.FAILED}
        assert await store.get(job.id) == before
        assert await holder(store) == other.id
        await hand.work_off()
        assert await store.requeue([job.id]) == {job.id: JobState.PENDING}

    async def test_of_two_that_had_it_one_after_the_other_one_is_requeued(self, store, hand):
        jobs = work(unique=name()), work(unique=name())
        for job in jobs:
            await store.insert([job])
            await hand.work_off(Move.FAIL)
        states = await store.requeue([job.id for job in jobs])
        assert sorted(states.values()) == [JobState.FAILED, JobState.PENDING]

    async def test_one_of_several_names_that_is_taken_keeps_the_job_where_it_is(self, store, hand):
        job = work(unique=(*name("a"), *name("b")))
        await store.insert([job])
        await hand.work_off(Move.FAIL)
        other = work(unique=name("b"))
        await store.insert([other])
        assert await store.requeue([job.id]) == {job.id: JobState.FAILED}
        assert await holder(store, "a") is None


class TestNamesOfBatches:
    """Heads hold names for their batch."""

    async def test_a_head_holds_its_name_until_its_batch_has_settled(self, store, hand):
        top = head(unique=name())
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 2), fence=Fence(top.id, held.lease))
        await hand.hand_in(held, Move.HAND_OVER)
        assert await holder(store) == top.id
        await hand.work_off()
        assert (await store.get(top.id)).state is JobState.COMPLETED
        assert await holder(store) is None

    @pytest.mark.parametrize("how", ["cancelled", "failed"])
    async def test_also_when_it_does_not_end_well(self, store, hand, how):
        top = head(unique=name())
        policy = BatchPolicy(max_failures=0)
        await store.open_batch(top, items(top.id, 3), policy=policy, sealed=True)
        assert await holder(store) == top.id
        if how == "cancelled":
            await store.cancel([top.id])
        else:
            await hand.hand_in(await hand.claim_one(), Move.FAIL)
        assert (await store.get(top.id)).state == how
        assert await holder(store) is None

    async def test_opening_a_batch_under_a_held_name_inserts_no_item(self, store):
        first, second = head(unique=name()), head(unique=name())
        await store.open_batch(first, items(first.id, 2), sealed=True)
        reply = await store.open_batch(second, items(second.id, 3), sealed=True)
        assert (reply.new, reply.instead) == (0, {second.id: first.id})
        with pytest.raises(JobNotFoundError):
            await store.batch(second.id)
        assert sum((await store.counts()).values()) == 3

    async def test_opening_one_that_insists_on_its_name_is_refused_whole(self, store):
        first, second = head(unique=name()), head(unique=name(conflict=Conflict.REJECT))
        await store.open_batch(first, items(first.id, 2), sealed=True)
        with pytest.raises(DuplicateJobError) as caught:
            await store.open_batch(second, items(second.id, 3), sealed=True)
        assert caught.value.job_id == first.id
        assert sum((await store.counts()).values()) == 3

    async def test_opening_filling_and_sealing_again_is_no_conflict(self, store):
        top = head(unique=name(conflict=Conflict.REJECT))
        for _ in range(2):
            reply = await store.open_batch(top, items(top.id, 2), sealed=False)
            assert reply.instead == {}
        assert (await store.batch(top.id)).counts.total == 2

    async def test_a_batch_that_is_deleted_leaves_its_name(self, store, hand):
        top = head(unique=for_a_while(HOUR))
        await store.open_batch(top, items(top.id, 2), sealed=True)
        await hand.work_off()
        assert await holder(store) == top.id
        await store.delete(top.id)
        assert await holder(store) is None

    async def test_the_names_of_items_are_held_by_them(self, store, hand):
        batch = await filled_batch(store, 0, sealed=False)
        (item,) = items(batch, 1)
        await store.insert([item._replace(unique=name())])
        assert await holder(store) == item.id
        other = await Hand.enlist(store)
        await other.work_off()
        assert await holder(store) is None
