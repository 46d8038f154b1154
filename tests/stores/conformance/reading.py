"""Questions, pages, and being told of changes."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain.batch import FinishCallback
from haulier.domain.ids import uuid7
from haulier.domain.job import JobState, Role
from haulier.domain.limits import Limit
from haulier.domain.moves import MAX_LOST, Move
from haulier.ports import JobFilter
from support import Hand, filled_batch, head, items, move, wait_until, work, works


class TestFind:
    """Pages of jobs in the order of their insertion, newest first unless told."""

    async def walk(self, store, where=None, *, limit, oldest_first=False):
        found, cursor, pages = [], None, 0
        while True:
            page = await store.find(
                where or JobFilter(), limit=limit, cursor=cursor, oldest_first=oldest_first
            )
            found.extend(job.id for job in page.jobs)
            pages += 1
            if page.next is None:
                return found, pages
            assert len(page.jobs) == limit
            cursor = page.next

    @pytest.mark.parametrize(("limit", "pages"), [(1, 6), (4, 2), (3, 2), (6, 1), (50, 1)])
    async def test_pages_hold_every_job_once_in_both_directions(self, store, limit, pages):
        jobs = [work(id=uuid7(1_000_000 - n, bytes(10))) for n in range(6)]
        for job in jobs:
            await store.insert([job])
        order = [job.id for job in jobs]
        assert await self.walk(store, limit=limit, oldest_first=True) == (order, pages)
        assert await self.walk(store, limit=limit) == (order[::-1], pages)

    async def test_no_jobs_are_one_empty_page(self, store):
        page = await store.find(JobFilter())
        assert (page.jobs, page.next) == ((), None)

    async def test_jobs_inserted_meanwhile_do_not_disturb_the_pages(self, store):
        jobs = works(4)
        await store.insert(jobs)
        page = await store.find(JobFilter(), limit=2)
        await store.insert(works(3))
        rest = await store.find(JobFilter(), limit=9, cursor=page.next)
        assert [job.id for job in page.jobs + rest.jobs] == [job.id for job in jobs[::-1]]

    async def test_filters_restrict_alone_and_together(self, store, hand):
        await store.insert([work("a"), work("a", queue="night"), work("b")])
        await hand.store.insert(works(2))
        done, _ = await hand.claim(2)
        await hand.hand_in(done, Move.COMPLETE)
        batch = await filled_batch(store, 2)

        async def count(**fields) -> int:
            return len((await store.find(JobFilter(**fields))).jobs)

        pending, running = JobState.PENDING, JobState.RUNNING
        assert await count() == 8
        assert await count(kind="a") == 2
        assert await count(kind="a", queue="night") == 1
        assert await count(queue="night") == 1
        assert await count(states=frozenset({pending})) == 5
        assert await count(states=frozenset({JobState.COMPLETED, running})) == 3
        assert await count(states=frozenset()) == 0
        assert await count(batch_id=batch) == 2
        assert await count(batch_id=batch, states=frozenset({running})) == 0
        assert await count(roles=frozenset({Role.ITEM})) == 2
        assert await count(roles=frozenset({Role.SINGLE, Role.HEAD})) == 6
        assert await count(roles=frozenset({Role.HEAD}), kind="bulk") == 1
        assert await count(kind="nothing") == 0
        assert await count(worker=hand.id) == 1
        assert await count(worker=hand.id, states=frozenset({running})) == 1
        assert await count(worker=(await Hand.enlist(store)).id) == 0

    async def test_batches_are_listed_the_newest_first(self, store):
        ids = [uuid7(1_000_000 + n, bytes(10)) for n in range(5)]
        for batch_id in ids:
            top = head(id=batch_id)
            await store.open_batch(top, items(batch_id, 1), sealed=True)
        await store.insert([work()])
        assert [batch.id for batch in await store.batches()] == ids[::-1]
        assert [batch.id for batch in await store.batches(limit=2)] == ids[:2:-1]
        later = await store.batches(limit=2, cursor=ids[3])
        assert [batch.id for batch in later] == [ids[2], ids[1]]
        assert await store.batches(cursor=ids[0]) == []

    async def test_readers_are_not_kept_waiting_by_writers(self, store):
        jobs = works(3000)
        writing = asyncio.ensure_future(store.insert(jobs))
        for _ in range(5):
            assert len((await store.find(JobFilter(), limit=5)).jobs) in (0, 5)
        assert (await writing).new == 3000
        assert len((await store.find(JobFilter(), limit=5)).jobs) == 5


class Told(list):
    """Counts notifications."""

    def __call__(self) -> None:
        self.append(1)


class TestFronts:
    """Since when the first job of each queue has been due."""

    async def test_of_each_queue_the_first_in_its_order(self, store, clock):
        assert await store.fronts() == {}
        first = clock.now()
        await store.insert([work(), work(queue="other")])
        clock.advance(7)
        later = clock.now()
        await store.insert([work(queue="third"), work(queue="other", kind="bulk")])
        assert await store.fronts() == {"default": first, "other": first, "third": later}

    async def test_what_is_not_ready_is_left_out(self, store, clock, hand):
        await store.insert([work(run_at=clock.now() + 60_000_000)])
        assert await store.fronts() == {}
        await store.insert([work()])
        await hand.claim_one()
        assert await store.fronts() == {}

    async def test_what_waits_for_a_limit_is_left_out(self, store, hand):
        await store.limits().put(Limit(name="one", concurrency=1), by="me")
        await store.insert([work(), work(), work(queue="paused")])
        await hand.claim_one()
        await hand.claim()
        assert "default" not in await store.fronts()


class TestWatch:
    """Whoever waits is told when something may have changed."""

    async def told(self, store, change, **kinds) -> None:
        told = Told()
        with store.watch(told, **kinds):
            await change()
            await wait_until(lambda: told)

    async def test_new_jobs_wake_those_who_wait_for_ready_ones(self, store):
        await self.told(store, lambda: store.insert([work()]), ready=True)

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.FAIL, Move.CANCEL])
    async def test_finished_jobs_wake_those_who_wait_for_the_end(self, store, hand, how):
        await store.insert([work()])
        job = await hand.claim_one()
        await self.told(store, lambda: hand.hand_in(job, how), settled=True)

    @pytest.mark.parametrize("how", [Move.RETRY, Move.SNOOZE, Move.GIVE_BACK])
    async def test_jobs_put_back_wake_those_who_wait_for_ready_ones(self, store, hand, how):
        await store.insert([work()])
        job = await hand.claim_one()
        await self.told(store, lambda: hand.hand_in(job, how), ready=True)

    async def test_a_cancel_wakes_the_worker_that_must_hear_it(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        await self.told(store, lambda: store.cancel([job.id]), ready=True)

    async def test_the_jobs_of_a_lost_worker_wake_the_others(self, store, hand):
        await store.insert([work()])
        await hand.claim_one()
        await self.told(store, lambda: store.retire(hand.id), ready=True)

    async def test_a_job_that_lost_its_last_worker_wakes_those_who_wait_for_the_end(
        self, store, clock
    ):
        await store.insert([work()])
        for _ in range(MAX_LOST - 1):
            hand = await Hand.enlist(store)
            await hand.claim_one()
            await store.retire(hand.id)
            clock.advance(100)
        hand = await Hand.enlist(store)
        await hand.claim_one()
        clock.advance(100)
        await self.told(store, store.sweep, settled=True)

    async def test_a_finish_callback_wakes_those_who_wait_for_ready_jobs(self, store, hand):
        await filled_batch(store, 2, finish=FinishCallback(kind="afterwards"))
        jobs = await hand.claim(2)
        given = [move(job, Move.COMPLETE) for job in jobs]
        await self.told(store, lambda: hand.exchange(*given), ready=True)

    async def test_requeued_jobs_wake_those_who_wait_for_ready_ones(self, store, hand):
        batch = await filled_batch(store, 1)
        await hand.work_off(Move.FAIL)
        await self.told(store, lambda: store.retry_failed(batch), ready=True)

    async def test_after_the_block_nobody_is_told(self, store):
        told = Told()
        with store.watch(told, ready=True, settled=True):
            pass
        await store.insert([work()])
        await self.told(store, lambda: store.insert([work()]), ready=True)
        assert not told

    async def test_changes_by_another_client_are_told_too(self, home, store, ttl):
        if not home.several:
            pytest.skip("this store has a single client: it lives in that client's memory")
        async with home.client(ttl=ttl) as other:
            await self.told(store, lambda: other.insert([work()]), ready=True)
            hand = await Hand.enlist(other)
            job = await hand.claim_one()
            await self.told(store, lambda: hand.hand_in(job, Move.COMPLETE), settled=True)
            await self.told(other, lambda: store.insert([work()]), ready=True)

    async def test_two_clients_see_the_same_jobs(self, home, store, ttl):
        if not home.several:
            pytest.skip("this store has a single client: it lives in that client's memory")
        async with home.client(ttl=ttl) as other:
            await asyncio.gather(*(client.insert(works(50)) for client in (store, other)))
            hands = await Hand.enlist(store), await Hand.enlist(other)
            assert sum(await asyncio.gather(*(hand.work_off(slots=3) for hand in hands))) == 100
            assert await store.counts() == await other.counts()
