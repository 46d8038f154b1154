"""Batches that fail: too many failed items, and one callback whatever happens."""

from __future__ import annotations

import json

import pytest

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.job import Job, JobState, OnLost
from haulier.domain.moves import Move
from haulier.exceptions import JobStateError
from haulier.ports import Fence, JobFilter, JobStore
from support import Hand, adds_up, filled_batch, head, items, move

AFTERWARDS = FinishCallback(kind="afterwards")
MANY = 5000


async def told(store: JobStore, batch: str) -> list[tuple[str, dict[str, int]]]:
    """State and counts as the finish callbacks of a batch tell them, the first one first."""
    page = await store.find(JobFilter(kind="afterwards"), oldest_first=True)
    payloads = [json.loads(job.payload) for job in page.jobs]
    assert all(payload.keys() == {"batch_id", "state", "counts"} for payload in payloads)
    return [(one["state"], one["counts"]) for one in payloads if one["batch_id"] == batch]


def counts(completed: int = 0, failed: int = 0, cancelled: int = 0) -> dict[str, int]:
    return {
        "total": completed + failed + cancelled,
        "completed": completed,
        "failed": failed,
        "cancelled": cancelled,
    }


class TestMaxFailures:
    """More failed items than it may have end a batch."""

    @pytest.mark.parametrize("most", [0, 1, 3])
    async def test_the_one_too_many_ends_it_and_none_before(self, store, hand, clock, most):
        batch = await filled_batch(store, 10, max_failures=most)
        assert (await store.batch(batch)).max_failures == most
        for _ in range(most):
            await hand.hand_in(await hand.claim_one(), Move.FAIL)
            now = await store.batch(batch)
            assert (now.state, now.counts.cancelled) == (JobState.RUNNING, 0)
        clock.advance(1)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        ended = await store.batch(batch)
        assert (ended.state, ended.finished_at) == (JobState.FAILED, clock.now())
        assert (ended.counts.failed, ended.counts.cancelled) == (most + 1, 9 - most)
        top = await store.get(batch)
        assert (top.state, top.error.type) == (JobState.FAILED, "MaxFailuresExceeded")
        assert top.value == counts(failed=most + 1, cancelled=9 - most)
        assert await hand.claim(20) == []

    async def test_as_many_as_it_may_have_are_no_failure(self, store, hand):
        batch = await filled_batch(store, 4, max_failures=2)
        jobs = await hand.claim(4)
        await hand.exchange(
            *(move(job, Move.FAIL) for job in jobs[:2]),
            *(move(job, Move.COMPLETE) for job in jobs[2:]),
        )
        top = await store.get(batch)
        assert (top.state, top.error) == (JobState.COMPLETED, None)

    async def test_neither_cancelled_nor_retried_items_count(self, store, hand, clock):
        batch = await filled_batch(store, 4, max_failures=0)
        for how in (Move.CANCEL, Move.RETRY, Move.SNOOZE, Move.COMPLETE):
            await hand.hand_in(await hand.claim_one(), how)
        assert (await store.get(batch)).state is JobState.RUNNING
        clock.advance(1)
        await hand.work_off()
        assert (await store.get(batch)).state is JobState.COMPLETED

    async def test_an_item_that_lost_its_last_worker_counts(self, store, hand):
        batch = await filled_batch(store, 3, sealed=False, max_failures=0)
        first, *rest = items(batch, 5, first=3)
        await store.insert([first._replace(on_lost=OnLost.FAIL, priority=9), *rest])
        assert (await hand.claim_one()).id == first.id
        await store.retire(hand.id)
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.FAILED, 7)

    async def test_running_items_are_told_and_the_head_fails_with_the_last_of_them(
        self, store, hand
    ):
        batch = await filled_batch(store, 6, max_failures=0, finish=AFTERWARDS)
        first, second, third = await hand.claim(3)
        other = await Hand.enlist(store)
        (far,) = await other.claim(1)
        await hand.hand_in(first, Move.FAIL)
        now = await store.batch(batch)
        assert (now.state, now.counts.running, now.counts.cancelled) == (JobState.RUNNING, 3, 2)
        assert set((await hand.exchange()).cancels) == {second.id, third.id}
        assert (await other.exchange()).cancels == (far.id,)
        assert await told(store, batch) == []
        await hand.hand_in(second, Move.RETRY)
        await hand.hand_in(third, Move.COMPLETE)
        assert (await store.get(batch)).state is JobState.RUNNING
        await other.hand_in(far, Move.CANCEL)
        ended = await store.batch(batch)
        assert ended.state is JobState.FAILED
        assert adds_up(ended)
        assert await told(store, batch) == [
            ("failed", counts(completed=1, failed=1, cancelled=4)),
        ]

    async def test_many_that_fail_at_once_end_it_once(self, store, hand):
        batch = await filled_batch(store, 20, max_failures=2, finish=AFTERWARDS)
        jobs = await hand.claim(10)
        await hand.exchange(*(move(job, Move.FAIL) for job in jobs))
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.failed) == (JobState.FAILED, 10)
        assert await told(store, batch) == [("failed", counts(failed=10, cancelled=10))]

    async def test_the_last_item_may_be_the_one_too_many(self, store, hand):
        batch = await filled_batch(store, 2, max_failures=0, finish=AFTERWARDS)
        first, second = await hand.claim(2)
        await hand.exchange(move(first, Move.COMPLETE), move(second, Move.FAIL))
        top = await store.get(batch)
        assert (top.state, top.error.type) == (JobState.FAILED, "MaxFailuresExceeded")
        assert await told(store, batch) == [("failed", counts(completed=1, failed=1))]

    async def test_thousands_of_waiting_items_are_dropped(self, store, hand):
        batch = await filled_batch(store, MANY, max_failures=0, finish=AFTERWARDS)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        # Many are dropped in slices; who was claimed between two of them is told to stop.
        late = await hand.claim(9)
        await store.sweep()
        assert set((await hand.exchange()).cancels) == {job.id for job in late}
        await hand.exchange(*(move(job, Move.CANCEL) for job in late))
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.FAILED, MANY - 1)
        assert await told(store, batch) == [("failed", counts(failed=1, cancelled=MANY - 1))]

    async def test_the_producer_can_add_no_more_items(self, store, hand):
        batch = await filled_batch(store, 3, sealed=False, max_failures=0, finish=AFTERWARDS)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        with pytest.raises(JobStateError):
            await store.insert(items(batch, 2, first=3))
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.total) == (JobState.FAILED, 3)
        assert await told(store, batch) == [("failed", counts(failed=1, cancelled=2))]

    @pytest.mark.parametrize("how", [Move.HAND_OVER, Move.FAIL])
    async def test_nor_can_the_expander(self, store, hand, how):
        top = head()
        await store.insert([top], policy=BatchPolicy(max_failures=0, finish=AFTERWARDS))
        held = await hand.claim_one()
        fence = Fence(top.id, held.lease)
        await store.insert(items(top.id, 3), fence=fence)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        with pytest.raises(JobStateError):
            await store.insert(items(top.id, 2, first=3), fence=fence)
        assert await hand.hand_in(held, how)
        ended = await store.batch(top.id)
        assert (ended.state, ended.counts.total) == (JobState.FAILED, 3)
        assert await told(store, top.id) == [("failed", counts(failed=1, cancelled=2))]

    async def test_a_cancel_meanwhile_leaves_it_one_end(self, store, hand):
        batch = await filled_batch(store, 4, max_failures=0, finish=AFTERWARDS)
        first, second = await hand.claim(2)
        await hand.hand_in(first, Move.FAIL)
        await store.cancel([batch])
        await hand.hand_in(second, Move.CANCEL)
        ended = await store.batch(batch)
        assert ended.state in (JobState.FAILED, JobState.CANCELLED)
        assert await told(store, batch) == [(ended.state, counts(failed=1, cancelled=3))]

    async def test_a_paused_batch_can_fail(self, store, hand):
        batch = await filled_batch(store, 4, max_failures=0)
        job = await hand.claim_one()
        await store.pause(batch)
        await hand.hand_in(job, Move.FAIL)
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.FAILED, 3)

    async def test_a_limited_batch_can_fail(self, store, hand):
        batch = await filled_batch(store, 6, max_failures=1, concurrency=2)
        for job in await hand.claim(9):
            await hand.hand_in(job, Move.FAIL)
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.failed, ended.counts.cancelled) == (
            JobState.FAILED,
            2,
            4,
        )

    async def test_retrying_its_failed_items_reopens_it(self, store, hand):
        batch = await filled_batch(store, 4, max_failures=1, finish=AFTERWARDS)
        for _ in range(2):
            await hand.hand_in(await hand.claim_one(), Move.FAIL)
        assert await store.retry_failed(batch) == 2
        top = await store.get(batch)
        assert (top.state, top.error, top.result) == (JobState.RUNNING, None, None)
        assert await hand.work_off() == 2
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.completed) == (JobState.COMPLETED, 2)
        assert await told(store, batch) == [
            ("failed", counts(failed=2, cancelled=2)),
            ("completed", counts(completed=2, cancelled=2)),
        ]

    async def test_it_can_fail_again(self, store, hand):
        batch = await filled_batch(store, 3, max_failures=1, finish=AFTERWARDS)
        for _ in range(2):
            await hand.hand_in(await hand.claim_one(), Move.FAIL)
        await store.retry_failed(batch)
        assert await hand.work_off(Move.FAIL, slots=1) == 2
        assert [state for state, _ in await told(store, batch)] == ["failed", "failed"]

    async def test_a_retry_does_not_end_it_again_for_what_has_failed_before(self, store, hand):
        batch = await filled_batch(store, 1200, max_failures=2)
        jobs = await hand.claim(1100)
        await hand.exchange(*(move(job, Move.FAIL) for job in jobs))
        await store.sweep()
        assert (await store.batch(batch)).state is JobState.FAILED
        assert await store.retry_failed(batch) == 1100
        now = await store.batch(batch)
        assert (now.state, now.counts.pending, now.counts.cancelled) == (
            JobState.RUNNING,
            1100,
            100,
        )

    async def test_a_few_of_many_that_failed_can_be_tried_again(self, store, hand):
        batch = await filled_batch(store, 8, max_failures=1)
        jobs = await hand.claim(6)
        await hand.exchange(*(move(job, Move.FAIL) for job in jobs))
        assert await store.retry_failed(batch, limit=1) == 1
        again = await hand.claim_one()
        assert (again.id, again.cancel_requested) == (jobs[0].id, False)
        assert (await hand.exchange()).cancels == ()
        await hand.hand_in(again, Move.COMPLETE)
        ended = await store.batch(batch)
        assert ended.state.final
        assert (ended.counts.completed, ended.counts.failed) == (1, 5)

    async def test_requeueing_one_of_its_items_reopens_it_too(self, store, hand):
        batch = await filled_batch(store, 3, max_failures=0)
        failed = await hand.claim_one()
        await hand.hand_in(failed, Move.FAIL)
        assert await store.requeue([failed.id]) == {failed.id: JobState.PENDING}
        assert (await store.get(batch)).state is JobState.RUNNING
        assert await hand.work_off() == 1
        assert (await store.get(batch)).state is JobState.COMPLETED

    async def test_it_can_be_deleted(self, store, hand):
        batch = await filled_batch(store, 3, max_failures=0)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        await store.delete(batch)
        assert await store.counts() == {}


class TestOneCallback:
    """However a batch ends, its finish callback comes once, when nothing of it runs any more."""

    async def expanding(self, store, hand, count: int) -> Job:
        top = head()
        await store.insert([top], policy=BatchPolicy(finish=AFTERWARDS))
        held = await hand.claim_one()
        await store.insert(items(top.id, count), fence=Fence(top.id, held.lease))
        return held

    async def test_after_a_cancel_before_it_expanded(self, store, hand):
        top = head()
        await store.insert([top], policy=BatchPolicy(finish=AFTERWARDS))
        await store.cancel([top.id])
        assert await told(store, top.id) == [("cancelled", counts())]
        assert (await store.batch(top.id)).finish_job is not None
        assert await store.cancel([top.id]) == {top.id: JobState.CANCELLED}
        await store.sweep()
        assert len(await told(store, top.id)) == 1

    async def test_after_its_expansion_failed_with_items_that_wait(self, store, hand):
        held = await self.expanding(store, hand, 3)
        await hand.hand_in(held, Move.FAIL)
        assert await told(store, held.id) == [("failed", counts(cancelled=3))]

    async def test_after_its_expansion_failed_with_items_that_run(self, store, hand):
        held = await self.expanding(store, hand, 3)
        item = await hand.claim_one()
        await hand.hand_in(held, Move.FAIL)
        assert (await store.get(held.id)).state is JobState.FAILED
        assert await told(store, held.id) == []
        assert (await hand.exchange()).cancels == (item.id,)
        await hand.hand_in(item, Move.CANCEL)
        assert await told(store, held.id) == [("failed", counts(cancelled=3))]
        assert (await store.get(held.id)).error.type == "Boom"

    async def test_after_its_expansion_failed_with_items_that_were_done_already(self, store, hand):
        held = await self.expanding(store, hand, 2)
        await hand.work_off()
        await hand.hand_in(held, Move.FAIL)
        assert await told(store, held.id) == [("failed", counts(completed=2))]

    async def test_after_its_expander_was_lost_for_good(self, store, hand):
        top = head(on_lost=OnLost.FAIL)
        await store.insert([top], policy=BatchPolicy(finish=AFTERWARDS))
        held = await hand.claim_one()
        await store.insert(items(top.id, 2), fence=Fence(top.id, held.lease))
        await store.retire(hand.id)
        assert (await store.get(top.id)).error.type == "WorkerLost"
        assert await told(store, top.id) == [("failed", counts(cancelled=2))]

    @pytest.mark.parametrize("last", ["head", "item"])
    async def test_after_a_cancel_during_its_expansion(self, store, hand, last):
        held = await self.expanding(store, hand, 3)
        item = await hand.claim_one()
        await store.cancel([held.id])
        one, two = (item, held) if last == "head" else (held, item)
        await hand.hand_in(one, Move.CANCEL)
        assert await told(store, held.id) == []
        await hand.hand_in(two, Move.CANCEL)
        assert await told(store, held.id) == [("cancelled", counts(cancelled=3))]

    async def test_after_a_cancel_while_items_run(self, store, hand):
        batch = await filled_batch(store, 5, finish=AFTERWARDS)
        first, second = await hand.claim(2)
        await store.cancel([batch])
        await hand.hand_in(first, Move.COMPLETE)
        assert await told(store, batch) == []
        await store.retire(hand.id)
        assert (await store.get(second.id)).state is JobState.CANCELLED
        assert await told(store, batch) == [("cancelled", counts(completed=1, cancelled=4))]

    async def test_again_for_a_head_that_expands_anew(self, store, hand):
        held = await self.expanding(store, hand, 2)
        await hand.hand_in(held, Move.FAIL)
        await store.requeue([held.id])
        again = await hand.claim_one()
        await store.insert(items(held.id, 1), fence=Fence(held.id, again.lease))
        await hand.hand_in(again, Move.HAND_OVER)
        await hand.work_off()
        assert await told(store, held.id) == [
            ("failed", counts(cancelled=2)),
            ("completed", counts(completed=1)),
        ]
