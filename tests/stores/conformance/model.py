"""A store against a model of it: a dictionary that obeys `RULES`, driven by Hypothesis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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

from haulier.domain.job import MICROSECOND, RANK_PER_PRIORITY, Job, JobState, Role
from haulier.domain.moves import RULES, Move, after_loss
from haulier.exceptions import JobStateError
from haulier.ports import JobFilter
from support import Hand, StoreHome, filled_batch, works

EXAMPLES = 60
STEPS = 40
A_WEEK = 7 * 86_400.0

picks = st.integers(0, 10_000)
moves = st.sampled_from(
    [Move.COMPLETE, Move.FAIL, Move.RETRY, Move.SNOOZE, Move.GIVE_BACK, Move.CANCEL]
)


@dataclass
class Shadow:
    """What the model believes about a job."""

    job: Job
    number: int
    claims: tuple[Job, ...] = ()

    @property
    def place(self) -> tuple[int, int]:
        return self.job.run_at - self.job.priority * RANK_PER_PRIORITY, self.number


class StoreModel(RuleBasedStateMachine):
    """Each rule does one thing to the store and the same to the model; then they are compared."""

    new_home: Callable[[], StoreHome]

    def __init__(self) -> None:
        super().__init__()
        self.home = self.new_home()
        self.clock = self.home.clock
        self.runner = asyncio.Runner()
        self.store = self.runner.run(self.home.client(ttl=A_WEEK).__aenter__())
        self.shadows: dict[str, Shadow] = {}
        self.heads: dict[str, JobState] = {}
        self.doomed: set[str] = set()
        self.hands: list[Hand] = []

    def teardown(self) -> None:
        self.runner.run(self.store.__aexit__(None, None, None))
        self.runner.close()

    @initialize()
    def two_workers(self) -> None:
        self.hands = [self.runner.run(Hand.enlist(self.store)) for _ in range(2)]

    # Producers and time

    @rule(
        count=st.integers(1, 3),
        priority=st.integers(-2, 2),
        delay=st.sampled_from([0, 0, 5, 60]),
    )
    def insert(self, count: int, priority: int, delay: int) -> None:
        jobs = works(count, priority=priority, delay=delay * MICROSECOND)
        assert self.runner.run(self.store.insert(jobs)).new == count
        self._learn([job.id for job in jobs])

    @rule(count=st.integers(1, 4))
    def insert_batch(self, count: int) -> None:
        batch = self.runner.run(filled_batch(self.store, count))
        page = self.runner.run(self.store.find(JobFilter(batch_id=batch), oldest_first=True))
        self.heads[batch] = JobState.RUNNING
        self._learn([job.id for job in page.jobs])

    @rule(seconds=st.sampled_from([0.5, 10, 400]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # Workers

    @rule(slots=st.integers(1, 5), who=picks)
    def claim(self, slots: int, who: int) -> None:
        hand = self.hands[who % len(self.hands)]
        ready = [s for s in self._in(JobState.PENDING) if s.job.run_at <= self.clock.now()]
        expected = sorted(ready, key=lambda shadow: shadow.place)[:slots]
        claimed = self.runner.run(hand.claim(slots))
        assert [job.id for job in claimed] == [shadow.job.id for shadow in expected]
        for job, shadow in zip(claimed, expected, strict=True):
            self._apply(shadow, Move.CLAIM)
            shadow.job = shadow.job._replace(worker=hand.id)
            shadow.claims = (*shadow.claims, job)
            assert (job.attempt, job.lease) == (shadow.job.attempt, shadow.job.lease)

    @precondition(lambda self: self._in(JobState.RUNNING))
    @rule(pick=picks, how=moves, delay=st.sampled_from([None, 0, 30]), who=picks)
    def finish(self, pick: int, how: Move, delay: int | None, who: int) -> None:
        shadow = self._pick(self._in(JobState.RUNNING), pick)
        hand = self.hands[who % len(self.hands)]
        delay = None if how in (Move.COMPLETE, Move.FAIL, Move.CANCEL) else delay
        assert self.runner.run(hand.hand_in(shadow.claims[-1], how, delay=delay))
        self._apply(shadow, how, delay)

    @precondition(lambda self: any(shadow.claims for shadow in self.shadows.values()))
    @rule(pick=picks, how=moves)
    def finish_late(self, pick: int, how: Move) -> None:
        """A claim that is over: its worker comes back with a result."""
        stale = [
            job
            for shadow in self.shadows.values()
            for job in shadow.claims
            if shadow.job.state is not JobState.RUNNING or job.lease != shadow.job.lease
        ]
        if stale:
            assert not self.runner.run(self.hands[0].hand_in(self._pick(stale, pick), how))

    @rule(who=picks)
    def lose(self, who: int) -> None:
        """A worker dies; another takes its place."""
        hand = self.hands.pop(who % len(self.hands))
        held = [s for s in self._in(JobState.RUNNING) if s.job.worker == hand.id]
        assert self.runner.run(self.store.retire(hand.id)) == len(held)
        for shadow in held:
            loss = after_loss(shadow.job)
            seconds = None if loss.delay is None else loss.delay / MICROSECOND
            self._apply(shadow, loss.move, seconds)
        self.hands.append(self.runner.run(Hand.enlist(self.store)))

    # Operators

    @precondition(lambda self: self.shadows)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        shadow = self._pick(list(self.shadows.values()), pick)
        states = self.runner.run(self.store.cancel([shadow.job.id]))
        self._cancel(shadow)
        assert states == {shadow.job.id: shadow.job.state}
        self._settle(shadow.job.batch_id)

    @precondition(lambda self: self.heads)
    @rule(pick=picks)
    def cancel_batch(self, pick: int) -> None:
        batch = self._pick(list(self.heads), pick)
        self.runner.run(self.store.cancel([batch]))
        if self.heads[batch] is JobState.RUNNING:
            self.doomed.add(batch)
            for shadow in self._items(batch):
                self._cancel(shadow)
            self._settle(batch)

    @precondition(lambda self: self.shadows)
    @rule(pick=picks)
    def requeue(self, pick: int) -> None:
        shadow = self._pick(list(self.shadows.values()), pick)
        batch = shadow.job.batch_id
        ended_badly = shadow.job.state in RULES[Move.REQUEUE].sources
        if ended_badly and batch in self.doomed and self.heads[batch] is JobState.RUNNING:
            try:
                self.runner.run(self.store.requeue([shadow.job.id]))
            except JobStateError:
                return
            raise AssertionError("an item of a batch that is being cancelled was requeued")
        self.runner.run(self.store.requeue([shadow.job.id]))
        if ended_badly:
            self._reopen(batch)
            self._apply(shadow, Move.REQUEUE, 0)

    @precondition(lambda self: self.heads)
    @rule(pick=picks)
    def retry_failed(self, pick: int) -> None:
        batch = self._pick(list(self.heads), pick)
        if batch in self.doomed and self.heads[batch] is JobState.RUNNING:
            return
        failed = [s for s in self._items(batch) if s.job.state is JobState.FAILED]
        assert self.runner.run(self.store.retry_failed(batch)) == len(failed)
        if failed:
            self._reopen(batch)
        for shadow in failed:
            self._apply(shadow, Move.REQUEUE, 0)

    # The comparison

    @invariant()
    def jobs_are_as_the_model_says(self) -> None:
        page = self.runner.run(self.store.find(JobFilter(), limit=10_000))
        for job in page.jobs:
            if job.role is Role.HEAD:
                assert job.state is self.heads[job.id]
                continue
            expected = self.shadows[job.id].job
            for name in ("state", "attempt", "lease", "lost", "worker", "cancel_requested"):
                assert getattr(job, name) == getattr(expected, name), name
            assert (job.finished_at is not None) == job.state.final
        assert len(page.jobs) == len(self.shadows) + len(self.heads)

    @invariant()
    def counters_are_as_the_model_says(self) -> None:
        counts = self.runner.run(self.store.counts())
        jobs = Counter((s.job.role, s.job.state) for s in self.shadows.values())
        jobs.update((Role.HEAD, state) for state in self.heads.values())
        assert {(role, state): n for (_, _, role, state), n in counts.items()} == jobs
        for batch in self.heads:
            told = self.runner.run(self.store.batch(batch)).counts
            states = Counter(shadow.job.state for shadow in self._items(batch))
            assert told.total == sum(states.values())
            for state in JobState:
                assert getattr(told, state) == states[state]

    # The model's own moves

    def _learn(self, ids: list[str]) -> None:
        for job_id in ids:
            job = self.runner.run(self.store.get(job_id))
            self.shadows[job_id] = Shadow(job, len(self.shadows))

    def _in(self, state: JobState) -> list[Shadow]:
        return [shadow for shadow in self.shadows.values() if shadow.job.state is state]

    def _items(self, batch: str) -> list[Shadow]:
        return [shadow for shadow in self.shadows.values() if shadow.job.batch_id == batch]

    def _pick(self, things: list, pick: int):
        return things[pick % len(things)]

    def _apply(self, shadow: Shadow, how: Move, delay: float | None = None) -> None:
        job, yields = shadow.job, RULES[how].yields_to_cancel and shadow.job.cancel_requested
        effect = RULES[Move.CANCEL] if yields else RULES[how]
        assert job.state in effect.sources
        shadow.job = job._replace(
            state=effect.target,
            attempt=effect.attempt if effect.resets else job.attempt + effect.attempt,
            lease=job.lease + effect.lease,
            lost=0 if effect.resets else job.lost + effect.lost,
            worker=None,
            cancel_requested=False,
            run_at=job.run_at if delay is None else self.clock.now() + round(delay * MICROSECOND),
        )
        self._settle(job.batch_id)

    def _cancel(self, shadow: Shadow) -> None:
        if shadow.job.state is JobState.PENDING:
            shadow.job = shadow.job._replace(state=JobState.CANCELLED)
        elif shadow.job.state is JobState.RUNNING:
            shadow.job = shadow.job._replace(cancel_requested=True)

    def _settle(self, batch: str | None) -> None:
        if batch is None or self.heads[batch] is not JobState.RUNNING:
            return
        if all(shadow.job.state.final for shadow in self._items(batch)):
            how = Move.ABANDON if batch in self.doomed else Move.SETTLE
            self.heads[batch] = RULES[how].target

    def _reopen(self, batch: str | None) -> None:
        if batch is not None and self.heads[batch] is not JobState.RUNNING:
            self.heads[batch] = RULES[Move.REOPEN].target
            self.doomed.discard(batch)


class TestModel:
    """Long random histories."""

    def test_a_store_does_what_its_model_does(self, home_kind, tmp_path: Path):
        homes = iter(range(1_000_000))

        def new_home() -> StoreHome:
            folder = tmp_path / str(next(homes))
            folder.mkdir()
            return home_kind(folder)

        class Machine(StoreModel):
            pass

        Machine.new_home = staticmethod(new_home)
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
        )
