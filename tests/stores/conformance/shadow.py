"""The model that stores are held to: a dictionary of jobs that obeys `RULES`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from haulier.domain import event as ev
from haulier.domain.job import MICROSECOND, RANK_PER_PRIORITY, Job, JobState
from haulier.domain.moves import RULES, Move, after_loss, runs_alone

PENDING, RUNNING, FAILED = JobState.PENDING, JobState.RUNNING, JobState.FAILED


@dataclass
class Shadow:
    """What the model believes about a job. `errors` is None while it cannot know."""

    job: Job
    number: int
    name: str | None = None
    claims: tuple[Job, ...] = ()
    errors: int | None = 0

    @property
    def place(self) -> tuple[int, int]:
        return self.job.run_at - self.job.priority * RANK_PER_PRIORITY, self.number


@dataclass
class HeadShadow:
    """What the model believes about a batch. `ending` says how it ends before its time."""

    id: str
    state: JobState = RUNNING
    concurrency: int | None = None
    max_failures: int | None = None
    paused: bool = False
    ending: Move | None = None


@dataclass
class Model:
    """Jobs, batches, who holds which name, and the events that must have been told by now."""

    now: Callable[[], int]
    shadows: dict[str, Shadow] = field(default_factory=dict)
    heads: dict[str, HeadShadow] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Shadow]:
        return iter(self.shadows.values())

    def within(self, state: JobState) -> list[Shadow]:
        return [shadow for shadow in self if shadow.job.state is state]

    def items(self, batch: str, *states: JobState) -> list[Shadow]:
        mine = [shadow for shadow in self if shadow.job.batch_id == batch]
        return [shadow for shadow in mine if not states or shadow.job.state in states]

    def learn(self, jobs: Iterable[Job], name: str | None = None) -> None:
        for job in jobs:
            self.shadows[job.id] = Shadow(job, len(self.shadows), name)
            self.told.append((ev.INSERTED, job.id))
            if name is not None:
                self.names[name] = job.id

    def learn_batch(self, head: HeadShadow, jobs: Iterable[Job]) -> None:
        self.heads[head.id] = head
        self.told.append((ev.INSERTED, head.id))
        self.learn(jobs)

    # What a claim may find

    def ready(self) -> list[Shadow]:
        """Jobs in the order of the line that may start now, as far as their own batch lets them."""
        due = [s for s in self.within(PENDING) if s.job.run_at <= self.now() and self._open(s)]
        return sorted(due, key=lambda shadow: shadow.place)

    def _open(self, shadow: Shadow) -> bool:
        head = self.heads.get(shadow.job.batch_id or "")
        return head is None or not (head.paused or self.room(head) == 0)

    def room(self, head: HeadShadow) -> int | None:
        """How many more items of a batch may start; None: any number."""
        if head.concurrency is None:
            return None
        # After it was lowered, more may still run.
        return max(head.concurrency - len(self.items(head.id, RUNNING)), 0)

    def check_claim(self, worker: str, slots: int, claimed: list[str]) -> None:
        """Whether a worker may have been given these jobs, and had to be."""
        mine = [shadow for shadow in self.within(RUNNING) if shadow.job.worker == worker]
        if any(runs_alone(shadow.job.lost) for shadow in mine):
            assert claimed == []
            return
        ready = self.ready()
        alone = {shadow.job.id for shadow in ready if runs_alone(shadow.job.lost)}
        if alone and not mine:
            assert len(claimed) == 1
            assert claimed[0] in alone
            return
        # A busy worker may have to run dry for the sake of one that runs alone.
        if not (alone and not claimed):
            others = [shadow for shadow in ready if shadow.job.id not in alone]
            self._check_line(others, slots, claimed)

    def _check_line(self, ready: list[Shadow], slots: int, claimed: list[str]) -> None:
        """Exactly the first ones, but for limited batches: of these any that there is room for.

        Whose items have been let in already, and so stand in the line, is up to the store.
        """
        free, room = [], {}
        for shadow in ready:
            head = self.heads.get(shadow.job.batch_id or "")
            left = None if head is None else self.room(head)
            if left is None:
                free.append(shadow.job.id)
            else:
                room.setdefault(head.id, [left, set()])[1].add(shadow.job.id)
        places = [self.shadows[job_id].place for job_id in claimed]
        assert places == sorted(places)
        taken = [job_id for job_id in claimed if job_id in set(free)]
        assert taken == free[: len(taken)]
        rest = set(claimed) - set(taken)
        available = len(free)
        for left, ids in room.values():
            assert len(rest & ids) <= left
            rest -= ids
            available += min(left, len(ids))
        assert rest == set()
        assert len(claimed) == min(slots, available)

    # Moves

    def apply(self, shadow: Shadow, how: Move, delay: float | None = None) -> None:
        job = shadow.job
        yields = RULES[how].yields_to_cancel and job.cancel_requested
        done = Move.CANCEL if yields else how
        effect = RULES[done]
        assert job.state in effect.sources
        if RULES[how].records:
            # Whether the error of an attempt that was cancelled is worth keeping is left open.
            shadow.errors = None if yields or shadow.errors is None else shadow.errors + 1
        shadow.job = job._replace(
            state=effect.target,
            attempt=effect.attempt if effect.resets else job.attempt + effect.attempt,
            lease=job.lease + effect.lease,
            lost=0 if effect.resets else job.lost + effect.lost,
            worker=None,
            cancel_requested=False,
            run_at=job.run_at if delay is None else self.now() + round(delay * MICROSECOND),
        )
        self.told.append((done, job.id))
        if shadow.job.state.final:
            self._release(shadow)
        if done in (Move.FAIL, Move.LOSE_LAST):
            self._count_failures(job.batch_id)
        self.settle(job.batch_id)

    def lose(self, shadow: Shadow) -> None:
        loss = after_loss(shadow.job)
        self.apply(shadow, loss.move, None if loss.delay is None else loss.delay / MICROSECOND)

    def _release(self, shadow: Shadow) -> None:
        if shadow.name is not None and self.names.get(shadow.name) == shadow.job.id:
            del self.names[shadow.name]

    def _count_failures(self, batch: str | None) -> None:
        head = self.heads.get(batch or "")
        if head is None or head.max_failures is None or head.ending is not None:
            return
        if len(self.items(head.id, FAILED)) > head.max_failures:
            self.end(head, Move.GIVE_UP)

    def cancel(self, shadow: Shadow) -> None:
        """Without what follows for its batch."""
        job = shadow.job
        if job.state is PENDING:
            shadow.job = job._replace(state=JobState.CANCELLED)
            self.told.append((Move.DROP, job.id))
            self._release(shadow)
        elif job.state is RUNNING and not job.cancel_requested:
            shadow.job = job._replace(cancel_requested=True)
            self.told.append((ev.CANCEL_REQUESTED, job.id))

    def end(self, head: HeadShadow, how: Move) -> None:
        """A batch is cancelled, or gives up."""
        head.ending = how
        for shadow in self.items(head.id):
            self.cancel(shadow)
        self.settle(head.id)

    def settle(self, batch: str | None) -> None:
        head = self.heads.get(batch or "")
        if head is None or head.state is not RUNNING:
            return
        if all(shadow.job.state.final for shadow in self.items(head.id)):
            how = head.ending or Move.SETTLE
            head.state = RULES[how].target
            self.told.append((how, head.id))

    def alter(self, head: HeadShadow, concurrency: int | None, max_failures: int | None) -> None:
        """Its limits are changed."""
        if (head.concurrency, head.max_failures) != (concurrency, max_failures):
            self.told.append((ev.ALTERED, head.id))
        head.concurrency, head.max_failures = concurrency, max_failures
        if head.state is RUNNING:
            self._count_failures(head.id)

    def may_requeue(self, shadow: Shadow) -> bool:
        """Whether nobody else has its name by now."""
        return shadow.name is None or self.names.get(shadow.name, shadow.job.id) == shadow.job.id

    def requeue(self, shadow: Shadow) -> None:
        if shadow.name is not None:
            self.names[shadow.name] = shadow.job.id
        if shadow.job.batch_id is not None:
            self.reopen(self.heads[shadow.job.batch_id])
        self.apply(shadow, Move.REQUEUE, 0)

    def reopen(self, head: HeadShadow) -> None:
        if head.state is not RUNNING:
            head.state = RULES[Move.REOPEN].target
            head.ending = None
            self.told.append((Move.REOPEN, head.id))
