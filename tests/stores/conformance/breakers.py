"""Circuit breakers: the jobs of a key wait while what they all need is broken.

What a breaker has counted is forgotten in halves of its window at least: what ended less than half
a window ago counts, what ended a whole window ago does not.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from haulier.domain.event import BREAKER_RESET
from haulier.domain.job import MICROSECOND, Job, JobState, OnLost
from haulier.domain.limits import Breaker, Circuit, KeyState, Limit
from haulier.domain.moves import Move
from haulier.exceptions import JobStateError, LimitNotFoundError
from haulier.ports import JobStore
from support import Hand, head, move, work, works

PAUSE = 30
BREAKER = Breaker(failures=0.5, least=4, window=1000.0, pause=PAUSE)
UNCOUNTED = [Move.SNOOZE, Move.GIVE_BACK, Move.CANCEL]
LATER = {Move.SNOOZE: 0.5, Move.GIVE_BACK: 0.5, Move.RETRY: 0.5}
"""Seconds until what is put back is ready again; the tests wait for less or for more."""


async def broken_by(
    store: JobStore,
    breaker: Breaker = BREAKER,
    *,
    name: str = "b",
    kind: str | None = None,
    **changes: object,
) -> Breaker:
    """Put a breaker into the store; returns it as it was put."""
    breaker = replace(breaker, **changes)
    await store.limits().put(Limit(name=name, breaker=breaker, per_key=True, kind=kind), by="test")
    return breaker


async def ended(
    store: JobStore, hand: Hand, how: Move, count: int = 1, *, key: str = "a", kind: str = "work"
) -> None:
    """New jobs of a key that run and end so, one after the other."""
    for job in works(count, kind, key=key, priority=10):
        await store.insert([job])
        claimed = await hand.claim_one()
        assert claimed.id == job.id
        assert await hand.hand_in(claimed, how, delay=LATER.get(how))


async def state_of(store: JobStore, key: str = "a", name: str = "b") -> KeyState | None:
    return {state.key: state for state in await store.limits().keys(name)}.get(key)


async def circuit_of(store: JobStore, key: str = "a", name: str = "b") -> Circuit | None:
    state = await state_of(store, key, name)
    return state.circuit if state else None


class TestBreakerOpens:
    """When of enough attempts too many failed, and not before."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    @pytest.mark.parametrize("how", [Move.FAIL, Move.RETRY])
    async def test_by_the_share_of_failures(self, store, hand, how):
        await broken_by(store)
        await ended(store, hand, Move.COMPLETE, 2)
        await store.insert(works(2, key="a"))
        for _ in range(2):
            job = await hand.claim_one()
            assert await hand.hand_in(job, how, delay=LATER.get(how))
        await store.insert(works(3, key="a"))
        assert await hand.claim(9) == []

    async def test_not_below_it(self, store, hand):
        await broken_by(store)
        await ended(store, hand, Move.COMPLETE, 6)
        await ended(store, hand, Move.FAIL, 5)
        await store.insert(works(3, key="a"))
        assert len(await hand.claim(9)) == 3

    async def test_not_by_fewer_than_least(self, store, hand):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 3)
        await store.insert(works(3, key="a"))
        assert len(await hand.claim(9)) == 3
        assert await circuit_of(store) is Circuit.CLOSED

    async def test_by_a_success_too_if_it_makes_them_enough(self, store, hand):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 3)
        await ended(store, hand, Move.COMPLETE)
        await store.insert(works(3, key="a"))
        assert await hand.claim(9) == []

    async def test_by_all_of_one_exchange_together(self, store, hand):
        await broken_by(store)
        await store.insert(works(9, key="a"))
        jobs = await hand.claim(4)
        reply = await hand.exchange(*(move(job, Move.FAIL) for job in jobs), slots=9)
        assert reply.jobs == ()
        assert await circuit_of(store) is Circuit.OPEN

    async def test_what_ended_a_whole_window_ago_is_forgotten(self, store, hand, clock):
        await broken_by(store, window=60.0)
        await ended(store, hand, Move.FAIL, 3)
        clock.advance(60)
        assert await state_of(store) is None
        await ended(store, hand, Move.FAIL, 3)
        await store.insert(works(3, key="a"))
        assert len(await hand.claim(9)) == 3

    async def test_what_ended_less_than_half_a_window_ago_counts(self, store, hand, clock):
        await broken_by(store, window=60.0)
        for _ in range(4):
            await ended(store, hand, Move.FAIL)
            clock.advance(9)
        await store.insert(works(3, key="a"))
        assert await hand.claim(9) == []

    async def test_a_steady_trickle_of_failures_never_adds_up(self, store, hand, clock):
        await broken_by(store, window=60.0)
        for _ in range(20):
            await ended(store, hand, Move.FAIL)
            clock.advance(21)
        assert await circuit_of(store) is Circuit.CLOSED

    @pytest.mark.parametrize("how", UNCOUNTED)
    async def test_some_ends_do_not_count(self, store, hand, how):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 3)
        await ended(store, hand, how, 5)
        state = await state_of(store)
        assert (state.circuit, state.succeeded, state.failed) == (Circuit.CLOSED, 0, 3)

    @pytest.mark.parametrize("on_lost", OnLost)
    async def test_a_lost_worker_does_not_count_either(self, store, hand, on_lost):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 3)
        other = await Hand.enlist(store)
        await store.insert(works(3, key="a", on_lost=on_lost))
        jobs = await other.claim(3)
        assert len(jobs) == 3
        await store.retire(other.id)
        # Nor what it says when it is too late.
        for job in jobs:
            assert not await other.hand_in(job, Move.FAIL)
        state = await state_of(store)
        assert (state.circuit, state.failed, state.running) == (Circuit.CLOSED, 3, 0)

    async def test_a_retry_that_a_cancel_turned_into_its_end_does_not_count(self, store, hand):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 3)
        await store.insert(works(1, key="a"))
        job = await hand.claim_one()
        await store.cancel([job.id])
        assert await hand.hand_in(job, Move.RETRY, delay=LATER[Move.RETRY])
        assert (await store.get(job.id)).state is JobState.CANCELLED
        state = await state_of(store)
        assert (state.circuit, state.failed, state.running) == (Circuit.CLOSED, 3, 0)

    async def test_heads_are_exempt(self, store, hand):
        await broken_by(store)
        for _ in range(5):
            await store.insert([head(key="a")])
            await hand.hand_in(await hand.claim_one(), Move.FAIL)
        assert await state_of(store) is None
        await ended(store, hand, Move.FAIL, 4)
        await store.insert([head(key="a"), *works(2, key="a")])
        assert [job.kind for job in await hand.claim(9)] == ["bulk"]


class TestBreakerOpen:
    """Jobs of the key wait for the pause, and nobody else does."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    async def test_its_jobs_wait_without_burning_attempts(self, store, hand, clock):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        waiting = works(3, key="a")
        await store.insert(waiting)
        for _ in range(5):
            assert await hand.claim(9) == []
            clock.advance(PAUSE / 6)
        for job in waiting:
            seen = await store.get(job.id)
            assert (seen.state, seen.attempt, seen.lease) == (JobState.PENDING, 0, 0)
            assert seen.parked

    async def test_other_keys_and_jobs_without_one_go_on(self, store, hand):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        await store.insert([*works(50, key="a"), *works(2, key="b"), *works(2)])
        jobs = await hand.claim(9)
        assert sorted((job.key for job in jobs), key=str) == [None, None, "b", "b"]

    async def test_other_kinds_of_the_key_go_on_if_it_is_of_one(self, store):
        hand = await Hand.enlist(store, kinds=("work", "play"))
        await broken_by(store, kind="work")
        await ended(store, hand, Move.FAIL, 9, kind="play")
        assert await state_of(store) is None
        await ended(store, hand, Move.FAIL, 4)
        await store.insert([*works(3, key="a"), *works(3, "play", key="a")])
        assert [job.kind for job in await hand.claim(9)] == ["play"] * 3

    async def test_all_kinds_of_the_key_wait_if_it_is_of_all(self, store):
        hand = await Hand.enlist(store, kinds=("work", "play"))
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 2)
        await ended(store, hand, Move.FAIL, 2, kind="play")
        await store.insert([*works(3, key="a"), *works(3, "play", key="a"), *works(1, key="b")])
        assert [job.key for job in await hand.claim(9)] == ["b"]

    async def test_the_reply_tells_how_long(self, store, hand, clock):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        await store.insert(works(3, key="a"))
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), PAUSE * MICROSECOND)
        clock.advance(PAUSE - 10)
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), 10 * MICROSECOND)
        clock.advance(10)
        assert len(await hand.claim(9)) == 1

    async def test_what_ran_already_changes_nothing_while_it_is_open(self, store, hand, clock):
        await broken_by(store)
        await store.insert(works(12, key="a"))
        jobs = await hand.claim(8)
        await hand.exchange(*(move(job, Move.FAIL) for job in jobs[:4]))
        clock.advance(PAUSE / 2)
        assert await hand.hand_in(jobs[4], Move.COMPLETE)
        assert await hand.hand_in(jobs[5], Move.FAIL)
        assert await hand.hand_in(jobs[6], Move.RETRY, delay=PAUSE * 2)
        assert await hand.hand_in(jobs[7], Move.GIVE_BACK)
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), PAUSE // 2 * MICROSECOND)

    async def test_new_jobs_of_the_key_wait_too(self, store, hand, clock):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        assert await hand.claim(9) == []
        await store.insert(works(3, key="a", priority=10))
        assert await hand.claim(9) == []

    async def test_a_job_that_runs_alone_waits_too(self, store, hand, clock):
        await broken_by(store)
        await store.insert(works(1, key="a"))
        for _ in range(2):
            worker = await Hand.enlist(store)
            await worker.claim_one()
            await store.retire(worker.id)
        # It is due a second later only.
        await ended(store, hand, Move.FAIL, 4)
        clock.advance(5)
        other = await Hand.enlist(store)
        assert await other.claim(1) == []
        clock.advance(PAUSE)
        assert len(await other.claim(1)) == 1

    async def test_two_on_one_job_must_both_be_closed(self, store, hand, clock):
        await broken_by(store, name="short")
        await broken_by(store, name="long", pause=PAUSE * 3, least=5)
        await store.insert(works(9, key="a"))
        jobs = await hand.claim(5)
        reply = await hand.exchange(*(move(job, Move.FAIL) for job in jobs), slots=9)
        assert reply.jobs == ()
        clock.advance(PAUSE)
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), PAUSE * 2 * MICROSECOND)
        clock.advance(PAUSE * 2)
        job = await hand.claim_one()
        assert await hand.claim(9) == []
        await hand.hand_in(job, Move.COMPLETE)
        assert len(await hand.claim(9)) == 3

    async def test_with_a_concurrency_of_the_key(self, store, hand, clock):
        await store.limits().put(Limit(name="c", concurrency=2, per_key=True), by="test")
        await broken_by(store, probes=5)
        await store.insert(works(12, key="a"))
        for _ in range(2):
            jobs = await hand.claim(9)
            assert len(jobs) == 2
            await hand.exchange(*(move(job, Move.FAIL) for job in jobs))
        assert await hand.claim(9) == []
        clock.advance(PAUSE)
        assert len(await hand.claim(9)) == 2


class TestBreakerHalfOpen:
    """After the pause few may try it."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    @pytest.fixture(params=[1, 3])
    async def probing(self, request, store, hand, clock) -> list[Job]:
        """The probes that run; ten more jobs wait."""
        probes: int = request.param
        await broken_by(store, probes=probes)
        await ended(store, hand, Move.FAIL, 4)
        await store.insert(works(10 + probes, key="a"))
        assert await hand.claim(9) == []
        clock.advance(PAUSE)
        jobs = await hand.claim(9)
        assert len(jobs) == probes
        assert await circuit_of(store) is Circuit.HALF_OPEN
        return jobs

    async def test_only_so_many_run_however_long(self, hand, probing, clock):
        clock.advance(PAUSE * 5)
        assert await hand.claim(9) == []

    async def test_one_success_closes_it(self, store, hand, probing):
        assert await hand.hand_in(probing[0], Move.COMPLETE)
        assert len(await hand.claim(20)) == 10
        assert await circuit_of(store) is Circuit.CLOSED

    async def test_closed_it_has_forgotten_all(self, store, hand, probing):
        assert await hand.hand_in(probing[0], Move.COMPLETE)
        for _ in range(3):
            assert await hand.hand_in(await hand.claim_one(), Move.FAIL)
        assert await circuit_of(store) is Circuit.CLOSED
        assert len(await hand.claim(20)) == 7

    @pytest.mark.parametrize("how", [Move.FAIL, Move.RETRY])
    async def test_one_failure_opens_it_again(self, store, hand, probing, clock, how):
        clock.advance(7)
        delay = PAUSE * 2 if how in LATER else None
        assert await hand.hand_in(probing[0], how, delay=delay)
        assert await circuit_of(store) is Circuit.OPEN
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), PAUSE * MICROSECOND)
        for job in probing[1:]:
            assert await hand.hand_in(job, Move.GIVE_BACK)
        clock.advance(PAUSE)
        assert len(await hand.claim(9)) == len(probing)

    @pytest.mark.parametrize("how", UNCOUNTED)
    async def test_what_does_not_count_lets_another_one_try(self, store, hand, probing, how):
        assert await hand.hand_in(probing[0], how, delay=LATER.get(how))
        assert await circuit_of(store) is Circuit.HALF_OPEN
        assert len(await hand.claim(9)) == 1

    async def test_a_lost_probe_lets_another_one_try(self, store, hand, probing):
        await store.retire(hand.id)
        other = await Hand.enlist(store)
        assert len(await other.claim(9)) == len(probing)
        assert await circuit_of(store) is Circuit.HALF_OPEN

    async def test_on_and_on_while_it_is_broken(self, store, hand, clock):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        waiting = works(6, key="a")
        await store.insert(waiting)
        for job in waiting[:5]:
            assert await hand.claim(9) == []
            clock.advance(PAUSE)
            (probe,) = await hand.claim(9)
            assert probe.id == job.id
            assert await hand.hand_in(probe, Move.FAIL)
        clock.advance(PAUSE)
        (probe,) = await hand.claim(9)
        assert (probe.id, probe.attempt) == (waiting[5].id, 1)


class TestBreakerState:
    """What people see of a breaker, and what they do about it."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    async def test_keys_tell_how_it_stands(self, store, hand, clock):
        limits = store.limits()
        await broken_by(store)
        await ended(store, hand, Move.COMPLETE, 3, key="good")
        await ended(store, hand, Move.FAIL, 4, key="bad")
        await store.insert([*works(1, key="runs"), *works(2, key="bad")])
        await hand.claim(9)
        bad, good, runs = await limits.keys("b")
        assert bad == KeyState(
            key="bad",
            ready_at=clock.now() + PAUSE * MICROSECOND,
            circuit=Circuit.OPEN,
            failed=bad.failed,
        )
        assert good == KeyState(key="good", circuit=Circuit.CLOSED, succeeded=3)
        assert runs == KeyState(key="runs", circuit=Circuit.CLOSED, running=1)
        assert [state.key for state in await limits.keys("b", limit=1)] == ["bad"]
        assert [state.key for state in await limits.keys("b", cursor="bad")] == ["good", "runs"]
        clock.advance(PAUSE)
        await hand.claim_one()
        probing = await state_of(store, "bad")
        assert (probing.circuit, probing.running, probing.ready_at) == (Circuit.HALF_OPEN, 1, None)

    async def test_an_open_one_is_told_of_beyond_its_window(self, store, hand, clock):
        await broken_by(store, window=10.0, pause=3600.0)
        await ended(store, hand, Move.FAIL, 4)
        clock.advance(600)
        assert await circuit_of(store) is Circuit.OPEN
        await store.insert(works(1, key="a"))
        assert await hand.claim(9) == []

    async def test_one_that_nothing_probes_is_forgotten_after_a_week(self, store, hand, clock):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        clock.advance(PAUSE + 7 * 86_400 - 1)
        await store.sweep()
        assert await circuit_of(store) is Circuit.HALF_OPEN
        clock.advance(2)
        await store.sweep()
        await store.insert(works(3, key="a"))
        hand = await Hand.enlist(store)
        assert len(await hand.claim(9)) == 3
        assert await circuit_of(store) is Circuit.CLOSED

    async def test_reset_lets_its_jobs_go_at_once(self, store, hand, clock):
        limits = store.limits()
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        await ended(store, hand, Move.FAIL, 4, key="b")
        await store.insert([*works(3, key="a"), *works(3, key="b")])
        assert await hand.claim(9) == []
        assert await limits.reset("b", "a", by="operator")
        assert await state_of(store) is None
        assert [job.key for job in await hand.claim(9)] == ["a"] * 3
        assert await circuit_of(store) is Circuit.CLOSED

    async def test_reset_while_it_is_half_open(self, store, hand, clock):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        await store.insert(works(5, key="a"))
        clock.advance(PAUSE)
        probe = await hand.claim_one()
        assert await hand.claim(9) == []
        assert await store.limits().reset("b", "a", by="operator")
        assert len(await hand.claim(9)) == 4
        assert await hand.hand_in(probe, Move.FAIL)
        state = await state_of(store)
        assert (state.circuit, state.failed, state.running) == (Circuit.CLOSED, 1, 4)

    async def test_reset_forgets_what_a_closed_one_counted(self, store, hand):
        limits = store.limits()
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 3)
        before = await store.last_event()
        assert await limits.reset("b", "a", by="operator")
        assert not await limits.reset("b", "a", by="operator")
        assert not await limits.reset("b", "other", by="operator")
        (event,) = await store.events(after=before)
        assert (event.type, event.setting, event.by) == (BREAKER_RESET, "b a", "operator")
        await ended(store, hand, Move.FAIL, 3)
        assert await circuit_of(store) is Circuit.CLOSED

    async def test_reset_of_what_is_no_breaker(self, store):
        limits = store.limits()
        with pytest.raises(LimitNotFoundError):
            await limits.reset("none", "a", by="operator")
        await limits.put(Limit(name="c", concurrency=1, per_key=True), by="test")
        with pytest.raises(JobStateError):
            await limits.reset("c", "a", by="operator")

    async def test_a_store_tells_its_breakers_as_they_were_put(self, store):
        breaker = await broken_by(store, failures=0.25, probes=2, window=1.5)
        (state,) = await store.limits().list()
        assert state.limit == Limit(name="b", breaker=breaker, per_key=True)

    async def test_changed_while_it_is_open_it_stays_open(self, store, hand, clock):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        await store.insert(works(9, key="a"))
        assert await hand.claim(9) == []
        await broken_by(store, probes=3, least=20)
        reply = await hand.exchange(slots=9)
        assert (reply.jobs, reply.due_in) == ((), PAUSE * MICROSECOND)
        clock.advance(PAUSE)
        assert len(await hand.claim(9)) == 3

    async def test_dropped_while_it_is_open_it_lets_all_go(self, store, hand):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        await store.insert(works(3, key="a"))
        assert await hand.claim(9) == []
        assert await store.limits().drop("b", by="test")
        assert len(await hand.claim(9)) == 3

    async def test_put_again_it_begins_anew(self, store, hand):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        await store.limits().drop("b", by="test")
        await broken_by(store)
        assert await state_of(store) is None
        await store.insert(works(3, key="a"))
        assert len(await hand.claim(9)) == 3

    async def test_another_sort_of_limit_in_its_place(self, store, hand):
        await broken_by(store)
        await ended(store, hand, Move.FAIL, 4)
        await store.insert(works(3, key="a"))
        assert await hand.claim(9) == []
        await store.limits().put(Limit(name="b", concurrency=2, per_key=True), by="test")
        assert len(await hand.claim(9)) == 2

    @pytest.mark.parametrize("seed", range(4))
    async def test_no_history_of_ends_gets_past_it(self, store, hand, clock, seed):
        """Against a model that counts in plain Python, without forgetting: the window is long."""
        dice = random.Random(seed)
        breaker = await broken_by(store, window=1e7, pause=5.0, probes=2)
        await store.insert([work(key=dice.choice("abc")) for _ in range(120)])
        model = {key: _Model(breaker) for key in "abc"}
        held: list[Job] = []
        for _ in range(400):
            now = clock.now()
            if held and dice.random() < 0.6:
                job = held.pop(dice.randrange(len(held)))
                how = dice.choice([Move.COMPLETE, Move.FAIL, Move.RETRY, Move.GIVE_BACK])
                assert await hand.hand_in(job, how, delay=0)
                if model[job.key].ended(how, now):
                    # What still runs of it might end when it is half-open: of that nothing is said.
                    late = [other for other in held if other.key == job.key]
                    held = [other for other in held if other.key != job.key]
                    await hand.exchange(*(move(other, Move.GIVE_BACK) for other in late))
            else:
                for job in await hand.claim(dice.randint(1, 4)):
                    held.append(job)
                    assert model[job.key].may_run(sum(job.key == j.key for j in held), now), job.key
            told = {state.key: state.circuit for state in await store.limits().keys("b")}
            for key in {job.key for job in held}:
                assert told[key] is model[key].circuit(clock.now())
            clock.advance(0.5)
        ends = [model[key].opened for key in "abc"]
        assert sum(ends) > 5, "too few openings to show anything"


class _Model:
    """A breaker of one key that forgets nothing."""

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.until: int | None = None
        self.succeeded = self.failed = self.opened = 0

    def circuit(self, now: int) -> Circuit:
        if self.until is None:
            return Circuit.CLOSED
        return Circuit.OPEN if now < self.until else Circuit.HALF_OPEN

    def may_run(self, running: int, now: int) -> bool:
        circuit = self.circuit(now)
        if circuit is Circuit.HALF_OPEN:
            return running <= self.breaker.probes
        return circuit is Circuit.CLOSED

    def ended(self, how: Move, now: int) -> bool:
        """Count it; whether that opened the breaker."""
        if how is Move.GIVE_BACK or (circuit := self.circuit(now)) is Circuit.OPEN:
            return False
        failed = how in (Move.FAIL, Move.RETRY)
        if circuit is Circuit.HALF_OPEN and not failed:
            self.until = None
            self.succeeded = self.failed = 0
            return False
        self.succeeded += not failed
        self.failed += failed
        total = self.succeeded + self.failed
        if circuit is Circuit.CLOSED and (
            total < self.breaker.least or self.failed < self.breaker.failures * total
        ):
            return False
        self.until = now + round(self.breaker.pause * MICROSECOND)
        self.opened += 1
        return True
