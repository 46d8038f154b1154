"""How many items of a batch run at once, and how many one claim takes."""

from __future__ import annotations

import random

import pytest

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import MICROSECOND, Job, JobState
from haulier.domain.moves import Move
from haulier.domain.unique import Uniqueness
from haulier.ports import Fence, JobFilter, JobStore
from support import Hand, adds_up, filled_batch, head, items, move, work, works

PUT_BACK = [Move.RETRY, Move.SNOOZE, Move.GIVE_BACK]
FREEING = [Move.COMPLETE, Move.FAIL, Move.CANCEL, *PUT_BACK]


async def parked(store: JobStore, batch: str | None = None) -> list[int | None]:
    """The positions of the jobs that are parked."""
    page = await store.find(JobFilter(batch_id=batch), limit=10_000, oldest_first=True)
    return [job.position for job in page.jobs if job.parked]


def positions(jobs: list[Job]) -> list[int | None]:
    return [job.position for job in jobs]


class TestConcurrency:
    """Never more items of a batch run than it allows, over all workers."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("limit", [1, 3])
    async def test_no_history_of_claims_and_ends_gets_past_the_limit(
        self, store, clock, seed, limit
    ):
        dice = random.Random(seed * 10 + limit)
        batch = await filled_batch(store, 25, concurrency=limit)
        hands = [await Hand.enlist(store) for _ in range(3)]
        held: dict[str, tuple[Hand, Job]] = {}
        for _ in range(1000):
            if (await store.get(batch)).state.final:
                break
            which = dice.randrange(len(hands))
            hand = hands[which]
            if dice.random() < 0.05:
                await store.retire(hand.id)
                held = {key: pair for key, pair in held.items() if pair[0] is not hand}
                hands[which] = await Hand.enlist(store)
            elif held and dice.random() < 0.5:
                owner, job = held.pop(dice.choice(list(held)))
                how = dice.choice(FREEING)
                assert await owner.hand_in(job, how, delay=0 if how in PUT_BACK else None)
            else:
                for job in await hand.claim(dice.randint(1, 5)):
                    held[job.id] = hand, job
            clock.advance(0.1)
            now = await store.batch(batch)
            assert adds_up(now)
            assert now.counts.running == len(held) <= limit
        assert (await store.get(batch)).state is JobState.COMPLETED

    async def test_as_many_run_as_it_allows(self, store, hand):
        batch = await filled_batch(store, 10, concurrency=4)
        other = await Hand.enlist(store)
        assert len(await hand.claim(3)) == 3
        assert len(await other.claim(9)) == 1
        assert await other.claim(9) == await hand.claim(9) == []
        assert (await store.batch(batch)).concurrency == 4

    async def test_jobs_behind_a_full_batch_go_past_it(self, store, hand):
        await filled_batch(store, 50, concurrency=1)
        free = await filled_batch(store, 3)
        singles = works(3)
        await store.insert(singles)
        claimed = await hand.claim(9)
        assert [job.batch_id for job in claimed].count(free) == 3
        assert {job.id for job in singles} < {job.id for job in claimed}
        assert len(claimed) == 7

    async def test_thousands_of_waiting_items_hold_up_nobody(self, store, hand):
        await filled_batch(store, 5000, concurrency=2)
        (single,) = works(1, priority=-5)
        await store.insert([single])
        assert len(await hand.claim(2)) == 2
        assert (await hand.claim_one()).id == single.id
        assert await hand.claim(9) == []

    async def test_two_limited_batches_do_not_count_against_each_other(self, store, hand):
        one = await filled_batch(store, 5, concurrency=2)
        two = await filled_batch(store, 5, concurrency=3)
        claimed = [job.batch_id for job in await hand.claim(9)]
        assert (claimed.count(one), claimed.count(two)) == (2, 3)

    @pytest.mark.parametrize("how", FREEING)
    async def test_whatever_ends_a_run_lets_in_the_next_in_the_same_exchange(
        self, store, hand, how
    ):
        await filled_batch(store, 3, concurrency=1)
        job = await hand.claim_one()
        assert positions([job]) == [0]
        delay = 60 if how in (Move.RETRY, Move.SNOOZE) else None
        reply = await hand.exchange(move(job, how, delay=delay), slots=9)
        # What is given back keeps its place in the line, so it is next itself.
        assert positions(list(reply.jobs)) == [0 if how is Move.GIVE_BACK else 1]

    async def test_the_loss_of_a_worker_lets_in_others(self, store, hand):
        await filled_batch(store, 5, concurrency=2)
        assert len(await hand.claim(9)) == 2
        other = await Hand.enlist(store)
        assert await other.claim(9) == []
        await store.retire(hand.id)
        assert len(await other.claim(9)) == 2

    async def test_an_item_that_is_asked_to_stop_keeps_its_slot_until_it_has(self, store, hand):
        await filled_batch(store, 3, concurrency=1)
        job = await hand.claim_one()
        await store.cancel([job.id])
        assert await hand.claim(9) == []
        await hand.hand_in(job, Move.CANCEL)
        assert positions(await hand.claim(9)) == [1]

    async def test_a_waiting_item_that_is_cancelled_takes_nobodys_place(self, store, hand):
        batch = await filled_batch(store, 4, concurrency=1)
        waiting = items(batch, 4)
        await store.cancel([waiting[0].id, waiting[2].id])
        for position in (1, 3):
            job = await hand.claim_one()
            assert job.position == position
            assert await hand.claim(9) == []
            await hand.hand_in(job, Move.COMPLETE)
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.COMPLETED, 2)

    async def test_those_next_in_line_that_are_cancelled_take_nobodys_place(self, store, hand):
        batch = await filled_batch(store, 6, concurrency=2)
        first, second, *_ = items(batch, 6)
        await store.cancel([first.id, second.id])
        assert positions(await hand.claim(9)) == [2, 3]
        await store.requeue([first.id])
        assert await hand.claim(9) == []

    async def test_a_stale_finish_lets_in_nobody(self, store, hand):
        await filled_batch(store, 3, concurrency=1)
        old = await hand.claim_one()
        await hand.hand_in(old, Move.GIVE_BACK)
        assert (await hand.claim_one()).id == old.id
        reply = await hand.exchange(move(old, Move.COMPLETE), slots=9)
        assert (reply.jobs, len(reply.lost)) == ((), 1)

    async def test_items_without_a_slot_say_that_they_are_parked(self, store, hand):
        batch = await filled_batch(store, 5, concurrency=2)
        await store.insert(works(2))
        first, _ = await hand.claim(2)
        assert await parked(store, batch) == [2, 3, 4]
        await hand.hand_in(first, Move.COMPLETE)
        assert [job.position for job in await hand.claim(1)] == [2]
        assert await parked(store, batch) == [3, 4]
        assert await parked(store) == [3, 4]

    async def test_claimed_and_finished_items_are_not_parked(self, store, hand):
        batch = await filled_batch(store, 2, concurrency=1)
        for _ in range(2):
            job = await hand.claim_one()
            assert not job.parked
            await hand.hand_in(job, Move.COMPLETE)
        assert await parked(store, batch) == []

    async def test_who_is_parked_is_let_in_by_priority_and_then_by_arrival(self, store, hand):
        top = head()
        first = items(top.id, 1)
        await store.open_batch(top, first, policy=BatchPolicy(concurrency=1), sealed=False)
        running = await hand.claim_one()
        rest = items(top.id, 6, first=1)
        wanted = [4, 2, 6, 1, 3, 5]
        priorities = {4: 9, 2: 5, 6: 5}
        await store.insert([job._replace(priority=priorities.get(job.position, 0)) for job in rest])
        await store.seal(top.id)
        order = []
        while running:
            reply = await hand.exchange(move(running, Move.COMPLETE), slots=9)
            running = reply.jobs[0] if reply.jobs else None
            order += positions(list(reply.jobs))
        assert order == wanted

    async def test_parked_items_do_not_make_a_worker_come_back_at_once(self, store, hand):
        await filled_batch(store, 3, concurrency=1)
        await hand.claim_one()
        reply = await hand.exchange(slots=5)
        assert (reply.jobs, reply.due_in) == ((), None)

    async def test_a_retried_item_waits_its_delay_and_is_then_let_in(self, store, hand, clock):
        batch = await filled_batch(store, 2, concurrency=1)
        job = await hand.claim_one()
        reply = await hand.exchange(move(job, Move.RETRY, delay=9), slots=9)
        (second,) = reply.jobs
        await hand.hand_in(second, Move.COMPLETE)
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), 9 * MICROSECOND)
        assert await parked(store, batch) == []
        clock.advance(9)
        assert (await hand.claim_one()).id == job.id

    async def test_a_retried_item_that_is_due_waits_for_a_slot(self, store, hand, clock):
        batch = await filled_batch(store, 2, concurrency=1)
        job = await hand.claim_one()
        (second,) = (await hand.exchange(move(job, Move.RETRY, delay=9), slots=9)).jobs
        clock.advance(9)
        assert await hand.claim(9) == []
        assert await parked(store, batch) == [0]
        reply = await hand.exchange(move(second, Move.COMPLETE), slots=9)
        assert [job.id for job in reply.jobs] == [job.id]

    async def test_scheduled_items_keep_to_the_limit_when_they_become_due(self, store, hand, clock):
        top = head()
        later = [job._replace(delay=MICROSECOND) for job in items(top.id, 6)]
        await store.open_batch(top, later, policy=BatchPolicy(concurrency=2), sealed=True)
        assert (await hand.exchange(slots=9)).due_in == MICROSECOND
        clock.advance(1)
        assert len(await hand.claim(9)) == 2
        assert await hand.claim(9) == []
        assert len(await parked(store)) == 4

    async def test_items_of_a_head_that_still_expands_keep_to_it_too(self, store, hand):
        top = head()
        await store.insert([top], policy=BatchPolicy(concurrency=2))
        held = await hand.claim_one()
        for first in (0, 3):
            await store.insert(items(top.id, 3, first=first), fence=Fence(top.id, held.lease))
        claimed = await hand.claim(9)
        assert positions(claimed) == [0, 1]
        await hand.hand_in(held, Move.HAND_OVER)
        assert await hand.claim(9) == []
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in claimed), slots=9)
        assert positions(list(reply.jobs)) == [2, 3]

    async def test_items_with_unique_names_keep_to_it_too(self, store, hand):
        top = head()
        jobs = [
            job._replace(unique=(Uniqueness(f"item-{job.position}"),)) for job in items(top.id, 5)
        ]
        await store.open_batch(top, [], policy=BatchPolicy(concurrency=2), sealed=False)
        await store.insert(jobs)
        assert len(await hand.claim(9)) == 2
        assert await hand.claim(9) == []

    async def test_what_failed_is_retried_within_it(self, store, hand):
        batch = await filled_batch(store, 6, concurrency=2)
        assert await hand.work_off(Move.FAIL) == 6
        assert await store.retry_failed(batch) == 6
        assert positions(await hand.claim(9)) == [0, 1]
        assert await parked(store, batch) == [2, 3, 4, 5]

    async def test_a_requeued_item_waits_for_a_slot(self, store, hand):
        batch = await filled_batch(store, 2, concurrency=1)
        failed = await hand.claim_one()
        (running,) = (await hand.exchange(move(failed, Move.FAIL), slots=1)).jobs
        await store.requeue([failed.id])
        assert await hand.claim(9) == []
        assert await parked(store, batch) == [0]
        reply = await hand.exchange(move(running, Move.COMPLETE), slots=9)
        assert [job.id for job in reply.jobs] == [failed.id]

    async def test_a_worker_that_asks_for_other_kinds_takes_no_slot(self, store, hand):
        await filled_batch(store, 3, concurrency=1)
        other = await Hand.enlist(store, kinds=["other"])
        assert await other.claim(9) == []
        assert len(await hand.claim(9)) == 1

    async def test_a_cancelled_batch_ends_with_all_who_waited(self, store, hand):
        batch = await filled_batch(store, 5, concurrency=1)
        job = await hand.claim_one()
        await store.cancel([batch])
        assert await parked(store, batch) == []
        await hand.hand_in(job, Move.CANCEL)
        ended = await store.batch(batch)
        assert (ended.state, ended.counts.cancelled) == (JobState.CANCELLED, 5)
        assert await hand.claim(9) == []

    async def test_two_clients_share_it(self, home, store, ttl, hand):
        if not home.several:
            pytest.skip("this store has a single client: it lives in that client's memory")
        async with home.client(ttl=ttl) as other:
            batch = await filled_batch(store, 20, concurrency=2)
            far = await Hand.enlist(other)
            assert len(await far.claim(9)) == 2
            assert await hand.claim(9) == []
            await store.retire(far.id)
            done = await hand.work_off()
            assert done == (await other.batch(batch)).counts.completed == 20


class TestBatchSize:
    """One claim takes at most so many items of a batch."""

    async def test_one_exchange_takes_so_many_and_the_next_one_more(self, store, hand):
        batch = await filled_batch(store, 7, batch_size=3)
        assert (await store.batch(batch)).batch_size == 3
        assert [positions(await hand.claim(9)) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]

    async def test_others_fill_the_slots_that_are_left(self, store, hand):
        one = await filled_batch(store, 9, batch_size=2)
        two = await filled_batch(store, 9, batch_size=3)
        await store.insert(works(4))
        claimed = [job.batch_id for job in await hand.claim(8)]
        assert (claimed.count(one), claimed.count(two), claimed.count(None)) == (2, 3, 3)

    async def test_thousands_of_its_items_hold_up_nobody(self, store, hand):
        await filled_batch(store, 5000, batch_size=1)
        (single,) = works(1, priority=-5)
        await store.insert([single])
        assert {job.id for job in await hand.claim(2)} > {single.id}

    async def test_fewer_slots_are_fewer_items(self, store, hand):
        await filled_batch(store, 5, batch_size=3)
        assert len(await hand.claim(2)) == 2
        assert len(await hand.claim(1)) == 1

    async def test_it_and_the_concurrency_both_hold(self, store, hand):
        await filled_batch(store, 9, batch_size=2, concurrency=3)
        other = await Hand.enlist(store)
        first = await hand.claim(9)
        assert len(first) == 2
        assert len(await other.claim(9)) == 1
        assert await other.claim(9) == []
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in first), slots=9)
        assert len(reply.jobs) == 2

    async def test_all_are_done_in_the_end(self, store, hand):
        batch = await filled_batch(store, 50, batch_size=3, concurrency=2)
        assert await hand.work_off() == 50
        assert (await store.batch(batch)).state is JobState.COMPLETED

    async def test_jobs_of_no_batch_know_no_limit(self, store, hand):
        await filled_batch(store, 1, batch_size=1, concurrency=1)
        await store.insert([work() for _ in range(20)])
        assert len(await hand.claim(30)) == 21
