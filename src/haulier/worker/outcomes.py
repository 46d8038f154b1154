"""From what a task raised to what its attempt came to, here and in child processes alike."""

from __future__ import annotations

import dataclasses
import traceback
from collections import deque
from datetime import UTC, datetime

from haulier.domain.job import (
    Cancelled,
    Failed,
    Interrupted,
    Job,
    JobError,
    Outcome,
    Snoozed,
    TimedOut,
)
from haulier.domain.retry import class_names
from haulier.exceptions import (
    CancelJob,
    ConfigurationError,
    JobTimeoutError,
    LeaseLostError,
    PermanentError,
    RetryLater,
    Snooze,
    ValidationError,
)
from haulier.services.context import Control, overdue, storable
from haulier.services.secrets import LOOKED_AT, Scrubber, scrub
from haulier.worker.retry_after import retry_after

LONGEST_MESSAGE = 2_000
LONGEST_TRACEBACK = 8_000
FRAMES = 20

_HOPELESS = (PermanentError, ValidationError, ConfigurationError)
"""Errors that come back with every attempt: the input is at fault, not the moment."""


def outcome_of(error: BaseException, job: Job, control: Control, scrubber: Scrubber) -> Outcome:
    """What a task that raised this came to."""
    match error:
        case Snooze():
            return Snoozed(error.delay)
        case CancelJob():
            return Cancelled(scrubber.scrub(str(error)))
        case LeaseLostError() if control.lost:
            # Believed only if it is so: a job that is given back costs no attempt, so a task that
            # raised this by itself would run for ever.
            return Interrupted()
    described = describe(job, error, scrubber)
    if control.late is not None and _is_timeout(error):
        told = dataclasses.replace(
            described, type=JobTimeoutError.__name__, message=overdue(control.late)
        )
        return TimedOut(told)
    return Failed(
        described,
        delay=error.delay if isinstance(error, RetryLater) else None,
        permanent=isinstance(error, _HOPELESS),
        classes=class_names(type(error)),
        retry_after=retry_after(error, datetime.now(UTC)),
    )


def _is_timeout(error: BaseException) -> bool:
    # Task groups before Python 3.13 wrap ours, since they know a cancellation by its exact class.
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(JobTimeoutError) is not None
    return isinstance(error, JobTimeoutError)


def describe(job: Job, error: BaseException, scrubber: Scrubber) -> JobError:
    """The error as it is kept: without secrets, without what would not fit."""
    # Without columns: to find the place of each caret, Python would compile the line again.
    walk = deque(traceback.walk_tb(error.__traceback__), maxlen=FRAMES)
    frames = traceback.StackSummary.extract(iter(walk))
    own = [frame for frame in frames if "/haulier/worker/" not in frame.filename]
    lines = traceback.format_list(own) + traceback.format_exception_only(error)
    return JobError(
        type=type(error).__name__,
        message=storable(scrubber.scrub(text_of(error)[:LOOKED_AT]))[:LONGEST_MESSAGE],
        traceback=storable(scrubber.scrub("".join(lines)[-LOOKED_AT:]))[-LONGEST_TRACEBACK:],
        attempt=job.attempt,
    )


def text_of(error: BaseException) -> str:
    """The error's own text, if it has one that can be read."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it is the task's own code, and must not stop the worker
        return "(its text could not be read)"


def policy_failed(outcome: Outcome, error: BaseException) -> Outcome:
    """The outcome of a job whose retry function raised: failed for good, with both reasons."""
    if not isinstance(outcome, Failed | TimedOut):
        raise error
    note = storable(
        f"\nthe retry policy's function raised {type(error).__name__}: {scrub(text_of(error))}"
    )
    note = note[: LONGEST_MESSAGE // 2]
    message = outcome.error.message[: LONGEST_MESSAGE - len(note)] + note
    return Failed(dataclasses.replace(outcome.error, message=message), permanent=True)
