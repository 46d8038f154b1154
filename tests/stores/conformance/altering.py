"""The limits of a batch are changed while it runs."""

from __future__ import annotations

import asyncio
import random

import pytest

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import Job, JobState
from haulier.domain.moves import Move
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.ports import Fence, JobFilter, JobStore
from haulier.services.ids import new_id
from support import Hand, adds_up, filled_batch, head, items, works


async def claimed_of(hand: Hand, batch: str, slots: int = 100) -> list[Job]:
    return [job for job in await hand.claim(slots) if job.batch_id == batch]


async def finish(hand: Hand, jobs: list[Job], how: Move = Move.COMPLETE) -> None:
    for job in jobs:
        await hand.hand_in(job, how)


async def altered(store: JobStore) -> list[tuple[str | None, str | None]]:
    found = [each for each in await store.events() if each.type == "alter"]
    return [(each.by, each.setting) for each in found]


class TestAlterConcurrency:
    """More or fewer items run at once, from the change on."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    async def test_more_are_let_in_at_once(self, store, hand):
        batch = await filled_batch(store, 10, concurrency=2)
        assert len(await hand.claim(9)) == 2
        await store.alter_batch(batch, {"concurrency": 5}, by="ann")
        assert len(await hand.claim(9)) == 3
        assert await hand.claim(9) == []
        assert (await store.batch(batch)).concurrency == 5
        assert await altered(store) == [("ann", "concurrency 2 -> 5")]

    async def test_fewer_after_those_that_run_have_ended(self, store, hand):
        batch = await filled_batch(store, 20, concurrency=5)
        running = await hand.claim(5)
        await store.alter_batch(batch, {"concurrency": 2})
        for left in (4, 3, 2):
            await hand.hand_in(running.pop(), Move.COMPLETE)
            assert len(await hand.claim(9)) == (1 if left < 2 else 0)
        await hand.hand_in(running.pop(), Move.COMPLETE)
        assert len(await hand.claim(9)) == 1

    async def test_those_in_the_line_beyond_it_are_taken_back(self, store, hand):
        batch = await filled_batch(store, 50, concurrency=20)
        running = await hand.claim(4)
        await store.alter_batch(batch, {"concurrency": 6})
        assert len(await hand.claim(100)) == 2
        await store.alter_batch(batch, {"concurrency": 1})
        assert await hand.claim(100) == []
        await finish(hand, running)
        assert await hand.claim(100) == []
        assert (await store.batch(batch)).counts.running == 2
        assert [job.position for job in running] == [0, 1, 2, 3]

    async def test_those_that_are_taken_back_keep_their_places(self, store, hand):
        batch = await filled_batch(store, 9, concurrency=6)
        await store.alter_batch(batch, {"concurrency": 2})
        first = await hand.claim(9)
        await store.alter_batch(batch, {"concurrency": None})
        rest = await hand.claim(9)
        assert [job.position for job in first + rest] == list(range(9))

    async def test_a_batch_without_limits_gets_one(self, store, hand):
        count = 1300
        batch = await filled_batch(store, count)
        await store.insert(works(3))
        await store.alter_batch(batch, {"concurrency": 3})
        jobs = await hand.claim(100)
        assert len([job for job in jobs if job.batch_id == batch]) == 3
        assert len(jobs) == 6
        done = 6
        while jobs:
            await finish(hand, jobs)
            jobs = await hand.claim(100)
            done += len(jobs)
            assert len(jobs) <= 3
            if done > 60:
                break
        await store.alter_batch(batch, {"concurrency": None})
        await finish(hand, jobs)
        await hand.work_off()
        assert (await store.get(batch)).state is JobState.COMPLETED

    async def test_a_limit_that_is_removed_holds_nobody_back(self, store, hand):
        batch = await filled_batch(store, 700, concurrency=1)
        assert len(await hand.claim(900)) == 1
        await store.alter_batch(batch, {"concurrency": None})
        assert len(await hand.claim(900)) == 699
        assert (await store.batch(batch)).concurrency is None

    async def test_while_it_is_paused_nothing_starts(self, store, hand):
        batch = await filled_batch(store, 9)
        await store.pause(batch)
        await store.alter_batch(batch, {"concurrency": 4})
        assert await hand.claim(9) == []
        await store.resume(batch)
        assert len(await hand.claim(9)) == 4
        await store.pause(batch)
        await store.alter_batch(batch, {"concurrency": None})
        assert await hand.claim(9) == []
        await store.resume(batch)
        assert len(await hand.claim(9)) == 5

    async def test_scheduled_items_and_those_put_back_obey_it_too(self, store, hand, clock):
        top = head()
        later = [job._replace(delay=60_000_000) for job in items(top.id, 5, first=5)]
        await store.open_batch(top, [*items(top.id, 5), *later], policy=BatchPolicy(), sealed=True)
        running = await hand.claim(5)
        await store.alter_batch(top.id, {"concurrency": 2})
        for job in running:
            await hand.hand_in(job, Move.SNOOZE, delay=0)
        clock.advance(61)
        seen = 0
        while jobs := await hand.claim(9):
            assert len(jobs) <= 2
            await finish(hand, jobs)
            seen += len(jobs)
        assert seen == 10

    @pytest.mark.parametrize("seed", range(6))
    async def test_no_history_of_changes_gets_past_the_limit(self, store, clock, seed):
        dice = random.Random(seed)
        limit = dice.choice([None, 1, 4])
        batch = await filled_batch(store, 60, concurrency=limit)
        hands = [await Hand.enlist(store) for _ in range(2)]
        held: list[tuple[Hand, Job]] = []
        paused = False
        for _ in range(600):
            if (await store.get(batch)).state.final:
                break
            what = dice.random()
            if what < 0.12:
                limit = dice.choice([None, 1, 2, 5, 9])
                await store.alter_batch(batch, {"concurrency": limit})
            elif what < 0.2:
                paused = not paused
                await (store.pause(batch) if paused else store.resume(batch))
            elif held and what < 0.6:
                hand, job = held.pop(dice.randrange(len(held)))
                assert await hand.hand_in(job, dice.choice([Move.COMPLETE, Move.SNOOZE]), delay=0)
            else:
                hand, before = dice.choice(hands), len(held)
                held += [(hand, job) for job in await hand.claim(dice.randint(1, 6))]
                if len(held) > before:
                    assert not paused
                    assert limit is None or len(held) <= limit
            clock.advance(0.1)
            assert adds_up(await store.batch(batch))
        if paused:
            await store.resume(batch)
        for hand, job in held:
            await hand.hand_in(job, Move.COMPLETE)
        await hands[0].work_off()
        assert (await store.get(batch)).state is JobState.COMPLETED

    async def test_workers_that_claim_meanwhile_get_no_more_than_it_allows(self, store):
        batch = await filled_batch(store, 2500)
        hands = [await Hand.enlist(store) for _ in range(3)]
        over = asyncio.Event()

        async def work_on(hand: Hand) -> None:
            while not over.is_set():
                await finish(hand, await hand.claim(10))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for hand in hands:
                group.create_task(work_on(hand))
            await store.alter_batch(batch, {"concurrency": 4})
            most = [(await store.batch(batch)).counts.running for _ in range(20)]
            over.set()
        # Those that ran at the change may still have been among the first.
        assert max(most[10:]) <= 4
        assert len(await hands[0].claim(100)) == 4


class TestAlterBatchSize:
    """How many items one claim takes."""

    async def test_it_is_raised_lowered_and_removed(self, store, hand):
        batch = await filled_batch(store, 90, batch_size=2)
        assert len(await hand.claim(50)) == 2
        for size in (7, 3, 1):
            await store.alter_batch(batch, {"batch_size": size})
            assert len(await hand.claim(50)) == size
        await store.alter_batch(batch, {"batch_size": None})
        assert len(await hand.claim(50)) == 50

    async def test_it_comes_and_concurrency_goes_in_one_change(self, store, hand):
        batch = await filled_batch(store, 20, concurrency=1)
        await store.alter_batch(batch, {"batch_size": 3, "concurrency": None}, by="ann")
        assert len(await claimed_of(hand, batch)) == 3
        assert len(await claimed_of(hand, batch)) == 3
        told = "concurrency 1 -> none, batch_size none -> 3"
        assert await altered(store) == [("ann", told)]


class TestAlterMaxFailures:
    """How many items may fail."""

    async def test_below_what_has_failed_it_cuts_short_at_once(self, store, hand):
        batch = await filled_batch(store, 1200)
        await finish(hand, await hand.claim(3), Move.FAIL)
        (running,) = await hand.claim(1)
        await store.alter_batch(batch, {"max_failures": 2})
        found = await store.batch(batch)
        assert (found.counts.cancelled, found.counts.running) == (1196, 1)
        assert (await hand.exchange()).cancels == (running.id,)
        await hand.hand_in(running, Move.CANCEL)
        ended = await store.get(batch)
        assert (ended.state, ended.error.type) == (JobState.FAILED, "MaxFailuresExceeded")

    async def test_as_many_as_have_failed_may(self, store, hand):
        batch = await filled_batch(store, 10)
        await finish(hand, await hand.claim(3), Move.FAIL)
        await store.alter_batch(batch, {"max_failures": 3})
        await finish(hand, await hand.claim(1))
        assert (await store.batch(batch)).counts.cancelled == 0
        await finish(hand, await hand.claim(1), Move.FAIL)
        assert (await store.get(batch)).state is JobState.FAILED

    async def test_raised_or_removed_it_lets_a_batch_go_on(self, store, hand):
        batch = await filled_batch(store, 10, max_failures=1)
        await finish(hand, await hand.claim(1), Move.FAIL)
        await store.alter_batch(batch, {"max_failures": 3})
        await finish(hand, await hand.claim(2), Move.FAIL)
        assert (await store.get(batch)).state is JobState.RUNNING
        await store.alter_batch(batch, {"max_failures": None})
        assert await hand.work_off(Move.FAIL) == 7
        assert (await store.get(batch)).state is JobState.COMPLETED

    async def test_one_that_is_filled_by_its_own_head_is_cut_short_too(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 9))
        await finish(hand, await hand.claim(2), Move.FAIL)
        await store.alter_batch(top.id, {"max_failures": 0})
        with pytest.raises(JobStateError):
            await store.insert(items(top.id, 1, first=9), fence=Fence(top.id, held.lease))
        await hand.hand_in(held, Move.FAIL)
        found = await store.batch(top.id)
        assert (found.state, found.counts.cancelled) == (JobState.FAILED, 7)


class TestAlterEdges:
    """When there is nothing to change, or it cannot be."""

    async def test_what_changes_nothing_says_nothing(self, store):
        batch = await filled_batch(store, 3, concurrency=2)
        await store.alter_batch(batch, {"concurrency": 2, "max_failures": None}, by="ann")
        await store.alter_batch(batch, {})
        assert await altered(store) == []

    async def test_there_is_no_such_batch(self, store):
        (single,) = works(1)
        await store.insert([single])
        for name in (new_id(), single.id):
            with pytest.raises(JobNotFoundError):
                await store.alter_batch(name, {"concurrency": 1})

    async def test_one_that_is_being_cancelled_is_left_alone(self, store, hand):
        batch = await filled_batch(store, 3, concurrency=3)
        await hand.claim(1)
        await store.cancel([batch])
        with pytest.raises(JobStateError):
            await store.alter_batch(batch, {"concurrency": 1})

    async def test_a_settled_one_has_its_limits_when_it_runs_again(self, store, hand):
        batch = await filled_batch(store, 5, concurrency=5)
        await hand.work_off(Move.FAIL)
        await store.alter_batch(batch, {"concurrency": 2, "max_failures": 4})
        assert (await store.get(batch)).state is JobState.COMPLETED
        assert await store.retry_failed(batch) == 5
        assert len(await hand.claim(9)) == 2

    async def test_items_that_are_added_later_obey_it(self, store, hand):
        batch = await filled_batch(store, 1, sealed=False)
        await store.alter_batch(batch, {"concurrency": 2})
        await store.insert(items(batch, 5, first=1))
        assert len(await hand.claim(9)) == 2
        where = JobFilter(batch_id=batch, states=frozenset({JobState.PENDING}))
        assert all(job.parked for job in (await store.find(where)).jobs)
