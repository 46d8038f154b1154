"""The job: its states, the moves between them, and the pure decision what an outcome leads to.

    insert ──> pending ──claim──> running ──complete──> completed
                 ^  │                │ ├────fail──────> failed
                 │  └──drop──┐       │ └────cancel────> cancelled
                 │           v       │
                 │       cancelled   │  retry, snooze, give_back, lose
                 └───────────────────┘
    A head job also goes running ──hand_over──> running (waiting for its items, without worker or
    lease) and leaves it by settle or abandon. requeue brings failed and cancelled back to pending.

`RULES` says for each move where it may start, where it ends and what it brings along. Every store
obeys this one table, and the conformance suite walks it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, assert_never

from haulier.domain.retry import RetryPolicy

MICROSECOND = 1_000_000
"""Microseconds in a second: every instant in haulier is an integer of them, UTC."""

RANK_PER_PRIORITY = 360 * MICROSECOND
"""What one point of priority is worth in waiting time: six minutes.

Ready jobs are taken in order of rank = (when it became ready) - priority x this. So a job of
priority 10 goes before every job of priority 0 that has waited less than an hour longer, and no
job waits for ever, however many more urgent ones arrive.
"""

LONGEST_DELAY = 10 * 365 * 86_400.0
"""The most seconds that a job can be put off: ten years."""


class Priority(IntEnum):
    """Named priorities; any integer from -10,000 to 10,000 may be used as well."""

    LOW = -10
    NORMAL = 0
    HIGH = 10
    URGENT = 100


class JobState(StrEnum):
    """The five stored states. Scheduled, retrying and parked are views of pending."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether a job in this state is done for good, unless someone requeues it."""
        return self in _FINAL


_FINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


class Role(StrEnum):
    """What a job is for: on its own, as the head of a batch, or as one of its items."""

    SINGLE = "single"
    HEAD = "head"
    ITEM = "item"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why an attempt failed: the exception's class, its message, and a trimmed traceback.

    `at` (microseconds UTC) is filled in by the store when it records the error.
    """

    type: str
    message: str
    traceback: str = ""
    attempt: int = 0
    at: int = 0


class NewJob(NamedTuple):
    """A job as its producer describes it, validated and ready to be inserted.

    `payload` is JSON, opaque to the store. It runs at `run_at` (microseconds UTC), or when that is
    None, `delay` microseconds after the store received it.
    `retry` None means the policy of the task definition that will run it.
    """

    id: str
    kind: str
    payload: bytes
    version: int = 1
    queue: str = "default"
    priority: int = 0
    run_at: int | None = None
    delay: int = 0
    key: str | None = None
    retry: RetryPolicy | None = None
    role: Role = Role.SINGLE
    batch_id: str | None = None
    position: int | None = None


class Job(NamedTuple):
    """A job as the store holds it. All instants are microseconds UTC by the store's clock.

    A named tuple, like the two other values that every job passes through: a frozen dataclass of
    so many fields takes several microseconds to make, a fifth of what a whole job may cost.
    """

    id: str
    seq: int
    kind: str
    queue: str
    payload: bytes
    state: JobState
    version: int = 1
    role: Role = Role.SINGLE
    priority: int = 0
    run_at: int = 0
    attempt: int = 0
    lease: int = 0
    lost: int = 0
    key: str | None = None
    batch_id: str | None = None
    position: int | None = None
    retry: RetryPolicy | None = None
    worker: str | None = None
    cancel_requested: bool = False
    created_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    progress: int | None = None
    message: str | None = None
    result: bytes | None = None
    error: JobError | None = None

    @property
    def value(self) -> Any:
        """What the task returned, as plain JSON values; None while there is no result."""
        return None if self.result is None else json.loads(self.result)


# ── What an attempt came to ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task returned; `result` is JSON."""

    result: bytes


@dataclass(frozen=True, slots=True)
class Expanded:
    """A head job has inserted all its items and now waits for them."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The task raised. `delay` (seconds) overrides the policy's, `permanent` forbids a retry."""

    error: JobError
    delay: float | None = None
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The task took longer than it was given."""

    error: JobError


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The task asked to be put back for `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The task stopped because it was cancelled, or cancelled itself."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker is shutting down and gives the attempt back."""


Outcome = Succeeded | Expanded | Failed | TimedOut | Snoozed | Cancelled | Interrupted


# ── Moves ────────────────────────────────────────────────────────────────────────────────────


class Move(StrEnum):
    """Every way a job can go from one state to another."""

    CLAIM = "claim"
    COMPLETE = "complete"
    FAIL = "fail"
    RETRY = "retry"
    SNOOZE = "snooze"
    GIVE_BACK = "give_back"
    CANCEL = "cancel"
    HAND_OVER = "hand_over"
    LOSE = "lose"
    LOSE_LAST = "lose_last"
    DROP = "drop"
    SETTLE = "settle"
    ABANDON = "abandon"
    REOPEN = "reopen"
    REQUEUE = "requeue"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a move requires and what it brings along, in the same transaction.

    fenced: done by a worker, applied only while (job, lease, running) still holds.
    attempt: added to the attempt counter; 0 with `resets` means it starts again from 0.
    lost: added to the count of lost workers. lease: added to the lease number.
    yields_to_cancel: becomes `cancel` when a cancel was requested meanwhile.
    Always: the counters of (queue, kind, state) and those of the job's batch follow; a batch whose
    last item this was settles its head job.
    """

    sources: frozenset[JobState]
    target: JobState
    fenced: bool = False
    attempt: int = 0
    lost: int = 0
    lease: int = 0
    yields_to_cancel: bool = False
    resets: bool = False


_P, _R = frozenset({JobState.PENDING}), frozenset({JobState.RUNNING})
_ENDED_BADLY = frozenset({JobState.FAILED, JobState.CANCELLED})

RULES: Mapping[Move, Rule] = {
    Move.CLAIM: Rule(_P, JobState.RUNNING, attempt=1, lease=1),
    Move.COMPLETE: Rule(_R, JobState.COMPLETED, fenced=True),
    Move.FAIL: Rule(_R, JobState.FAILED, fenced=True),
    Move.RETRY: Rule(_R, JobState.PENDING, fenced=True, yields_to_cancel=True),
    Move.SNOOZE: Rule(_R, JobState.PENDING, fenced=True, attempt=-1, yields_to_cancel=True),
    Move.GIVE_BACK: Rule(_R, JobState.PENDING, fenced=True, attempt=-1, yields_to_cancel=True),
    Move.CANCEL: Rule(_R, JobState.CANCELLED, fenced=True),
    # The lease rises although nobody takes it: the expander must not write after handing over.
    Move.HAND_OVER: Rule(_R, JobState.RUNNING, fenced=True, lease=1),
    Move.LOSE: Rule(_R, JobState.PENDING, attempt=-1, lost=1, yields_to_cancel=True),
    Move.LOSE_LAST: Rule(_R, JobState.FAILED, lost=1),
    Move.DROP: Rule(_P, JobState.CANCELLED),
    Move.SETTLE: Rule(_R, JobState.COMPLETED),
    Move.ABANDON: Rule(_R, JobState.CANCELLED),
    Move.REOPEN: Rule(frozenset({JobState.COMPLETED, JobState.CANCELLED}), JobState.RUNNING),
    Move.REQUEUE: Rule(_ENDED_BADLY, JobState.PENDING, resets=True),
}


class Transition(NamedTuple):
    """One fenced move that a worker asks the store to apply to a job it holds.

    `delay` (microseconds, counted by the store's clock) is when a job that becomes pending may run
    again; None keeps its old time and so its place in the line.
    """

    job: Job
    move: Move
    delay: int | None = None
    result: bytes | None = None
    error: JobError | None = None


def decide(job: Job, outcome: Outcome, policy: RetryPolicy, dice: float) -> Transition:
    """What the outcome of an attempt leads to; `dice` is evenly drawn from [0, 1).

    Times are relative, so that the store's clock alone decides when a job runs.
    """
    match outcome:
        case Succeeded(result):
            return Transition(job, Move.COMPLETE, result=result)
        case Expanded():
            return Transition(job, Move.HAND_OVER)
        case Failed(error, delay, permanent):
            return _after_failure(job, error, delay, permanent, policy, dice)
        case TimedOut(error):
            return _after_failure(job, error, None, False, policy, dice)
        case Snoozed(delay):
            return Transition(job, Move.SNOOZE, delay=_microseconds(delay))
        case Cancelled(reason):
            error = JobError(type="CancelJob", message=reason, attempt=job.attempt)
            return Transition(job, Move.CANCEL, error=error if reason else None)
        case Interrupted():
            return Transition(job, Move.GIVE_BACK)
        case _ as unreachable:
            assert_never(unreachable)


def _after_failure(
    job: Job,
    error: JobError,
    delay: float | None,
    permanent: bool,
    policy: RetryPolicy,
    dice: float,
) -> Transition:
    if permanent or not policy.allows(job.attempt):
        return Transition(job, Move.FAIL, error=error)
    wait = policy.delay_for(job.attempt, dice) if delay is None else delay
    return Transition(job, Move.RETRY, delay=_microseconds(wait), error=error)


def _microseconds(seconds: float) -> int:
    """A delay that any store can keep; of a number that is none (NaN) it makes 0."""
    return round(max(0.0, min(seconds, LONGEST_DELAY)) * MICROSECOND)


MAX_LOST = 10
"""After losing so many workers a job is taken for what kills them, and fails."""


def after_loss(job: Job) -> Transition:
    """What becomes of a job whose worker was lost.

    It goes back to its queue, at once the first time, then after 1, 2, 4 … 60 seconds: a job that
    keeps killing its worker must not keep every worker busy with dying. `job.lost` is the count
    before this loss.
    """
    error = JobError(
        type="WorkerLost",
        message=f"the worker died or could not renew its row (loss {job.lost + 1})",
        attempt=job.attempt,
    )
    if job.lost + 1 >= MAX_LOST:
        return Transition(job, Move.LOSE_LAST, error=error)
    delay = min(2 ** (job.lost - 1), 60) * MICROSECOND if job.lost else 0
    return Transition(job, Move.LOSE, delay=delay, error=error)


# ── What workers ask for and are told ────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Portion:
    """Kinds of which a worker can start at most `slots` more."""

    kinds: tuple[str, ...]
    slots: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What a worker could start right now: `slots` jobs in all, each portion within its own."""

    queues: tuple[str, ...]
    portions: tuple[Portion, ...]
    slots: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """A store's answer to one exchange.

    `jobs` were claimed for the worker. `lost` are the given transitions that were not applied,
    because their lease is no longer the worker's. `cancels` are ids of the worker's running jobs
    whose cancellation was requested. `due_in` (microseconds) is the time until the next scheduled
    job becomes ready, if the demand was not met. `alive` false: the incarnation has ended.
    """

    jobs: tuple[Job, ...] = ()
    lost: tuple[Transition, ...] = ()
    cancels: tuple[str, ...] = ()
    due_in: int | None = None
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Note:
    """What a running job says about itself: progress in percent (0 to 100) and a message."""

    job_id: str
    lease: int
    progress: int | None
    message: str | None


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker incarnation, as it introduces itself and as the store lists it.

    `id` is random, made at start and never reused. `slots` is the most jobs it runs at once.
    """

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    kinds: tuple[str, ...]
    slots: int
    started_at: int = 0
    renewed_at: int = 0
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Renewal:
    """The store's answer to a heartbeat: whether the incarnation still counts, and its cancels."""

    alive: bool
    cancels: tuple[str, ...] = field(default=())
