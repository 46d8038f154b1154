"""Durable steps: what a job has finished is kept with it, under its lease alone."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import Job, JobState
from haulier.domain.moves import Move
from haulier.domain.retention import Keep, Retention
from haulier.domain.step import Step
from haulier.exceptions import JobNotFoundError
from haulier.ports import Fence, JobStore
from haulier.services.ids import new_id
from support import Hand, filled_batch, head, items, move, work, works


def step(job: Job, name: str = "upload", result: bytes = b'{"id":7}') -> Step:
    return Step(job.id, job.lease, name, result)


async def names(store: JobStore, job_id: str) -> list[str]:
    return [each.name for each in await store.steps(job_id)]


async def claimed(store: JobStore, hand: Hand, **fields: object) -> Job:
    await store.insert([work(**fields)])
    return await hand.claim_one()


class TestKeep:
    """A step is kept if its lease holds, once."""

    async def test_steps_come_back_in_their_order_with_when_and_by_which_claim(
        self, store, hand, clock
    ):
        job = await claimed(store, hand)
        assert await store.steps(job.id) == []
        assert await store.keep([step(job, "zip", b"[1,2]")]) == []
        first = clock.now()
        clock.advance(1)
        assert await store.keep([step(job, "an upload", b"null"), step(job, "also")]) == []
        assert await store.steps(job.id) == [
            Step(job.id, job.lease, "zip", b"[1,2]", first),
            Step(job.id, job.lease, "also", b'{"id":7}', clock.now()),
            Step(job.id, job.lease, "an upload", b"null", clock.now()),
        ]

    async def test_any_name_and_a_result_of_256_kib_come_back_as_they_were(self, store, hand):
        job = await claimed(store, hand)
        given = {
            "ü ☕ {}%:' \"": '"ä ☕ \\u0000"'.encode(),
            "n" * 200: b'"' + b"x" * (256 * 1024 - 2) + b'"',
        }
        for name, result in given.items():
            assert await store.keep([step(job, name, result)]) == []
        assert {each.name: each.result for each in await store.steps(job.id)} == given

    async def test_a_step_that_is_kept_stays_as_it_is(self, store, hand, clock):
        job = await claimed(store, hand)
        await store.keep([step(job, result=b"1")])
        before = await store.steps(job.id)
        clock.advance(1)
        assert await store.keep([step(job, result=b"2"), step(job, result=b"3")]) == []
        assert await store.steps(job.id) == before

    async def test_nothing_is_kept_twice_in_one_call(self, store, hand):
        job = await claimed(store, hand)
        assert await store.keep([step(job, result=b"1"), step(job, result=b"2")]) == []
        assert [each.result for each in await store.steps(job.id)] == [b"1"]

    async def test_an_old_lease_keeps_nothing(self, store, hand, clock):
        job = await claimed(store, hand)
        await hand.hand_in(job, Move.GIVE_BACK)
        assert await store.keep([step(job)]) == [step(job)]
        again = await hand.claim_one()
        assert again.lease > job.lease
        assert await store.keep([step(job), step(again, "own")]) == [step(job)]
        assert await names(store, job.id) == ["own"]

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.FAIL, Move.CANCEL])
    async def test_a_job_that_has_ended_keeps_nothing(self, store, hand, how):
        job = await claimed(store, hand)
        await hand.hand_in(job, how)
        assert await store.keep([step(job)]) == [step(job)]
        assert await store.steps(job.id) == []

    async def test_neither_does_one_that_never_ran_or_is_unknown(self, store):
        waiting = work()
        await store.insert([waiting])
        nobody = new_id()
        given = [Step(waiting.id, 0, "a", b"1"), Step(nobody, 1, "b", b"1")]
        assert await store.keep(given) == given
        assert await store.steps(waiting.id) == []
        assert await store.keep([]) == []
        for unknown in (nobody, "no id"):
            with pytest.raises(JobNotFoundError):
                await store.steps(unknown)

    async def test_those_of_a_lost_worker_are_refused(self, store, hand, clock):
        job = await claimed(store, hand)
        await store.keep([step(job, "before")])
        await store.retire(hand.id)
        assert await store.keep([step(job, "after")]) == [step(job, "after")]
        assert await names(store, job.id) == ["before"]

    async def test_many_at_once_keep_each_what_is_theirs(self, store, hand):
        await store.insert(works(20))
        jobs = await hand.claim(20)
        await asyncio.gather(
            *(
                store.keep([step(job, f"{n}", b"%d" % place) for place, job in enumerate(jobs)])
                for n in range(10)
            )
        )
        for place, job in enumerate(jobs):
            found = await store.steps(job.id)
            assert sorted(each.name for each in found) == [f"{n}" for n in range(10)]
            assert {each.result for each in found} == {b"%d" % place}


class TestStepsStay:
    """They stay with the job, whatever becomes of it, until it goes."""

    @pytest.mark.parametrize("how", [Move.RETRY, Move.SNOOZE, Move.GIVE_BACK])
    async def test_the_next_attempt_finds_them_and_goes_on(self, store, hand, how):
        job = await claimed(store, hand)
        await store.keep([step(job, "first")])
        await hand.hand_in(job, how, delay=0)
        again = await hand.claim_one()
        assert await names(store, again.id) == ["first"]
        await store.keep([step(again, "second")])
        await hand.hand_in(again, Move.COMPLETE)
        assert {each.name: each.lease for each in await store.steps(job.id)} == {
            "first": job.lease,
            "second": again.lease,
        }

    @pytest.mark.parametrize("how", [Move.FAIL, Move.CANCEL])
    async def test_a_requeue_keeps_them(self, store, hand, how):
        job = await claimed(store, hand)
        await store.keep([step(job)])
        await hand.hand_in(job, how)
        await store.requeue([job.id])
        again = await hand.claim_one()
        assert (again.id, again.attempt) == (job.id, 1)
        assert await names(store, job.id) == ["upload"]

    async def test_a_retry_of_failed_items_keeps_theirs(self, store, hand):
        batch = await filled_batch(store, 2)
        for job in await hand.claim(2):
            await store.keep([step(job)])
            await hand.hand_in(job, Move.FAIL)
        assert await store.retry_failed(batch) == 2
        for job in await hand.claim(2):
            assert await names(store, job.id) == ["upload"]

    async def test_a_head_that_expands_anew_keeps_its_own_and_its_items_lose_theirs(
        self, store, hand
    ):
        top = head()
        await store.insert([top], policy=BatchPolicy())
        held = await hand.claim_one()
        await store.keep([step(held, "list")])
        made = items(top.id, 2)
        await store.insert(made, fence=Fence(top.id, held.lease))
        await hand.hand_in(held, Move.HAND_OVER)
        jobs = await hand.claim(2)
        await store.keep([step(job) for job in jobs])
        await store.cancel([top.id])
        await hand.exchange(*(move(job, Move.CANCEL) for job in jobs))
        assert (await store.get(top.id)).state is JobState.CANCELLED
        assert (await store.requeue([top.id]))[top.id] is JobState.PENDING
        again = await hand.claim_one()
        assert again.id == top.id
        assert await names(store, top.id) == ["list"]
        await store.insert(made, fence=Fence(top.id, again.lease))
        await hand.hand_in(again, Move.HAND_OVER)
        for job in await hand.claim(2):
            assert await store.steps(job.id) == []

    async def test_they_go_with_a_job_that_is_deleted(self, store, hand):
        given = work()
        await store.insert([given])
        job = await hand.claim_one()
        await store.keep([step(job)])
        await hand.hand_in(job, Move.COMPLETE)
        await store.delete(job.id)
        with pytest.raises(JobNotFoundError):
            await store.steps(job.id)
        await store.insert([given])
        assert await store.steps(job.id) == []

    async def test_they_go_with_a_job_that_is_kept_no_longer(self, store, hand):
        given = work()
        await store.insert([given])
        job = await hand.claim_one()
        await store.keep([step(job)])
        await hand.hand_in(job, Move.COMPLETE)
        assert await store.prune({"work": Retention(completed=Keep(count=0))}) == 1
        await store.insert([given])
        assert await store.steps(job.id) == []

    async def test_those_of_items_go_with_their_batch(self, store, hand):
        batch = await filled_batch(store, 3)
        for job in await hand.claim(3):
            await store.keep([step(job)])
            await hand.exchange(move(job, Move.COMPLETE))
        await store.delete(batch)
        top = head(id=batch)
        again = items(batch, 3)
        await store.open_batch(top, again, sealed=True)
        assert [await store.steps(each.id) for each in again] == [[], [], []]
