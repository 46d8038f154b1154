"""A paused batch: nothing of it starts, what runs goes on, and all comes back in its old order."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.job import MICROSECOND, JobState
from haulier.domain.moves import Move
from haulier.domain.unique import Uniqueness
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.ports import Fence, JobFilter
from support import Hand, adds_up, filled_batch, head, items, move, work, works

MANY = 5000


class TestPause:
    """After the call returned no item of the batch starts."""

    async def test_nothing_of_it_starts_and_other_jobs_do(self, store, hand):
        batch = await filled_batch(store, 5)
        other = await filled_batch(store, 2)
        await store.pause(batch)
        assert {job.batch_id for job in await hand.claim(9)} == {other}
        await store.insert(works(3))
        assert {job.batch_id for job in await hand.claim(9)} == {None}
        now = await store.batch(batch)
        assert (now.paused, now.state, now.counts.pending) == (True, JobState.RUNNING, 5)
        assert not (await store.batch(other)).paused

    async def test_its_items_say_that_they_are_parked(self, store, hand):
        batch = await filled_batch(store, 3)
        assert not (await store.get(items(batch, 1)[0].id)).parked
        await store.pause(batch)
        page = await store.find(JobFilter(batch_id=batch))
        assert [job.parked for job in page.jobs] == [True] * 3
        await store.resume(batch)
        page = await store.find(JobFilter(batch_id=batch))
        assert [job.parked for job in page.jobs] == [False] * 3

    async def test_running_items_go_on_and_finish(self, store, hand):
        batch = await filled_batch(store, 3)
        first, second = await hand.claim(2)
        await store.pause(batch)
        reply = await hand.exchange(move(first, Move.COMPLETE), slots=9)
        assert (reply.lost, reply.cancels, reply.jobs) == ((), (), ())
        assert await hand.hand_in(second, Move.FAIL)
        counts = (await store.batch(batch)).counts
        assert (counts.completed, counts.failed, counts.pending) == (1, 1, 1)

    @pytest.mark.parametrize("how", [Move.RETRY, Move.SNOOZE, Move.GIVE_BACK, Move.LOSE])
    async def test_what_comes_back_meanwhile_waits_too(self, store, hand, clock, how):
        batch = await filled_batch(store, 1)
        job = await hand.claim_one()
        await store.pause(batch)
        if how is Move.LOSE:
            await store.retire(hand.id)
            hand = await Hand.enlist(store)
        else:
            await hand.hand_in(job, how, delay=5)
        clock.advance(6)
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), None)
        assert (await store.get(job.id)).parked
        await store.resume(batch)
        assert (await hand.claim_one()).id == job.id

    async def test_what_was_put_off_keeps_its_time_over_a_pause(self, store, hand, clock):
        batch = await filled_batch(store, 1)
        await hand.hand_in(await hand.claim_one(), Move.RETRY, delay=10)
        await store.pause(batch)
        clock.advance(4)
        await store.resume(batch)
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), 6 * MICROSECOND)
        clock.advance(6)
        assert len(await hand.claim(9)) == 1

    async def test_items_that_are_inserted_meanwhile_wait_too(self, store, hand, clock):
        batch = await filled_batch(store, 1, sealed=False)
        await store.pause(batch)
        later = [job._replace(delay=MICROSECOND) for job in items(batch, 1, first=2)]
        await store.insert([*items(batch, 1, first=1), *later])
        clock.advance(2)
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), None)
        await store.seal(batch)
        await store.resume(batch)
        assert await hand.work_off() == 3
        assert (await store.get(batch)).state is JobState.COMPLETED

    async def test_so_do_those_with_a_unique_name(self, store, hand):
        batch = await filled_batch(store, 1, sealed=False)
        await store.pause(batch)
        (named,) = items(batch, 1, first=1)
        await store.insert([named._replace(unique=(Uniqueness("x"),))])
        assert await hand.claim(9) == []
        assert (await store.get(named.id)).parked

    async def test_items_that_are_requeued_meanwhile_wait_too(self, store, hand):
        batch = await filled_batch(store, 3)
        jobs = await hand.claim(3)
        await hand.exchange(move(jobs[0], Move.FAIL), move(jobs[1], Move.FAIL))
        await store.pause(batch)
        assert await store.requeue([jobs[0].id]) == {jobs[0].id: JobState.PENDING}
        assert await store.retry_failed(batch) == 1
        assert await hand.claim(9) == []
        await store.resume(batch)
        assert len(await hand.claim(9)) == 2

    async def test_a_batch_whose_last_item_ends_meanwhile_settles(self, store, hand):
        batch = await filled_batch(store, 1, finish=FinishCallback(kind="work"))
        job = await hand.claim_one()
        await store.pause(batch)
        await hand.hand_in(job, Move.COMPLETE)
        ended = await store.batch(batch)
        assert ended.state is JobState.COMPLETED
        assert (await hand.claim_one()).id == ended.finish_job

    async def test_a_batch_that_still_expands_can_be_paused(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.pause(top.id)
        await store.insert(items(top.id, 3), fence=Fence(top.id, held.lease))
        assert await hand.hand_in(held, Move.HAND_OVER)
        assert await hand.claim(9) == []
        await store.resume(top.id)
        assert await hand.work_off() == 3

    async def test_nothing_is_predicted_of_a_paused_batch(self, store, hand, clock):
        batch = await filled_batch(store, 4)
        job = await hand.claim_one()
        clock.advance(2)
        await hand.hand_in(job, Move.COMPLETE)
        assert (await store.batch(batch)).eta(clock.now()) == 6
        await store.pause(batch)
        assert (await store.batch(batch)).eta(clock.now()) is None

    async def test_a_pause_by_one_client_holds_for_all(self, home, store, ttl, hand):
        if not home.several:
            pytest.skip("this store has a single client: it lives in that client's memory")
        async with home.client(ttl=ttl) as other:
            batch = await filled_batch(store, 2)
            await other.pause(batch)
            assert await hand.claim(9) == []
            await store.resume(batch)
            assert len(await (await Hand.enlist(other)).claim(9)) == 2

    async def test_pausing_and_resuming_twice_changes_nothing(self, store, hand):
        batch = await filled_batch(store, 3)
        await store.resume(batch)
        for _ in range(2):
            await store.pause(batch)
            assert (await store.batch(batch)).paused
            assert await hand.claim(9) == []
        for _ in range(2):
            await store.resume(batch)
            assert not (await store.batch(batch)).paused
        assert len(await hand.claim(9)) == 3

    async def test_what_is_no_batch_cannot_be_paused(self, store):
        job = work()
        await store.insert([job])
        for verb in (store.pause, store.resume):
            for absent in (job.id, work().id, "no-id-at-all"):
                with pytest.raises(JobNotFoundError):
                    await verb(absent)

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.CANCEL])
    async def test_a_batch_that_has_settled_cannot_be_paused(self, store, hand, how):
        batch = await filled_batch(store, 1)
        await hand.claim_one()
        if how is Move.CANCEL:
            await store.cancel([batch])
        await hand.hand_in(await store.get(items(batch, 1)[0].id), how)
        before = await store.batch(batch)
        with pytest.raises(JobStateError):
            await store.pause(batch)
        assert await store.batch(batch) == before

    async def test_a_paused_batch_can_be_cancelled(self, store, hand):
        batch = await filled_batch(store, 4, finish=FinishCallback(kind="afterwards"))
        job = await hand.claim_one()
        await store.pause(batch)
        await store.cancel([batch])
        assert (await hand.exchange()).cancels == (job.id,)
        await hand.hand_in(job, Move.CANCEL)
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.CANCELLED, 4)
        assert ended.finish_job is not None

    async def test_a_paused_item_can_be_cancelled(self, store, hand):
        batch = await filled_batch(store, 2)
        await store.pause(batch)
        one, two = (job.id for job in items(batch, 2))
        assert await store.cancel([one]) == {one: JobState.CANCELLED}
        await store.resume(batch)
        assert (await hand.claim_one()).id == two

    async def test_a_paused_batch_that_was_cancelled_can_be_deleted(self, store):
        batch = await filled_batch(store, 3)
        await store.pause(batch)
        with pytest.raises(JobStateError):
            await store.delete(batch)
        await store.cancel([batch])
        await store.delete(batch)
        assert await store.counts() == {}

    async def test_a_retry_of_a_batch_that_ended_while_paused_can_be_worked_off(self, store, hand):
        batch = await filled_batch(store, 1)
        job = await hand.claim_one()
        await store.pause(batch)
        await hand.hand_in(job, Move.FAIL)
        assert await store.retry_failed(batch) == 1
        await store.resume(batch)
        assert await hand.work_off() == 1


class TestResume:
    """Everything comes back as it stood."""

    async def test_the_old_order_and_the_places_among_others_are_kept(self, store, hand, clock):
        top = head()
        jobs = [job._replace(priority=job.position % 3) for job in items(top.id, 9)]
        await store.open_batch(top, jobs, sealed=True)
        clock.advance(1)
        single = work()
        await store.insert([single])
        await store.pause(top.id)
        clock.advance(5)
        late = work()
        await store.insert([late])
        await store.resume(top.id)
        claimed = [job.id for job in await hand.claim(20)]
        ordered = sorted(jobs, key=lambda job: (-job.priority, job.position))
        assert claimed == [*(job.id for job in ordered), single.id, late.id]

    async def test_a_batch_with_a_limit_keeps_it(self, store, hand):
        batch = await filled_batch(store, 6, concurrency=2)
        (running,) = await hand.claim(1)
        await store.pause(batch)
        assert await hand.claim(9) == []
        await store.resume(batch)
        assert [job.position for job in await hand.claim(9)] == [1]
        (third,) = (await hand.exchange(move(running, Move.COMPLETE), slots=9)).jobs
        assert third.position == 2

    async def test_what_ends_while_it_is_paused_lets_in_nobody(self, store, hand):
        batch = await filled_batch(store, 4, concurrency=1)
        running = await hand.claim_one()
        await store.pause(batch)
        assert (await hand.exchange(move(running, Move.COMPLETE), slots=9)).jobs == ()
        await store.resume(batch)
        assert [job.position for job in await hand.claim(9)] == [1]


class TestPauseOfMany:
    """However many items there are, a pause holds when it returns, also after a crash."""

    async def test_thousands_of_items(self, store, hand):
        batch = await filled_batch(store, MANY)
        await store.pause(batch)
        single = work()
        await store.insert([single])
        assert [job.id for job in await hand.claim(9)] == [single.id]
        assert (await store.batch(batch)).counts.pending == MANY
        await store.resume(batch)
        assert [job.position for job in await hand.claim(3)] == [0, 1, 2]
        assert await hand.work_off() == MANY - 3

    async def test_claims_during_a_pause_start_nothing_once_it_is_seen(self, store, hand):
        batch = await filled_batch(store, MANY)
        pausing = asyncio.ensure_future(store.pause(batch))
        claimed = 0
        while not pausing.done():
            paused = (await store.batch(batch)).paused
            got = len(await hand.claim(1))
            assert not (paused and got)
            claimed += got
        await pausing
        assert await hand.claim(1) == []
        now = await store.batch(batch)
        assert (now.counts.running, now.counts.pending) == (claimed, MANY - claimed)

    @pytest.mark.parametrize("steps", [0, 1, 2, 4])
    async def test_a_pause_or_resume_that_was_cut_off_is_whole_after_the_next_sweep(
        self, store, hand, steps
    ):
        batch = await filled_batch(store, MANY)
        taken = 0
        for verb in (store.pause, store.resume, store.pause):
            task = asyncio.ensure_future(verb(batch))
            for _ in range(steps):
                await store.batch(batch)
            task.cancel()
            await asyncio.wait([task])
            # A step of it may have been under way; behind this one it is not.
            await store.insert([work("barrier")])
            await store.sweep()
            now = await store.batch(batch)
            assert adds_up(now)
            claimed = await hand.claim(5)
            assert [job.position for job in claimed] == (
                [] if now.paused else list(range(taken, taken + 5))
            )
            taken += len(claimed)
            page = await store.find(JobFilter(batch_id=batch), limit=2 * MANY)
            pending = [job for job in page.jobs if job.state is JobState.PENDING]
            assert {job.parked for job in pending} == {now.paused}
        await store.resume(batch)
        assert await hand.work_off() == MANY - taken

    async def test_a_pause_that_was_cut_off_can_be_repeated(self, store, hand):
        batch = await filled_batch(store, MANY, sealed=False)
        task = asyncio.ensure_future(store.pause(batch))
        await store.batch(batch)
        task.cancel()
        await asyncio.wait([task])
        await store.pause(batch)
        assert await hand.claim(9) == []
        await store.resume(batch)
        await store.seal(batch)
        assert await hand.work_off() == MANY

    async def test_resuming_some_and_pausing_others(self, store, hand):
        policy = BatchPolicy(concurrency=1)
        tops = [head() for _ in range(4)]
        for top in tops:
            await store.open_batch(top, items(top.id, 2), policy=policy, sealed=True)
        await asyncio.gather(*(store.pause(top.id) for top in tops))
        assert await hand.claim(9) == []
        await asyncio.gather(*(store.resume(top.id) for top in tops[::2]))
        assert {job.batch_id for job in await hand.claim(9)} == {tops[0].id, tops[2].id}
