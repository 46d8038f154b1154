"""What is claimed, when, and in which order."""

from __future__ import annotations

import pytest

from haulier.domain.ids import uuid7
from haulier.domain.job import MICROSECOND, RANK_PER_PRIORITY, JobState, Priority
from haulier.domain.moves import Move
from haulier.domain.retry import Backoff, RetryPolicy
from haulier.domain.worker import Demand, Portion
from support import Hand, head, move, work, works

POINT = RANK_PER_PRIORITY / MICROSECOND
"""Seconds of waiting that one point of priority is worth."""


class OverHours:
    """Much time passes in these tests, and no heartbeat beats."""

    @pytest.fixture
    def ttl(self) -> float:
        return 7 * 86_400.0


class TestOrder(OverHours):
    """By priority, aged by waiting; then first come, first served."""

    async def test_equals_go_first_come_first_served(self, store, hand, clock):
        first = works(3)
        await store.insert(first)
        clock.advance(1)
        second = works(3)
        await store.insert(second)
        claimed = [(await hand.claim_one()).id for _ in range(2)] + [
            job.id for job in await hand.claim(9)
        ]
        assert claimed == [job.id for job in first + second]

    async def test_ids_do_not_matter_for_the_order(self, store, hand):
        falling = [work(id=uuid7(1_000_000 - n, bytes(10))) for n in range(6)]
        for job in falling:
            await store.insert([job])
        assert [job.id for job in await hand.claim(9)] == [job.id for job in falling]

    async def test_higher_priorities_go_first(self, store, hand):
        wanted = [Priority.URGENT, 11, Priority.HIGH, 1, Priority.NORMAL, -3, Priority.LOW]
        jobs = {priority: work(priority=priority) for priority in wanted}
        await store.insert([jobs[priority] for priority in sorted(wanted, key=lambda p: p % 7)])
        assert [job.id for job in await hand.claim(9)] == [jobs[p].id for p in wanted]

    async def test_a_low_job_that_has_waited_long_enough_goes_before_newer_urgent_ones(
        self, store, hand, clock
    ):
        low = work(priority=0)
        await store.insert([low])
        clock.advance(2 * POINT - 1)
        urgent = work(priority=2)
        await store.insert([urgent])
        clock.advance(2)
        late = work(priority=2)
        await store.insert([late])
        assert [job.id for job in await hand.claim(9)] == [urgent.id, low.id, late.id]

    async def test_no_stream_of_urgent_jobs_starves_a_low_one(self, store, hand, clock):
        low = work(priority=Priority.LOW)
        await store.insert([low])
        for _ in range(50):
            await store.insert(works(2, priority=Priority.HIGH))
            job = await hand.claim_one()
            if job.id == low.id:
                return
            clock.advance(POINT)
        raise AssertionError("the low job was never claimed")

    async def test_a_job_given_back_keeps_its_place_in_the_line(self, store, hand, clock):
        first, second = works(2)
        await store.insert([first, second])
        job = await hand.claim_one()
        clock.advance(60)
        await hand.hand_in(job, Move.GIVE_BACK)
        assert [job.id for job in await hand.claim(2)] == [first.id, second.id]

    async def test_a_retried_job_goes_behind_those_that_were_ready_before(self, store, hand, clock):
        first, second = works(2)
        await store.insert([first, second])
        job = await hand.claim_one()
        clock.advance(1)
        await hand.hand_in(job, Move.RETRY, delay=0)
        assert [job.id for job in await hand.claim(2)] == [second.id, first.id]

    async def test_an_instant_in_the_past_is_no_way_to_jump_the_line(self, store, hand, clock):
        first = work()
        await store.insert([first])
        clock.advance(1)
        pushy = work(run_at=0)
        await store.insert([pushy])
        assert [job.id for job in await hand.claim(2)] == [first.id, pushy.id]


class TestSchedule(OverHours):
    """Jobs that are not due yet."""

    @pytest.mark.parametrize("by", ["delay", "run_at"])
    async def test_a_job_is_not_claimed_before_its_time(self, store, hand, clock, by):
        seconds = 30
        when = seconds * MICROSECOND
        job = work(delay=when) if by == "delay" else work(run_at=clock.now() + when)
        await store.insert([job])
        clock.advance(seconds - 0.001)
        assert await hand.claim(1) == []
        clock.advance(0.001)
        assert (await hand.claim_one()).run_at == clock.now()

    async def test_the_answer_says_how_long_it_is_until_the_next_job_is_due(
        self, store, hand, clock
    ):
        assert (await hand.exchange(slots=1)).due_in is None
        await store.insert([work(delay=9 * MICROSECOND), work(delay=4 * MICROSECOND)])
        assert (await hand.exchange(slots=1)).due_in == 4 * MICROSECOND
        clock.advance(3)
        assert (await hand.exchange(slots=1)).due_in == MICROSECOND
        clock.advance(1)
        reply = await hand.exchange(slots=3)
        assert len(reply.jobs) == 1
        assert reply.due_in == 5 * MICROSECOND

    @pytest.mark.parametrize("how", [Move.RETRY, Move.SNOOZE])
    async def test_a_job_put_back_with_a_delay_waits_that_long_from_now(
        self, store, hand, clock, how
    ):
        await store.insert([work()])
        job = await hand.claim_one()
        clock.advance(1)
        await hand.hand_in(job, how, delay=6)
        assert (await store.get(job.id)).run_at == clock.now() + 6 * MICROSECOND
        assert (await hand.exchange(slots=1)).due_in == 6 * MICROSECOND
        clock.advance(6)
        assert (await hand.claim_one()).id == job.id

    async def test_scheduled_jobs_that_are_due_stand_in_line_by_when_they_became_due(
        self, store, hand, clock
    ):
        late, soon = work(delay=8 * MICROSECOND), work(delay=3 * MICROSECOND)
        await store.insert([late, soon])
        clock.advance(5)
        plain = work()
        await store.insert([plain])
        clock.advance(5)
        assert [job.id for job in await hand.claim(9)] == [soon.id, plain.id, late.id]

    async def test_more_due_jobs_than_one_step_promotes_are_all_claimed_in_the_end(
        self, store, hand, clock
    ):
        await store.insert(works(2500, delay=MICROSECOND))
        clock.advance(2)
        assert await hand.work_off() == 2500

    async def test_a_scheduled_job_can_be_cancelled(self, store, hand, clock):
        job = work(delay=MICROSECOND)
        await store.insert([job])
        assert await store.cancel([job.id]) == {job.id: JobState.CANCELLED}
        clock.advance(5)
        assert (await hand.exchange(slots=1)).jobs == ()


class TestDemands:
    """A worker gets what it could start right now, and nothing else."""

    async def ask(self, hand, *portions, slots, queues=("default",)):
        demand = Demand(tuple(queues), tuple(Portion(*portion) for portion in portions), slots)
        return (await hand.store.exchange(hand.id, [], [demand])).jobs

    async def test_never_more_than_the_slots(self, store, hand):
        await store.insert(works(10))
        assert len(await hand.claim(3)) == 3
        assert len(await hand.claim(5)) == 5
        assert len(await hand.claim(5)) == 2

    async def test_no_demand_claims_nothing(self, store, hand):
        await store.insert([work()])
        assert (await hand.exchange()).jobs == ()
        job = await hand.claim_one()
        reply = await hand.exchange(move(job, Move.COMPLETE))
        assert (reply.jobs, reply.alive) == ((), True)

    async def test_finishing_and_claiming_go_together(self, store, hand):
        await store.insert(works(4))
        held = await hand.claim(2)
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in held), slots=2)
        assert len(reply.jobs) == 2
        assert not reply.lost

    async def test_kinds_that_the_worker_does_not_know_are_left_alone(self, store, hand):
        await store.insert([work("strange"), work("work"), work("strange")])
        (job,) = await hand.claim(9)
        assert job.kind == "work"
        assert (await store.counts())[("default", "strange", job.role, JobState.PENDING)] == 2

    async def test_each_portion_keeps_to_its_own_number(self, store, hand):
        await store.insert(works(5, "a") + works(5, "b") + works(5, "c"))
        jobs = await self.ask(hand, (("a",), 2), (("b", "c"), 3), slots=9)
        kinds = [job.kind for job in jobs]
        assert kinds.count("a") == 2
        assert kinds.count("b") + kinds.count("c") == 3

    async def test_portions_together_keep_to_the_slots_of_their_demand(self, store, hand):
        await store.insert(works(5, "a") + works(5, "b"))
        assert len(await self.ask(hand, (("a",), 4), (("b",), 4), slots=6)) == 6

    async def test_portions_share_one_line_so_that_none_starves_another(self, store, hand, clock):
        capped = works(3, "capped")
        await store.insert(capped)
        clock.advance(1)
        await store.insert(works(20, "free"))
        jobs = await self.ask(hand, (("free",), 4), (("capped",), 1), slots=4)
        assert sorted(job.kind for job in jobs) == ["capped", "free", "free", "free"]
        assert capped[0].id in {job.id for job in jobs}

    async def test_the_line_goes_through_all_queues_of_a_worker(self, store, clock):
        hand = await Hand.enlist(store, queues=["red", "blue"], kinds=["work"])
        placed = []
        for queue in ("blue", "red", "blue", "red"):
            placed.append(work(queue=queue))
            await store.insert([placed[-1]])
            clock.advance(1)
        urgent = work(queue="blue", priority=Priority.URGENT)
        await store.insert([urgent])
        claimed = [(await hand.claim_one()).id for _ in range(5)]
        assert claimed == [job.id for job in [urgent, *placed]]

    async def test_queues_that_the_worker_does_not_listen_to_are_left_alone(self, store):
        await store.insert(works(2, queue="red") + works(3, queue="blue"))
        hand = await Hand.enlist(store, queues=["red"], kinds=["work"])
        assert {job.queue for job in await hand.claim(9)} == {"red"}
        assert await hand.claim(9) == []

    async def test_several_demands_of_one_exchange_are_all_met(self, store, hand):
        await store.insert(works(5, "a") + works(5, "b"))
        demands = [
            Demand(("default",), (Portion(("a",), 2),), 2),
            Demand(("default",), (Portion(("b",), 3),), 3),
        ]
        jobs = (await store.exchange(hand.id, [], demands)).jobs
        assert sorted(job.kind for job in jobs) == ["a", "a", "b", "b", "b"]

    async def test_two_workers_never_get_the_same_job(self, store, hand):
        await store.insert(works(100))
        other = await Hand.enlist(store)
        seen = []
        while True:
            got = await hand.claim(7) + await other.claim(3)
            if not got:
                break
            seen.extend(job.id for job in got)
        assert len(seen) == len(set(seen)) == 100

    async def test_a_claimed_job_is_as_it_was_inserted(self, store, hand):
        policy = RetryPolicy(max_attempts=7, backoff=Backoff.LINEAR, delay=1.5, cap=9, jitter=False)
        given = work(
            payload='{"name":"Zoë"}'.encode(), version=3, priority=4, key="account-7", retry=policy
        )
        await store.insert([given])
        job = await hand.claim_one()
        for name in ("id", "kind", "payload", "version", "queue", "priority", "key", "retry"):
            assert getattr(job, name) == getattr(given, name), name
        assert await store.get(job.id) == job

    async def test_heads_are_claimed_like_other_jobs(self, store, hand):
        top = head()
        await store.insert([work(), top])
        assert {job.role for job in await hand.claim(2)} == {top.role, "single"}
