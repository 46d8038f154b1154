"""Whole batches that are kept no longer."""

from __future__ import annotations

import asyncio

import pytest

from conformance.retention import OverDays, ended, keep, left
from haulier.domain.batch import FinishCallback
from haulier.domain.job import Job, JobState, OnLost
from haulier.domain.moves import Move
from haulier.domain.retention import DAY, Keep, Retention
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobStore
from support import Hand, filled_batch, head, items, move, work


async def hand_of_a_broken_head(store: JobStore, hand: Hand) -> Job:
    """A running item of a batch whose head has failed while it expanded."""
    top = head()
    await store.insert([top])
    expander = await hand.claim_one()
    await store.insert(items(top.id, 1))
    item = await hand.claim_one()
    await hand.hand_in(expander, Move.FAIL)
    assert (await store.get(top.id)).state is JobState.FAILED
    return item


class TestPruneBatches(OverDays):
    """A batch is kept and removed as one, by the rule of its head's kind."""

    async def test_it_goes_with_all_its_items(self, store, hand, clock):
        batch = await filled_batch(store, 4)
        await hand.work_off()
        clock.advance(100)
        young = await filled_batch(store, 1)
        await hand.work_off()
        assert await store.prune({"bulk": keep(completed=Keep(age=50))}) == 5
        with pytest.raises(JobNotFoundError):
            await store.batch(batch)
        assert (await store.batch(young)).counts.completed == 1
        assert await left(store) == {young, items(young, 1)[0].id}

    async def test_the_kind_of_its_items_does_not_matter(self, store, hand, clock):
        batch = await filled_batch(store, 3)
        await hand.work_off(Move.FAIL)
        clock.advance(100 * DAY)
        none = Retention(
            completed=Keep(count=0), failed=Keep(count=0), cancelled=Keep(count=0), result_ttl=0
        )
        assert await store.prune({"work": none}) == 0
        counts = (await store.batch(batch)).counts
        assert (counts.total, counts.failed) == (3, 3)

    async def test_nor_does_the_kind_of_its_items_count_among_single_jobs(self, store, hand, clock):
        single = await ended(hand, work())
        clock.advance(1)
        await filled_batch(store, 3)
        await hand.work_off()
        assert await store.prune({"work": keep(completed=Keep(count=1))}) == 0
        assert single.id in await left(store)

    async def test_its_state_is_that_of_its_head(self, store, hand, clock):
        settled = await filled_batch(store, 2)
        await hand.work_off(Move.FAIL)
        cancelled = await filled_batch(store, 2)
        await store.cancel([cancelled])
        broken = await filled_batch(store, 2, max_failures=0)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        clock.advance(100)
        for state, batch in (("completed", settled), ("failed", broken), ("cancelled", cancelled)):
            assert await store.prune({"bulk": keep(**{state: Keep(age=50)})}) == 3
            with pytest.raises(JobNotFoundError):
                await store.batch(batch)

    async def test_one_that_is_not_done_stays(self, store, hand, clock):
        batch = await filled_batch(store, 3)
        jobs = await hand.claim(2)
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
        await filled_batch(store, 0, sealed=False)
        clock.advance(100 * DAY)
        assert await store.prune({"bulk": keep(completed=Keep(count=0))}) == 0
        assert (await store.batch(batch)).counts.completed == 2

    async def test_a_failed_head_stays_while_an_item_runs(self, store, hand, clock):
        top = head(on_lost=OnLost.FAIL)
        await store.insert([top])
        await hand.claim_one()
        await store.insert(items(top.id, 2))
        other = await Hand.enlist(store)
        item = await other.claim_one()
        await store.retire(hand.id)
        assert (await store.get(top.id)).state is JobState.FAILED
        clock.advance(100)
        rules = {"bulk": keep(failed=Keep(age=50))}
        assert await store.prune(rules) == 0
        await other.hand_in(item, Move.CANCEL)
        clock.advance(100)
        assert await store.prune(rules) == 3

    async def test_only_the_latest_are_kept_of_many(self, store, hand, clock):
        batches = []
        for size in (4, 1, 3, 2):
            batches.append(await filled_batch(store, size))
            await hand.work_off()
            clock.advance(1)
        assert await store.prune({"bulk": keep(completed=Keep(count=2))}) == 5 + 2
        assert [batch.id for batch in await store.batches()] == batches[:1:-1]

    async def test_two_that_prune_at_once_keep_as_many_as_is_said(self, store, hand, clock):
        batches = []
        for size in (4000, 3, 3, 3):
            batches.append(await filled_batch(store, size))
            await hand.work_off()
            clock.advance(1)
        rules = {"bulk": keep(completed=Keep(count=3))}
        await asyncio.gather(*(store.prune(rules) for _ in range(3)))
        assert [batch.id for batch in await store.batches()] == batches[:0:-1]

    async def test_one_that_cannot_go_yet_is_not_replaced_by_a_later_one(self, store, hand, clock):
        held = await hand_of_a_broken_head(store, hand)
        clock.advance(1)
        broken = await filled_batch(store, 2, max_failures=0)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        assert (await store.get(broken)).state is JobState.FAILED
        await store.prune({"bulk": keep(failed=Keep(count=1))})
        assert (await store.batch(broken)).counts.failed == 1
        await hand.hand_in(held, Move.CANCEL)
        await store.prune({"bulk": keep(failed=Keep(count=1))})
        assert [batch.id for batch in await store.batches()] == [broken]

    async def test_its_finish_callback_is_a_job_of_its_own(self, store, hand, clock):
        finish = FinishCallback(kind="work")
        await filled_batch(store, 1, finish=finish)
        await hand.work_off()
        clock.advance(10)
        assert await store.prune({"bulk": keep(completed=Keep(age=5))}) == 2
        assert len(await left(store, kind="work")) == 1
        assert await store.prune({"work": keep(completed=Keep(age=5))}) == 1

    async def test_a_batch_of_thousands_goes_whole(self, store, hand, clock):
        await filled_batch(store, 5000)
        await hand.work_off()
        other = await filled_batch(store, 2)
        clock.advance(10)
        assert await store.prune({"bulk": keep(completed=Keep(age=5))}) == 5001
        assert len(await left(store)) == 3
        assert (await store.batch(other)).counts.pending == 2

    async def test_one_cut_off_in_the_middle_is_gone_after_it_is_taken_up_again(
        self, store, hand, clock
    ):
        await filled_batch(store, 5000)
        await hand.work_off()
        clock.advance(10)
        rules = {"bulk": keep(completed=Keep(age=5))}
        for _ in range(3):
            task = asyncio.ensure_future(store.prune(rules))
            await store.counts()
            task.cancel()
            await asyncio.wait([task])
        await store.sweep()
        await store.prune(rules)
        assert await store.counts() == {}
