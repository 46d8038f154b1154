"""Work on whole batches, slice by slice, while others go on and change their minds."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.job import JobState
from haulier.domain.moves import Move
from haulier.domain.unique import Scope, Uniqueness
from haulier.exceptions import JobStateError
from haulier.ports import Fence
from support import Hand, filled_batch, head, items, move, wait_until

MANY = 6000


async def settled(store, batch: str) -> bool:
    await store.sweep()
    return (await store.batch(batch)).settled


class TestDrains:
    """Whatever comes between, a batch ends as it was told last, and settles."""

    @pytest.mark.parametrize("verb", ["pause", "resume"])
    async def test_the_last_item_may_end_while_its_batch_is_being_paused(self, store, hand, verb):
        batch = await filled_batch(store, 3)
        held = await hand.claim(3)
        if verb == "resume":
            await store.pause(batch)
        done = [move(job, Move.COMPLETE) for job in held]
        await asyncio.gather(getattr(store, verb)(batch), hand.exchange(*done))
        assert (await store.batch(batch)).settled
        assert (await store.get(batch)).state is JobState.COMPLETED

    async def test_a_cancel_overtakes_a_pause(self, store):
        batch = await filled_batch(store, MANY)
        await asyncio.gather(store.pause(batch), store.cancel([batch]), return_exceptions=True)
        await wait_until(lambda: settled(store, batch))
        counts = (await store.batch(batch)).counts
        assert (counts.pending, counts.cancelled) == (0, MANY)

    async def test_a_second_pause_overtakes_a_resume(self, store, hand):
        batch = await filled_batch(store, MANY)
        await store.pause(batch)
        await asyncio.gather(store.resume(batch), store.pause(batch))
        assert (await store.batch(batch)).paused
        assert await hand.claim(10) == []
        await store.resume(batch)
        assert await hand.work_off() == MANY

    @pytest.mark.parametrize("concurrency", [None, 50])
    @pytest.mark.parametrize("how", [Move.RETRY, Move.GIVE_BACK, Move.SNOOZE])
    async def test_items_claimed_while_a_cancel_goes_through_do_not_escape_it(
        self, store, hand, how, concurrency
    ):
        policy = BatchPolicy(concurrency=concurrency)
        top = head()
        await store.open_batch(top, items(top.id, 3000), policy=policy, sealed=True)
        cancelling = asyncio.create_task(store.cancel([top.id]))
        held = []
        while not cancelling.done():
            held += await hand.claim(20)
        await cancelling
        await hand.exchange(*(move(job, how, delay=0) for job in held))
        assert await hand.claim(10) == []
        await wait_until(lambda: settled(store, top.id))
        counts = (await store.batch(top.id)).counts
        assert (counts.pending, counts.running, counts.cancelled) == (0, 0, 3000)

    async def test_a_retry_takes_each_failed_item_once_however_many_help(self, store, hand):
        batch = await filled_batch(store, 3000)
        await hand.work_off(Move.FAIL)
        retrying = asyncio.create_task(store.retry_failed(batch))
        failed = 0
        while not retrying.done():
            jobs = await hand.claim(50)
            failed += len(jobs)
            await hand.exchange(*(move(job, Move.FAIL) for job in jobs))
            await store.sweep()
        assert await retrying == 3000
        assert failed + await hand.work_off() == 3000


class TestUsedAgain:
    """Ids and names that come back."""

    async def test_a_batch_whose_id_was_used_before_calls_back_too(self, store, hand):
        finish = FinishCallback(kind="afterwards")
        other = await Hand.enlist(store, kinds=["afterwards"])
        top = head()
        for _ in range(2):
            await store.open_batch(
                top, items(top.id, 1), policy=BatchPolicy(finish=finish), sealed=True
            )
            assert await hand.work_off() == 1
            assert len(await other.claim(5)) == 1
            await store.delete(top.id)

    async def test_a_batch_that_runs_again_takes_its_name_back_or_stays(self, store, hand):
        name = Uniqueness("one", Scope.ACTIVE)
        top, second = head(unique=(name,)), head(unique=(name,))
        await store.open_batch(top, items(top.id, 1), sealed=True)
        await hand.work_off(Move.FAIL)
        assert (await store.open_batch(second, items(second.id, 1), sealed=True)).new == 1
        with pytest.raises(JobStateError):
            await store.retry_failed(top.id)
        await hand.work_off()
        assert await store.retry_failed(top.id) == 1
        third = head(unique=(name,))
        assert (await store.open_batch(third, [], sealed=True)).instead == {third.id: top.id}

    async def test_a_head_that_waits_for_its_next_try_is_gone_at_once_when_deleted(
        self, store, hand
    ):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 600), fence=Fence(held.id, held.lease))
        await hand.hand_in(held, Move.RETRY, delay=0)
        workers = await Hand.enlist(store, kinds=["work"])
        await workers.work_off()
        deleting = asyncio.create_task(store.delete(top.id))
        claimed = []
        while not deleting.done():
            # In this order: the delete was asked for first.
            await asyncio.sleep(0)
            claimed += await hand.claim(1)
        await deleting
        assert claimed == []
        assert not any((await store.counts()).values())
