"""Jobs whose workers die: who is under suspicion runs alone, so that others come to no harm."""

from __future__ import annotations

import pytest

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import MICROSECOND, Job, JobState, OnLost
from haulier.domain.moves import ALONE_AFTER, MAX_LOST, Move
from haulier.ports import Fence, JobStore
from support import Hand, StoreTime, filled_batch, head, items, move, work, works

SUSPECT = "suspect"


async def lose(store: JobStore, clock: StoreTime, times: int = ALONE_AFTER) -> None:
    """So many workers that know no other kind are lost with the suspect; then it is due again."""
    for _ in range(times):
        doomed = await Hand.enlist(store, kinds=[SUSPECT])
        assert len(await doomed.claim(9)) == 1
        await store.retire(doomed.id)
        clock.advance(5)


async def another(store: JobStore) -> Hand:
    return await Hand.enlist(store, kinds=["work", "bulk", SUSPECT])


class LongLife:
    """No heartbeat beats in these tests."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    @pytest.fixture
    async def hand(self, store) -> Hand:
        return await another(store)


class TestAlone(LongLife):
    """After two losses a job shares its worker with nobody."""

    async def suspect(self, store, clock, **fields) -> str:
        job = work(SUSPECT, **fields)
        await store.insert([job])
        await lose(store, clock)
        return job.id

    async def test_a_worker_that_runs_nothing_gets_it_first_and_nothing_else_until_it_is_done(
        self, store, hand, clock
    ):
        await store.insert(works(4))
        suspect = await self.suspect(store, clock)
        job = await hand.claim(9)
        assert [job.id for job in job] == [suspect]
        assert await hand.claim(9) == []
        await store.insert(works(1))
        assert await hand.claim(9) == []
        reply = await hand.exchange(move(job[0], Move.COMPLETE), slots=9)
        assert len(reply.jobs) == 5

    @pytest.mark.parametrize(
        "how", [Move.FAIL, Move.CANCEL, Move.RETRY, Move.SNOOZE, Move.GIVE_BACK]
    )
    async def test_however_it_ends_its_worker_goes_on_with_others(self, store, hand, clock, how):
        await self.suspect(store, clock)
        (job,) = await hand.claim(9)
        await store.insert(works(3))
        await hand.hand_in(job, how, delay=None if how is Move.GIVE_BACK else 60)
        if how is Move.GIVE_BACK:
            assert [again.id for again in await hand.claim(9)] == [job.id]
            return
        assert len(await hand.claim(9)) == 3
        clock.advance(60)
        if how in (Move.RETRY, Move.SNOOZE):
            other = await another(store)
            assert [again.id for again in await other.claim(9)] == [job.id]

    async def test_other_workers_go_on_meanwhile(self, store, hand, clock):
        suspect = await self.suspect(store, clock)
        await store.insert(works(6))
        assert [job.id for job in await hand.claim(9)] == [suspect]
        other = await another(store)
        jobs = await other.claim(4)
        assert len(jobs) == 4
        reply = await other.exchange(*(move(job, Move.COMPLETE) for job in jobs), slots=9)
        assert len(reply.jobs) == 2

    async def test_a_busy_worker_does_not_get_it(self, store, hand, clock):
        await store.insert(works(1))
        busy = await hand.claim_one()
        suspect = await self.suspect(store, clock)
        assert suspect not in {job.id for job in await hand.claim(9)}
        other = await another(store)
        assert [job.id for job in await other.claim(9)] == [suspect]
        assert await hand.hand_in(busy, Move.COMPLETE)

    async def test_the_only_worker_runs_dry_and_then_gets_it(self, store, hand, clock):
        await store.insert(works(8))
        first, second = await hand.claim(2)
        suspect = await self.suspect(store, clock)
        assert await hand.claim(9) == []
        reply = await hand.exchange(move(first, Move.COMPLETE), slots=9)
        assert reply.jobs == ()
        reply = await hand.exchange(move(second, Move.COMPLETE), slots=9)
        assert [job.id for job in reply.jobs] == [suspect]

    async def test_it_is_not_starved_by_workers_that_always_have_something(self, store, clock):
        hands = [await another(store) for _ in range(3)]
        await store.insert(works(200))
        held: dict[str, list[Job]] = {hand.id: await hand.claim(3) for hand in hands}
        suspect = await self.suspect(store, clock)
        for turn in range(60):
            hand = hands[turn % len(hands)]
            mine = held[hand.id]
            done = [mine.pop(0)] if mine else []
            reply = await hand.exchange(
                *(move(job, Move.COMPLETE) for job in done), slots=3 - len(mine)
            )
            mine.extend(reply.jobs)
            if suspect in {job.id for job in mine}:
                assert [job.id for job in mine] == [suspect]
                return
        raise AssertionError("the job was never claimed")

    async def test_while_it_is_not_due_nobody_waits_for_it(self, store, hand, clock):
        await store.insert([work(SUSPECT)])
        await lose(store, clock)
        doomed = await Hand.enlist(store, kinds=[SUSPECT])
        await doomed.claim_one()
        await store.retire(doomed.id)
        await store.insert(works(3))
        assert len(await hand.claim(2)) == 2
        assert len(await hand.claim(2)) == 1

    async def test_workers_that_cannot_run_it_do_not_wait_for_it(self, store, clock):
        await self.suspect(store, clock)
        await store.insert(works(4) + works(4, queue="night"))
        for hand in (
            await Hand.enlist(store, kinds=["work"]),
            await Hand.enlist(store, kinds=["work", SUSPECT], queues=["night"]),
        ):
            assert len(await hand.claim(2)) == 2
            assert len(await hand.claim(9)) == 2

    async def test_nobody_waits_for_one_whose_batch_is_paused(self, store, hand, clock):
        batch = await filled_batch(store, 0, sealed=False)
        await store.insert([item._replace(kind=SUSPECT) for item in items(batch, 1)])
        await lose(store, clock)
        await store.pause(batch)
        await store.insert(works(3))
        assert len(await hand.claim(2)) == 2
        assert len(await hand.claim(2)) == 1

    async def test_nobody_waits_for_one_whose_batch_has_no_slot_for_it(self, store, hand, clock):
        top = head()
        await store.open_batch(top, [], policy=BatchPolicy(concurrency=1), sealed=False)
        first, second = items(top.id, 2)
        await store.insert([first._replace(kind=SUSPECT)])
        await lose(store, clock)
        doomed = await Hand.enlist(store, kinds=[SUSPECT])
        (job,) = await doomed.claim(1)
        await store.insert([second])
        reply = await doomed.exchange(move(job, Move.RETRY, delay=1))
        assert not reply.lost
        assert [job.id for job in await hand.claim(9)] == [second.id]
        clock.advance(1)
        other = await another(store)
        await store.insert(works(3))
        assert len(await other.claim(2)) == 2
        assert len(await other.claim(2)) == 1

    async def test_one_loss_is_no_suspicion(self, store, hand, clock):
        await store.insert([work(SUSPECT)])
        await lose(store, clock, 1)
        await store.insert(works(2))
        assert len(await hand.claim(9)) == 3

    async def test_a_requeue_clears_it(self, store, hand, clock):
        suspect = await self.suspect(store, clock)
        await store.cancel([suspect])
        await store.requeue([suspect])
        assert (await store.get(suspect)).lost == 0
        await store.insert(works(2))
        assert len(await hand.claim(9)) == 3

    async def test_one_that_is_cancelled_holds_up_nobody(self, store, hand, clock):
        suspect = await self.suspect(store, clock)
        await store.insert(works(3))
        await store.cancel([suspect])
        assert len(await hand.claim(2)) == 2
        assert len(await hand.claim(2)) == 1

    async def test_those_that_were_beside_it_twice_run_alone_and_complete(self, store, clock):
        """Two that are innocent and one that kills its worker, whoever that is."""
        jobs = works(3, SUSPECT)
        killer = jobs[1].id
        await store.insert(jobs)
        for _ in range(ALONE_AFTER):
            doomed = await another(store)
            assert len(await doomed.claim(9)) == 3
            await store.retire(doomed.id)
            clock.advance(5)
        hand = await another(store)
        for _ in range(20):
            claimed = await hand.claim(9)
            assert len(claimed) <= 1
            if claimed and claimed[0].id == killer:
                await store.retire(hand.id)
                hand = await another(store)
            elif claimed:
                await hand.hand_in(claimed[0], Move.COMPLETE)
            clock.advance(5)
        states = [(await store.get(job.id)).state for job in jobs]
        assert states == [JobState.COMPLETED, JobState.FAILED, JobState.COMPLETED]
        assert [(await store.get(job.id)).lost for job in jobs] == [2, MAX_LOST, 2]

    async def test_two_under_suspicion_get_a_worker_each(self, store, hand, clock):
        await store.insert(works(2, SUSPECT))
        for _ in range(ALONE_AFTER):
            doomed = await another(store)
            assert len(await doomed.claim(9)) == 2
            await store.retire(doomed.id)
            clock.advance(5)
        other = await another(store)
        (one,) = await hand.claim(9)
        (two,) = await other.claim(9)
        assert one.id != two.id
        assert await hand.claim(9) == await other.claim(9) == []

    async def test_with_those_in_the_line_they_are_no_more_than_their_batch_may_run(
        self, store, hand, clock
    ):
        batch = await filled_batch(store, 2, concurrency=1)
        for _ in range(ALONE_AFTER):
            doomed = await another(store)
            assert len(await doomed.claim(9)) == 1
            await store.retire(doomed.id)
        # Until the suspect is due again, the other item was let into the line in its stead.
        clock.advance(5)
        other = await another(store)
        for _ in range(2):
            (job,) = [*await hand.claim(9), *await other.claim(9)]
            assert (await store.batch(batch)).counts.running == 1
            await hand.hand_in(job, Move.COMPLETE)
        assert (await store.batch(batch)).settled

    async def test_a_head_whose_expanders_were_lost_is_expanded_alone(self, store, hand, clock):
        top = head(SUSPECT)
        await store.insert([top])
        await lose(store, clock)
        await store.insert(works(2))
        (held,) = await hand.claim(9)
        assert held.id == top.id
        await store.insert(items(top.id, 2), fence=Fence(top.id, held.lease))
        assert await hand.claim(9) == []
        reply = await hand.exchange(move(held, Move.HAND_OVER), slots=9)
        assert len(reply.jobs) == 4


class TestLosses(LongLife):
    """How often a worker may be lost with a job."""

    async def test_three_losses_alone_are_its_own_doing(self, store, clock):
        job = work(SUSPECT)
        await store.insert([job])
        waits = []
        for number in range(1, MAX_LOST + 1):
            doomed = await another(store)
            assert (await doomed.claim_one()).lost == number - 1
            await store.retire(doomed.id)
            seen = await store.get(job.id)
            assert (seen.lost, seen.error.type) == (number, "WorkerLost")
            if number < MAX_LOST:
                assert seen.state is JobState.PENDING
                waits.append((seen.run_at - clock.now()) / MICROSECOND)
                clock.advance(waits[-1])
        assert waits == [0, 1, 2, 4]
        assert (seen.state, seen.finished_at) == (JobState.FAILED, clock.now())
        assert len(await store.errors(job.id)) == MAX_LOST == 5

    async def test_a_job_that_must_not_run_twice_fails_with_its_first_worker(
        self, store, hand, clock
    ):
        job = work(on_lost=OnLost.FAIL)
        await store.insert([job])
        claimed = await hand.claim_one()
        assert claimed.on_lost is OnLost.FAIL
        await store.retire(hand.id)
        seen = await store.get(job.id)
        assert (seen.state, seen.lost, seen.attempt) == (JobState.FAILED, 1, 1)
        assert (seen.error.type, seen.finished_at) == ("WorkerLost", clock.now())
        other = await another(store)
        assert await other.claim(9) == []
        await store.requeue([job.id])
        assert (await other.claim_one()).on_lost is OnLost.FAIL

    async def test_a_job_is_to_be_retried_unless_it_says_otherwise(self, store):
        plain, careful = work(), work(on_lost=OnLost.FAIL)
        await store.insert([plain, careful])
        assert (await store.get(plain.id)).on_lost is OnLost.RETRY
        assert (await store.get(careful.id)).on_lost is OnLost.FAIL

    async def test_each_of_a_lost_workers_jobs_goes_its_own_way(self, store, hand):
        await store.insert([work(), work(on_lost=OnLost.FAIL), work()])
        jobs = await hand.claim(3)
        await store.cancel([jobs[2].id])
        assert await store.retire(hand.id) == 3
        states = [(await store.get(job.id)).state for job in jobs]
        assert states == [JobState.PENDING, JobState.FAILED, JobState.CANCELLED]
