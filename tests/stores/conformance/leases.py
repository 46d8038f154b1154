"""Fences and incarnations: whose word about a job still counts."""

from __future__ import annotations

import pytest

from haulier.domain.job import Job, JobState
from haulier.domain.moves import MAX_LOST, Move
from haulier.domain.worker import Note, WorkerRow
from haulier.exceptions import LeaseLostError
from haulier.ports import Fence
from haulier.services.ids import new_id
from support import TTL, Hand, head, items, move, work, works


class TestFence:
    """A worker's writes count only while it holds the job by the same claim."""

    @pytest.mark.parametrize("how", [Move.SNOOZE, Move.GIVE_BACK])
    @pytest.mark.parametrize("late", [Move.COMPLETE, Move.FAIL, Move.RETRY, Move.CANCEL])
    async def test_an_old_lease_is_refused_although_attempt_and_state_are_the_same_again(
        self, store, hand, how, late
    ):
        await store.insert([work()])
        old = await hand.claim_one()
        await hand.hand_in(old, how, delay=0)
        new = await hand.claim_one()
        assert (new.attempt, new.state, new.worker) == (old.attempt, old.state, old.worker)
        assert new.lease > old.lease
        before = await store.get(new.id)

        reply = await hand.exchange(move(old, late))

        assert [t.move for t in reply.lost] == [late]
        assert await store.get(new.id) == before
        assert await hand.hand_in(new, Move.COMPLETE)

    async def test_what_was_lost_is_reported_and_the_rest_of_the_exchange_is_applied(
        self, store, hand
    ):
        await store.insert(works(4))
        held = await hand.claim(4)
        await hand.exchange(move(held[0], Move.GIVE_BACK), move(held[1], Move.GIVE_BACK))

        given = [move(job, Move.COMPLETE) for job in held[:3]] + [move(held[3], Move.FAIL)]
        reply = await hand.exchange(*given)

        assert set(map(id, reply.lost)) == {id(given[0]), id(given[1])}
        assert reply.alive
        states = [(await store.get(job.id)).state for job in held]
        assert states == [
            JobState.PENDING,
            JobState.PENDING,
            JobState.COMPLETED,
            JobState.FAILED,
        ]

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.FAIL, Move.RETRY])
    async def test_one_finish_delivered_twice_at_once_counts_once(self, store, hand, how):
        await store.insert([work()])
        job = await hand.claim_one()
        twice = move(job, how, delay=5)
        reply = await hand.exchange(twice, twice)
        assert reply.lost == (twice,)
        assert sum((await store.counts()).values()) == 1

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.FAIL, Move.RETRY])
    async def test_one_finish_delivered_in_two_exchanges_counts_once(self, store, hand, how):
        await store.insert([work()])
        job = await hand.claim_one()
        assert await hand.hand_in(job, how, delay=5)
        before = await store.get(job.id)
        assert not await hand.hand_in(job, how, delay=5)
        assert await store.get(job.id) == before
        assert sum((await store.counts()).values()) == 1

    async def test_of_two_different_finishes_of_one_claim_one_wins(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        reply = await hand.exchange(move(job, Move.FAIL), move(job, Move.COMPLETE))
        assert len(reply.lost) == 1
        assert (await store.get(job.id)).state.final
        assert sum((await store.counts()).values()) == 1

    async def test_a_finish_counts_although_another_worker_object_delivers_it(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        other = await Hand.enlist(store)
        assert await other.hand_in(job, Move.COMPLETE)

    async def test_a_note_is_recorded_while_the_lease_holds_and_dropped_afterwards(
        self, store, hand
    ):
        await store.insert([work()])
        job = await hand.claim_one()
        await store.note([Note(job.id, job.lease, 40, "four of ten")])
        seen = await store.get(job.id)
        assert (seen.progress, seen.message) == (40, "four of ten")

        await hand.hand_in(job, Move.GIVE_BACK)
        await store.note([Note(job.id, job.lease, 99, "from the past")])
        again = await hand.claim_one()
        await store.note([Note(job.id, job.lease, 99, "from the past")])
        assert await store.get(job.id) == again

    async def test_a_note_of_progress_alone_leaves_the_message(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        await store.note(
            [Note(job.id, job.lease, 10, "reading"), Note(job.id, job.lease, 20, None)]
        )
        seen = await store.get(job.id)
        assert (seen.progress, seen.message) == (20, "reading")

    async def test_an_insert_under_a_fence_that_does_not_hold_inserts_nothing(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await hand.hand_in(held, Move.GIVE_BACK)
        with pytest.raises(LeaseLostError):
            await store.insert(items(top.id, 3), fence=Fence(top.id, held.lease))
        again = await hand.claim_one()
        with pytest.raises(LeaseLostError):
            await store.insert(items(top.id, 3), fence=Fence(top.id, held.lease))
        assert (await store.batch(top.id)).counts.total == 0

        assert (await store.insert(items(top.id, 3), fence=Fence(top.id, again.lease))).new == 3
        assert (await store.batch(top.id)).counts.total == 3

    async def test_an_expander_cannot_add_items_after_it_handed_over(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 1), fence=Fence(top.id, held.lease))
        await hand.hand_in(held, Move.HAND_OVER)
        with pytest.raises(LeaseLostError):
            await store.insert(items(top.id, 1, first=1), fence=Fence(top.id, held.lease))
        await store.note([Note(top.id, held.lease, 50, "late")])
        assert (await store.get(top.id)).progress is None


class TestIncarnations:
    """A worker lives for one ttl at a time; when it ends, its jobs go to others."""

    async def test_jobs_of_a_worker_that_crashed_are_claimed_anew_and_its_late_finish_is_refused(
        self, store, hand, clock
    ):
        await store.insert([work()])
        crashed = await hand.claim_one()
        clock.advance(TTL + 1)
        other = await Hand.enlist(store)
        assert await other.claim(1) == []

        assert await store.sweep() == 1

        again = await other.claim_one()
        assert again.id == crashed.id
        assert again.lease > crashed.lease
        assert (again.attempt, again.lost) == (1, 1)
        assert again.error.type == "WorkerLost"
        for late in (Move.COMPLETE, Move.FAIL, Move.RETRY, Move.GIVE_BACK):
            assert not await hand.hand_in(crashed, late)
        assert await other.hand_in(again, Move.COMPLETE)
        assert (await store.get(again.id)).state is JobState.COMPLETED

    async def test_a_sweep_leaves_the_living_alone(self, store, hand, clock):
        await store.insert(works(2))
        job = await hand.claim_one()
        clock.advance(TTL - 1)
        other = await Hand.enlist(store)
        await other.claim_one()
        clock.advance(2)
        assert await store.sweep() == 1
        assert (await store.get(job.id)).state is JobState.PENDING
        assert await store.sweep() == 0

    async def test_enlisting_can_be_repeated_and_wakes_no_dead(self, store, clock):
        row = WorkerRow(
            id=new_id(), host="here", pid=1, queues=("default",), kinds=("work",), slots=1
        )
        for _ in range(2):
            await store.enlist(row)
        assert [worker.id for worker in await store.workers()] == [row.id]
        clock.advance(TTL + 1)
        await store.enlist(row)
        assert [worker.alive for worker in await store.workers()] == [False]

    async def test_renewal_puts_the_expiry_forward(self, store, hand, clock):
        await store.insert([work()])
        job = await hand.claim_one()
        for _ in range(4):
            clock.advance(TTL - 1)
            assert hand.renew().alive
        assert await store.sweep() == 0
        assert await hand.hand_in(job, Move.COMPLETE)

    async def test_an_expired_incarnation_cannot_be_renewed_even_before_a_sweep(
        self, store, hand, clock
    ):
        clock.advance(TTL + 1)
        assert not hand.renew().alive
        await store.sweep()
        assert not hand.renew().alive

    async def test_an_ended_incarnation_is_told_so_and_claims_nothing(self, store, hand):
        await store.insert([work()])
        await store.retire(hand.id)
        reply = await hand.exchange(slots=5)
        assert (reply.alive, reply.jobs) == (False, ())
        assert not hand.renew().alive
        (row,) = await store.workers()
        assert (row.id, row.alive) == (hand.id, False)

    async def test_an_expired_incarnation_claims_nothing_even_before_a_sweep(
        self, store, hand, clock
    ):
        await store.insert([work()])
        clock.advance(TTL + 1)
        reply = await hand.exchange(slots=5)
        assert (reply.alive, reply.jobs) == (False, ())

    async def test_what_an_expired_incarnation_finished_counts_until_its_jobs_were_released(
        self, store, hand, clock
    ):
        await store.insert(works(2))
        first, second = await hand.claim(2)
        clock.advance(TTL + 1)
        assert await hand.hand_in(first, Move.COMPLETE)
        await store.sweep()
        assert not await hand.hand_in(second, Move.COMPLETE)

    async def test_an_exchange_that_arrives_after_a_later_one_does_nothing(self, store, hand):
        await store.insert(works(3))
        first, second = (await hand.exchange(slots=2, turn=1)).jobs
        assert not (await hand.exchange(move(first, Move.COMPLETE), turn=3)).lost
        before = await store.get(second.id)

        for late in (2, 3):
            reply = await hand.exchange(move(second, Move.COMPLETE), slots=5, turn=late)
            assert (len(reply.lost), reply.jobs) == (1, ())
        assert await store.get(second.id) == before

        reply = await hand.exchange(move(second, Move.COMPLETE), slots=5, turn=4)
        assert (reply.lost, len(reply.jobs)) == ((), 1)

    async def test_the_turns_of_one_worker_are_its_own(self, store, hand):
        await store.insert(works(2))
        other = await Hand.enlist(store)
        assert len((await hand.exchange(slots=1, turn=9)).jobs) == 1
        assert len((await other.exchange(slots=1, turn=1)).jobs) == 1

    async def test_an_unknown_incarnation_claims_nothing(self, store):
        await store.insert([work()])
        stranger = Hand(store, ["default"], ["work"])
        reply = await stranger.exchange(slots=5)
        assert (reply.alive, reply.jobs) == (False, ())

    async def test_retiring_releases_every_job_once(self, store, hand):
        await store.insert(works(3))
        held = await hand.claim(3)
        await hand.hand_in(held[0], Move.COMPLETE)
        assert await store.retire(hand.id) == 2
        assert await store.retire(hand.id) == 0
        other = await Hand.enlist(store)
        assert {job.id for job in await other.claim(9)} == {held[1].id, held[2].id}

    async def test_a_job_that_keeps_losing_workers_waits_longer_each_time_and_then_fails(
        self, store, clock
    ):
        await store.insert([work()])
        waits = []
        while True:
            hand = await Hand.enlist(store)
            (job,) = await hand.claim(1)
            await store.retire(hand.id)
            job = await store.get(job.id)
            if job.state is JobState.FAILED:
                break
            waits.append((job.run_at - clock.now()) // 1_000_000)
            clock.advance(waits[-1])
        assert waits == [0, 1, 2, 4]
        assert (job.lost, job.error.type, job.attempt) == (MAX_LOST, "WorkerLost", 1)

    async def test_workers_are_listed_the_youngest_first_with_what_they_said_of_themselves(
        self, store, hand, clock
    ):
        clock.advance(1)
        other = await Hand.enlist(store, queues=["a", "b"], kinds=["x"])
        young, old = await store.workers()
        assert (young.id, young.queues, young.kinds) == (other.id, ("a", "b"), ("x",))
        assert (young.host, young.pid, young.slots) == ("here", 1, 100)
        assert (young.alive, young.started_at) == (True, clock.now())
        assert old.id == hand.id
        clock.advance(TTL - 0.5)
        assert [row.alive for row in await store.workers()] == [True, False]

    async def test_a_head_whose_expander_was_lost_is_expanded_again_without_double_items(
        self, store, hand
    ):
        top = head()
        await store.insert([top])
        held: Job = await hand.claim_one()
        await store.insert(items(top.id, 5), fence=Fence(top.id, held.lease))
        await store.retire(hand.id)
        other = await Hand.enlist(store, kinds=["bulk"])
        again = await other.claim_one()
        assert (again.id, again.lost) == (top.id, 1)
        fence = Fence(top.id, again.lease)
        assert (await store.insert(items(top.id, 8), fence=fence)).new == 3
        await other.hand_in(again, Move.HAND_OVER)
        assert (await store.batch(top.id)).counts.total == 8
