"""Batches: they settle once, call back once, and add up at every moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.job import Job, JobState, Role
from haulier.domain.moves import MAX_LOST, Move
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.ports import Fence, JobFilter, JobStore
from support import Hand, adds_up, filled_batch, head, items, move, wait_until, work

AFTERWARDS = FinishCallback(kind="afterwards", queue="later")


async def callbacks(store: JobStore) -> list[Job]:
    return list((await store.find(JobFilter(kind="afterwards"), oldest_first=True)).jobs)


class TestSettling:
    """The transaction that ends the last item ends the batch."""

    async def test_a_head_completes_with_the_counts_even_when_items_failed(
        self, store, hand, clock
    ):
        batch = await filled_batch(store, 4)
        jobs = await hand.claim(1)
        clock.advance(1)
        jobs += await hand.claim(3)
        await hand.exchange(
            move(jobs[0], Move.COMPLETE), move(jobs[1], Move.FAIL), move(jobs[2], Move.CANCEL)
        )
        assert (await store.get(batch)).state is JobState.RUNNING
        clock.advance(1)
        await hand.hand_in(jobs[3], Move.COMPLETE)
        top = await store.get(batch)
        assert (top.state, top.finished_at) == (JobState.COMPLETED, clock.now())
        assert top.value == {"total": 4, "completed": 2, "failed": 1, "cancelled": 1}
        ended = await store.batch(batch)
        assert (ended.state, ended.progress) == (JobState.COMPLETED, 100.0)
        assert (ended.started_at, ended.finished_at) == (
            clock.now() - 2_000_000,
            clock.now(),
        )

    async def test_the_counts_add_up_after_every_step(self, store, hand):
        batch = await filled_batch(store, 10)
        ways = [Move.COMPLETE, Move.FAIL, Move.RETRY, Move.SNOOZE, Move.CANCEL, Move.GIVE_BACK]
        for way in ways:
            for job in await hand.claim(3):
                await hand.hand_in(job, way, delay=0)
                now = await store.batch(batch)
                assert adds_up(now)
                for state in JobState:
                    where = JobFilter(batch_id=batch, states=frozenset({state}))
                    found = (await store.find(where)).jobs
                    assert len(found) == getattr(now.counts, state)

    async def test_a_batch_settles_once_however_many_workers_end_its_items_at_once(self, store):
        batch = await filled_batch(store, 200, finish=AFTERWARDS)
        hands = [await Hand.enlist(store) for _ in range(6)]
        assert sum(await asyncio.gather(*(hand.work_off(slots=9) for hand in hands))) == 200
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.completed) == (JobState.COMPLETED, 200)
        assert len(await callbacks(store)) == 1

    async def test_an_empty_batch_settles_when_it_is_sealed(self, store, hand):
        batch = await filled_batch(store, 0, finish=AFTERWARDS)
        assert (await store.get(batch)).state is JobState.COMPLETED
        opened = await filled_batch(store, 0, sealed=False, finish=AFTERWARDS)
        assert (await store.get(opened)).state is JobState.RUNNING
        await store.seal(opened)
        assert (await store.get(opened)).state is JobState.COMPLETED
        top = head()
        await store.insert([top], policy=BatchPolicy(finish=AFTERWARDS))
        await hand.hand_in(await hand.claim_one(), Move.HAND_OVER)
        assert (await store.get(top.id)).state is JobState.COMPLETED
        assert len(await callbacks(store)) == 3

    async def test_an_item_whose_last_worker_was_lost_settles_the_batch(self, store, clock):
        batch = await filled_batch(store, 1)
        for _ in range(MAX_LOST):
            hand = await Hand.enlist(store)
            await hand.claim_one()
            await store.retire(hand.id)
            clock.advance(100)
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.failed) == (JobState.COMPLETED, 1)

    async def test_a_head_that_failed_takes_its_pending_items_with_it(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 3), fence=Fence(top.id, held.lease))
        await hand.hand_in(held, Move.FAIL)
        ended = await store.batch(top.id)
        assert (ended.state, ended.counts.cancelled) == (JobState.FAILED, 3)
        assert await hand.claim(9) == []

    async def test_batches_do_not_touch_each_other(self, store, hand):
        one = await filled_batch(store, 2)
        two = await filled_batch(store, 2)
        await store.cancel([one])
        assert await hand.work_off(Move.FAIL) == 2
        await store.retry_failed(two)
        assert (await store.batch(one)).counts.cancelled == 2
        assert (await store.batch(two)).counts.pending == 2


class TestFinishCallback:
    """A job of its own, inserted once for every time the batch settles."""

    async def test_it_is_told_which_batch_ended_how(self, store, hand):
        batch = await filled_batch(store, 3, finish=AFTERWARDS)
        jobs = await hand.claim(3)
        await hand.exchange(move(jobs[0], Move.FAIL), move(jobs[1], Move.COMPLETE))
        assert await callbacks(store) == []
        await hand.hand_in(jobs[2], Move.COMPLETE)
        (callback,) = await callbacks(store)
        assert json.loads(callback.payload) == {
            "batch_id": batch,
            "state": "completed",
            "counts": {"total": 3, "completed": 2, "failed": 1, "cancelled": 0},
        }
        assert (callback.queue, callback.role) == ("later", Role.SINGLE)
        assert (await store.batch(batch)).finish_job == callback.id
        other = await Hand.enlist(store, queues=["later"], kinds=["afterwards"])
        assert (await other.claim_one()).id == callback.id

    async def test_it_comes_after_a_cancel_too(self, store, hand):
        await filled_batch(store, 2, finish=AFTERWARDS)
        job = await hand.claim_one()
        await store.cancel([job.batch_id])
        assert await callbacks(store) == []
        await hand.hand_in(job, Move.CANCEL)
        (callback,) = await callbacks(store)
        told = json.loads(callback.payload)
        assert (told["state"], told["counts"]["cancelled"]) == ("cancelled", 2)

    async def test_it_comes_again_for_every_time_the_batch_settles(self, store, hand):
        batch = await filled_batch(store, 2, finish=AFTERWARDS)
        await hand.work_off(Move.FAIL)
        (first,) = await callbacks(store)
        await store.retry_failed(batch)
        assert (await store.batch(batch)).finish_job is None
        await hand.work_off()
        _, second = await callbacks(store)
        assert second.id != first.id
        assert (await store.batch(batch)).finish_job == second.id
        assert json.loads(second.payload)["counts"]["completed"] == 2

    async def test_it_has_the_priority_of_its_batch(self, store, hand):
        top = head(priority=7)
        await store.open_batch(top, [], policy=BatchPolicy(finish=AFTERWARDS), sealed=True)
        (callback,) = await callbacks(store)
        assert callback.priority == 7

    async def test_without_one_nothing_is_inserted(self, store, hand):
        batch = await filled_batch(store, 1)
        await hand.work_off()
        assert (await store.batch(batch)).finish_job is None
        assert sum((await store.counts()).values()) == 2


class TestRetryFailed:
    """Only what failed runs again."""

    async def test_completed_and_cancelled_items_stay(self, store, hand):
        batch = await filled_batch(store, 5)
        jobs = await hand.claim(5)
        ways = [Move.COMPLETE, Move.FAIL, Move.CANCEL, Move.FAIL, Move.COMPLETE]
        await hand.exchange(*(move(job, way) for job, way in zip(jobs, ways, strict=True)))
        before = {job.id: await store.get(job.id) for job in jobs}

        assert await store.retry_failed(batch) == 2

        again = await hand.claim(9)
        assert {job.id for job in again} == {jobs[1].id, jobs[3].id}
        assert {job.attempt for job in again} == {1}
        for job in (jobs[0], jobs[2], jobs[4]):
            assert await store.get(job.id) == before[job.id]
        await hand.exchange(*(move(job, Move.COMPLETE) for job in again))
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.completed) == (JobState.COMPLETED, 4)

    async def test_without_failed_items_nothing_happens(self, store, hand):
        batch = await filled_batch(store, 2, finish=AFTERWARDS)
        await hand.work_off()
        before = await store.batch(batch)
        assert await store.retry_failed(batch) == 0
        assert await store.batch(batch) == before
        assert len(await callbacks(store)) == 1

    async def test_a_batch_that_still_runs_can_retry_what_has_failed_so_far(self, store, hand):
        batch = await filled_batch(store, 3)
        failed, running = await hand.claim(2)
        await hand.hand_in(failed, Move.FAIL)
        assert await store.retry_failed(batch) == 1
        now = await store.batch(batch)
        assert (now.counts.pending, now.counts.running, now.counts.failed) == (2, 1, 0)
        await hand.hand_in(running, Move.COMPLETE)
        assert await hand.work_off() == 2
        assert (await store.batch(batch)).state is JobState.COMPLETED

    async def test_a_plain_job_is_no_batch(self, store):
        job = work()
        await store.insert([job])
        with pytest.raises(JobNotFoundError):
            await store.retry_failed(job.id)


SLICE = 2000
MANY = 8500
"""So many items that several slices are needed: what is done to whole batches goes in slices."""

Verb = Callable[[str], Awaitable[object]]
Look = Callable[[str], Awaitable[bool]]


async def cut_off(verb: Verb, prepare: Callable[[], Awaitable[str]], half_way: Look) -> str:
    """A batch on which a verb was begun and not ended: its caller went away in the middle.

    One slice may still be under way at that moment, so `half_way` means that more than one is left.
    Should the verb have been through before that was seen, it is tried on another batch.
    """
    for _ in range(20):
        batch = await prepare()
        task = asyncio.ensure_future(verb(batch))
        while not task.done() and not await half_way(batch):
            pass
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if await half_way(batch):
            return batch
    raise AssertionError("the verb was always through before it could be cut off")


class TestManyItems:
    """What takes more than one transaction ends in the same state, also after a crash."""

    async def test_cancel(self, store, hand):
        batch = await filled_batch(store, MANY, finish=AFTERWARDS)
        running = await hand.claim(3)
        await store.cancel([batch])
        now = await store.batch(batch)
        assert (now.counts.cancelled, now.counts.running) == (MANY - 3, 3)
        await hand.exchange(*(move(job, Move.CANCEL) for job in running))
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.CANCELLED, MANY)
        assert len(await callbacks(store)) == 1

    async def test_cancel_of_a_few_behind_very_many_that_are_done(self, store, hand):
        batch = await filled_batch(store, 21_000)
        for _ in range(41):
            jobs = await hand.claim(500)
            await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
        assert await store.cancel([batch]) == {batch: JobState.CANCELLED}
        ended = await store.batch(batch)
        assert (ended.counts.completed, ended.counts.cancelled) == (20_500, 500)

    async def test_retry_and_delete(self, store, hand):
        batch = await filled_batch(store, MANY)
        assert await hand.work_off(Move.FAIL) == MANY
        assert await store.retry_failed(batch) == MANY
        assert (await store.batch(batch)).counts.pending == MANY
        assert await hand.work_off() == MANY
        assert (await store.batch(batch)).counts.completed == MANY
        await store.delete(batch)
        assert await store.counts() == {}


class TestCutOff:
    """Whoever began such work may die of it; the next sweep of any worker takes it up."""

    async def nothing_waits(self, store) -> bool:
        await store.sweep()
        counts = await store.counts()
        return not any(
            count
            for (_, kind, _, state), count in counts.items()
            if kind == "work" and state is JobState.PENDING
        )

    async def half_cancelled(self, store, hand, claimed: int, dropped: int) -> str:
        """A batch of which so many items run and at least so many were dropped."""

        async def prepare() -> str:
            # Items of an earlier try stand first in the line, until its last slice, which its
            # server may still be busy with, has let them go.
            try:
                await wait_until(partial(self.nothing_waits, store))
            except AssertionError as error:
                error.add_note(f"{await store.counts()}, {await store.batches()}")
                raise
            batch = await filled_batch(store, MANY, finish=AFTERWARDS)
            mine: list[Job] = []

            async def holds_enough() -> bool:
                mine.extend(await hand.claim(claimed - len(mine)))
                return len(mine) == claimed

            await wait_until(holds_enough)
            assert {job.batch_id for job in mine} <= {batch}
            return batch

        async def half_way(batch: str) -> bool:
            now = await store.batch(batch)
            assert adds_up(now)
            begun = now.cancel_requested and now.counts.cancelled >= dropped
            return begun and now.counts.pending > SLICE

        return await cut_off(lambda batch: store.cancel([batch]), prepare, half_way)

    async def half_retried(self, store, hand) -> str:
        async def prepare() -> str:
            await store.sweep()
            batch = await filled_batch(store, MANY, finish=AFTERWARDS)
            await hand.work_off(Move.FAIL)
            return batch

        async def half_way(batch: str) -> bool:
            now = await store.batch(batch)
            assert adds_up(now)
            return now.counts.pending and now.counts.failed > SLICE

        return await cut_off(store.retry_failed, prepare, half_way)

    async def half_deleted(self, store, hand) -> str:
        async def prepare() -> str:
            batch = await filled_batch(store, MANY)
            await hand.work_off(Move.FAIL)
            return batch

        async def half_way(batch: str) -> bool:
            return SLICE + 1 < sum((await store.counts()).values()) <= MANY

        return await cut_off(store.delete, prepare, half_way)

    @pytest.mark.parametrize("dropped", [0, 1])
    async def test_a_cancel_that_was_interrupted_is_finished_by_the_next_sweep(
        self, store, hand, dropped
    ):
        batch = await self.half_cancelled(store, hand, claimed=1, dropped=dropped)
        await store.sweep()
        now = await store.batch(batch)
        assert (now.counts.cancelled, now.counts.running) == (MANY - 1, 1)
        (running,) = (await store.find(running_of(batch))).jobs
        assert running.id in (await hand.exchange()).cancels
        await hand.hand_in(running, Move.CANCEL)
        now = await store.batch(batch)
        assert now.state is JobState.CANCELLED
        assert now.finish_job in {callback.id for callback in await callbacks(store)}

    async def test_items_claimed_while_their_batch_is_being_cancelled_are_told_too(
        self, store, hand
    ):
        batch = await self.half_cancelled(store, hand, claimed=0, dropped=0)
        late = await hand.claim(2)
        await store.sweep()
        assert set((await hand.exchange()).cancels) == {job.id for job in late}
        await hand.exchange(*(move(job, Move.RETRY, delay=0) for job in late))
        assert (await store.batch(batch)).counts.cancelled == MANY

    async def test_a_retry_that_was_interrupted_is_finished_by_the_next_sweep(self, store, hand):
        batch = await self.half_retried(store, hand)
        with pytest.raises(JobStateError, match="under way"):
            await store.retry_failed(batch)
        await store.sweep()
        assert (await store.batch(batch)).counts.pending == MANY

    async def test_a_retry_does_not_settle_before_its_last_slice(self, store, hand):
        batch = await self.half_retried(store, hand)
        await hand.work_off()
        assert (await store.get(batch)).state is JobState.RUNNING
        before = len(await callbacks(store))
        await store.sweep()
        await hand.work_off()
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.completed) == (JobState.COMPLETED, MANY)
        assert len(await callbacks(store)) == before + 1

    async def test_a_delete_that_was_interrupted_is_finished_by_the_next_sweep(self, store, hand):
        batch = await self.half_deleted(store, hand)
        with pytest.raises(JobStateError):
            await store.retry_failed(batch)
        (job, *_) = (await store.find(JobFilter(batch_id=batch))).jobs
        with pytest.raises(JobStateError):
            await store.requeue([job.id])
        await store.cancel([batch])
        await store.sweep()
        with pytest.raises(JobNotFoundError):
            await store.get(batch)
        assert await store.counts() == {}


def running_of(batch: str) -> JobFilter:
    return JobFilter(batch_id=batch, states=frozenset({JobState.RUNNING}))
