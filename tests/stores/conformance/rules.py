"""A walk over `RULES`: every move from every state, applied or refused, with all its effects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from haulier.domain.job import Job, JobState, Role
from haulier.domain.moves import MAX_LOST, RULES, Move
from haulier.domain.worker import Note
from haulier.exceptions import JobStateError
from haulier.ports import Fence, JobStore
from support import Hand, StoreTime, filled_batch, head, items, move, work

BY_WORKER = {how for how, rule in RULES.items() if rule.fenced} - {Move.HAND_OVER}
BY_LOSS = {Move.LOSE, Move.LOSE_LAST}
BY_ANYONE = {Move.CLAIM, Move.DROP, Move.REQUEUE}
OF_HEADS = {Move.HAND_OVER, Move.SETTLE, Move.ABANDON, Move.GIVE_UP, Move.REOPEN}
STATES = tuple(JobState)


def sorted_moves(moves: set[Move]) -> list[Move]:
    return [how for how in Move if how in moves]


@dataclass
class Walker:
    """Brings one job to a state and tries a move on it."""

    store: JobStore
    clock: StoreTime
    hand: Hand
    claimed: Job

    @classmethod
    async def start(cls, store: JobStore, clock: StoreTime, role: Role, losses: int = 0) -> Walker:
        """A job that a worker has claimed, after so many workers were lost with it."""
        if role is Role.ITEM:
            await filled_batch(store, 1, sealed=False)
        else:
            await store.insert([work()])
        for _ in range(losses):
            doomed = await Hand.enlist(store)
            await doomed.claim_one()
            await store.retire(doomed.id)
            clock.advance(100)
        hand = await Hand.enlist(store)
        return cls(store, clock, hand, await hand.claim_one())

    async def go(self, state: JobState) -> None:
        """From running, where it starts, to the given state."""
        way = {
            JobState.PENDING: Move.GIVE_BACK,
            JobState.COMPLETED: Move.COMPLETE,
            JobState.FAILED: Move.FAIL,
            JobState.CANCELLED: Move.CANCEL,
        }
        if state is not JobState.RUNNING:
            assert await self.hand.hand_in(self.claimed, way[state])
        self.clock.advance(1)

    async def attempt(self, how: Move) -> bool:
        """Try the move by the verb that makes it; whether the store says that it was applied."""
        job_id = self.claimed.id
        before = (await self.job()).state
        match how:
            case Move.CLAIM:
                return bool(await self.hand.claim(1))
            case Move.LOSE | Move.LOSE_LAST:
                return await self.store.retire(self.hand.id) == 1
            case Move.DROP:
                return (await self.store.cancel([job_id]))[job_id] is not before
            case Move.REQUEUE:
                return (await self.store.requeue([job_id]))[job_id] is not before
            case _:
                return await self.hand.hand_in(self.claimed, how)

    async def job(self) -> Job:
        return await self.store.get(self.claimed.id)

    async def counters(self) -> tuple[Counter, Counter]:
        """How many jobs are in each state: of this role, and in the batch."""
        everywhere = Counter(
            {
                state: n
                for (_, _, role, state), n in (await self.store.counts()).items()
                if role is self.claimed.role
            }
        )
        if self.claimed.batch_id is None:
            return everywhere, Counter()
        counts = (await self.store.batch(self.claimed.batch_id)).counts
        assert counts.total == 1
        in_batch = {state: getattr(counts, state) for state in STATES if getattr(counts, state)}
        return everywhere, Counter(in_batch)


@dataclass(frozen=True)
class Expected:
    """What of a job a rule speaks about."""

    state: JobState
    attempt: int
    lease: int
    lost: int
    worker: str | None
    finished: bool
    cancel_requested: bool

    @classmethod
    def of(cls, job: Job) -> Expected:
        return cls(
            job.state,
            job.attempt,
            job.lease,
            job.lost,
            job.worker,
            job.finished_at is not None,
            job.cancel_requested,
        )

    @classmethod
    def after(cls, how: Move, job: Job, worker: str) -> Expected:
        rule = RULES[how]
        return cls(
            state=rule.target,
            attempt=rule.attempt if rule.resets else job.attempt + rule.attempt,
            lease=job.lease + rule.lease,
            lost=0 if rule.resets else job.lost + rule.lost,
            worker=worker if how is Move.CLAIM else None,
            finished=rule.target.final,
            cancel_requested=False,
        )


class TestRules:
    """Single jobs and items."""

    def test_every_move_is_walked(self):
        assert BY_WORKER | BY_LOSS | BY_ANYONE | OF_HEADS == set(RULES) == set(Move)

    @pytest.mark.parametrize("role", [Role.SINGLE, Role.ITEM])
    @pytest.mark.parametrize("state", STATES)
    @pytest.mark.parametrize("how", sorted_moves(BY_WORKER | BY_LOSS | BY_ANYONE))
    async def test_a_move_is_applied_from_its_sources_alone_and_does_what_its_rule_says(
        self, store, clock, how, state, role
    ):
        losses = MAX_LOST - 1 if how is Move.LOSE_LAST else 0
        walker = await Walker.start(store, clock, role, losses)
        await walker.go(state)
        before = await walker.job()
        everywhere, in_batch = await walker.counters()

        applied = await walker.attempt(how)

        after = await walker.job()
        allowed = state in RULES[how].sources
        assert applied == allowed
        if allowed:
            assert Expected.of(after) == Expected.after(how, before, walker.hand.id)
            change = Counter({RULES[how].target: 1, state: -1})
        else:
            told = how is Move.DROP and state is JobState.RUNNING
            assert after == before._replace(cancel_requested=told)
            change = Counter()
        now_everywhere, now_in_batch = await walker.counters()
        everywhere.update(change)
        assert now_everywhere == everywhere
        if role is Role.ITEM:
            in_batch.update(change)
            assert now_in_batch == in_batch

    @pytest.mark.parametrize("role", [Role.SINGLE, Role.ITEM])
    @pytest.mark.parametrize("how", sorted_moves(BY_WORKER | BY_LOSS))
    async def test_a_requested_cancel_beats_the_moves_that_yield_to_it_and_no_others(
        self, store, clock, how, role
    ):
        losses = MAX_LOST - 1 if how is Move.LOSE_LAST else 0
        walker = await Walker.start(store, clock, role, losses)
        await store.cancel([walker.claimed.id])
        before = await walker.job()
        clock.advance(1)

        assert await walker.attempt(how)

        done = Move.CANCEL if RULES[how].yields_to_cancel else how
        after = await walker.job()
        assert Expected.of(after) == Expected.after(done, before, walker.hand.id)
        everywhere, in_batch = await walker.counters()
        assert everywhere == {after.state: 1}
        if role is Role.ITEM:
            assert in_batch == {after.state: 1}

    async def test_a_claim_says_who_runs_the_job_since_when_and_forgets_old_progress(
        self, store, hand, clock
    ):
        await store.insert([work()])
        first = await hand.claim_one()
        assert (first.worker, first.started_at, first.attempt, first.lease) == (
            hand.id,
            clock.now(),
            1,
            1,
        )
        await store.note([Note(first.id, first.lease, 70, "nearly")])
        await hand.hand_in(first, Move.RETRY, delay=0)
        again = await hand.claim_one()
        assert (again.attempt, again.lease, again.progress, again.message) == (2, 2, None, None)

    async def test_a_completion_keeps_the_result_and_drops_the_errors_of_earlier_attempts(
        self, store, hand, clock
    ):
        await store.insert([work()])
        await hand.hand_in(await hand.claim_one(), Move.RETRY, delay=0)
        second = await hand.claim_one()
        assert second.error.type == "Boom"
        await hand.hand_in(second, Move.COMPLETE)
        done = await store.get(second.id)
        assert (done.value, done.error, done.finished_at) == ({"ok": True}, None, clock.now())

    async def test_a_failure_keeps_its_error_with_the_time_and_the_attempt(
        self, store, hand, clock
    ):
        await store.insert([work()])
        job = await hand.claim_one()
        await hand.hand_in(job, Move.FAIL)
        error = (await store.get(job.id)).error
        assert (error.type, error.message, error.attempt, error.at) == (
            "Boom",
            "it broke",
            1,
            clock.now(),
        )


class TestHeadRules:
    """Heads: the moves that only they make."""

    async def expanding(self, store, hand) -> tuple[Job, Job]:
        """A head that the worker runs, and its only item, running too."""
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 1), fence=Fence(held.id, held.lease))
        return held, await hand.claim_one()

    async def bring(self, store, hand, state) -> tuple[Job, Job]:
        way = {
            JobState.PENDING: Move.GIVE_BACK,
            JobState.RUNNING: Move.HAND_OVER,
            JobState.FAILED: Move.FAIL,
            JobState.CANCELLED: Move.CANCEL,
        }
        held, item = await self.expanding(store, hand)
        assert await hand.hand_in(held, way[state])
        return held, item

    @pytest.mark.parametrize("state", [s for s in STATES if s is not JobState.RUNNING])
    async def test_only_a_running_head_can_hand_over(self, store, hand, state):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        way = {
            JobState.PENDING: Move.GIVE_BACK,
            JobState.COMPLETED: Move.HAND_OVER,
            JobState.FAILED: Move.FAIL,
            JobState.CANCELLED: Move.CANCEL,
        }
        await hand.hand_in(held, way[state])
        before = await store.get(top.id)
        assert before.state is state
        assert not await hand.hand_in(held, Move.HAND_OVER)
        assert await store.get(top.id) == before

    async def test_a_head_that_hands_over_waits_without_worker_under_a_new_lease(self, store, hand):
        held, _ = await self.expanding(store, hand)
        assert await hand.hand_in(held, Move.HAND_OVER)
        waiting = await store.get(held.id)
        assert Expected.of(waiting) == Expected.after(Move.HAND_OVER, held, hand.id)
        assert (await store.batch(held.id)).sealed
        assert not await hand.hand_in(held, Move.COMPLETE)
        assert not await hand.hand_in(held, Move.FAIL)

    @pytest.mark.parametrize("state", [s for s in STATES if s is not JobState.COMPLETED])
    async def test_the_last_item_settles_a_waiting_head_and_no_other(self, store, hand, state):
        held, item = await self.bring(store, hand, state)
        before = await store.get(held.id)
        await hand.hand_in(item, Move.COMPLETE)
        after = await store.get(held.id)
        if state in RULES[Move.SETTLE].sources:
            assert Expected.of(after) == Expected.after(Move.SETTLE, before, hand.id)
        else:
            assert after == before
        assert (await store.batch(held.id)).counts.completed == 1

    @pytest.mark.parametrize("state", [s for s in STATES if s is not JobState.COMPLETED])
    async def test_the_last_item_abandons_a_waiting_head_that_was_cancelled(
        self, store, hand, state
    ):
        held, item = await self.bring(store, hand, state)
        before = await store.get(held.id)
        await store.cancel([held.id])
        await hand.hand_in(item, Move.COMPLETE)
        after = await store.get(held.id)
        if state in RULES[Move.ABANDON].sources:
            assert Expected.of(after) == Expected.after(Move.ABANDON, before, hand.id)
        elif state is JobState.PENDING:
            assert Expected.of(after) == Expected.after(Move.DROP, before, hand.id)
        else:
            assert after == before

    async def test_the_last_item_gives_up_a_waiting_head_with_too_many_failures(self, store, hand):
        batch = await filled_batch(store, 2, max_failures=0)
        one, two = await hand.claim(2)
        await hand.hand_in(one, Move.FAIL)
        before = await store.get(batch)
        await hand.hand_in(two, Move.CANCEL)
        after = await store.get(batch)
        assert Expected.of(after) == Expected.after(Move.GIVE_UP, before, hand.id)

    @pytest.mark.parametrize("state", [s for s in STATES if s.final])
    async def test_retrying_failed_items_reopens_a_settled_head(self, store, hand, state):
        most = 0 if state is JobState.FAILED else None
        batch = await filled_batch(store, 1, max_failures=most)
        item = await hand.claim_one()
        if state is JobState.CANCELLED:
            await store.cancel([batch])
        await hand.hand_in(item, Move.FAIL)
        before = await store.get(batch)
        assert before.state is state

        assert await store.retry_failed(batch) == 1

        after = await store.get(batch)
        assert Expected.of(after) == Expected.after(Move.REOPEN, before, hand.id)
        assert (after.result, after.error) == (None, None)
        assert not (await store.batch(batch)).cancel_requested

    @pytest.mark.parametrize("state", [JobState.PENDING, JobState.FAILED, JobState.CANCELLED])
    async def test_a_head_that_never_handed_over_cannot_be_reopened(self, store, hand, state):
        held, item = await self.bring(store, hand, state)
        await hand.exchange(move(item, Move.FAIL))
        before = await store.get(held.id)
        with pytest.raises(JobStateError):
            await store.retry_failed(held.id)
        assert await store.get(held.id) == before
        assert (await store.get(item.id)).state is JobState.FAILED
