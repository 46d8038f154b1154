"""A store against a model of it, driven by Hypothesis through long random histories."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conformance.shadow import FAILED, PENDING, RUNNING, HeadShadow, Model, Shadow
from haulier.domain import event as ev
from haulier.domain.job import MICROSECOND, JobState, OnLost, Role
from haulier.domain.moves import RULES, Move
from haulier.domain.unique import Uniqueness
from haulier.exceptions import JobStateError
from haulier.ports import JobFilter
from support import Hand, StoreHome, filled_batch, work, works

STEPS = 50
A_WEEK = 7 * 86_400.0

picks = st.integers(0, 10_000)
moves = st.sampled_from(
    [Move.COMPLETE, Move.FAIL, Move.RETRY, Move.SNOOZE, Move.GIVE_BACK, Move.CANCEL]
)


class StoreModel(RuleBasedStateMachine):
    """Each rule does one thing to the store and the same to the model; then they are compared."""

    new_home: Callable[[], StoreHome]

    def __init__(self) -> None:
        super().__init__()
        self.home = self.new_home()
        self.clock = self.home.clock
        self.runner = asyncio.Runner()
        self.store = self.runner.run(self.home.client(ttl=A_WEEK).__aenter__())
        self.model = Model(self.clock.now)
        self.hands: list[Hand] = []
        self.cursor: str | None = None
        self.seq = 0

    def teardown(self) -> None:
        self.runner.run(self.store.__aexit__(None, None, None))
        self.runner.close()

    def run(self, call):
        return self.runner.run(call)

    @initialize()
    def two_workers(self) -> None:
        self.hands = [self.run(Hand.enlist(self.store)) for _ in range(2)]

    # Producers and time

    @rule(
        count=st.integers(1, 3),
        priority=st.integers(-2, 2),
        delay=st.sampled_from([0, 0, 5, 60]),
        on_lost=st.sampled_from([OnLost.RETRY, OnLost.RETRY, OnLost.FAIL]),
    )
    def insert(self, count: int, priority: int, delay: int, on_lost: OnLost) -> None:
        jobs = works(count, priority=priority, delay=delay * MICROSECOND, on_lost=on_lost)
        assert self.run(self.store.insert(jobs)).new == count
        self.model.learn([self.run(self.store.get(job.id)) for job in jobs])

    @rule(name=st.sampled_from("ab"))
    def insert_unique(self, name: str) -> None:
        job = work(unique=(Uniqueness(name),))
        reply = self.run(self.store.insert([job]))
        holder = self.model.names.get(name)
        assert reply.instead == ({} if holder is None else {job.id: holder})
        if holder is None:
            self.model.learn([self.run(self.store.get(job.id))], name)

    @rule(
        count=st.integers(1, 4),
        concurrency=st.sampled_from([None, None, 1, 2]),
        max_failures=st.sampled_from([None, None, 0, 1]),
    )
    def insert_batch(self, count: int, concurrency: int | None, max_failures: int | None) -> None:
        policy = {"concurrency": concurrency, "max_failures": max_failures}
        batch = self.run(filled_batch(self.store, count, **policy))
        page = self.run(self.store.find(JobFilter(batch_id=batch), oldest_first=True))
        self.model.learn_batch(HeadShadow(batch, **policy), page.jobs)

    @rule(seconds=st.sampled_from([0.5, 10, 400]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # Workers

    @rule(slots=st.integers(1, 5), who=picks)
    def claim(self, slots: int, who: int) -> None:
        hand = self._pick(self.hands, who)
        claimed = self.run(hand.claim(slots))
        self.model.check_claim(hand.id, slots, [job.id for job in claimed])
        for job in claimed:
            shadow = self.model.shadows[job.id]
            self.model.apply(shadow, Move.CLAIM)
            shadow.job = shadow.job._replace(worker=hand.id)
            shadow.claims = (*shadow.claims, job)
            assert (job.attempt, job.lease) == (shadow.job.attempt, shadow.job.lease)

    @precondition(lambda self: self.model.within(RUNNING))
    @rule(pick=picks, how=moves, delay=st.sampled_from([None, 0, 30]), who=picks)
    def finish(self, pick: int, how: Move, delay: int | None, who: int) -> None:
        shadow = self._pick(self.model.within(RUNNING), pick)
        delay = None if how in (Move.COMPLETE, Move.FAIL, Move.CANCEL) else delay
        hand = self._pick(self.hands, who)
        assert self.run(hand.hand_in(shadow.claims[-1], how, delay=delay))
        self.model.apply(shadow, how, delay)
        self._check_errors(shadow)

    @precondition(lambda self: any(shadow.claims for shadow in self.model))
    @rule(pick=picks, how=moves)
    def finish_late(self, pick: int, how: Move) -> None:
        """A claim that is over: its worker comes back with a result."""
        stale = [
            job
            for shadow in self.model
            for job in shadow.claims
            if shadow.job.state is not RUNNING or job.lease != shadow.job.lease
        ]
        if stale:
            assert not self.run(self.hands[0].hand_in(self._pick(stale, pick), how))

    @rule(who=picks)
    def lose(self, who: int) -> None:
        """A worker dies; another takes its place."""
        hand = self.hands.pop(who % len(self.hands))
        held = [s for s in self.model.within(RUNNING) if s.job.worker == hand.id]
        assert self.run(self.store.retire(hand.id)) == len(held)
        for shadow in held:
            self.model.lose(shadow)
            self._check_errors(shadow)
        self.hands.append(self.run(Hand.enlist(self.store)))

    # Operators

    @precondition(lambda self: self.model.shadows)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        shadow = self._pick(list(self.model), pick)
        states = self.run(self.store.cancel([shadow.job.id]))
        self.model.cancel(shadow)
        assert states == {shadow.job.id: shadow.job.state}
        self.model.settle(shadow.job.batch_id)

    @precondition(lambda self: self.model.heads)
    @rule(pick=picks)
    def cancel_batch(self, pick: int) -> None:
        head = self._pick(list(self.model.heads.values()), pick)
        if head.state is RUNNING and head.ending is Move.GIVE_UP:
            return  # It ends anyway; as what is left open.
        self.run(self.store.cancel([head.id]))
        if head.state is RUNNING:
            self.model.end(head, Move.ABANDON)

    @precondition(lambda self: self.model.shadows)
    @rule(pick=picks)
    def requeue(self, pick: int) -> None:
        shadow = self._pick(list(self.model), pick)
        head = self.model.heads.get(shadow.job.batch_id or "")
        ended_badly = shadow.job.state in RULES[Move.REQUEUE].sources
        if ended_badly and head is not None and head.ending and head.state is RUNNING:
            with pytest.raises(JobStateError):
                self.run(self.store.requeue([shadow.job.id]))
            return
        states = self.run(self.store.requeue([shadow.job.id]))
        if ended_badly and self.model.may_requeue(shadow):
            self.model.requeue(shadow)
            self._look_whether_paused(head)
        assert states == {shadow.job.id: shadow.job.state}

    @precondition(lambda self: self.model.heads)
    @rule(pick=picks, limit=st.sampled_from([None, None, 1]))
    def retry_failed(self, pick: int, limit: int | None) -> None:
        head = self._pick(list(self.model.heads.values()), pick)
        if head.ending and head.state is RUNNING:
            with pytest.raises(JobStateError):
                self.run(self.store.retry_failed(head.id))
            return
        failed = self.model.items(head.id, FAILED)[:limit]
        assert self.run(self.store.retry_failed(head.id, limit=limit)) == len(failed)
        for shadow in failed:
            self.model.requeue(shadow)
        self._look_whether_paused(head)

    @precondition(lambda self: self.model.heads)
    @rule(
        pick=picks,
        concurrency=st.sampled_from([None, 1, 2, 3]),
        max_failures=st.sampled_from([None, 0, 1, 2]),
    )
    def alter(self, pick: int, concurrency: int | None, max_failures: int | None) -> None:
        head = self._pick(list(self.model.heads.values()), pick)
        changes = {"concurrency": concurrency, "max_failures": max_failures}
        if head.ending and head.state is RUNNING:
            with pytest.raises(JobStateError):
                self.run(self.store.alter_batch(head.id, changes))
            return
        self.run(self.store.alter_batch(head.id, changes))
        self.model.alter(head, concurrency, max_failures)

    @precondition(lambda self: self.model.heads)
    @rule(pick=picks)
    def pause(self, pick: int) -> None:
        self._switch(self._pick(list(self.model.heads.values()), pick), paused=True)

    @precondition(lambda self: any(head.paused for head in self.model.heads.values()))
    @rule(pick=picks)
    def resume(self, pick: int) -> None:
        paused = [head for head in self.model.heads.values() if head.paused]
        head = self._pick(paused, pick)
        if head.state is RUNNING and not head.ending:
            self._switch(head, paused=False)

    def _look_whether_paused(self, head: HeadShadow | None) -> None:
        """Whether a pause outlives the end of its batch, when it is reopened, is left open."""
        if head is not None:
            head.paused = self.run(self.store.batch(head.id)).paused

    def _switch(self, head: HeadShadow, *, paused: bool) -> None:
        verb = self.store.pause if paused else self.store.resume
        if head.state is not RUNNING:
            with pytest.raises(JobStateError):
                self.run(verb(head.id))
        elif not head.ending:
            self.run(verb(head.id))
            if head.paused != paused:
                self.model.told.append((ev.PAUSED if paused else ev.RESUMED, head.id))
            head.paused = paused

    # The comparison

    @invariant()
    def the_store_is_as_the_model_says(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        await self._compare_jobs()
        await self._compare_counts()
        await self._compare_events()

    async def _compare_jobs(self) -> None:
        model = self.model
        page = await self.store.find(JobFilter(), limit=10_000)
        for job in page.jobs:
            if job.role is Role.HEAD:
                assert job.state is model.heads[job.id].state
                continue
            expected = model.shadows[job.id].job
            for name in ("state", "attempt", "lease", "lost", "worker", "cancel_requested"):
                assert getattr(job, name) == getattr(expected, name), name
            assert (job.finished_at is not None) == job.state.final
            if job.parked:
                head = model.heads[job.batch_id]
                assert head.paused or head.concurrency is not None
                assert job.state is PENDING
        assert len(page.jobs) == len(model.shadows) + len(model.heads)

    async def _compare_counts(self) -> None:
        model = self.model
        counts = await self.store.counts()
        jobs = Counter((s.job.role, s.job.state) for s in model)
        jobs.update((Role.HEAD, head.state) for head in model.heads.values())
        assert {(role, state): n for (_, _, role, state), n in counts.items()} == jobs
        for head in model.heads.values():
            told = await self.store.batch(head.id)
            states = Counter(shadow.job.state for shadow in model.items(head.id))
            assert told.counts.total == sum(states.values())
            for state in JobState:
                assert getattr(told.counts, state) == states[state]
            if head.state is RUNNING:
                # Nothing is left to be paused in one that is ending.
                assert told.paused == (head.paused and not head.ending)

    async def _compare_events(self) -> None:
        """One event for each thing that the model did since the last look, numbered without a gap.

        Whether a head that waits is told of its cancel is left open.
        """
        events = await self.store.events(after=self.cursor)
        assert [event.seq for event in events] == [self.seq + n + 1 for n in range(len(events))]
        if events:
            self.cursor, self.seq = events[-1].cursor, events[-1].seq
        heard = Counter(
            (event.type, event.job_id)
            for event in events
            if not (event.type == ev.CANCEL_REQUESTED and event.role is Role.HEAD)
        )
        assert heard == Counter(self.model.told)
        self.model.told.clear()

    def _check_errors(self, shadow: Shadow) -> None:
        errors = self.run(self.store.errors(shadow.job.id))
        if shadow.errors is None:
            shadow.errors = len(errors)
        assert len(errors) == shadow.errors
        leases = [error.lease for error in errors]
        assert leases == sorted(set(leases), reverse=True)

    def _pick(self, things: list, pick: int):
        return things[pick % len(things)]


class TestModel:
    """Long random histories."""

    def test_a_store_does_what_its_model_does(self, home_kind, tmp_path: Path, request):
        homes = iter(range(1_000_000))

        def new_home() -> StoreHome:
            folder = tmp_path / str(next(homes))
            folder.mkdir()
            return home_kind(folder)

        class Machine(StoreModel):
            pass

        Machine.new_home = staticmethod(new_home)
        examples = request.config.getoption("--model-examples")
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=examples, stateful_step_count=STEPS)
        )
