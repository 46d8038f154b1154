"""Limits: how many run at once, how often one starts, all together and per key."""

from __future__ import annotations

import random

import pytest

from haulier.domain.batch import BatchPolicy
from haulier.domain.event import LIMIT_CHANGED, LIMIT_DELETED
from haulier.domain.job import MICROSECOND, Job, JobState
from haulier.domain.limits import Limit, Rate
from haulier.domain.moves import Move
from haulier.exceptions import LimitNotFoundError
from haulier.ports import JobStore
from support import Hand, filled_batch, head, items, move, work, works

PUT_BACK = [Move.RETRY, Move.SNOOZE, Move.GIVE_BACK]
FREEING = [Move.COMPLETE, Move.FAIL, Move.CANCEL, *PUT_BACK]


async def limited(store: JobStore, name: str = "l", **fields: object) -> None:
    await store.limits().put(Limit(name=name, **fields), by="test")


def keyed(count: int, key: str, kind: str = "work", **fields: object) -> list:
    return works(count, kind, key=key, **fields)


def keys(jobs: list[Job]) -> list[str | None]:
    return [job.key for job in jobs]


class TestConcurrencyLimits:
    """Never more than it allows run at once, over all workers."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    @pytest.mark.parametrize("fields", [{}, {"kind": "work"}, {"queue": "default"}])
    async def test_as_many_run_as_it_allows(self, store, hand, fields):
        await limited(store, concurrency=3, **fields)
        await store.insert(works(10))
        other = await Hand.enlist(store)
        first = await hand.claim(2)
        assert len(first) == 2
        assert len(await other.claim(9)) == 1
        assert await other.claim(9) == await hand.claim(9) == []
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in first), slots=9)
        assert len(reply.jobs) == 2

    async def test_what_it_does_not_concern_goes_past_it(self, store):
        hand = await Hand.enlist(store, queues=("default", "side"), kinds=("work", "play"))
        await limited(store, concurrency=1, kind="work", queue="default")
        await store.insert([*works(50), *works(3, "play"), *works(3, queue="side")])
        jobs = await hand.claim(20)
        assert sorted((job.queue, job.kind) for job in jobs) == sorted(
            [("default", "work"), *[("default", "play")] * 3, *[("side", "work")] * 3]
        )

    async def test_each_key_has_its_own(self, store, hand):
        await limited(store, concurrency=2, per_key=True)
        await store.insert([*keyed(5, "a"), *keyed(5, "b"), *works(3)])
        jobs = await hand.claim(20)
        assert sorted(keys(jobs), key=str) == [None, None, None, "a", "a", "b", "b"]
        assert await hand.claim(20) == []
        freed = next(job for job in jobs if job.key == "b")
        reply = await hand.exchange(move(freed, Move.COMPLETE), slots=20)
        assert keys(list(reply.jobs)) == ["b"]

    async def test_of_several_the_narrowest_decides(self, store, hand):
        await limited(store, "all", concurrency=4)
        await limited(store, "key", concurrency=1, per_key=True)
        await store.insert([job for key in "abcdef" for job in keyed(2, key)])
        jobs = await hand.claim(20)
        assert len(set(keys(jobs))) == len(jobs) == 4
        reply = await hand.exchange(move(jobs[0], Move.COMPLETE), slots=20)
        assert len(reply.jobs) == 1
        assert reply.jobs[0].key not in keys(jobs[1:])

    async def test_a_key_is_one_over_queues_and_kinds(self, store):
        hand = await Hand.enlist(store, queues=("default", "side"), kinds=("work", "play"))
        await limited(store, concurrency=1, per_key=True)
        await store.insert([*keyed(2, "a"), *keyed(2, "a", "play"), *keyed(2, "a", queue="side")])
        seen = []
        for _ in range(6):
            job = await hand.claim_one()
            assert await hand.claim(9) == []
            seen.append((job.queue, job.kind))
            await hand.hand_in(job, Move.COMPLETE)
        assert len(set(seen)) == 3

    @pytest.mark.parametrize("how", FREEING)
    async def test_whatever_ends_a_run_frees_its_slot(self, store, hand, how):
        await limited(store, concurrency=1, per_key=True)
        await limited(store, "all", concurrency=1)
        await store.insert(keyed(2, "a"))
        job = await hand.claim_one()
        assert await hand.claim(9) == []
        assert await hand.hand_in(job, how, delay=60 if how in PUT_BACK else None)
        assert (await hand.claim_one()).id != job.id

    async def test_a_lost_worker_leaks_no_slot(self, store, hand, clock):
        await limited(store, concurrency=1, per_key=True)
        await limited(store, "all", concurrency=1)
        await store.insert(keyed(2, "a"))
        job = await hand.claim_one()
        await store.retire(hand.id)
        other = await Hand.enlist(store)
        again = await other.claim(9)
        assert len(again) == 1
        assert await other.hand_in(again[0], Move.COMPLETE)
        # What the lost one says late changes nothing.
        assert not await hand.hand_in(job, Move.COMPLETE)
        assert len(await other.claim(9)) == 1
        assert await other.claim(9) == []

    @pytest.mark.parametrize("seed", range(6))
    async def test_no_history_of_claims_and_ends_gets_past_them(self, store, clock, seed):
        dice = random.Random(seed)
        await limited(store, "all", concurrency=5)
        await limited(store, "key", concurrency=2, per_key=True)
        await limited(store, "kind", concurrency=3, kind="work")
        jobs = [work(dice.choice(["work", "play"]), key=dice.choice("abc")) for _ in range(60)]
        await store.insert(jobs)
        kinds = ("work", "play")
        hands = [await Hand.enlist(store, kinds=kinds) for _ in range(3)]
        held: dict[str, tuple[Hand, Job]] = {}
        ended = 0
        for _ in range(2000):
            if ended == len(jobs):
                break
            which = dice.randrange(len(hands))
            hand = hands[which]
            if dice.random() < 0.04:
                await store.retire(hand.id)
                held = {key: pair for key, pair in held.items() if pair[0] is not hand}
                hands[which] = await Hand.enlist(store, kinds=kinds)
            elif dice.random() < 0.04:
                if left := [job.id for job in jobs if job.id not in held]:
                    await store.cancel([dice.choice(left)])
            elif held and dice.random() < 0.5:
                owner, job = held.pop(dice.choice(list(held)))
                how = dice.choice(FREEING)
                assert await owner.hand_in(job, how, delay=0 if how in PUT_BACK else None)
            else:
                for job in await hand.claim(dice.randint(1, 5)):
                    held[job.id] = hand, job
            clock.advance(0.5)
            running = [job for _, job in held.values()]
            assert len(running) <= 5
            assert sum(job.kind == "work" for job in running) <= 3
            assert all(keys(running).count(key) <= 2 for key in "abc")
            counts = await store.counts()
            final = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)
            ended = sum(n for (*_, state), n in counts.items() if state in final)
        assert ended == len(jobs)
        for state in await store.limits().list():
            assert state.running == 0
        assert await store.limits().keys("key") == []

    async def test_heads_are_exempt_and_their_items_are_not(self, store, hand):
        await limited(store, concurrency=1)
        await store.insert([head(), head()])
        assert len(await hand.claim(9)) == 2
        await filled_batch(store, 3)
        assert len(await hand.claim(9)) == 1

    async def test_a_job_that_runs_alone_needs_a_slot_too(self, store, hand, clock):
        await limited(store, concurrency=1, per_key=True)
        (job,) = keyed(1, "a")
        await store.insert([job])
        for _ in range(2):
            worker = await Hand.enlist(store)
            await worker.claim_one()
            await store.retire(worker.id)
            clock.advance(10)
        await store.insert(keyed(1, "a"))
        other = await Hand.enlist(store)
        first = await hand.claim(1)
        assert len(first) == 1
        assert await other.claim(1) == []
        await hand.hand_in(first[0], Move.COMPLETE)
        assert len(await hand.claim(1)) == 1


class TestRates:
    """Starts per time, with a bucket for what may come at once."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    async def test_the_burst_then_one_by_one(self, store, hand, clock):
        await limited(store, rate=Rate(60, 60.0, burst=3))
        await store.insert(works(10))
        assert len(await hand.claim(9)) == 3
        reply = await hand.exchange(slots=9)
        assert reply.jobs == ()
        assert reply.due_in is not None
        assert 0 < reply.due_in <= MICROSECOND
        clock.advance(reply.due_in / MICROSECOND)
        assert len(await hand.claim(9)) == 1
        clock.advance(2.5)
        assert len(await hand.claim(9)) == 2
        clock.advance(3600)
        assert len(await hand.claim(9)) == 3

    async def test_per_key(self, store, hand, clock):
        await limited(store, rate=Rate(1, 10.0), per_key=True)
        await store.insert([*keyed(3, "a"), *keyed(3, "b")])
        assert sorted(keys(await hand.claim(9))) == ["a", "b"]
        reply = await hand.exchange(slots=9)
        assert reply.jobs == ()
        assert reply.due_in == 10 * MICROSECOND
        clock.advance(10)
        assert sorted(keys(await hand.claim(9))) == ["a", "b"]

    async def test_a_run_that_ends_gives_no_token_back(self, store, hand, clock):
        await limited(store, rate=Rate(1, 10.0), per_key=True)
        await store.insert(keyed(2, "a"))
        job = await hand.claim_one()
        assert await hand.hand_in(job, Move.GIVE_BACK)
        assert await hand.claim(9) == []
        clock.advance(10)
        assert (await hand.claim_one()).id == job.id

    async def test_over_a_long_time_the_rate_is_what_it_says(self, store, hand, clock):
        await limited(store, rate=Rate.parse("7/s"))
        await store.insert(works(200))
        started = 0
        for _ in range(100):
            started += len(await hand.claim(50))
            clock.advance(0.1)
        assert 70 <= started <= 70 + 7

    async def test_with_a_concurrency(self, store, hand, clock):
        await limited(store, "often", rate=Rate(5, 1.0), per_key=True)
        await limited(store, "many", concurrency=2, per_key=True)
        await store.insert(keyed(10, "a"))
        jobs = await hand.claim(9)
        assert len(jobs) == 2
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs), slots=9)
        assert len(reply.jobs) == 2
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in reply.jobs), slots=9)
        assert len(reply.jobs) == 1
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in reply.jobs), slots=9)
        assert reply.jobs == ()
        assert reply.due_in is not None
        clock.advance(0.2)
        assert len(await hand.claim(9)) == 1


class TestFairness:
    """Keys are served in turn."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    async def test_round_robin_over_keys(self, store, hand):
        await limited(store, concurrency=100, per_key=True)
        await store.insert([*keyed(50, "a"), *keyed(50, "b"), *keyed(50, "c")])
        jobs = await hand.claim(9)
        assert sorted(keys(jobs)) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
        assert sorted(keys(await hand.claim(3))) == ["a", "b", "c"]
        one_by_one = [(await hand.claim_one()).key for _ in range(6)]
        assert sorted(one_by_one[:3]) == sorted(one_by_one[3:]) == ["a", "b", "c"]

    async def test_a_fresh_key_waits_for_one_round_at_most(self, store, hand, clock):
        await limited(store, concurrency=100, per_key=True)
        await store.insert(keyed(2000, "old"))
        clock.advance(100)
        await hand.claim(5)
        await store.insert(keyed(3, "fresh"))
        assert "fresh" in keys(await hand.claim(2))

    async def test_within_a_key_the_order_is_that_of_its_jobs(self, store, hand):
        await limited(store, concurrency=1, per_key=True)
        jobs = keyed(5, "a")
        await store.insert(jobs)
        urgent = work(key="a", priority=10)
        await store.insert([urgent])
        order = []
        for _ in range(6):
            job = await hand.claim_one()
            order.append(job.id)
            await hand.hand_in(job, Move.COMPLETE)
        assert order == [urgent.id, *(job.id for job in jobs)]

    async def test_a_more_urgent_job_goes_before_the_turn(self, store, hand):
        await limited(store, concurrency=100, per_key=True)
        await store.insert([*keyed(5, "a"), *keyed(5, "b"), *keyed(2, "c", priority=10)])
        assert keys(await hand.claim(2)) == ["c", "c"]

    async def test_jobs_under_no_limit_do_not_starve_those_under_one(self, store):
        hand = await Hand.enlist(store, kinds=("work", "play"))
        await limited(store, concurrency=5, per_key=True, kind="work")
        both = [job for _ in range(50) for job in (*keyed(1, "a"), work("play"))]
        await store.insert(both)
        kinds = [job.kind for job in await hand.claim(10)]
        assert 3 <= kinds.count("work") <= 5
        assert len(kinds) == 10


class TestChanges:
    """Limits change while everything runs."""

    async def test_each_is_an_event_with_who_did_it(self, store):
        limits, before = store.limits(), await store.last_event()
        await limits.put(Limit(name="l", concurrency=5), by="Zoë")
        await limits.put(Limit(name="l", concurrency=5), by="nobody")
        await limits.put(Limit(name="l", concurrency=6), by="bob", declared=True)
        assert not await limits.drop("other", by="nobody")
        await limits.drop("l", by="eve")
        found = await store.events(after=before)
        assert [(e.type, e.setting, e.by) for e in found] == [
            (LIMIT_CHANGED, "l", "Zoë"),
            (LIMIT_CHANGED, "l", "bob"),
            (LIMIT_DELETED, "l", "eve"),
        ]
        assert {(e.job_id, e.kind, e.queue, e.error_type) for e in found} == {("", "", "", None)}
        assert not any((await store.counts()).values())

    async def test_one_that_comes_later_counts_what_runs_already(self, store, hand):
        await store.insert([*keyed(10, "a"), *keyed(10, "b")])
        running = await hand.claim(3)
        await limited(store, "all", concurrency=4)
        await limited(store, "key", concurrency=3, per_key=True)
        assert [state.running for state in await store.limits().list()] == [3, 0]
        first = await hand.claim(9)
        assert len(first) == 1
        for job in [*running, *first]:
            await hand.hand_in(job, Move.COMPLETE)
        assert [state.running for state in await store.limits().list()] == [0, 0]
        jobs = await hand.claim(9)
        assert len(jobs) == 4

    async def test_what_waited_before_is_held_by_it_and_keeps_its_order(self, store, hand):
        jobs = [*keyed(1500, "a"), *keyed(1500, "b")]
        await store.insert(jobs)
        await limited(store, concurrency=1, per_key=True)
        order = []
        for _ in range(20):
            claimed = await hand.claim(50)
            assert sorted(keys(claimed)) in (["a"], ["a", "b"])
            order += [job.id for job in claimed if job.key == "a"]
            await hand.exchange(*(move(job, Move.COMPLETE) for job in claimed))
        assert order == [job.id for job in jobs[: len(order)]]

    async def test_raised_it_lets_more_in_at_once(self, store, hand):
        await limited(store, concurrency=1, per_key=True)
        await limited(store, "all", concurrency=1)
        await store.insert(keyed(10, "a"))
        await hand.claim_one()
        await limited(store, concurrency=3, per_key=True)
        assert await hand.claim(9) == []
        await limited(store, "all", concurrency=5)
        assert len(await hand.claim(9)) == 2

    async def test_lowered_it_waits_until_fewer_run(self, store, hand):
        await limited(store, concurrency=3, per_key=True)
        await store.insert(keyed(10, "a"))
        jobs = await hand.claim(9)
        await limited(store, concurrency=1, per_key=True)
        assert await hand.hand_in(jobs[0], Move.COMPLETE)
        assert await hand.hand_in(jobs[1], Move.COMPLETE)
        assert await hand.claim(9) == []
        assert await hand.hand_in(jobs[2], Move.COMPLETE)
        assert len(await hand.claim(9)) == 1

    async def test_dropped_it_holds_nothing_back(self, store, hand):
        await limited(store, concurrency=1, per_key=True)
        await store.insert(keyed(10, "a"))
        job = await hand.claim_one()
        assert await store.limits().drop("l", by="test")
        assert not await store.limits().drop("l", by="test")
        assert len(await hand.claim(20)) == 9
        assert await hand.hand_in(job, Move.COMPLETE)
        await store.insert(keyed(3, "a"))
        assert len(await hand.claim(20)) == 3

    async def test_a_declared_one_does_not_undo_what_an_operator_did(self, store, clock):
        limits = store.limits()
        declared = Limit(name="l", concurrency=5)
        assert await limits.put(declared, by="app", declared=True)
        assert not await limits.put(declared, by="app", declared=True)
        (state,) = await limits.list()
        assert (state.limit, state.declared, state.changed_by) == (declared, True, "app")
        clock.advance(5)
        assert await limits.put(Limit(name="l", concurrency=9), by="operator")
        assert not await limits.put(declared, by="app", declared=True)
        (state,) = await limits.list()
        assert (state.limit.concurrency, state.declared, state.changed_by) == (9, False, "operator")
        assert state.changed_at == clock.now()
        assert await limits.put(Limit(name="l", concurrency=6), by="app", declared=True)
        ((state,)) = await limits.list()
        assert state.limit.concurrency == 6
        assert await limits.drop("l", by="operator")
        assert not await limits.put(Limit(name="l", concurrency=6), by="app", declared=True)
        assert await limits.list() == []

    async def test_the_same_again_changes_nothing(self, store):
        limits = store.limits()
        limit = Limit(name="l", rate=Rate(5, 60.0, burst=2), kind="work", per_key=True)
        assert await limits.put(limit, by="one")
        assert not await limits.put(limit, by="two")
        (state,) = await limits.list()
        assert (state.limit, state.changed_by) == (limit, "one")


class TestKeys:
    """What is told of keys."""

    async def test_only_those_that_have_something_to_tell(self, store, hand, clock):
        limits = store.limits()
        await limited(store, "many", concurrency=2, per_key=True)
        await limited(store, "often", rate=Rate(1, 10.0), per_key=True)
        await store.insert([job for key in "abc" for job in keyed(3, key)])
        jobs = await hand.claim(3)
        assert [(state.key, state.running) for state in await limits.keys("many")] == [
            ("a", 1),
            ("b", 1),
            ("c", 1),
        ]
        often = await limits.keys("often")
        assert [state.ready_at for state in often] == [clock.now() + 10 * MICROSECOND] * 3
        assert [state.key for state in await limits.keys("many", limit=2)] == ["a", "b"]
        assert [state.key for state in await limits.keys("many", cursor="b")] == ["c"]
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
        assert await limits.keys("many") == []
        clock.advance(60)
        assert await limits.keys("often") == []

    async def test_of_a_limit_that_is_not_there(self, store):
        with pytest.raises(LimitNotFoundError):
            await store.limits().keys("none")

    async def test_jobs_without_room_say_that_they_are_parked(self, store, hand):
        await limited(store, concurrency=1, per_key=True)
        jobs = keyed(2, "a")
        await store.insert(jobs)
        assert not (await store.get(jobs[1].id)).parked
        job = await hand.claim_one()
        await hand.claim(9)
        assert (await store.get(jobs[1].id)).parked
        await hand.hand_in(job, Move.COMPLETE)
        assert not (await store.get(jobs[1].id)).parked


class TestBatchesUnderLimits:
    """Batches that are limited or paused, of jobs that are limited."""

    async def test_both_hold(self, store, hand):
        await limited(store, concurrency=1, per_key=True, kind="work")
        top = head()
        each = [
            job._replace(key=key)
            for job, key in zip(items(top.id, 12), "aaaabbbbcccc", strict=True)
        ]
        await store.open_batch(top, each, policy=BatchPolicy(concurrency=2), sealed=True)
        done = 0
        while jobs := await hand.claim(9):
            assert len(jobs) <= 2
            assert len(set(keys(jobs))) == len(jobs)
            await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
            done += len(jobs)
        assert done == 12

    async def test_a_key_without_room_does_not_hold_up_its_batch(self, store, hand):
        await limited(store, concurrency=1, per_key=True, kind="work")
        top = head()
        each = [
            job._replace(key="a" if place < 40 else f"k{place}")
            for place, job in enumerate(items(top.id, 50))
        ]
        await store.open_batch(top, each, policy=BatchPolicy(concurrency=5), sealed=True)
        assert len(await hand.claim(9)) == 5

    async def test_paused_and_resumed(self, store, hand):
        await limited(store, concurrency=1, per_key=True, kind="work")
        top = head()
        each = [job._replace(key="a") for job in items(top.id, 4)]
        await store.open_batch(top, each, sealed=True)
        job = await hand.claim_one()
        await store.pause(top.id)
        assert await hand.hand_in(job, Move.COMPLETE)
        assert await hand.claim(9) == []
        other = keyed(1, "a")
        await store.insert(other)
        (outside,) = await hand.claim(9)
        assert outside.id == other[0].id
        await store.resume(top.id)
        assert await hand.claim(9) == []
        assert await hand.hand_in(outside, Move.COMPLETE)
        assert await hand.work_off(slots=1) == 3
        assert (await store.batch(top.id)).state is JobState.COMPLETED
