"""What jobs carry along from their enqueue: kept over every move, given to finish callbacks."""

from __future__ import annotations

import pytest

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.job import JobState, Role
from haulier.domain.moves import Move
from haulier.domain.unique import Uniqueness
from haulier.ports import JobFilter, JobStore
from support import Hand, head, items, work, works

BAGGAGE = '{"request_id":"r-1","\\u00e4":true}'
NOTIFY = BatchPolicy(finish=FinishCallback(kind="work", queue="default"))


class TestBaggage:
    async def test_it_is_there_wherever_a_job_is_read(self, store: JobStore) -> None:
        carrying, plain = work(baggage=BAGGAGE), work()
        await store.insert([carrying, plain])
        hand = await Hand.enlist(store)
        claimed = {job.id: job.baggage for job in await hand.claim(2)}
        assert claimed == {carrying.id: BAGGAGE, plain.id: None}
        assert (await store.get(carrying.id)).baggage == BAGGAGE
        found = (await store.find(JobFilter(), limit=9)).jobs
        assert {job.id: job.baggage for job in found} == claimed

    async def test_jobs_of_one_insert_may_carry_different_things(self, store: JobStore) -> None:
        jobs = works(4)
        jobs = [job._replace(baggage=f'{{"n":{n // 2}}}') for n, job in enumerate(jobs)]
        await store.insert(jobs)
        assert [(await store.get(job.id)).baggage for job in jobs] == [
            *('{"n":0}', '{"n":0}', '{"n":1}', '{"n":1}')
        ]

    async def test_many_at_once_carry_each_their_own(self, store: JobStore) -> None:
        jobs, plain = works(600), works(300)
        given = {job.id: f'{{"n":{n // 100}}}' for n, job in enumerate(jobs)}
        await store.insert([job._replace(baggage=given[job.id]) for job in jobs] + plain)
        hand = await Hand.enlist(store)
        claimed = {job.id: job.baggage for job in await hand.claim(900)}
        assert claimed == given | {job.id: None for job in plain}

    async def test_jobs_with_unique_names_carry_it_too(self, store: JobStore) -> None:
        first, second = work(unique=(Uniqueness("a"),), baggage=BAGGAGE), work(baggage='{"b":1}')
        await store.insert([first, second])
        assert (await store.get(first.id)).baggage == BAGGAGE
        assert (await store.get(second.id)).baggage == '{"b":1}'

    async def test_repeating_an_insert_changes_none(self, store: JobStore) -> None:
        job = work(baggage=BAGGAGE)
        await store.insert([job])
        await store.insert([job._replace(baggage='{"other":1}')])
        assert (await store.get(job.id)).baggage == BAGGAGE

    @pytest.mark.parametrize("how", [Move.RETRY, Move.SNOOZE, Move.GIVE_BACK])
    async def test_it_comes_back_with_the_job(self, store: JobStore, how: Move) -> None:
        await store.insert([work(baggage=BAGGAGE)])
        hand = await Hand.enlist(store)
        assert await hand.hand_in(await hand.claim_one(), how, delay=0)
        assert (await hand.claim_one()).baggage == BAGGAGE

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.FAIL, Move.CANCEL])
    async def test_it_stays_when_the_job_has_ended(self, store: JobStore, how: Move) -> None:
        job = work(baggage=BAGGAGE)
        await store.insert([job])
        hand = await Hand.enlist(store)
        assert await hand.hand_in(await hand.claim_one(), how)
        assert (await store.get(job.id)).baggage == BAGGAGE

    async def test_a_requeue_brings_it_back(self, store: JobStore) -> None:
        job = work(baggage=BAGGAGE)
        await store.insert([job])
        hand = await Hand.enlist(store)
        assert await hand.hand_in(await hand.claim_one(), Move.FAIL)
        await store.requeue([job.id])
        assert (await hand.claim_one()).baggage == BAGGAGE

    async def test_jobs_of_a_lost_worker_keep_it(self, store: JobStore) -> None:
        await store.insert([work(baggage=BAGGAGE)])
        lost = await Hand.enlist(store)
        await lost.claim_one()
        await store.retire(lost.id)
        assert (await (await Hand.enlist(store)).claim_one()).baggage == BAGGAGE


class TestBaggageOfBatches:
    @pytest.mark.parametrize("baggage", [BAGGAGE, None])
    async def test_the_callback_inherits_that_of_the_head(self, store: JobStore, baggage) -> None:
        top = head(baggage=baggage)
        of_items = [item._replace(baggage='{"item":1}') for item in items(top.id, 2)]
        await store.open_batch(top, of_items, policy=NOTIFY, sealed=True)
        hand = await Hand.enlist(store)
        assert [job.baggage for job in await hand.claim(2)] == ['{"item":1}'] * 2
        where = JobFilter(batch_id=top.id, states=frozenset({JobState.RUNNING}))
        for job in (await store.find(where, limit=9)).jobs:
            assert await hand.hand_in(job, Move.COMPLETE)
        callback = await hand.claim_one()
        assert (callback.role, callback.baggage) == (Role.SINGLE, baggage)
        assert (await store.get(top.id)).baggage == baggage
