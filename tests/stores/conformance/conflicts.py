"""What happens to a job whose unique name another one holds."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain.batch import FinishCallback
from haulier.domain.job import MICROSECOND, JobState, Role
from haulier.domain.moves import Move
from haulier.domain.unique import Conflict, Scope, Uniqueness
from haulier.exceptions import DuplicateJobError, IdempotencyConflictError, JobNotFoundError
from haulier.ports import JobFilter
from support import filled_batch, head, work, works

HOUR = 3600 * MICROSECOND


def named(conflict: Conflict = Conflict.SKIP, **fields):
    return (Uniqueness("the-one", conflict=conflict, **fields),)


def keyed(digest: bytes, key: str = "key"):
    """An idempotency key, as producers use it."""
    return (Uniqueness(key, Scope.PERIOD, Conflict.MATCH, 24 * HOUR, digest),)


class TestSkip:
    """The new job is left out, and its producer is told the other one's id."""

    async def test_the_others_of_the_call_are_inserted(self, store):
        first, second = work(unique=named()), work(unique=named())
        await store.insert([first])
        reply = await store.insert([*works(2), second, *works(2)])
        assert (reply.new, reply.instead) == (4, {second.id: first.id})

    async def test_asking_again_gets_the_same_answer(self, store):
        first, second = work(unique=named()), work(unique=named())
        await store.insert([first])
        replies = [await store.insert([second]) for _ in range(2)]
        assert replies[0] == replies[1]
        assert replies[0].instead == {second.id: first.id}

    async def test_the_holder_stays_as_it_is(self, store, hand):
        await store.insert([work(unique=named())])
        job = await hand.claim_one()
        await store.insert([work(unique=named(), payload=b'{"other":true}', priority=9)])
        assert await store.get(job.id) == job


class TestReject:
    """The whole call is refused."""

    @pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING])
    async def test_the_error_names_the_holder_and_nothing_is_inserted(self, store, hand, state):
        first = work(unique=named())
        await store.insert([first])
        if state is JobState.RUNNING:
            await hand.claim_one()
        with pytest.raises(DuplicateJobError) as caught:
            await store.insert([*works(2), work(unique=named(Conflict.REJECT)), *works(2)])
        assert caught.value.job_id == first.id
        assert not isinstance(caught.value, IdempotencyConflictError)
        assert sum((await store.counts()).values()) == 1

    async def test_of_two_in_one_call_none_is_inserted(self, store):
        first, second = work(unique=named()), work(unique=named(Conflict.REJECT))
        with pytest.raises(DuplicateJobError) as caught:
            await store.insert([first, second])
        assert caught.value.job_id == first.id
        assert await store.counts() == {}
        assert (await store.insert([second])).new == 1

    async def test_names_taken_earlier_in_a_refused_call_are_free_again(self, store):
        await store.insert([work(unique=named())])
        early = work(unique=(Uniqueness("early"),))
        with pytest.raises(DuplicateJobError):
            await store.insert([early, work(unique=named(Conflict.REJECT))])
        assert (await store.insert([work(unique=(Uniqueness("early"),))])).new == 1

    async def test_a_free_name_is_no_reason_to_refuse(self, store, hand):
        await store.insert([work(unique=named(Conflict.REJECT))])
        await hand.work_off()
        assert (await store.insert([work(unique=named(Conflict.REJECT))])).new == 1

    async def test_a_refused_call_does_not_spoil_those_that_come_with_it(self, store):
        await store.insert([work(unique=named())])
        calls = [
            store.insert([work()] if n % 2 else [work(), work(unique=named(Conflict.REJECT))])
            for n in range(10)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(answer, DuplicateJobError) for answer in answers) == 5
        assert sum((await store.counts()).values()) == 6


class TestReplace:
    """The holder gives way, unless it runs."""

    async def test_a_pending_holder_is_cancelled_and_says_why(self, store, hand, clock):
        first, second = work(unique=named()), work(unique=named(Conflict.REPLACE))
        await store.insert([first])
        clock.advance(1)
        reply = await store.insert([second])
        assert (reply.new, reply.instead) == (1, {})
        gone = await store.get(first.id)
        assert (gone.state, gone.finished_at) == (JobState.CANCELLED, clock.now())
        assert gone.error.type == "Replaced"
        assert [job.id for job in await hand.claim(9)] == [second.id]
        with pytest.raises(DuplicateJobError) as caught:
            await store.insert([work(unique=named(Conflict.REJECT))])
        assert caught.value.job_id == second.id

    @pytest.mark.parametrize("how", [Move.RETRY, Move.SNOOZE])
    async def test_one_that_waits_for_another_try_gives_way_too(self, store, hand, how):
        first = work(unique=named())
        await store.insert([first])
        await hand.hand_in(await hand.claim_one(), how, delay=60)
        assert (await store.insert([work(unique=named(Conflict.REPLACE))])).new == 1
        assert (await store.get(first.id)).state is JobState.CANCELLED

    async def test_a_running_holder_cannot_give_way(self, store, hand):
        await store.insert([work(unique=named())])
        job = await hand.claim_one()
        with pytest.raises(DuplicateJobError) as caught:
            await store.insert([work(), work(unique=named(Conflict.REPLACE))])
        assert caught.value.job_id == job.id
        assert await store.get(job.id) == job
        assert sum((await store.counts()).values()) == 1

    async def test_one_that_is_done_has_left_only_its_name(self, store, hand, clock):
        first, second = (
            work(unique=named(conflict, scope=Scope.PERIOD, period=HOUR))
            for conflict in (Conflict.SKIP, Conflict.REPLACE)
        )
        await store.insert([first])
        await hand.work_off()
        before = await store.get(first.id)
        assert (await store.insert([second])).new == 1
        assert await store.get(first.id) == before
        third = work(unique=named())
        assert (await store.insert([third])).instead == {third.id: second.id}

    async def test_the_counts_follow(self, store):
        for _ in range(3):
            await store.insert([work(unique=named(Conflict.REPLACE))])
        assert await store.counts() == {
            ("default", "work", Role.SINGLE, JobState.PENDING): 1,
            ("default", "work", Role.SINGLE, JobState.CANCELLED): 2,
        }

    async def test_the_holders_of_several_names_all_give_way(self, store):
        first, second = (work(unique=(Uniqueness(text), Uniqueness(text * 2))) for text in "ab")
        await store.insert([first, second])
        third = work(unique=tuple(Uniqueness(text, conflict=Conflict.REPLACE) for text in "ab"))
        assert (await store.insert([third])).new == 1
        for job in (first, second):
            assert (await store.get(job.id)).state is JobState.CANCELLED
        assert (await store.insert([work(unique=(Uniqueness("aa"), Uniqueness("bb")))])).new == 1

    async def test_of_several_holders_one_that_runs_keeps_all(self, store, hand):
        await store.insert([work(unique=(Uniqueness("b"),))])
        running = await hand.claim_one()
        waiting = work(unique=(Uniqueness("a"),))
        await store.insert([waiting])
        names = tuple(Uniqueness(text, conflict=Conflict.REPLACE) for text in "ab")
        with pytest.raises(DuplicateJobError) as caught:
            await store.insert([work(unique=names)])
        assert caught.value.job_id == running.id
        assert (await store.get(waiting.id)).state is JobState.PENDING

    async def test_a_head_that_waits_for_a_worker_gives_way(self, store, hand):
        first, second = head(unique=named()), head(unique=named(Conflict.REPLACE))
        await store.insert([first])
        await store.insert([second])
        assert (await store.batch(first.id)).state is JobState.CANCELLED
        assert [job.id for job in await hand.claim(9)] == [second.id]

    async def test_a_batch_whose_items_are_under_way_cannot_give_way(self, store):
        first = head(unique=named())
        await store.open_batch(first, [], sealed=False)
        with pytest.raises(DuplicateJobError):
            await store.insert([work(unique=named(Conflict.REPLACE))])
        assert (await store.batch(first.id)).state is JobState.RUNNING

    async def test_an_item_that_gives_way_may_be_the_last_of_its_batch(self, store):
        batch = await filled_batch(store, 0, sealed=False, finish=FinishCallback(kind="after"))
        item = work(role=Role.ITEM, batch_id=batch, position=0, unique=named())
        await store.insert([item])
        await store.seal(batch)
        await store.insert([work(unique=named(Conflict.REPLACE))])
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.COMPLETED, 1)
        assert len((await store.find(JobFilter(kind="after"))).jobs) == 1

    async def test_of_many_that_replace_at_once_one_is_left(self, store):
        jobs = [work(unique=named(Conflict.REPLACE)) for _ in range(20)]
        await asyncio.gather(*(store.insert([job]) for job in jobs))
        counts = await store.counts()
        assert counts[("default", "work", Role.SINGLE, JobState.PENDING)] == 1
        assert counts[("default", "work", Role.SINGLE, JobState.CANCELLED)] == 19


class TestMatch:
    """Idempotency keys: the same request is done once, another under the same key refused."""

    @pytest.mark.parametrize("how", [None, Move.COMPLETE, Move.FAIL, Move.CANCEL])
    async def test_the_same_request_gets_the_first_ones_id_whatever_became_of_it(
        self, store, hand, how
    ):
        first, again = work(unique=keyed(b"1")), work(unique=keyed(b"1"))
        await store.insert([first])
        if how is not None:
            await hand.hand_in(await hand.claim_one(), how)
        reply = await store.insert([again])
        assert (reply.new, reply.instead) == (0, {again.id: first.id})
        with pytest.raises(JobNotFoundError):
            await store.get(again.id)

    async def test_another_request_under_the_same_key_is_refused_whole(self, store):
        first = work(unique=keyed(b"1"))
        await store.insert([first])
        with pytest.raises(IdempotencyConflictError) as caught:
            await store.insert([work(), work(unique=keyed(b"2")), work()])
        assert caught.value.job_id == first.id
        assert sum((await store.counts()).values()) == 1

    async def test_two_requests_of_one_call_under_one_key(self, store):
        first, same, other = (work(unique=keyed(digest)) for digest in (b"1", b"1", b"2"))
        reply = await store.insert([first, same])
        assert (reply.new, reply.instead) == (1, {same.id: first.id})
        with pytest.raises(IdempotencyConflictError):
            await store.insert([same, other])

    async def test_another_key_is_another_request(self, store):
        await store.insert([work(unique=keyed(b"1"))])
        assert (await store.insert([work(unique=keyed(b"2", "other"))])).new == 1

    async def test_after_its_time_a_key_can_be_used_for_something_else(self, store, clock):
        await store.insert([work(unique=keyed(b"1"))])
        clock.advance(24 * 3600 - 0.001)
        with pytest.raises(IdempotencyConflictError):
            await store.insert([work(unique=keyed(b"2"))])
        clock.advance(0.001)
        assert (await store.insert([work(unique=keyed(b"2"))])).new == 1

    async def test_of_many_that_send_the_same_request_at_once_all_get_one_id(self, store):
        jobs = [work(unique=keyed(b"1")) for _ in range(32)]
        replies = await asyncio.gather(*(store.insert([job]) for job in jobs))
        assert sum(reply.new for reply in replies) == 1
        ids = {reply.instead.get(job.id, job.id) for job, reply in zip(jobs, replies, strict=True)}
        assert len(ids) == 1

    async def test_a_key_and_a_unique_name_go_together(self, store, hand):
        first, again, other = (
            work(unique=(*named(), *keyed(digest))) for digest in (b"1", b"1", b"2")
        )
        await store.insert([first])
        assert (await store.insert([again])).instead == {again.id: first.id}
        await hand.work_off()
        with pytest.raises(IdempotencyConflictError):
            await store.insert([other])
        assert (await store.insert([work(unique=named())])).new == 1


def keyed_works(numbers, digest: bytes = b"a"):
    """Jobs that each have a key of their own, as the lines of a stream have."""
    return [work(unique=keyed(digest, f"idempotency-line:{number}:k")) for number in numbers]


class TestManyKeys:
    """Each job of a call has an idempotency key of its own."""

    async def test_they_are_inserted_in_order_and_told_again(self, store, hand):
        first = keyed_works(range(40))
        assert (await store.insert(first)).new == 40
        assert [job.id for job in await hand.claim(40)] == [job.id for job in first]
        again = keyed_works(range(40))
        reply = await store.insert(again)
        assert reply.new == 0
        assert reply.instead == {new.id: old.id for new, old in zip(again, first, strict=True)}

    async def test_those_that_are_missing_are_inserted(self, store):
        first = keyed_works(range(0, 40, 3))
        await store.insert(first)
        again = keyed_works(range(40))
        reply = await store.insert(again)
        assert reply.new == 40 - len(first)
        assert reply.instead == {new.id: old.id for new, old in zip(again[::3], first, strict=True)}
        assert len((await store.find(JobFilter())).jobs) == 40

    async def test_a_key_that_was_used_for_something_else_keeps_all_out(self, store):
        (held,) = await _inserted(store, keyed_works([25]))
        with pytest.raises(IdempotencyConflictError) as caught:
            await store.insert(keyed_works(range(40), b"b"))
        assert caught.value.job_id == held.id
        assert len((await store.find(JobFilter())).jobs) == 1
        assert (await store.insert(keyed_works([0], b"c"))).new == 1

    async def test_a_key_that_is_over_is_free(self, store, clock):
        await store.insert(keyed_works(range(5)))
        clock.advance(24 * 3600 + 1)
        assert (await store.insert(keyed_works(range(5), b"b"))).new == 5
        assert (await store.insert(keyed_works(range(5), b"b"))).new == 0

    async def test_of_one_key_twice_in_a_call_the_first_has_it(self, store):
        first, second = keyed_works([1, 1])
        reply = await store.insert([first, *keyed_works(range(2, 9)), second])
        assert (reply.new, reply.instead) == (8, {second.id: first.id})

    async def test_ids_that_are_there_already_are_left_as_they_are(self, store, hand):
        jobs = keyed_works(range(9))
        await store.insert([jobs[4]._replace(unique=())])
        assert (await store.insert(jobs)).new == 8
        repeated = await store.insert(jobs)
        assert (repeated.new, repeated.instead) == (0, {})
        assert len(await hand.claim(20)) == 9

    async def test_jobs_without_one_come_along(self, store):
        jobs = [*keyed_works(range(3)), *works(3), *keyed_works(range(3, 6))]
        assert (await store.insert(jobs)).new == 9
        reply = await store.insert([*keyed_works(range(6)), *works(1)])
        assert (reply.new, len(reply.instead)) == (1, 6)

    async def test_of_calls_at_the_same_time_one_has_each(self, store):
        calls = [keyed_works(range(20)) for _ in range(4)]
        replies = await asyncio.gather(*(store.insert(call) for call in calls))
        assert sorted(reply.new for reply in replies) == [0, 0, 0, 20]
        assert len((await store.find(JobFilter())).jobs) == 20


async def _inserted(store, jobs):
    await store.insert(jobs)
    return jobs
