"""The job as a value: its states and roles, what describes it, and what an attempt came to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from haulier.domain.retry import RetryPolicy
from haulier.domain.unique import Uniqueness

if TYPE_CHECKING:
    from haulier.domain.flow import After

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
    """The five stored states. Scheduled, retrying, parked and waiting are views of pending."""

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


class OnLost(StrEnum):
    """What becomes of a job whose worker was lost while it ran."""

    RETRY = "retry"
    FAIL = "fail"


class Role(StrEnum):
    """What a job is for: on its own, as the head of a batch, or as one of its items.

    inner: both, the head of a batch that is an item of another one.
    """

    SINGLE = "single"
    HEAD = "head"
    ITEM = "item"
    INNER = "inner"

    @property
    def heads(self) -> bool:
        """Whether a batch has its id."""
        return self is Role.HEAD or self is Role.INNER


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why an attempt failed: the exception's class, its message, and a trimmed traceback.

    `at` (microseconds UTC), `lease` and `worker` are filled in by the store when it records the
    error; `lease` is the number of the claim that ended so.
    """

    type: str
    message: str
    traceback: str = ""
    attempt: int = 0
    at: int = 0
    lease: int = 0
    worker: str | None = None


class NewJob(NamedTuple):
    """A job as its producer describes it, validated and ready to be inserted.

    `payload` is JSON, opaque to the store. It runs at `run_at` (microseconds UTC), or when that is
    None, `delay` microseconds after the store received it.
    `retry` None means the policy of the task definition that will run it. `unique` are the names
    that no other job may hold at the same time, each with what happens if one does. `baggage` is a
    JSON object that the job carries along, and with it what it enqueues. `after` are the jobs that
    it waits for: of the same call, in any order, or there already, in any state.
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
    on_lost: OnLost = OnLost.RETRY
    unique: tuple[Uniqueness, ...] = ()
    baggage: str | None = None
    after: tuple[After, ...] = ()


class Job(NamedTuple):
    """A job as the store holds it. All instants are microseconds UTC by the store's clock.

    A named tuple, like the two other values that every job passes through: a frozen dataclass of
    so many fields takes several microseconds to make, a fifth of what a whole job may cost.
    `parked`: pending and due, but its batch is paused or has no slot free for it. `unique`: it was
    enqueued under a name of its own. `cancel_heard`: its worker knows of the requested cancel.
    `waiting`: pending, until the jobs it waits for have ended.
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
    cancel_heard: bool = False
    parked: bool = False
    unique: bool = False
    on_lost: OnLost = OnLost.RETRY
    created_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    progress: int | None = None
    message: str | None = None
    result: bytes | None = None
    error: JobError | None = None
    baggage: str | None = None
    waiting: bool = False

    @property
    def value(self) -> Any:
        """What the task returned, as plain JSON values; None while there is no result."""
        return None if self.result is None else json.loads(self.result)

    @property
    def result_expired(self) -> bool:
        """Whether the job completed, but its result is kept no longer."""
        return self.state is JobState.COMPLETED and self.result is None


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
    """The task raised.

    `delay` (seconds) overrides the policy's, `permanent` forbids a retry. `classes` names the
    exception's class and its bases, for policies that tell them apart. `retry_after` (seconds) is
    what another system asked for: no retry comes sooner.
    """

    error: JobError
    delay: float | None = None
    permanent: bool = False
    classes: tuple[str, ...] = ()
    retry_after: float | None = None


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
