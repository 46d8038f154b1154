"""Batches within batches: the head of an inner one is an item of the outer one."""

from __future__ import annotations

import pytest

from haulier.domain.batch import DEEPEST, Batch, BatchPolicy, FinishCallback
from haulier.domain.ids import derived_id
from haulier.domain.job import Job, JobState, NewJob, Role
from haulier.domain.moves import Move
from haulier.domain.retention import Keep, Retention
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.ports import Fence, JobFilter, JobStore
from haulier.services.nesting import retry_failed
from support import Hand, adds_up, head, items, wait_until, work

AFTERWARDS = FinishCallback(kind="afterwards", queue="later")


def inner_heads(outer: str, count: int, *, first: int = 0) -> list[NewJob]:
    return [
        work(
            "bulk",
            id=derived_id(outer, str(position)),
            role=Role.INNER,
            batch_id=outer,
            position=position,
        )
        for position in range(first, first + count)
    ]


async def nest(
    store: JobStore, heads: int, *, singles: int = 0, inner: BatchPolicy | None = None, **outer
) -> str:
    """A batch that its producer filled with so many inner heads, and plain items behind them."""
    top = head("outer")
    await store.open_batch(top, [], policy=BatchPolicy(**outer), sealed=False)
    await store.insert(inner_heads(top.id, heads), policy=inner)
    await store.insert(items(top.id, singles, first=heads))
    await store.seal(top.id)
    return top.id


async def expand(store: JobStore, hand: Hand, job: Job, count: int) -> None:
    """What a worker does with a head."""
    await store.insert(items(job.id, count), fence=Fence(job.id, job.lease))
    assert await hand.hand_in(job, Move.HAND_OVER)


async def expanded(store: JobStore, hand: Hand, heads: int, count: int, **how) -> tuple[str, list]:
    """A batch of inner ones that are expanded, and their ids."""
    outer = await nest(store, heads, **how)
    claimed = await hand.claim(heads)
    for job in claimed:
        assert job.role is Role.INNER
        await expand(store, hand, job, count)
    return outer, [job.id for job in claimed]


async def settled(store: JobStore, batch: str) -> Batch:
    """The batch, once what goes on in the background has settled it."""

    async def look() -> Batch | None:
        await store.sweep()
        found = await store.batch(batch)
        return found if found.settled else None

    return await wait_until(look)


async def counts(store: JobStore, batch: str) -> tuple[int, ...]:
    found = (await store.batch(batch)).counts
    return found.pending, found.running, found.completed, found.failed, found.cancelled


class TestNested:
    """The outer one counts an inner one as one item, and settles after it."""

    async def test_it_settles_after_those_within_it(self, store, hand):
        outer, (one, two) = await expanded(store, hand, 2, 3, singles=1, finish=AFTERWARDS)
        assert (await store.batch(one)).within == outer
        assert await counts(store, outer) == (1, 2, 0, 0, 0)
        jobs = await hand.claim(9)
        assert len(jobs) == 7
        for job in jobs[:-1]:
            await hand.hand_in(job, Move.COMPLETE)
        assert not (await store.batch(outer)).settled
        await hand.hand_in(jobs[-1], Move.COMPLETE)
        found = await settled(store, outer)
        assert (found.state, found.counts.completed, found.counts.total) == (
            JobState.COMPLETED,
            3,
            3,
        )
        assert (await store.get(two)).value["total"] == 3
        (callback,) = (await store.find(JobFilter(kind="afterwards"))).jobs
        assert callback.id == found.finish_job

    async def test_each_inner_one_calls_back(self, store, hand):
        inner = BatchPolicy(finish=AFTERWARDS, concurrency=1)
        outer, within = await expanded(store, hand, 2, 2, inner=inner)
        while jobs := await hand.claim(9):
            assert len(jobs) == 2
            for job in jobs:
                await hand.hand_in(job, Move.COMPLETE)
        await settled(store, outer)
        assert len((await store.find(JobFilter(kind="afterwards"))).jobs) == len(within)

    async def test_an_inner_one_that_failed_is_a_failed_item(self, store, hand):
        outer, (one, _) = await expanded(
            store, hand, 2, 4, inner=BatchPolicy(max_failures=0), singles=1
        )
        jobs = await hand.claim(9)
        for job in jobs:
            how = Move.FAIL if job.batch_id == one and job.position == 0 else Move.COMPLETE
            await hand.hand_in(job, how)
        found = await settled(store, outer)
        assert (found.state, found.counts.failed, found.counts.completed) == (
            JobState.COMPLETED,
            1,
            2,
        )
        assert (await store.get(one)).error.type == "MaxFailuresExceeded"

    async def test_one_that_failed_too_often_cuts_the_outer_one_short(self, store, hand):
        outer, (one, two) = await expanded(store, hand, 2, 4, singles=5, max_failures=0)
        await store.alter_batch(one, {"max_failures": 0})
        jobs = [job for job in await hand.claim(20) if job.batch_id == one]
        await hand.hand_in(jobs[0], Move.FAIL)
        for job in jobs[1:]:
            await hand.hand_in(job, Move.CANCEL)

        async def stopped() -> bool:
            await store.sweep()
            return (await store.batch(two)).cancel_requested

        await wait_until(stopped)
        for job in await hand_held(store):
            await hand.hand_in(job, Move.CANCEL)
        found = await settled(store, outer)
        assert (found.state, (await store.get(two)).state) == (
            JobState.FAILED,
            JobState.CANCELLED,
        )

    async def test_a_head_that_ends_before_its_items_keeps_the_outer_one_waiting(self, store, hand):
        outer = await nest(store, 1)
        job = await hand.claim_one()
        await store.insert(items(job.id, 3), fence=Fence(job.id, job.lease))
        (running,) = await hand.claim(1)
        await hand.hand_in(job, Move.FAIL)
        assert await counts(store, outer) == (0, 0, 0, 1, 0)
        await store.sweep()
        assert not (await store.batch(outer)).settled
        await hand.hand_in(running, Move.CANCEL)
        assert (await settled(store, outer)).counts.failed == 1

    async def test_concurrency_of_the_outer_one_counts_inner_ones(self, store, hand):
        outer = await nest(store, 5, concurrency=2)
        first = await hand.claim(9)
        assert len(first) == 2
        for job in first:
            await expand(store, hand, job, 3)
        assert [job.role for job in await hand.claim(2)] == [Role.ITEM] * 2
        assert (await counts(store, outer))[:2] == (3, 2)

    async def test_the_deepest_and_no_deeper(self, store, hand):
        top = head("outer")
        await store.open_batch(top, [], sealed=False)
        at = top.id
        for _ in range(DEEPEST):
            (next_one,) = inner_heads(at, 1)
            await store.insert([next_one])
            at = next_one.id
        before = await store.last_event()
        with pytest.raises(JobStateError, match="deep"):
            await store.insert(inner_heads(at, 1))
        assert await store.last_event() == before
        await store.cancel([top.id])
        assert (await settled(store, top.id)).state is JobState.CANCELLED
        assert (await store.batch(at)).settled

    async def test_lists_tell_outer_ones_and_those_within_one(self, store, hand):
        outer, within = await expanded(store, hand, 3, 1)
        plain = await nest(store, 0)
        assert {batch.id for batch in await store.batches()} == {outer, plain}
        found = await store.batches(within=outer, limit=2)
        found += await store.batches(within=outer, cursor=found[-1].id)
        assert [batch.id for batch in found] == sorted(within, reverse=True)
        assert await store.batches(within=plain) == []

    async def test_counters_of_kinds_know_them_apart(self, store, hand):
        await nest(store, 2)
        found = await store.counts()
        assert found["default", "bulk", Role.INNER, JobState.PENDING] == 2

    async def test_items_go_only_into_one_that_is_open(self, store, hand):
        outer, (one,) = await expanded(store, hand, 1, 1)
        for batch in (outer, one):
            with pytest.raises(JobStateError):
                await store.insert(inner_heads(batch, 1, first=8))


async def hand_held(store: JobStore) -> list[Job]:
    """Running items of batches whose heads are no items here."""
    where = JobFilter(states=frozenset({JobState.RUNNING}), roles=frozenset({Role.ITEM}))
    return list((await store.find(where)).jobs)


class TestNestedCancel:
    """A cancel goes through all that lies within."""

    async def test_pending_running_and_expanding_ones(self, store, hand):
        outer = await nest(store, 4, singles=700)
        waits, expands, *_ = await hand.claim(2)
        await expand(store, hand, waits, 600)
        await store.insert(items(expands.id, 5), fence=Fence(expands.id, expands.lease))
        states = await store.cancel([outer])
        assert states == {outer: JobState.RUNNING}
        assert (await store.get(waits.id)).state is JobState.CANCELLED
        assert (await store.batch(expands.id)).counts.cancelled == 5
        assert (await hand.exchange()).cancels == (expands.id,)
        await hand.hand_in(expands, Move.CANCEL)
        found = await settled(store, outer)
        assert (found.state, found.counts.cancelled) == (JobState.CANCELLED, 704)
        for inner in await store.batches(within=outer):
            assert (inner.settled, inner.state) == (True, JobState.CANCELLED)
        assert await hand.claim(9) == []

    async def test_one_within_another_within_another(self, store, hand):
        outer = await nest(store, 1)
        job = await hand.claim_one()
        await store.insert(inner_heads(job.id, 2), fence=Fence(job.id, job.lease))
        await hand.hand_in(job, Move.HAND_OVER)
        deep = await hand.claim(2)
        for each in deep:
            await expand(store, hand, each, 3)
        running = await hand.claim(2)
        await store.cancel([outer])
        assert set((await hand.exchange()).cancels) == {each.id for each in running}
        for each in running:
            await hand.hand_in(each, Move.CANCEL)
        assert (await settled(store, outer)).state is JobState.CANCELLED
        for each in deep:
            assert (await store.batch(each.id)).counts.cancelled == 3

    async def test_of_one_within_only(self, store, hand):
        outer, (one, two) = await expanded(store, hand, 2, 3)
        await store.cancel([one])
        assert await hand.work_off() == 3
        found = await settled(store, outer)
        assert (found.state, found.counts.cancelled, found.counts.completed) == (
            JobState.COMPLETED,
            1,
            1,
        )
        assert (await store.get(two)).state is JobState.COMPLETED


class TestNestedPause:
    """A pause holds all that lies within, and a resume lets go what it held."""

    async def test_nothing_within_starts(self, store, hand):
        outer = await nest(store, 3)
        first = await hand.claim_one()
        await expand(store, hand, first, 4)
        running = await (await Hand.enlist(store, kinds=("work",))).claim_one()
        await store.pause(outer)
        assert await hand.claim(9) == []
        assert (await store.batch(first.id)).paused
        await hand.hand_in(running, Move.COMPLETE)
        assert await hand.claim(9) == []
        await store.resume(outer)
        assert not (await store.batch(first.id)).paused
        for job in await hand.claim(9):
            if job.role is Role.INNER:
                await expand(store, hand, job, 1)
            else:
                await hand.hand_in(job, Move.COMPLETE)
        await hand.work_off()
        assert (await settled(store, outer)).state is JobState.COMPLETED

    async def test_one_that_was_paused_by_itself_stays_paused(self, store, hand):
        outer, (one, two) = await expanded(store, hand, 2, 2)
        await store.pause(one)
        await store.pause(outer)
        await store.resume(outer)
        assert {job.batch_id for job in await hand.claim(9)} == {two}
        await store.pause(outer)
        await store.resume(one)
        assert await hand.claim(9) == []
        await store.resume(outer)
        assert {job.batch_id for job in await hand.claim(9)} == {one}

    async def test_what_expands_meanwhile_and_what_is_added_waits(self, store, hand):
        top = head("outer")
        await store.open_batch(top, [], sealed=False)
        await store.insert(inner_heads(top.id, 1))
        job = await hand.claim_one()
        await store.pause(top.id)
        await expand(store, hand, job, 3)
        await store.insert(inner_heads(top.id, 1, first=1))
        assert await hand.claim(9) == []
        await store.seal(top.id)
        await store.resume(top.id)
        assert len(await hand.claim(9)) == 4

    async def test_limits_of_the_outer_one_hold_after_a_resume(self, store, hand):
        outer, _ = await expanded(store, hand, 2, 4, inner=BatchPolicy(concurrency=1))
        await store.alter_batch(outer, {"concurrency": 5})
        await store.pause(outer)
        await store.resume(outer)
        assert len(await hand.claim(9)) == 2
        await store.pause(outer)
        await store.cancel([outer])
        for job in await hand_held(store):
            await hand.hand_in(job, Move.CANCEL)
        assert (await settled(store, outer)).state is JobState.CANCELLED


class TestNestedRetry:
    """What failed within is tried again, and what lies around it runs again."""

    async def test_failed_items_of_all(self, store, hand):
        outer, within = await expanded(store, hand, 2, 3, singles=2, finish=AFTERWARDS)
        await hand.work_off(Move.FAIL)
        assert (await settled(store, outer)).counts.failed == 2
        assert await retry_failed(store, outer, limit=7) == 7
        assert await retry_failed(store, outer) == 1
        assert not (await store.batch(outer)).settled
        for batch in (outer, *within):
            assert adds_up(await store.batch(batch))
        assert await hand.work_off() == 8
        found = await settled(store, outer)
        assert (found.counts.completed, found.counts.failed) == (4, 0)
        assert len((await store.find(JobFilter(kind="afterwards"))).jobs) == 2

    async def test_only_those_of_an_error_class(self, store, hand):
        outer, _ = await expanded(store, hand, 1, 3)
        await hand.work_off(Move.FAIL)
        await settled(store, outer)
        assert await retry_failed(store, outer, error_type="Other") == 0
        assert (await store.batch(outer)).settled
        assert await retry_failed(store, outer, error_type="Boom") == 3

    async def test_one_that_could_not_be_expanded_starts_anew(self, store, hand):
        outer = await nest(store, 1, singles=1)
        for job in await hand.claim(9):
            if job.role is Role.INNER:
                await store.insert(items(job.id, 2), fence=Fence(job.id, job.lease))
                await hand.hand_in(job, Move.FAIL)
                lease = job.lease
            else:
                await hand.hand_in(job, Move.COMPLETE)
        assert (await settled(store, outer)).counts.failed == 1
        assert await retry_failed(store, outer) == 1
        assert (await store.get(outer)).state is JobState.RUNNING
        job = await hand.claim_one()
        assert job.lease > lease
        await expand(store, hand, job, 2)
        assert await hand.work_off() == 2
        assert (await settled(store, outer)).counts.completed == 2

    async def test_an_item_within_that_is_tried_again_reopens_all_around_it(self, store, hand):
        outer, (one, _) = await expanded(store, hand, 2, 1)
        await hand.work_off(Move.FAIL)
        await settled(store, outer)
        (failed,) = (await store.find(JobFilter(batch_id=one))).jobs
        await store.requeue([failed.id])
        assert (await store.get(outer)).state is JobState.RUNNING
        assert await counts(store, outer) == (0, 1, 1, 0, 0)
        await hand.work_off()
        await settled(store, outer)

    async def test_a_head_that_expands_again_makes_those_within_anew(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        fence = Fence(top.id, held.lease)
        await store.insert(inner_heads(top.id, 2), fence=fence)
        claimed = await hand.claim(2)
        for job in claimed:
            await expand(store, hand, job, 2)
        jobs = await hand.claim(9)
        await hand.hand_in(held, Move.FAIL)
        for job in jobs:
            await hand.hand_in(job, Move.CANCEL)
        assert (await settled(store, top.id)).state is JobState.FAILED
        await store.requeue([top.id])
        again = await hand.claim_one()
        assert again.id == top.id
        assert (await store.batch(top.id)).counts.total == 0
        with pytest.raises(JobNotFoundError):
            await store.batch(claimed[0].id)
        await store.insert(inner_heads(top.id, 2), fence=Fence(top.id, again.lease))
        await hand.hand_in(again, Move.HAND_OVER)
        for job in await hand.claim(2):
            assert job.lease > claimed[0].lease
            await expand(store, hand, job, 2)
        second = await hand.claim(9)
        assert len(second) == 4
        assert min(job.lease for job in second) > max(job.lease for job in jobs)
        for job in second:
            await hand.hand_in(job, Move.COMPLETE)
        assert (await settled(store, top.id)).counts.completed == 2


class TestNestedDelete:
    """All that lies within goes, and nothing before all of it has ended."""

    async def test_by_somebody(self, store, hand):
        outer, (one, two) = await expanded(store, hand, 2, 300, singles=1)
        with pytest.raises(JobStateError):
            await store.delete(outer)
        await hand.work_off()
        await settled(store, outer)
        with pytest.raises(JobStateError):
            await store.delete(one)
        await store.delete(outer)
        for batch in (outer, one, two):
            with pytest.raises(JobNotFoundError):
                await store.batch(batch)
        assert not any((await store.counts()).values())
        assert (await store.find(JobFilter())).jobs == ()

    async def test_by_retention_of_the_outer_one(self, store, hand):
        outer, _ = await expanded(store, hand, 2, 2)
        await hand.work_off()
        await settled(store, outer)
        gone = Retention(completed=Keep(count=0))
        assert await store.prune({"bulk": gone, "work": gone}) == 0
        await store.prune({"outer": gone})
        assert (await store.find(JobFilter())).jobs == ()
        assert not any((await store.counts()).values())

    async def test_of_pending_ones(self, store, hand):
        top = head("outer")
        await store.open_batch(top, [], sealed=False)
        await store.insert(inner_heads(top.id, 3))
        with pytest.raises(JobStateError):
            await store.delete(top.id)
        await store.cancel([top.id])
        await settled(store, top.id)
        await store.delete(top.id)
        assert (await store.find(JobFilter())).jobs == ()
