"""haulier: bulk work, run reliably.

Jobs and batches of jobs, durable in SQLite, run by workers that lose nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haulier.app import App, Task
    from haulier.domain.batch import Batch, Counts
    from haulier.domain.configuration import Alteration, Configuration, Setting
    from haulier.domain.event import Event
    from haulier.domain.flow import After, Otherwise, Parent
    from haulier.domain.job import Job, JobError, JobState, OnLost, Priority
    from haulier.domain.limits import Breaker, Circuit, KeyState, Limit, LimitState, Rate
    from haulier.domain.line import Line
    from haulier.domain.retention import Keep, Retention
    from haulier.domain.retry import Backoff, RetryPolicy
    from haulier.domain.schedule import Cron, Interval, Missed, Overlap, Schedule
    from haulier.domain.step import Step
    from haulier.domain.tick import Tick
    from haulier.domain.unique import Conflict, Scope
    from haulier.exceptions import (
        CancelJob,
        ConfigurationError,
        DuplicateJobError,
        ForbiddenAddressError,
        HaulierError,
        IdempotencyConflictError,
        InvalidTaskTypeError,
        JobExecutionError,
        JobNotFoundError,
        JobStateError,
        JobTimeoutError,
        LeaseLostError,
        LimitNotFoundError,
        PermanentError,
        ResultExpiredError,
        RetryLater,
        ScheduleNotFoundError,
        Snooze,
        StoreError,
        ValidationError,
        WorkerServiceError,
    )
    from haulier.ports import JobFilter
    from haulier.runners.base import BaseTaskRunner, BatchFinished
    from haulier.services.baggage import baggage
    from haulier.services.calling import guarded_client
    from haulier.services.context import Context
    from haulier.services.flow import Flow
    from haulier.services.limits import TaskLimit
    from haulier.services.middleware import Attempt, Ended, Middleware
    from haulier.services.options import Unique
    from haulier.services.outbound import Guard
    from haulier.services.secrets import Secret
    from haulier.worker.lanes import WorkerOptions

_HOME = {
    "After": "domain.flow",
    "Alteration": "domain.configuration",
    "App": "app",
    "Attempt": "services.middleware",
    "Backoff": "domain.retry",
    "BaseTaskRunner": "runners.base",
    "Batch": "domain.batch",
    "BatchFinished": "runners.base",
    "Breaker": "domain.limits",
    "CancelJob": "exceptions",
    "Circuit": "domain.limits",
    "Configuration": "domain.configuration",
    "ConfigurationError": "exceptions",
    "Conflict": "domain.unique",
    "Context": "services.context",
    "Counts": "domain.batch",
    "Cron": "domain.schedule",
    "DuplicateJobError": "exceptions",
    "Ended": "services.middleware",
    "Event": "domain.event",
    "Flow": "services.flow",
    "ForbiddenAddressError": "exceptions",
    "Guard": "services.outbound",
    "HaulierError": "exceptions",
    "IdempotencyConflictError": "exceptions",
    "Interval": "domain.schedule",
    "InvalidTaskTypeError": "exceptions",
    "Job": "domain.job",
    "JobError": "domain.job",
    "JobExecutionError": "exceptions",
    "JobFilter": "ports",
    "JobNotFoundError": "exceptions",
    "JobState": "domain.job",
    "JobStateError": "exceptions",
    "JobTimeoutError": "exceptions",
    "Keep": "domain.retention",
    "KeyState": "domain.limits",
    "LeaseLostError": "exceptions",
    "Limit": "domain.limits",
    "LimitNotFoundError": "exceptions",
    "LimitState": "domain.limits",
    "Line": "domain.line",
    "Middleware": "services.middleware",
    "Missed": "domain.schedule",
    "OnLost": "domain.job",
    "Otherwise": "domain.flow",
    "Overlap": "domain.schedule",
    "Parent": "domain.flow",
    "PermanentError": "exceptions",
    "Priority": "domain.job",
    "Rate": "domain.limits",
    "ResultExpiredError": "exceptions",
    "Retention": "domain.retention",
    "RetryLater": "exceptions",
    "RetryPolicy": "domain.retry",
    "Schedule": "domain.schedule",
    "ScheduleNotFoundError": "exceptions",
    "Scope": "domain.unique",
    "Secret": "services.secrets",
    "Setting": "domain.configuration",
    "Snooze": "exceptions",
    "Step": "domain.step",
    "StoreError": "exceptions",
    "Task": "app",
    "TaskLimit": "services.limits",
    "Tick": "domain.tick",
    "Unique": "services.options",
    "ValidationError": "exceptions",
    "WorkerOptions": "worker.lanes",
    "WorkerServiceError": "exceptions",
    "baggage": "services.baggage",
    "guarded_client": "services.calling",
}
"""Public names and the modules they live in. Loaded when first used, so that a command that only
lists jobs does not pay for pydantic."""

__all__ = [
    "After",
    "Alteration",
    "App",
    "Attempt",
    "Backoff",
    "BaseTaskRunner",
    "Batch",
    "BatchFinished",
    "Breaker",
    "CancelJob",
    "Circuit",
    "Configuration",
    "ConfigurationError",
    "Conflict",
    "Context",
    "Counts",
    "Cron",
    "DuplicateJobError",
    "Ended",
    "Event",
    "Flow",
    "ForbiddenAddressError",
    "Guard",
    "HaulierError",
    "IdempotencyConflictError",
    "Interval",
    "InvalidTaskTypeError",
    "Job",
    "JobError",
    "JobExecutionError",
    "JobFilter",
    "JobNotFoundError",
    "JobState",
    "JobStateError",
    "JobTimeoutError",
    "Keep",
    "KeyState",
    "LeaseLostError",
    "Limit",
    "LimitNotFoundError",
    "LimitState",
    "Line",
    "Middleware",
    "Missed",
    "OnLost",
    "Otherwise",
    "Overlap",
    "Parent",
    "PermanentError",
    "Priority",
    "Rate",
    "ResultExpiredError",
    "Retention",
    "RetryLater",
    "RetryPolicy",
    "Schedule",
    "ScheduleNotFoundError",
    "Scope",
    "Secret",
    "Setting",
    "Snooze",
    "Step",
    "StoreError",
    "Task",
    "TaskLimit",
    "Tick",
    "Unique",
    "ValidationError",
    "WorkerOptions",
    "WorkerServiceError",
    "baggage",
    "guarded_client",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'haulier' has no attribute {name!r}")
    return getattr(import_module(f"haulier.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
