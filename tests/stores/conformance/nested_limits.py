"""Batches within batches under limits: those of the batches, and those of the store."""

from __future__ import annotations

import contextlib
import random

import pytest

from conformance.limits import keys, limited
from conformance.nesting import inner_heads, nest, settled
from haulier.domain.batch import BatchPolicy
from haulier.domain.job import Job, JobState, Role
from haulier.domain.limits import Rate
from haulier.domain.moves import Move
from haulier.exceptions import JobStateError
from haulier.ports import Fence, JobStore
from haulier.services.nesting import retry_failed
from support import Hand, head, items, move, wait_until, work

KEYS = ("a", "b", "c")


async def expand(store: JobStore, hand: Hand, job: Job, marks: str) -> None:
    """What a worker does with a head: an item of each of these keys."""
    each = [
        item._replace(key=key) for item, key in zip(items(job.id, len(marks)), marks, strict=True)
    ]
    await store.insert(each, fence=Fence(job.id, job.lease))
    assert await hand.hand_in(job, Move.HAND_OVER)


async def expanded(store: JobStore, hand: Hand, *marks: str, **how) -> tuple[str, list[str]]:
    """A batch of inner ones, each with items of such keys; its id and theirs."""
    outer = await nest(store, len(marks), **how)
    claimed = await hand.claim(len(marks))
    assert [job.role for job in claimed] == [Role.INNER] * len(marks)
    for job, each in zip(claimed, marks, strict=True):
        await expand(store, hand, job, each)
    return outer, [job.id for job in claimed]


async def soon(store: JobStore, hand: Hand, slots: int = 9) -> list[Job]:
    """Claim what there is once a batch has settled, which goes on in the background."""

    async def look() -> list[Job]:
        await store.sweep()
        return await hand.claim(slots)

    return await wait_until(look)


async def nothing_is_held(store: JobStore) -> None:
    for state in await store.limits().list():
        assert state.running == 0
        if state.limit.per_key:
            assert [key for key in await store.limits().keys(state.limit.name) if key.running] == []


class TestNestedBatchLimits:
    """An inner batch takes a slot of the outer one from its start until it has settled."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    async def test_the_next_one_is_let_in_when_one_has_settled(self, store, hand):
        outer = await nest(store, 3, concurrency=1)
        for _ in range(3):
            (job,) = await soon(store, hand)
            await expand(store, hand, job, "ab")
            first, second = await hand.claim(9)
            await hand.hand_in(first, Move.COMPLETE)
            assert await hand.claim(9) == []
            await hand.hand_in(second, Move.COMPLETE)
        assert (await settled(store, outer)).counts.completed == 3

    @pytest.mark.parametrize("how", [Move.FAIL, Move.CANCEL])
    async def test_one_that_ends_without_items_lets_in_the_next(self, store, hand, how):
        outer = await nest(store, 2, concurrency=1)
        (job,) = await hand.claim(9)
        reply = await hand.exchange(move(job, how), slots=9)
        again = list(reply.jobs) or await soon(store, hand)
        assert len(again) == 1
        assert again[0].id != job.id
        await expand(store, hand, again[0], "a")
        await hand.work_off()
        assert (await settled(store, outer)).counts.completed == 1

    async def test_more_are_let_in_while_it_runs_and_fewer(self, store, hand):
        outer = await nest(store, 6, concurrency=1)
        running = await hand.claim(9)
        assert len(running) == 1
        await store.alter_batch(outer, {"concurrency": 4})
        more = await hand.claim(9)
        assert len(more) == 3
        running += more
        await store.alter_batch(outer, {"concurrency": 2})
        for job in running[:2]:
            await expand(store, hand, job, "a")
        assert await hand.work_off() == 2
        assert await hand.claim(9) == []
        await expand(store, hand, running[2], "a")
        assert [each.role for each in await hand.claim(1)] == [Role.ITEM]
        await store.alter_batch(outer, {"concurrency": None})
        assert [job.role for job in await hand.claim(9)] == [Role.INNER] * 2

    async def test_batch_size_of_the_outer_one_counts_inner_ones(self, store, hand):
        await nest(store, 5, batch_size=2)
        assert len(await hand.claim(9)) == 2
        assert len(await hand.claim(9)) == 2
        assert len(await hand.claim(9)) == 1

    async def test_each_inner_one_has_its_own(self, store, hand):
        outer, within = await expanded(
            store, hand, "aaaa", "bbbb", inner=BatchPolicy(concurrency=1), concurrency=2
        )
        assert len(await hand.claim(9)) == 2
        await store.alter_batch(within[0], {"concurrency": 3})
        more = await hand.claim(9)
        assert [job.batch_id for job in more] == [within[0]] * 2
        await store.alter_batch(within[1], {"concurrency": None})
        assert {job.batch_id for job in await hand.claim(9)} == {within[1]}
        assert (await store.batch(outer)).counts.running == 2

    async def test_a_lost_worker_gives_back_the_slot_of_a_head_that_expands(self, store, hand):
        outer = await nest(store, 2, concurrency=1)
        first = await hand.claim_one()
        await store.insert(items(first.id, 2), fence=Fence(first.id, first.lease))
        await store.retire(hand.id)
        other = await Hand.enlist(store)
        again = await other.claim(9)
        # Its items may run before it has expanded to its end.
        heads = [job for job in again if job.role is Role.INNER]
        assert len(heads) == 1
        assert {job.batch_id for job in again} - {outer} <= {first.id}

    async def test_one_of_three_levels_waits_at_each(self, store, hand):
        top = head("outer")
        await store.open_batch(top, [], policy=BatchPolicy(concurrency=1), sealed=False)
        await store.insert(inner_heads(top.id, 2), policy=BatchPolicy(concurrency=1))
        await store.seal(top.id)
        done = 0
        for _ in range(2):
            (middle,) = await soon(store, hand)
            fence = Fence(middle.id, middle.lease)
            await store.insert(inner_heads(middle.id, 2), fence=fence)
            await hand.hand_in(middle, Move.HAND_OVER)
            for _ in range(2):
                (deep,) = await soon(store, hand)
                assert deep.batch_id == middle.id
                await expand(store, hand, deep, "ab")
                done += len(await _finish(hand, 2))
        assert done == 8
        assert (await settled(store, top.id)).state is JobState.COMPLETED


async def _finish(hand: Hand, count: int) -> list[Job]:
    """Claim and complete so many items, and no more are there."""
    jobs = await hand.claim(count)
    assert [job.role for job in jobs] == [Role.ITEM] * count
    await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
    return jobs


class TestNestedUnderLimits:
    """What lies within whatever batches counts against the limits of the store."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    async def test_inner_heads_are_exempt_and_their_items_are_not(self, store, hand):
        await limited(store, concurrency=1)
        outer = await nest(store, 3)
        heads = await hand.claim(9)
        assert len(heads) == 3
        for job in heads:
            await expand(store, hand, job, "ab")
        assert len(await hand.claim(9)) == 1
        assert await hand.claim(9) == []
        assert (await store.batch(outer)).counts.running == 3

    async def test_an_inner_head_that_runs_alone_needs_no_slot(self, store, hand, clock):
        await limited(store, concurrency=1)
        await nest(store, 1)
        for _ in range(2):
            worker = await Hand.enlist(store)
            assert (await worker.claim_one()).role is Role.INNER
            await store.retire(worker.id)
            clock.advance(10)
        await store.insert([work()])
        busy = await Hand.enlist(store, kinds=("work",))
        await busy.claim_one()
        assert [job.role for job in await hand.claim(1)] == [Role.INNER]

    async def test_a_key_is_one_over_all_inner_batches(self, store, hand):
        await limited(store, concurrency=1, per_key=True, kind="work")
        outer, within = await expanded(store, hand, "aab", "aabb", "c")
        seen: list[str] = []
        while jobs := await hand.claim(20):
            assert len(set(keys(jobs))) == len(jobs)
            seen += [job.batch_id for job in jobs]
            await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
        assert sorted(map(seen.count, within)) == [1, 3, 4]
        assert (await settled(store, outer)).state is JobState.COMPLETED
        await nothing_is_held(store)

    async def test_a_key_that_is_full_holds_up_no_other_batch(self, store, hand):
        await limited(store, concurrency=1, per_key=True, kind="work")
        await expanded(store, hand, "a" * 40, "a" * 40 + "b")
        jobs = await hand.claim(9)
        assert sorted(keys(jobs)) == ["a", "b"]

    async def test_those_of_batches_and_of_keys_both_hold(self, store, hand):
        await limited(store, "key", concurrency=1, per_key=True, kind="work")
        await limited(store, "all", concurrency=3, kind="work")
        outer, within = await expanded(
            store, hand, "abcd", "abcd", "ef", inner=BatchPolicy(concurrency=2)
        )
        done = 0
        while jobs := await hand.claim(20):
            assert len(jobs) <= 3
            assert len(set(keys(jobs))) == len(jobs)
            assert all([job.batch_id for job in jobs].count(batch) <= 2 for batch in within)
            await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
            done += len(jobs)
        assert done == 10
        assert (await settled(store, outer)).state is JobState.COMPLETED

    async def test_a_rate_counts_items_and_no_heads(self, store, hand, clock):
        await limited(store, rate=Rate(2, 60.0, burst=2))
        await expanded(store, hand, "ab", "cd")
        assert len(await hand.claim(9)) == 2
        assert await hand.claim(9) == []
        clock.advance(60)
        assert len(await hand.claim(9)) == 2

    async def test_a_limit_that_comes_later_holds_what_lies_within(self, store, hand):
        outer, _ = await expanded(store, hand, "aaa", "abb", inner=BatchPolicy(concurrency=2))
        (first,) = await hand.claim(1)
        await limited(store, concurrency=1, per_key=True, kind="work")
        jobs = [first, *await hand.claim(9)]
        assert sorted(keys(jobs)) in (["a"], ["a", "b"])
        await store.limits().drop("l", by="test")
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
        await hand.work_off()
        assert (await settled(store, outer)).state is JobState.COMPLETED

    async def test_paused_resumed_and_cancelled_it_leaks_no_slot(self, store, hand):
        await limited(store, concurrency=1, per_key=True, kind="work")
        outer, _ = await expanded(store, hand, "aab", "ab", concurrency=2)
        running = await hand.claim(9)
        assert sorted(keys(running)) == ["a", "b"]
        await store.pause(outer)
        await hand.hand_in(running[0], Move.COMPLETE)
        assert await hand.claim(9) == []
        await store.resume(outer)
        (again,) = await hand.claim(9)
        assert again.key == running[0].key
        await store.cancel([outer])
        for job in (running[1], again):
            await hand.hand_in(job, Move.CANCEL)
        assert (await settled(store, outer)).state is JobState.CANCELLED
        await nothing_is_held(store)

    async def test_what_failed_within_is_retried_within_them(self, store, hand):
        await limited(store, concurrency=1, per_key=True, kind="work")
        outer, _ = await expanded(store, hand, "aa", "ab", concurrency=2)
        assert await hand.work_off(Move.FAIL) == 4
        await settled(store, outer)
        assert await retry_failed(store, outer) == 4
        done = 0
        while jobs := await hand.claim(9):
            assert len(set(keys(jobs))) == len(jobs)
            await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
            done += len(jobs)
        assert done == 4
        assert (await settled(store, outer)).counts.completed == 2
        await nothing_is_held(store)

    @pytest.mark.parametrize("seed", range(4))
    async def test_no_history_gets_past_them_and_all_comes_to_its_end(self, store, clock, seed):
        dice = random.Random(seed)
        await limited(store, "all", concurrency=4, kind="work")
        await limited(store, "key", concurrency=2, per_key=True, kind="work")
        outer = [
            await nest(store, 3, inner=BatchPolicy(concurrency=2), concurrency=2),
            await nest(store, 3, concurrency=1),
        ]
        hands = [await Hand.enlist(store) for _ in range(2)]
        held: dict[str, tuple[Hand, Job]] = {}
        for _ in range(1500):
            which, chance = dice.randrange(len(hands)), dice.random()
            hand = hands[which]
            if chance < 0.03:
                await store.retire(hand.id)
                held = {job: pair for job, pair in held.items() if pair[0] is not hand}
                hands[which] = await Hand.enlist(store)
            elif chance < 0.06:
                with contextlib.suppress(JobStateError):
                    change = {"concurrency": dice.randint(1, 3)}
                    await store.alter_batch(dice.choice(outer), change)
            elif held and chance < 0.6:
                await end_one(store, dice, *held.pop(dice.choice(list(held))))
            else:
                held |= {job.id: (hand, job) for job in await hand.claim(dice.randint(1, 4))}
            clock.advance(0.5)
            running = [job for _, job in held.values() if job.role is Role.ITEM]
            assert len(running) <= 4
            assert all(keys(running).count(key) <= 2 for key in KEYS)
            counts = [(await store.batch(batch)).counts for batch in outer]
            if not held and not any(each.pending + each.running for each in counts):
                break
        for batch in outer:
            await settled(store, batch)
        await nothing_is_held(store)


async def end_one(store: JobStore, dice: random.Random, hand: Hand, job: Job) -> None:
    if job.role is Role.INNER:
        await expand(store, hand, job, "".join(dice.choices(KEYS, k=3)))
        return
    how = dice.choice((Move.COMPLETE, Move.COMPLETE, Move.FAIL, Move.RETRY))
    assert await hand.hand_in(job, how, delay=0 if how is Move.RETRY else None)
