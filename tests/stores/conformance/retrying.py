"""Failed items that are tried again: some of them, a few at a time."""

from __future__ import annotations

import pytest

from haulier.domain.batch import FinishCallback
from haulier.domain.job import Job, JobError, JobState
from haulier.domain.moves import Move, Transition
from haulier.ports import Fence, JobStore
from support import Hand, filled_batch, head, items, move

AFTERWARDS = FinishCallback(kind="afterwards")
MANY = 5000


def fails(job: Job, error_type: str) -> Transition:
    return move(job, Move.FAIL)._replace(error=JobError(type=error_type, message="no"))


class TestRetrySome:
    """Only failed items of one kind of error, and only so many at a time."""

    async def ended(self, store: JobStore, hand: Hand, errors: str, **policy) -> str:
        """A batch whose items have failed, each with the error of its letter; `.`: completed."""
        batch = await filled_batch(store, len(errors), **policy)
        jobs = await hand.claim(len(errors))
        await hand.exchange(
            *(
                move(job, Move.COMPLETE) if letter == "." else fails(job, letter)
                for job, letter in zip(jobs, errors, strict=True)
            )
        )
        assert (await store.get(batch)).state is JobState.COMPLETED
        return batch

    async def test_only_those_of_one_class(self, store, hand):
        batch = await self.ended(store, hand, "AB.ABA")
        assert await store.retry_failed(batch, error_type="B") == 2
        assert [job.position for job in await hand.claim(9)] == [1, 4]
        now = await store.batch(batch)
        assert (now.state, now.counts.failed) == (JobState.RUNNING, 3)

    async def test_only_so_many_the_first_ones_first(self, store, hand):
        batch = await self.ended(store, hand, "AAA.AA")
        for expected in ([0, 1], [2, 4], [5]):
            assert await store.retry_failed(batch, limit=2) == len(expected)
            jobs = await hand.claim(9)
            assert [job.position for job in jobs] == expected
            await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
            assert (await store.get(batch)).state is JobState.COMPLETED
        assert await store.retry_failed(batch, limit=2) == 0

    async def test_both_together(self, store, hand):
        batch = await self.ended(store, hand, "ABABAB")
        assert await store.retry_failed(batch, error_type="B", limit=2) == 2
        assert [job.position for job in await hand.claim(9)] == [1, 3]

    async def test_the_last_error_of_an_item_counts(self, store, hand):
        batch = await filled_batch(store, 1)
        job = await hand.claim_one()
        retried = move(job, Move.RETRY, delay=0)._replace(error=JobError(type="A", message=""))
        (again,) = (await hand.exchange(retried, slots=1)).jobs
        await hand.exchange(fails(again, "B"))
        assert await store.retry_failed(batch, error_type="A") == 0
        assert (await store.get(batch)).state is JobState.COMPLETED
        assert await store.retry_failed(batch, error_type="B") == 1

    @pytest.mark.parametrize("which", [{"error_type": "C"}, {"limit": 0}])
    async def test_none_leaves_the_batch_settled(self, store, hand, which):
        batch = await self.ended(store, hand, "AB", finish=AFTERWARDS)
        before = await store.batch(batch)
        assert await store.retry_failed(batch, **which) == 0
        assert await store.batch(batch) == before
        assert (await store.batch(batch)).finish_job == before.finish_job

    async def test_a_limit_beyond_what_has_failed_is_no_error(self, store, hand):
        batch = await self.ended(store, hand, "A.A")
        assert await store.retry_failed(batch, limit=1_000_000) == 2

    async def test_so_many_of_thousands(self, store, hand):
        batch = await filled_batch(store, MANY)
        await hand.work_off(Move.FAIL)
        assert await store.retry_failed(batch, limit=3000) == 3000
        now = await store.batch(batch)
        assert (now.counts.pending, now.counts.failed) == (3000, 2000)
        assert await hand.work_off() == 3000
        assert await store.retry_failed(batch) == 2000
        assert await hand.work_off() == 2000
        assert (await store.batch(batch)).counts.completed == MANY


class TestExpandAnew:
    """A head that failed while it expanded starts from nothing."""

    async def test_its_items_come_back_without_errors_and_under_new_leases(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 1), fence=Fence(top.id, held.lease))
        item = await hand.claim_one()
        await hand.hand_in(item, Move.FAIL)
        await hand.hand_in(held, Move.FAIL)
        assert len(await store.errors(item.id)) == 1
        await store.requeue([top.id])
        again = await hand.claim_one()
        await store.insert(items(top.id, 1), fence=Fence(top.id, again.lease))
        assert await store.errors(item.id) == []
        new = await hand.claim_one()
        assert new.id == item.id
        assert not await hand.hand_in(item, Move.COMPLETE)
        assert await hand.hand_in(new, Move.COMPLETE)
