"""New jobs: repeated inserts, refused ones, and what is counted."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain.job import JobState, Role
from haulier.domain.moves import Move
from haulier.exceptions import ConfigurationError, JobNotFoundError, JobStateError
from support import Hand, adds_up, head, items, work, works


class TestInsert:
    """Producers name their jobs, so that a repeated insert is harmless."""

    async def test_the_answer_is_how_many_were_new(self, store):
        jobs = works(5)
        assert (await store.insert(jobs[:3])).new == 3
        assert (await store.insert(jobs)).new == 2
        assert (await store.insert(jobs)).new == 0
        assert (await store.insert([])).new == 0
        assert await store.counts() == {("default", "work", Role.SINGLE, JobState.PENDING): 5}

    async def test_one_id_twice_in_one_call_is_one_job(self, store):
        job = work()
        assert (await store.insert([job, job, work()])).new == 2
        assert sum((await store.counts()).values()) == 2

    async def test_a_connection_that_does_not_lead_to_the_store_is_refused(self, store):
        with pytest.raises(ConfigurationError, match=r"connection|transactions"):
            await store.insert([work()], connection=object())
        assert await store.counts() == {}

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.FAIL, Move.GIVE_BACK])
    async def test_a_repeated_insert_leaves_the_job_as_it_is(self, store, hand, how):
        job = work()
        await store.insert([job])
        await hand.hand_in(await hand.claim_one(), how)
        before = await store.get(job.id)
        assert (await store.insert([work(id=job.id, payload=b'{"other":true}')])).new == 0
        assert await store.get(job.id) == before

    async def test_producers_that_insert_the_same_jobs_at_once_make_each_once(self, store):
        jobs = works(50)
        answers = await asyncio.gather(*(store.insert(jobs) for _ in range(8)))
        assert sum(answer.new for answer in answers) == 50
        assert sum((await store.counts()).values()) == 50

    async def test_a_repeated_head_keeps_its_batch(self, store, hand):
        top = head()
        assert (await store.insert([top])).new == 1
        await store.insert(items(top.id, 2))
        assert (await store.insert([top])).new == 0
        assert (await store.batch(top.id)).counts.total == 2

    async def test_items_need_a_batch_that_exists(self, store):
        with pytest.raises(JobStateError):
            await store.insert(items(work().id, 2))
        assert await store.counts() == {}

    async def test_a_refused_insert_leaves_nothing(self, store):
        stray = items(work().id, 1)
        with pytest.raises(JobStateError):
            await store.insert([work(), *stray])
        assert await store.counts() == {}

    async def test_absent_ids_are_not_found(self, store):
        for ask in (store.get, store.batch, store.delete, store.retry_failed):
            with pytest.raises(JobNotFoundError):
                await ask(work().id)
            with pytest.raises(JobNotFoundError):
                await ask("no-id-at-all")
        job = work()
        await store.insert([job])
        with pytest.raises(JobNotFoundError):
            await store.batch(job.id)

    async def test_counts_tell_queue_kind_role_and_state(self, store, hand):
        await store.insert(works(2, "a") + works(1, "a", queue="night") + works(3))
        top = head()
        await store.open_batch(top, items(top.id, 2), sealed=False)
        job = (await hand.claim(1))[0]
        counts = await store.counts()
        assert job.kind == "work"
        assert counts == {
            ("default", "a", Role.SINGLE, JobState.PENDING): 2,
            ("night", "a", Role.SINGLE, JobState.PENDING): 1,
            ("default", "work", Role.SINGLE, JobState.PENDING): 2,
            ("default", "work", Role.SINGLE, JobState.RUNNING): 1,
            ("default", "work", Role.ITEM, JobState.PENDING): 2,
            ("default", "bulk", Role.HEAD, JobState.RUNNING): 1,
        }


class TestFilling:
    """Batches while their producer or a worker adds items."""

    async def test_a_batch_that_its_producer_fills_runs_from_the_start(self, store, hand, clock):
        top = head()
        await store.open_batch(top, items(top.id, 2), sealed=False)
        batch = await store.batch(top.id)
        assert (batch.state, batch.sealed, batch.counts.total) == (JobState.RUNNING, False, 2)
        assert batch.started_at is None
        clock.advance(1)
        await store.insert(items(top.id, 3, first=2))
        assert len(await hand.claim(9)) == 5
        batch = await store.batch(top.id)
        assert batch.started_at == clock.now()
        assert (batch.counts.running, batch.counts.total) == (5, 5)
        assert adds_up(batch)

    async def test_an_unsealed_batch_waits_for_more_items(self, store, hand):
        top = head()
        await store.open_batch(top, items(top.id, 2), sealed=False)
        assert await hand.work_off() == 2
        assert (await store.get(top.id)).state is JobState.RUNNING
        await store.seal(top.id)
        assert (await store.get(top.id)).state is JobState.COMPLETED

    async def test_opening_filling_and_sealing_again_changes_nothing(self, store, hand):
        top = head()
        parts = items(top.id, 2), items(top.id, 2, first=2)

        async def fill() -> None:
            await store.open_batch(top, parts[0], sealed=False)
            await store.insert(parts[1])
            await store.seal(top.id)

        await fill()
        sealed = await store.batch(top.id)
        await fill()
        assert await store.batch(top.id) == sealed
        assert await hand.work_off() == 4
        done = await store.batch(top.id)
        await fill()
        assert await store.batch(top.id) == done
        assert (done.state, done.counts.completed) == (JobState.COMPLETED, 4)

    async def test_a_sealed_batch_opened_again_is_left_as_it_is(self, store, hand):
        top = head()
        await store.open_batch(top, items(top.id, 2), sealed=True)
        await store.open_batch(top, items(top.id, 2), sealed=True)
        assert (await store.batch(top.id)).counts.total == 2
        await hand.work_off()
        before = await store.batch(top.id)
        await store.open_batch(top, items(top.id, 2), sealed=True)
        assert await store.batch(top.id) == before

    async def test_a_sealed_batch_takes_no_more_items(self, store):
        top = head()
        await store.open_batch(top, items(top.id, 2), sealed=True)
        with pytest.raises(JobStateError, match="sealed"):
            await store.insert(items(top.id, 1, first=2))
        with pytest.raises(JobStateError, match="sealed"):
            await store.open_batch(top, items(top.id, 3), sealed=True)
        assert (await store.batch(top.id)).counts.total == 2
        assert (await store.counts())[("default", "work", Role.ITEM, JobState.PENDING)] == 2

    async def test_a_cancelled_batch_takes_no_more_items(self, store):
        top = head()
        await store.open_batch(top, items(top.id, 2), sealed=False)
        await store.cancel([top.id])
        with pytest.raises(JobStateError, match="cancelled"):
            await store.insert(items(top.id, 1, first=2))
        assert (await store.batch(top.id)).counts.total == 2

    async def test_items_run_before_their_head_has_handed_over(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 3))
        assert await hand.work_off() == 3
        assert (await store.get(top.id)).state is JobState.RUNNING
        await hand.hand_in(held, Move.HAND_OVER)
        assert (await store.get(top.id)).state is JobState.COMPLETED

    async def test_items_know_their_batch_and_position(self, store):
        top = head()
        await store.open_batch(top, items(top.id, 3), sealed=True)
        hand = await Hand.enlist(store)
        jobs = await hand.claim(9)
        assert [(job.batch_id, job.position, job.role) for job in jobs] == [
            (top.id, position, Role.ITEM) for position in range(3)
        ]
