"""The world around a store: workers that die and come back, producers, an operator, lost answers.

One step is one call, or a few. Which, by whom and with what is drawn from one seed, so that a
history can be had again by its seed alone.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.ids import ENTROPY_BYTES, derived_id, uuid7
from haulier.domain.job import (
    MICROSECOND,
    Cancelled,
    Expanded,
    Failed,
    Interrupted,
    Job,
    JobError,
    JobState,
    NewJob,
    OnLost,
    Outcome,
    Role,
    Snoozed,
    Succeeded,
)
from haulier.domain.limits import Limit, Rate
from haulier.domain.moves import Transition, decide
from haulier.domain.retry import RetryPolicy
from haulier.domain.step import Step
from haulier.domain.unique import Conflict, Scope, Uniqueness
from haulier.domain.worker import Demand, Note, Portion, WorkerRow
from haulier.exceptions import (
    DuplicateJobError,
    HaulierError,
    JobNotFoundError,
    JobStateError,
    LeaseLostError,
    LimitNotFoundError,
)
from haulier.ports import Fence, JobFilter, JobStore
from haulier.testing import FakeClock
from simulation import flows, nested, queues, schedules
from simulation.history import Entry, Final, What, look
from simulation.limit_log import EAGER, Change, Limited
from simulation.queues import QUEUES

T = TypeVar("T")

TTL = 15.0
BEAT = 5.0
NAMES = {"one": Scope.ACTIVE, "other": Scope.PENDING}
KINDS = ("work", "bulk", "told")
WORKERS = 3
LOST_ANSWERS = 0.08
STEPS = 50
ROUNDS = 400
KEYS = (None, "a", "b")
LIMITS = {
    "all": [{"concurrency": count} for count in (1, 2, 5)],
    "slow": [{"concurrency": count, "queue": "slow"} for count in (1, 3)],
    "key": [{"concurrency": count, "per_key": True} for count in (1, 2)],
    "often": [{"rate": Rate(1, 2.0, burst=2), "kind": "work"}, {"rate": Rate(3), "kind": "work"}],
    "each": [{"rate": Rate(1, 3.0), "per_key": True}],
    "breaker": [{"breaker": EAGER, "per_key": True}],
}
POLICY = RetryPolicy(max_attempts=3, delay=4, cap=30)


@dataclass(eq=False, slots=True)
class Hand:
    """A worker: what it holds, what it is to hand in, and whether it knows what the store did."""

    id: str
    held: dict[str, Job] = field(default_factory=dict)
    finished: list[Transition] = field(default_factory=list)
    in_doubt: bool = False
    stuck: bool = False


class World:
    """Does steps and writes down what came of them."""

    def __init__(self, seed: int, store: JobStore, clock: FakeClock) -> None:
        self.dice = random.Random(seed)
        self.store = store
        self.clock = clock
        self.history: list[Entry] = []
        self.hands: list[Hand] = []
        self.gone: list[Hand] = []
        self.jobs: list[str] = []
        self.heads: list[str] = []
        self.unsealed: dict[str, int] = {}
        self.sent: list[list[NewJob]] = []
        self.named: list[str] = []
        self.clockwork = schedules.Clockwork()
        self.shut = queues.Shut()
        self.key_of: dict[str, str | None] = {}
        self.changes: list[Change] = []
        # Most histories are of a store that never has any limit.
        self.limited = self.dice.random() < 0.4

    async def run(self) -> Final:
        """So many steps, then everything until nothing goes on any more."""
        for _ in range(WORKERS):
            await self.hire()
        steps = list(STEPS_AND_WEIGHTS)
        weights = list(STEPS_AND_WEIGHTS.values())
        for step in self.dice.choices(steps, weights, k=STEPS):
            await step(self)
        await self.come_to_rest()
        final = await look(self.store)
        steps = {job: await self.steps_of(job) for job in final.jobs}
        return replace(final, steps=steps, parents=await flows.parents_of(self))

    async def steps_of(self, job: str) -> frozenset[str]:
        return frozenset(step.name for step in await self.store.steps(job))

    # ── Answers that get lost ────────────────────────────────────────────────────────────────

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer. Of those tries before it, some were applied."""
        while self.dice.random() < LOST_ANSWERS:
            if self.dice.random() < 0.5:
                with contextlib.suppress(HaulierError):
                    await call()
        return await call()

    def note(self, what: What, job: str = "", **more: object) -> None:
        self.history.append(Entry(what, job, **more))

    async def last_event(self) -> int:
        _, _, last = (await self.store.last_event()).partition(":")
        return int(last)

    def id(self) -> str:
        return uuid7(self.clock.now() // 1000, self.dice.randbytes(ENTROPY_BYTES))

    def pick(self, things: list[T]) -> T:
        return things[self.dice.randrange(len(things))]

    # ── Producers ────────────────────────────────────────────────────────────────────────────

    def job(self, **fields: object) -> NewJob:
        values = {
            "id": self.id(),
            "kind": "work",
            "payload": b"{}",
            "queue": self.pick(QUEUES),
            "priority": self.dice.randint(-2, 2),
            "delay": self.pick((0, 0, 0, 3 * MICROSECOND, 40 * MICROSECOND)),
            "on_lost": OnLost.FAIL if self.dice.random() < 0.1 else OnLost.RETRY,
        }
        job = NewJob(**(values | fields))
        # By its id: an item that is made anew has the same one.
        self.key_of[job.id] = KEYS[int(job.id[-2:], 16) % len(KEYS)]
        return job._replace(key=self.key_of[job.id])

    async def enqueue(self) -> None:
        jobs = [self.job() for _ in range(self.dice.randint(1, 4))]
        await self.ask(lambda: self.store.insert(jobs))
        self.sent.append(jobs)
        for job in jobs:
            self.jobs.append(job.id)
            self.note(What.ENQUEUE, job.id)

    async def enqueue_unique(self) -> None:
        """One of the jobs that want one of two names; what holds it already may give way."""
        name = self.pick(list(NAMES))
        conflict = self.pick((Conflict.SKIP, Conflict.REJECT, Conflict.REPLACE))
        job = self.job(unique=(Uniqueness(name, NAMES[name], conflict),))
        self.sent.append([job])
        await self.send_unique(job)

    async def send_unique(self, job: NewJob) -> None:
        if job.unique[0].conflict is Conflict.REPLACE and job.id not in self.named:
            for other in self.named:
                self.note(What.CANCEL, other)
        try:
            inserted = await self.ask(lambda: self.store.insert([job]))
        except DuplicateJobError:
            return
        if job.id not in inserted.instead and job.id not in self.named:
            self.jobs.append(job.id)
            self.named.append(job.id)
            self.note(What.ENQUEUE, job.id, name=job.unique[0].name, held=job.unique[0].scope)

    async def enqueue_again(self) -> None:
        """A producer that never heard of its success comes back much later.

        What was refused then may be accepted now.
        """
        if not self.sent:
            return
        jobs = self.pick(self.sent)
        if jobs[0].unique:
            await self.send_unique(jobs[0])
        else:
            await self.store.insert(jobs)

    def policy(self) -> BatchPolicy:
        return BatchPolicy(
            finish=self.pick((None, FinishCallback(kind="told"))),
            concurrency=self.pick((None, None, 1, 2)),
            batch_size=self.pick((None, None, 1, 2)),
            max_failures=self.pick((None, None, 0, 1)),
        )

    def items(self, batch: str, first: int, count: int) -> list[NewJob]:
        return [
            self.job(
                id=derived_id(batch, str(position)),
                role=Role.ITEM,
                batch_id=batch,
                position=position,
            )
            for position in range(first, first + count)
        ]

    def enqueued(self, batch: str, items: list[NewJob]) -> None:
        for item in items:
            if item.id not in self.jobs:
                self.jobs.append(item.id)
            self.note(What.ENQUEUE, item.id, batch=batch)

    async def open_batch(self) -> None:
        head, policy = self.job(kind="bulk", role=Role.HEAD, delay=0), self.policy()
        items = self.items(head.id, 0, self.dice.randint(0, 4))
        sealed = self.dice.random() < 0.7
        await self.ask(lambda: self.store.open_batch(head, items, policy=policy, sealed=sealed))
        self.heads.append(head.id)
        self.note(What.ENQUEUE, head.id, calls_back=policy.finish is not None)
        self.enqueued(head.id, items)
        if not sealed:
            self.unsealed[head.id] = len(items)

    async def fill_batch(self) -> None:
        if not self.unsealed:
            return
        batch = self.pick(list(self.unsealed))
        more = self.items(batch, self.unsealed[batch], self.dice.randint(1, 2))
        try:
            await self.ask(lambda: self.store.insert(more))
        except JobStateError:
            # It was cancelled meanwhile.
            del self.unsealed[batch]
            return
        self.enqueued(batch, more)
        self.unsealed[batch] += len(more)

    async def seal_batch(self) -> None:
        if self.unsealed:
            batch = self.pick(list(self.unsealed))
            del self.unsealed[batch]
            await self.ask(lambda: self.store.seal(batch))

    async def enqueue_bulk(self) -> None:
        head, policy = self.job(kind="bulk", role=Role.HEAD), self.policy()
        await self.ask(lambda: self.store.insert([head], policy=policy))
        self.heads.append(head.id)
        self.note(What.ENQUEUE, head.id, calls_back=policy.finish is not None)

    # ── Workers ──────────────────────────────────────────────────────────────────────────────

    async def hire(self) -> None:
        hand = Hand(self.id())
        row = WorkerRow(id=hand.id, host="here", pid=1, queues=QUEUES, kinds=KINDS, slots=9)
        await self.store.enlist(row)
        self.hands.append(hand)

    async def claim(self) -> None:
        await self.exchange(self.pick(self.hands), self.dice.randint(1, 4))

    async def finish(self) -> None:
        """Some of what a worker holds comes to an end; it may wait for its next exchange."""
        hand = self.pick(self.hands)
        for job in list(hand.held.values()):
            if self.dice.random() < 0.6:
                await self.attempt(hand, job, self.outcome(job))
        if self.dice.random() < 0.7:
            await self.exchange(hand, self.dice.randint(0, 2))

    def outcome(self, job: Job) -> Outcome:
        error = JobError(type=self.pick(("Boom", "Bang")), message="", attempt=job.attempt)
        good = Expanded() if job.kind == "bulk" and job.role.heads else Succeeded(b"1")
        return self.dice.choices(
            [
                good,
                Failed(error),
                Failed(error, permanent=True),
                Snoozed(self.pick((0.0, 20.0))),
                Cancelled("enough"),
                Interrupted(),
            ],
            [12, 4, 2, 1, 1, 1],
        )[0]

    async def attempt(self, hand: Hand, job: Job, outcome: Outcome) -> None:
        if isinstance(outcome, Expanded):
            outcome = await self.expand(job)
        del hand.held[job.id]
        hand.finished.append(decide(job, outcome, POLICY, self.dice.random()))

    async def expand(self, head: Job) -> Outcome:
        """The items of a bulk kind: as many as its id says, so the same each time."""
        total, fence = int(head.id[-1], 16) % 5, Fence(head.id, head.lease)
        for first in range(0, total, 2):
            items = self.items(head.id, first, min(2, total - first))
            try:
                await self.ask(partial(self.store.insert, items, fence=fence))
            except LeaseLostError:
                return Interrupted()
            except JobStateError:
                return Cancelled("the batch was cancelled")
            self.enqueued(head.id, items)
        return Expanded()

    async def step(self) -> None:
        """A worker, or one that was given up, does the next step of a job that it holds."""
        hand = self.pick([*self.hands, *self.gone])
        if not hand.held:
            return
        job = self.pick(list(hand.held.values()))
        try:
            done = await self.steps_of(job.id)
        except JobNotFoundError:
            # Its head expands anew.
            return
        name = f"{len(done)}"
        step = Step(job.id, job.lease, name, b"1")
        stale = await self.ask(lambda: self.store.keep([step]))
        self.note(What.STEP, job.id, ok=not stale, lease=job.lease, step=name)

    async def exchange(self, hand: Hand, slots: int) -> None:
        finished, hand.finished = hand.finished, []
        shares = queues.shares(self)
        demands = [Demand(QUEUES, (Portion(KINDS, slots),), slots, shares)] if slots else []
        if self.dice.random() < LOST_ANSWERS:
            if self.dice.random() < 0.5:
                await self.store.exchange(hand.id, finished, demands)
            for transition in finished:
                self.handed_in(transition, None)
            hand.finished, hand.in_doubt = finished, True
            return
        reply = await self.store.exchange(hand.id, finished, demands)
        lost = {(transition.job.id, transition.job.lease) for transition in reply.lost}
        for transition in finished:
            self.handed_in(transition, (transition.job.id, transition.job.lease) not in lost)
        self.shut.given(reply.jobs)
        self.started(hand, list(reply.jobs))
        if not reply.alive:
            await self.declared_lost(hand)
        elif hand.in_doubt:
            # Claimed by an exchange whose answer got lost, and known to nobody.
            where = JobFilter(worker=hand.id, states=frozenset({JobState.RUNNING}))
            held = (await self.store.find(where, limit=1000)).jobs
            self.started(hand, [job for job in held if job.id not in hand.held])
            hand.in_doubt = False

    def handed_in(self, transition: Transition, ok: bool | None) -> None:
        job = transition.job
        self.note(What.FINISH, job.id, ok=ok, lease=job.lease, move=transition.move)

    def started(self, hand: Hand, jobs: list[Job]) -> None:
        for job in jobs:
            hand.held[job.id] = job
            self.note(What.CLAIM, job.id, worker=hand.id, lease=job.lease)

    async def declared_lost(self, hand: Hand) -> None:
        """It drops what it holds and goes on as another; its threads may still come back."""
        if hand in self.hands:
            self.hands.remove(hand)
            self.gone.append(hand)
            await self.hire()

    async def hear(self) -> None:
        """A worker renews, and acknowledges the cancels that it is told of."""
        hand = self.pick(self.hands)
        for job_id in await self.renew(hand):
            if job := hand.held.get(job_id):
                await self.store.note([Note(job.id, job.lease, 50, "stopping", heard=True)])
                await self.attempt(hand, job, Cancelled("on request"))

    async def renew(self, hand: Hand) -> tuple[str, ...]:
        heartbeat = self.store.heartbeat(hand.id)
        try:
            renewal = heartbeat.renew()
        finally:
            heartbeat.close()
        if not renewal.alive:
            await self.declared_lost(hand)
        return renewal.cancels

    async def crash(self) -> None:
        """It stops where it is. Its parent may have seen it; else its ttl runs out."""
        hand = self.pick(self.hands)
        self.hands.remove(hand)
        self.gone.append(hand)
        if self.dice.random() < 0.5:
            await self.ask(lambda: self.store.retire(hand.id))
            self.note(What.END, worker=hand.id)
        await self.hire()

    async def stick(self) -> None:
        """It stands still for a while, without a heartbeat, or goes on."""
        hand = self.pick(self.hands)
        hand.stuck = not hand.stuck

    async def haunt(self) -> None:
        """A worker that was given up comes back with results."""
        if not self.gone:
            return
        hand = self.pick(self.gone)
        for job in list(hand.held.values()):
            outcome = self.outcome(job)
            if not isinstance(outcome, Expanded) or self.dice.random() < 0.5:
                await self.attempt(hand, job, outcome)
        await self.exchange(hand, self.dice.randint(0, 1))

    async def sweep(self) -> None:
        ended = {entry.worker for entry in self.history if entry.what is What.END}
        expired = [row.id for row in await self.store.workers() if not row.alive]
        await self.ask(self.store.sweep)
        for worker in expired:
            if worker not in ended:
                self.note(What.END, worker=worker)

    async def wait(self) -> None:
        seconds = self.pick((0.1, 1.0, 5.0, 20.0))
        while seconds > 0:
            self.clock.advance(min(seconds, BEAT))
            seconds -= BEAT
            for hand in list(self.hands):
                if not hand.stuck:
                    await self.renew(hand)

    # ── An operator ──────────────────────────────────────────────────────────────────────────

    async def cancel(self) -> None:
        if self.jobs:
            job = self.pick(self.jobs)
            await self.ask(lambda: self.store.cancel([job]))
            self.note(What.CANCEL, job)

    async def cancel_batch(self) -> None:
        if self.heads:
            head = self.pick(self.heads)
            await self.ask(lambda: self.store.cancel([head]))
            self.note(What.CANCEL, head)

    async def requeue(self) -> None:
        ended = frozenset({JobState.FAILED, JobState.CANCELLED})
        page = await self.store.find(JobFilter(states=ended))
        if not page.jobs:
            return
        await self.requeue_one(self.pick(page.jobs))

    async def requeue_one(self, job: Job) -> None:
        before = await self.last_event()
        try:
            states = await self.ask(lambda: self.store.requeue([job.id]))
        except JobStateError:
            return
        if states.get(job.id) is JobState.PENDING:
            if job.role.heads:
                self.note(What.DISCARD, job.id)
                await flows.forget(self)
            self.note(What.REQUEUE, job.id, span=(before, await self.last_event()))

    async def retry_failed(self) -> None:
        if not self.heads:
            return
        head = self.pick(self.heads)
        error_type, limit = self.pick((None, "Boom")), self.pick((None, 1))
        with contextlib.suppress(JobStateError):
            await self.ask(
                lambda: self.store.retry_failed(head, error_type=error_type, limit=limit)
            )
        # It may have been done although whoever asked again was refused.
        self.note(What.REQUEUE, batch=head)

    async def pause(self) -> None:
        await self.gate(self.store.pause)

    async def resume(self) -> None:
        await self.gate(self.store.resume)

    async def gate(self, verb: Callable[[str], Awaitable[None]]) -> None:
        if self.heads:
            head = self.pick(self.heads)
            with contextlib.suppress(JobStateError):
                await self.ask(lambda: verb(head))

    async def limit(self) -> None:
        """A limit is put, changed, dropped, or a breaker reset."""
        if not self.limited:
            return
        limits, name = self.store.limits(), self.pick(list(LIMITS))
        last = await self.last_event()
        if name == "breaker" and self.dice.random() < 0.5:
            key = self.pick(("a", "b"))
            with contextlib.suppress(LimitNotFoundError):
                await self.ask(lambda: limits.reset(name, key, by="operator"))
                self.changes.append(Change(last, name, key=key))
        elif self.dice.random() < 0.3:
            await self.ask(lambda: limits.drop(name, by="operator"))
            self.changes.append(Change(last, name))
        else:
            limit = Limit(name=name, **self.pick(LIMITS[name]))
            await self.ask(lambda: limits.put(limit, by="operator"))
            self.changes.append(Change(last, name, limit))

    async def what_is_limited(self) -> Limited:
        """What was done with limits, and which slots the store takes for taken."""
        limits = self.store.limits()
        slots = {state.limit.name: state.running for state in await limits.list()}
        keys = {
            state.limit.name: await limits.keys(state.limit.name)
            for state in await limits.list()
            if state.limit.per_key
        }
        return Limited(self.changes, self.key_of, slots, keys)

    # ── The end ──────────────────────────────────────────────────────────────────────────────

    async def come_to_rest(self) -> None:
        """No more trouble: batches are filled and resumed, jobs done, and the dead come back."""
        await queues.resume_all(self)
        while self.unsealed:
            await self.seal_batch()
        for head in self.heads:
            with contextlib.suppress(JobStateError):
                await self.store.resume(head)
        for hand in self.hands:
            hand.stuck = False
        for _ in range(ROUNDS):
            await self.sweep()
            for hand in list(self.hands):
                for job in list(hand.held.values()):
                    good = job.kind == "bulk" and job.role.heads
                    await self.attempt(hand, job, Expanded() if good else Succeeded(b"1"))
                await self.exchange(hand, 50)
            if not any(
                n for (*_, state), n in (await self.store.counts()).items() if not state.final
            ):
                break
            await self.wait()
        for _ in range(len(self.gone)):
            await self.haunt()


STEPS_AND_WEIGHTS: dict[Callable[[World], Awaitable[None]], int] = {
    World.enqueue: 8,
    World.enqueue_unique: 4,
    World.enqueue_again: 1,
    World.open_batch: 4,
    World.fill_batch: 2,
    World.seal_batch: 2,
    World.enqueue_bulk: 3,
    World.claim: 14,
    World.finish: 20,
    World.hear: 4,
    World.crash: 4,
    World.stick: 3,
    World.haunt: 4,
    World.sweep: 4,
    World.wait: 10,
    World.cancel: 3,
    World.cancel_batch: 2,
    World.requeue: 4,
    World.retry_failed: 3,
    World.pause: 2,
    World.resume: 2,
    World.step: 10,
    flows.enqueue_flow: 7,
    flows.another_chance: 3,
    flows.delete: 3,
    schedules.set_schedule: 4,
    schedules.pause_schedule: 1,
    schedules.tick: 10,
    schedules.tick_late: 4,
    schedules.run_schedule: 1,
    nested.nest: 2,
    nested.alter: 3,
    queues.pause_queue: 3,
    queues.resume_queue: 4,
    World.limit: 5,
}
