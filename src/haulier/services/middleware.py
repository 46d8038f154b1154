"""Hooks around the runs of jobs: what an app's middleware is given, and may do."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from haulier.domain.job import MICROSECOND, Job, JobError
from haulier.domain.moves import Move
from haulier.services.baggage import baggage_of

Told = Awaitable[None] | None
"""What a hook returns: a plain one None, a coroutine function its coroutine."""


class Attempt:
    """One run of a job, as its hooks see it from the first to the last.

    `state` is a dict of this attempt alone: whatever a hook puts there is found by its later hooks
    and by the task, as `ctx.state` (not in a child process). `began` is the monotonic time, in
    seconds, before the first hook.
    """

    __slots__ = ("began", "job", "state")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.state: dict[str, Any] = {}
        self.began = time.monotonic()

    @property
    def baggage(self) -> dict[str, Any]:
        """What the job carries since its enqueue."""
        return baggage_of(self.job.baggage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What an attempt came to.

    `move` is what the worker asks the store to do with the job: complete, fail, retry, snooze,
    cancel, give_back (the worker stops, or was declared lost), or hand_over (a bulk kind has
    inserted its items). `error` is kept with the job; `exception` is what was raised, None if the
    job ran in a child process or was stopped from outside. It may hold secrets. `seconds` is the
    time from before the first hook until the task's end.
    """

    move: Move
    seconds: float
    result: bytes | None = None
    error: JobError | None = None
    exception: BaseException | None = None
    delay: int | None = None

    @property
    def value(self) -> Any:
        """What the task returned, as plain JSON values; None if it did not return."""
        return None if self.result is None else json.loads(self.result)

    @property
    def will_retry(self) -> bool:
        """Whether this attempt failed and another one follows."""
        return self.move is Move.RETRY

    @property
    def retry_in(self) -> float | None:
        """Seconds until that other attempt, None if there is none."""
        return (self.delay or 0) / MICROSECOND if self.will_retry else None


class Middleware:
    """Hooks around each run of a job. Override those you need, each as a coroutine or plain.

    They run in the worker's process, on its event loop and in the job's own asyncio task, also for
    jobs in threads and child processes: a plain hook must be quick, and context variables that
    `before` sets are seen by coroutines and threads. The first middleware of an app is the
    outermost: its `before` comes first, its other hooks come last.

    After `before` has returned, one `after` follows, unless the worker itself dies. A hook that is
    not done after `HOOK_PATIENCE` seconds is cancelled; only `before` has the time of its job.
    """

    def before(self, attempt: Attempt) -> Told:
        """The job is about to run. What this raises counts as if the task had raised it."""

    def after(self, attempt: Attempt, ended: Ended) -> Told:
        """The attempt is over, whatever it came to. What this raises is logged."""

    def on_failure(self, attempt: Attempt, ended: Ended) -> Told:
        """The attempt failed or took too long; called before `after`.

        RetryLater, Snooze, CancelJob or PermanentError, raised here, take the failure's place;
        anything else is logged.
        """

    def on_cancel(self, attempt: Attempt, ended: Ended) -> Told:
        """The attempt ended as cancelled; called before `after`. What this raises is logged."""
