"""The moves between a job's states, and the pure decision what an outcome leads to.

    insert ──> pending ──claim──> running ──complete──> completed
                 ^  │                │ ├────fail──────> failed
                 │  └──drop──┐       │ └────cancel────> cancelled
                 │           v       │
                 │       cancelled   │  retry, snooze, give_back, lose
                 └───────────────────┘
    A head job also goes running ──hand_over──> running (waiting for its items, without worker or
    lease) and leaves it by settle, abandon or give_up. requeue brings failed and cancelled back to
    pending.

`RULES` says for each move where it may start, where it ends and what it brings along. Every store
obeys this one table, and the conformance suite walks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, assert_never

from haulier.domain.job import (
    LONGEST_DELAY,
    MICROSECOND,
    Cancelled,
    Expanded,
    Failed,
    Interrupted,
    Job,
    JobError,
    JobState,
    OnLost,
    Outcome,
    Snoozed,
    Succeeded,
    TimedOut,
)
from haulier.domain.retry import RetryPolicy, class_names
from haulier.domain.unique import Scope
from haulier.exceptions import JobTimeoutError


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
    GIVE_UP = "give_up"
    REOPEN = "reopen"
    REQUEUE = "requeue"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a move requires and what it brings along, in the same transaction.

    fenced: done by a worker, applied only while (job, lease, running) still holds.
    attempt: added to the attempt counter; 0 with `resets` means it starts again from 0.
    lost: added to the count of lost workers. lease: added to the lease number.
    yields_to_cancel: becomes `cancel` when a cancel was requested meanwhile.
    releases: unique names of these scopes that the job held are free again. A requeue or
    reopen takes those of the scope `active` back, and is refused while another job holds one.
    records: the error is kept in the list of the job's errors.
    Always: an event with the move's name is appended; the counters of (queue, kind, state) and
    those of the job's batch follow; a batch with a limit admits the next parked item; one that has
    more failed items than it may is cut short; one whose last item this was settles its head job.
    What starts takes slots and tokens; what no longer runs gives its slots back, and the next of
    its key may start. Jobs that wait for one that ended are told, here or in the next transaction.
    """

    sources: frozenset[JobState]
    target: JobState
    fenced: bool = False
    attempt: int = 0
    lost: int = 0
    lease: int = 0
    yields_to_cancel: bool = False
    resets: bool = False
    records: bool = False
    releases: frozenset[Scope] = frozenset()


_P, _R = frozenset({JobState.PENDING}), frozenset({JobState.RUNNING})
_ENDED_BADLY = frozenset({JobState.FAILED, JobState.CANCELLED})
_ENDED = _ENDED_BADLY | {JobState.COMPLETED}
_AT_CLAIM, _AT_END = frozenset({Scope.PENDING}), frozenset({Scope.PENDING, Scope.ACTIVE})

RULES: Mapping[Move, Rule] = {
    Move.CLAIM: Rule(_P, JobState.RUNNING, attempt=1, lease=1, releases=_AT_CLAIM),
    Move.COMPLETE: Rule(_R, JobState.COMPLETED, fenced=True, releases=_AT_END),
    Move.FAIL: Rule(_R, JobState.FAILED, fenced=True, records=True, releases=_AT_END),
    Move.RETRY: Rule(_R, JobState.PENDING, fenced=True, records=True, yields_to_cancel=True),
    Move.SNOOZE: Rule(_R, JobState.PENDING, fenced=True, attempt=-1, yields_to_cancel=True),
    Move.GIVE_BACK: Rule(_R, JobState.PENDING, fenced=True, attempt=-1, yields_to_cancel=True),
    Move.CANCEL: Rule(_R, JobState.CANCELLED, fenced=True, releases=_AT_END),
    # The lease rises although nobody takes it: the expander must not write after handing over.
    Move.HAND_OVER: Rule(_R, JobState.RUNNING, fenced=True, lease=1),
    Move.LOSE: Rule(_R, JobState.PENDING, attempt=-1, lost=1, records=True, yields_to_cancel=True),
    Move.LOSE_LAST: Rule(_R, JobState.FAILED, lost=1, records=True, releases=_AT_END),
    Move.DROP: Rule(_P, JobState.CANCELLED, releases=_AT_END),
    Move.SETTLE: Rule(_R, JobState.COMPLETED, releases=_AT_END),
    Move.ABANDON: Rule(_R, JobState.CANCELLED, releases=_AT_END),
    Move.GIVE_UP: Rule(_R, JobState.FAILED, releases=_AT_END),
    Move.REOPEN: Rule(_ENDED, JobState.RUNNING),
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
    if isinstance(outcome, Succeeded):
        # Nearly all come to this: not by a pattern, which takes longer than all else here.
        return Transition(job, Move.COMPLETE, None, outcome.result)
    match outcome:
        case Expanded():
            return Transition(job, Move.HAND_OVER)
        case Failed():
            return _after_failure(job, outcome, policy, dice)
        case TimedOut(error):
            return _after_failure(job, Failed(error, classes=TIMEOUT_CLASSES), policy, dice)
        case Snoozed(delay):
            return Transition(job, Move.SNOOZE, delay=_microseconds(delay))
        case Cancelled(reason):
            error = JobError(type="CancelJob", message=reason, attempt=job.attempt)
            return Transition(job, Move.CANCEL, error=error if reason else None)
        case Interrupted():
            return Transition(job, Move.GIVE_BACK)
        case _ as unreachable:
            assert_never(unreachable)


TIMEOUT_CLASSES = class_names(JobTimeoutError)
"""What a retry policy may call a job that took too long."""


def _after_failure(job: Job, failed: Failed, policy: RetryPolicy, dice: float) -> Transition:
    error = failed.error
    wait = policy.wait(job.attempt, error.type, error.message, failed.classes, dice)
    if failed.permanent or wait is None:
        return Transition(job, Move.FAIL, error=error)
    if failed.delay is not None:
        wait = failed.delay
    elif failed.retry_after is not None:
        # On top of it the policy's own: those that were told the same time do not come together.
        wait += failed.retry_after
    return Transition(job, Move.RETRY, delay=_microseconds(wait), error=error)


def _microseconds(seconds: float) -> int:
    """A delay that any store can keep; of a number that is none (NaN) it makes 0."""
    return round(max(0.0, min(seconds, LONGEST_DELAY)) * MICROSECOND)


ALONE_AFTER = 2
"""A job that was running when so many workers were lost is from then on run alone."""

MAX_LOST_ALONE = 3
"""After losing so many workers while it ran alone, a job is what kills them, and fails."""

MAX_LOST = ALONE_AFTER + MAX_LOST_ALONE


def runs_alone(lost: int) -> bool:
    """Whether a job that has lost so many workers must be the only one its worker runs.

    Until then it may have been in bad company: others that ran beside it are as suspect. Losses
    while it runs alone are its own doing, and only these count towards its cap.
    """
    return lost >= ALONE_AFTER


def after_loss(job: Job) -> Transition:
    """What becomes of a job whose worker was lost.

    It goes back to its queue, at once the first time, then after 1, 2, 4 … seconds: a job that
    keeps killing its worker must not keep every worker busy with dying. `job.lost` is the count
    before this loss.
    """
    error = JobError(
        type="WorkerLost",
        message=f"the worker died or could not renew its row (loss {job.lost + 1})",
        attempt=job.attempt,
    )
    if job.on_lost is OnLost.FAIL or job.lost + 1 >= MAX_LOST:
        return Transition(job, Move.LOSE_LAST, error=error)
    delay = min(2 ** (job.lost - 1), 60) * MICROSECOND if job.lost else 0
    return Transition(job, Move.LOSE, delay=delay, error=error)
