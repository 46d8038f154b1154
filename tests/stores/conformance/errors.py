"""What went wrong with a job, attempt by attempt."""

from __future__ import annotations

import pytest

from haulier.domain.job import Job, JobError, JobState, OnLost
from haulier.domain.moves import Move, Transition
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobFilter, JobStore
from support import filled_batch, head, items, move, work, works

KEPT = 100
TRACE = 'Traceback (most recent call last):\n  File "x.py", line 1, in ü\n'


def fails(job: Job, how: Move, error_type: str = "Boom", message: str = "it broke") -> Transition:
    error = JobError(type=error_type, message=message, traceback=TRACE, attempt=job.attempt)
    delay = 0 if how is Move.RETRY else None
    return Transition(job, how, delay=delay, error=error)


async def types(store: JobStore, job_id: str) -> list[str]:
    return [error.type for error in await store.errors(job_id)]


class TestErrors:
    """One entry per attempt that failed, was retried, took too long or was lost."""

    async def test_a_job_without_errors_has_none(self, store, hand):
        job = work()
        await store.insert([job])
        assert await store.errors(job.id) == []
        for how in (Move.SNOOZE, Move.GIVE_BACK, Move.COMPLETE):
            await hand.hand_in(await hand.claim_one(), how, delay=0)
            assert await store.errors(job.id) == []

    @pytest.mark.parametrize("how", [Move.FAIL, Move.RETRY])
    async def test_an_error_tells_what_when_where_and_at_which_try(self, store, hand, clock, how):
        await store.insert([work()])
        job = await hand.claim_one()
        clock.advance(3)
        await hand.exchange(fails(job, how, "JobTimeoutError", "took longer than 5 s"))
        clock.advance(3)
        (error,) = await store.errors(job.id)
        assert error == JobError(
            type="JobTimeoutError",
            message="took longer than 5 s",
            traceback=TRACE,
            attempt=1,
            at=clock.now() - 3_000_000,
            lease=job.lease,
            worker=hand.id,
        )

    async def test_the_latest_comes_first(self, store, hand, clock):
        await store.insert([work()])
        for number in range(3):
            job = await hand.claim_one()
            clock.advance(1)
            await hand.exchange(fails(job, Move.RETRY, f"E{number}"))
        await hand.exchange(fails(await hand.claim_one(), Move.FAIL, "Last"))
        errors = await store.errors(job.id)
        assert [error.type for error in errors] == ["Last", "E2", "E1", "E0"]
        assert [error.attempt for error in errors] == [4, 3, 2, 1]
        assert [error.lease for error in errors] == [4, 3, 2, 1]
        assert errors == sorted(errors, key=lambda error: -error.at)

    async def test_the_jobs_own_error_is_the_latest(self, store, hand):
        await store.insert([work()])
        for how in (Move.RETRY, Move.FAIL):
            job = await hand.claim_one()
            await hand.exchange(fails(job, how, how))
            latest, *_ = await store.errors(job.id)
            told = (await store.get(job.id)).error
            assert (told.type, told.message, told.attempt, told.at) == (
                how,
                "it broke",
                job.attempt,
                latest.at,
            )

    async def test_a_lost_worker_is_an_error_of_the_claim_it_held(self, store, hand, clock):
        await store.insert([work()])
        job = await hand.claim_one()
        clock.advance(2)
        await store.retire(hand.id)
        (error,) = await store.errors(job.id)
        assert (error.type, error.attempt, error.lease, error.worker, error.at) == (
            "WorkerLost",
            1,
            job.lease,
            hand.id,
            clock.now(),
        )

    async def test_so_is_the_last_one_that_fails_it(self, store, hand):
        job = work(on_lost=OnLost.FAIL)
        await store.insert([job])
        await hand.claim_one()
        await store.retire(hand.id)
        assert (await store.get(job.id)).state is JobState.FAILED
        assert await types(store, job.id) == ["WorkerLost"]

    async def test_a_swept_worker_leaves_an_error_with_each_of_its_jobs(
        self, store, hand, clock, ttl
    ):
        jobs = works(3)
        await store.insert(jobs)
        await hand.claim(3)
        clock.advance(ttl + 1)
        await store.sweep()
        for job in jobs:
            (error,) = await store.errors(job.id)
            assert (error.type, error.worker) == ("WorkerLost", hand.id)

    async def test_they_survive_success(self, store, hand):
        await store.insert([work()])
        await hand.exchange(fails(await hand.claim_one(), Move.RETRY))
        job = await hand.claim_one()
        await hand.hand_in(job, Move.COMPLETE)
        assert (await store.get(job.id)).error is None
        assert await types(store, job.id) == ["Boom"]

    async def test_they_survive_a_requeue_and_go_on_with_its_attempts(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        await hand.exchange(fails(job, Move.FAIL, "First"))
        await store.requeue([job.id])
        assert await types(store, job.id) == ["First"]
        await hand.exchange(fails(await hand.claim_one(), Move.FAIL, "Second"))
        errors = await store.errors(job.id)
        assert [(error.type, error.attempt, error.lease) for error in errors] == [
            ("Second", 1, 2),
            ("First", 1, 1),
        ]

    async def test_a_refused_finish_leaves_none(self, store, hand):
        await store.insert([work()])
        old = await hand.claim_one()
        await hand.hand_in(old, Move.GIVE_BACK)
        await hand.claim_one()
        reply = await hand.exchange(fails(old, Move.FAIL), fails(old, Move.RETRY))
        assert len(reply.lost) == 2
        assert await store.errors(old.id) == []

    async def test_a_finish_that_is_delivered_twice_leaves_one(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        for _ in range(2):
            await hand.exchange(fails(job, Move.RETRY))
        assert await types(store, job.id) == ["Boom"]

    async def test_those_of_the_last_hundred_claims_are_kept(self, store, hand):
        await store.insert([work()])
        for number in range(KEPT + 7):
            job = await hand.claim_one()
            await hand.exchange(fails(job, Move.RETRY, f"E{number}"))
        errors = await store.errors(job.id)
        assert [error.lease for error in errors] == list(range(KEPT + 7, 7, -1))
        assert errors[0].type == f"E{KEPT + 6}"

    async def test_claims_that_ended_otherwise_count_among_them(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        await hand.exchange(fails(job, Move.RETRY, "Old"))
        for _ in range(KEPT):
            await hand.hand_in(await hand.claim_one(), Move.GIVE_BACK)
        await hand.exchange(fails(await hand.claim_one(), Move.RETRY, "New"))
        assert await types(store, job.id) == ["New"]

    async def test_they_go_with_the_job(self, store, hand):
        job = work()
        await store.insert([job])
        await hand.exchange(fails(await hand.claim_one(), Move.FAIL))
        await store.delete(job.id)
        with pytest.raises(JobNotFoundError):
            await store.errors(job.id)
        await store.insert([job])
        assert await store.errors(job.id) == []

    async def test_those_of_items_go_with_their_batch(self, store, hand):
        batch = await filled_batch(store, 2)
        item, _ = items(batch, 2)
        await hand.work_off(Move.FAIL)
        assert await types(store, item.id) == ["Boom"]
        await store.delete(batch)
        with pytest.raises(JobNotFoundError):
            await store.errors(item.id)
        await store.open_batch(head(id=batch), [item], sealed=True)
        assert await store.errors(item.id) == []

    async def test_unknown_jobs_are_not_found(self, store):
        for absent in (work().id, "no-id-at-all"):
            with pytest.raises(JobNotFoundError):
                await store.errors(absent)

    async def test_each_job_has_its_own(self, store, hand):
        await store.insert(works(3))
        jobs = await hand.claim(3)
        await hand.exchange(*(fails(job, Move.FAIL, f"E{n}") for n, job in enumerate(jobs)))
        assert [await types(store, job.id) for job in jobs] == [["E0"], ["E1"], ["E2"]]


class TestFindByError:
    """Jobs can be looked for by their last error and by their key."""

    async def found(self, store, **fields) -> set[str]:
        return {job.id for job in (await store.find(JobFilter(**fields))).jobs}

    async def test_by_the_class_of_the_last_error(self, store, hand):
        await store.insert(works(5))
        a, b, retried, done, _ = await hand.claim(5)
        await hand.exchange(
            fails(a, Move.FAIL, "A"),
            fails(b, Move.FAIL, "B"),
            fails(retried, Move.RETRY, "A"),
            move(done, Move.COMPLETE),
        )
        failed = frozenset({JobState.FAILED})
        assert await self.found(store, error_type="A") == {a.id, retried.id}
        assert await self.found(store, error_type="A", states=failed) == {a.id}
        assert await self.found(store, error_type="B") == {b.id}
        assert await self.found(store, error_type="a") == set()
        again = await hand.claim_one()
        assert again.id == retried.id
        await hand.exchange(fails(again, Move.FAIL, "B"))
        assert await self.found(store, error_type="A") == {a.id}
        assert await self.found(store, error_type="B") == {b.id, again.id}

    async def test_items_of_a_batch_by_what_they_failed_with(self, store, hand):
        batch, other = await filled_batch(store, 3), await filled_batch(store, 1)
        jobs = await hand.claim(4)
        await hand.exchange(
            *(fails(job, Move.FAIL, "AB"[n % 2]) for n, job in enumerate(jobs)),
        )
        expected = {job.id for job in jobs[::2] if job.batch_id == batch}
        assert await self.found(store, batch_id=batch, error_type="A") == expected
        assert len(await self.found(store, batch_id=other, error_type="B")) == 1

    async def test_lost_workers(self, store, hand):
        job = work()
        await store.insert([job, work()])
        assert (await hand.claim_one()).id == job.id
        await store.retire(hand.id)
        assert await self.found(store, error_type="WorkerLost") == {job.id}

    async def test_by_key(self, store):
        mine, other, none = work(key="account-7"), work(key="account-8"), work()
        await store.insert([mine, other, none])
        assert await self.found(store, key="account-7") == {mine.id}
        assert await self.found(store, key="account-7", kind="work") == {mine.id}
        assert await self.found(store, key="account") == set()
        assert await self.found(store, key="") == set()

    async def test_pages_keep_to_the_filter(self, store, hand):
        await store.insert([work(key=f"k{n % 3}") for n in range(9)])
        jobs = await hand.claim(9)
        await hand.exchange(
            *(fails(job, Move.FAIL, "A" if n % 2 else "B") for n, job in enumerate(jobs))
        )
        for where in (JobFilter(key="k1"), JobFilter(error_type="A")):
            whole = [job.id for job in (await store.find(where)).jobs]
            seen, cursor = [], None
            while True:
                page = await store.find(where, limit=1, cursor=cursor)
                seen += [job.id for job in page.jobs]
                cursor = page.next
                if cursor is None:
                    break
            assert seen == whole
