"""What operators do to jobs: cancel, requeue, delete."""

from __future__ import annotations

import pytest

from haulier.domain.job import JobState
from haulier.domain.moves import Move
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.ports import Fence, JobFilter
from support import Hand, adds_up, filled_batch, head, items, move, work, works

FINISHED = [Move.COMPLETE, Move.FAIL, Move.CANCEL]


class TestCancel:
    """Pending jobs are cancelled at once, running ones are told."""

    async def test_a_pending_job_is_cancelled_at_once_and_never_claimed(self, store, hand, clock):
        job = work()
        await store.insert([job])
        assert await store.cancel([job.id]) == {job.id: JobState.CANCELLED}
        assert (await store.get(job.id)).finished_at == clock.now()
        assert await hand.claim(1) == []

    async def test_a_running_job_is_told_by_exchange_and_by_renewal_until_it_ends(
        self, store, hand
    ):
        await store.insert(works(2))
        job, other = await hand.claim(2)
        assert await store.cancel([job.id]) == {job.id: JobState.RUNNING}
        assert (await store.get(job.id)).cancel_requested
        for _ in range(2):
            assert (await hand.exchange()).cancels == (job.id,)
            assert hand.renew().cancels == (job.id,)
        reply = await hand.exchange(move(other, Move.COMPLETE), slots=1)
        assert reply.cancels == (job.id,)
        assert await hand.hand_in(job, Move.CANCEL)
        assert (await hand.exchange()).cancels == ()
        assert hand.renew().cancels == ()

    async def test_only_the_worker_that_runs_the_job_is_told(self, store, hand):
        await store.insert(works(2))
        job = await hand.claim_one()
        other = await Hand.enlist(store)
        await other.claim_one()
        await store.cancel([job.id])
        assert (await other.exchange()).cancels == ()
        assert other.renew().cancels == ()

    async def test_a_completion_beats_a_cancel(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        await store.cancel([job.id])
        assert await hand.hand_in(job, Move.COMPLETE)
        done = await store.get(job.id)
        assert (done.state, done.cancel_requested) == (JobState.COMPLETED, False)

    @pytest.mark.parametrize("how", FINISHED)
    async def test_a_finished_job_stays_what_it_is(self, store, hand, how):
        await store.insert([work()])
        job = await hand.claim_one()
        await hand.hand_in(job, how)
        before = await store.get(job.id)
        assert await store.cancel([job.id]) == {job.id: before.state}
        assert await store.get(job.id) == before

    async def test_many_at_once_each_by_its_own_state_and_absent_ids_left_out(self, store, hand):
        await store.insert(works(3))
        running, done = await hand.claim(2)
        await hand.hand_in(done, Move.COMPLETE)
        (waiting,) = await hand.claim(1)
        await hand.hand_in(waiting, Move.GIVE_BACK)
        absent = work().id
        asked = [running.id, done.id, waiting.id, absent, waiting.id]
        assert await store.cancel(asked) == {
            running.id: JobState.RUNNING,
            done.id: JobState.COMPLETED,
            waiting.id: JobState.CANCELLED,
        }

    async def test_a_cancel_that_was_requested_before_a_requeue_is_forgotten(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        await store.cancel([job.id])
        await hand.hand_in(job, Move.RETRY)
        await store.requeue([job.id])
        again = await hand.claim_one()
        assert not again.cancel_requested
        assert (await hand.exchange()).cancels == ()


class TestCancelBatch:
    """A head takes its items with it."""

    async def test_pending_items_are_dropped_and_running_ones_told(self, store, hand):
        batch = await filled_batch(store, 6)
        done, failed, running = await hand.claim(3)
        await hand.exchange(move(done, Move.COMPLETE), move(failed, Move.FAIL))

        assert await store.cancel([batch]) == {batch: JobState.RUNNING}

        now = await store.batch(batch)
        assert now.cancel_requested
        assert (now.counts.cancelled, now.counts.running, now.counts.pending) == (3, 1, 0)
        assert adds_up(now)
        assert (await hand.exchange()).cancels == (running.id,)
        await hand.hand_in(running, Move.CANCEL)
        ended = await store.batch(batch)
        assert (ended.state, ended.cancel_requested) == (JobState.CANCELLED, True)
        assert (ended.counts.completed, ended.counts.failed, ended.counts.cancelled) == (1, 1, 4)

    @pytest.mark.parametrize("sealed", [True, False])
    async def test_a_batch_with_nothing_running_is_cancelled_when_the_call_returns(
        self, store, sealed
    ):
        batch = await filled_batch(store, 3, sealed=sealed)
        assert await store.cancel([batch]) == {batch: JobState.CANCELLED}
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.CANCELLED, 3)

    async def test_a_head_that_waits_for_a_worker_is_cancelled_at_once(self, store, hand):
        top = head()
        await store.insert([top])
        assert await store.cancel([top.id]) == {top.id: JobState.CANCELLED}
        assert await hand.claim(1) == []
        assert (await store.batch(top.id)).counts.total == 0

    @pytest.mark.parametrize(
        "answer", [Move.CANCEL, Move.RETRY, Move.GIVE_BACK, Move.HAND_OVER, Move.LOSE]
    )
    async def test_a_batch_cancelled_while_it_is_expanded_ends_cancelled(self, store, hand, answer):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        fence = Fence(top.id, held.lease)
        await store.insert(items(top.id, 4), fence=fence)
        runner = await Hand.enlist(store, kinds=["work"])
        running = await runner.claim_one()

        assert await store.cancel([top.id]) == {top.id: JobState.RUNNING}

        assert (await hand.exchange()).cancels == (top.id,)
        assert (await runner.exchange()).cancels == (running.id,)
        assert (await store.batch(top.id)).counts.cancelled == 3
        with pytest.raises(JobStateError):
            await store.insert(items(top.id, 1, first=4), fence=fence)
        if answer is Move.LOSE:
            await store.retire(hand.id)
        else:
            await hand.hand_in(held, answer)
        await runner.hand_in(running, Move.CANCEL)
        ended = await store.batch(top.id)
        assert (ended.state, ended.counts.cancelled) == (JobState.CANCELLED, 4)
        assert adds_up(ended)

    async def test_one_cancelled_item_does_not_cancel_its_batch(self, store, hand):
        batch = await filled_batch(store, 3)
        job = await hand.claim_one()
        await hand.hand_in(job, Move.GIVE_BACK)
        await store.cancel([job.id])
        assert await hand.work_off() == 2
        ended = await store.batch(batch)
        assert (ended.state, ended.cancel_requested) == (JobState.COMPLETED, False)
        assert (ended.counts.completed, ended.counts.cancelled) == (2, 1)

    async def test_cancelling_the_last_open_item_settles_the_batch(self, store):
        batch = await filled_batch(store, 1)
        (job,) = (await store.find(where=_items_of(batch))).jobs
        await store.cancel([job.id])
        assert (await store.batch(batch)).state is JobState.COMPLETED

    async def test_a_settled_batch_stays_what_it_is(self, store, hand):
        batch = await filled_batch(store, 2)
        await hand.work_off()
        before = await store.batch(batch)
        assert await store.cancel([batch]) == {batch: JobState.COMPLETED}
        assert await store.batch(batch) == before

    async def test_an_item_whose_worker_is_lost_during_a_cancel_is_cancelled(self, store, hand):
        batch = await filled_batch(store, 1)
        await hand.claim_one()
        await store.cancel([batch])
        await store.retire(hand.id)
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.CANCELLED, 1)


class TestRequeue:
    """Failed and cancelled jobs run again, as if they were new."""

    @pytest.mark.parametrize("how", [Move.FAIL, Move.CANCEL])
    async def test_a_requeued_job_is_claimed_at_once_with_fresh_attempts(
        self, store, hand, clock, how
    ):
        await store.insert([work()])
        first = await hand.claim_one()
        await hand.hand_in(first, Move.RETRY, delay=0)
        second = await hand.claim_one()
        await hand.hand_in(second, how)
        clock.advance(1)
        assert await store.requeue([first.id]) == {first.id: JobState.PENDING}
        waiting = await store.get(first.id)
        assert (waiting.attempt, waiting.finished_at, waiting.run_at) == (0, None, clock.now())
        again = await hand.claim_one()
        assert (again.attempt, again.lost) == (1, 0)
        assert again.lease > second.lease
        assert not await hand.hand_in(second, Move.COMPLETE)

    async def test_many_at_once_each_by_its_own_state_and_absent_ids_left_out(self, store, hand):
        await store.insert(works(4))
        pending, running, done, failed = await hand.claim(4)
        await hand.exchange(
            move(pending, Move.GIVE_BACK), move(done, Move.COMPLETE), move(failed, Move.FAIL)
        )
        asked = [pending.id, running.id, done.id, failed.id, work().id]
        assert await store.requeue(asked) == {
            pending.id: JobState.PENDING,
            running.id: JobState.RUNNING,
            done.id: JobState.COMPLETED,
            failed.id: JobState.PENDING,
        }

    async def test_a_requeued_item_reopens_its_settled_batch(self, store, hand):
        batch = await filled_batch(store, 2)
        await hand.work_off(Move.FAIL)
        (job, _) = (await store.find(_items_of(batch))).jobs
        await store.requeue([job.id])
        opened = await store.batch(batch)
        assert (opened.state, opened.counts.pending, opened.counts.failed) == (
            JobState.RUNNING,
            1,
            1,
        )
        assert await hand.work_off() == 1
        assert (await store.batch(batch)).state is JobState.COMPLETED

    async def test_an_item_of_a_batch_that_is_being_cancelled_is_not_requeued(self, store, hand):
        batch = await filled_batch(store, 2)
        failed, running = await hand.claim(2)
        await hand.hand_in(failed, Move.FAIL)
        await store.cancel([batch])
        with pytest.raises(JobStateError, match="cancel"):
            await store.requeue([failed.id])
        with pytest.raises(JobStateError, match="cancel"):
            await store.retry_failed(batch)
        await hand.hand_in(running, Move.CANCEL)
        assert (await store.batch(batch)).state is JobState.CANCELLED

    @pytest.mark.parametrize("how", [Move.FAIL, Move.CANCEL])
    async def test_a_head_that_ended_while_it_was_expanded_expands_anew(self, store, hand, how):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 3), fence=Fence(top.id, held.lease))
        await hand.hand_in(held, how)
        assert await store.requeue([top.id]) == {top.id: JobState.PENDING}
        emptied = await store.batch(top.id)
        assert (emptied.state, emptied.counts.total) == (JobState.PENDING, 0)
        again = await hand.claim_one()
        assert (await store.insert(items(top.id, 2), fence=Fence(top.id, again.lease))).new == 2
        await hand.hand_in(again, Move.HAND_OVER)
        assert await hand.work_off() == 2
        ended = await store.batch(top.id)
        assert (ended.state, ended.counts.completed) == (JobState.COMPLETED, 2)

    async def test_a_head_that_its_producer_filled_cannot_expand_anew(self, store):
        batch = await filled_batch(store, 2)
        await store.cancel([batch])
        with pytest.raises(JobStateError):
            await store.requeue([batch])
        assert (await store.batch(batch)).counts.cancelled == 2


class TestDelete:
    """What is not running can be removed."""

    @pytest.mark.parametrize("how", [Move.GIVE_BACK, *FINISHED])
    async def test_a_job_that_does_not_run_is_gone_with_its_count(self, store, hand, how):
        await store.insert([work()])
        job = await hand.claim_one()
        await hand.hand_in(job, how)
        await store.delete(job.id)
        with pytest.raises(JobNotFoundError):
            await store.get(job.id)
        with pytest.raises(JobNotFoundError):
            await store.delete(job.id)
        assert await store.counts() == {}
        assert await hand.claim(1) == []

    async def test_a_running_job_stays(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        with pytest.raises(JobStateError):
            await store.delete(job.id)
        assert await hand.hand_in(job, Move.COMPLETE)

    async def test_an_item_stays_as_long_as_its_batch(self, store, hand):
        batch = await filled_batch(store, 1)
        await hand.work_off()
        (job,) = (await store.find(_items_of(batch))).jobs
        with pytest.raises(JobStateError):
            await store.delete(job.id)
        assert (await store.batch(batch)).counts.completed == 1

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.FAIL, Move.CANCEL])
    async def test_a_settled_batch_goes_with_all_its_items(self, store, hand, how):
        batch = await filled_batch(store, 3)
        other = await filled_batch(store, 1)
        await hand.work_off(how)
        await store.delete(batch)
        for ask in (store.get, store.batch):
            with pytest.raises(JobNotFoundError):
                await ask(batch)
        assert (await store.find(_items_of(batch))).jobs == ()
        assert sum((await store.counts()).values()) == 2
        assert (await store.batch(other)).counts.total == 1

    async def test_a_batch_with_open_items_stays(self, store, hand):
        batch = await filled_batch(store, 2)
        with pytest.raises(JobStateError):
            await store.delete(batch)
        job = await hand.claim_one()
        await store.cancel([batch])
        with pytest.raises(JobStateError):
            await store.delete(batch)
        await hand.hand_in(job, Move.CANCEL)
        await store.delete(batch)
        assert await store.counts() == {}

    async def test_a_failed_head_with_an_open_item_stays(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 1), fence=Fence(top.id, held.lease))
        item = await hand.claim_one()
        await hand.hand_in(held, Move.FAIL)
        with pytest.raises(JobStateError):
            await store.delete(top.id)
        await hand.hand_in(item, Move.CANCEL)
        await store.delete(top.id)
        assert await store.counts() == {}

    async def test_a_deleted_id_can_be_used_again(self, store):
        job = work()
        await store.insert([job])
        await store.delete(job.id)
        assert (await store.insert([job])).new == 1


def _items_of(batch: str):
    return JobFilter(batch_id=batch)
