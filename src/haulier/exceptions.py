"""Every error haulier raises, in one tree.

HaulierError                        (alias WorkerServiceError)
├── ConfigurationError              a setting, a task definition or a command line is wrong
├── ValidationError                 input was refused; `problems` names each field and reason
│   └── InvalidTaskTypeError        no such kind is registered here
├── JobNotFoundError                no job or batch has this id
├── ScheduleNotFoundError           no schedule has this name
├── WebhookNotFoundError            no webhook has this id
├── LimitNotFoundError              no limit has this name
├── TokenNotFoundError              no token or session has this id
├── JobStateError                   the job's state does not allow this
├── DuplicateJobError               another job holds the unique name
│   └── IdempotencyConflictError    the same idempotency key, with another body
├── ResultExpiredError              the job completed, its result is kept no longer
├── JobExecutionError               a job failed; raised when its result is asked for
│   ├── PermanentError              raise it in a task: fail now, further attempts are useless
│   │   └── ForbiddenAddressError   a URL or proxy leads where users may not send us
│   └── JobTimeoutError             a job or a wait took longer than it was given
├── LeaseLostError                  this attempt was taken away; its writes no longer count
├── ResourceNotAvailableError       something the work needs is not there
│   └── StoreError                  the store, or the records beside it, cannot serve
│       ├── StoreUnavailableError   not reachable, or locked for too long
│       │   └── StoreClosedError    closed, or never opened: waiting does not help
│       ├── StoreFrozenError        it is being moved to another store, or was
│       ├── StoreFullError          no space left
│       └── StoreCorruptError       damaged, or not a haulier store at all
├── UiClientError                   the catalog's server answered wrongly or not at all
├── AuthenticationError             credentials missing or refused
├── RateLimitError                  a limit said no
└── JobSignal                       not errors: how a running task speaks to the engine
    ├── RetryLater                  try again after a delay; counts as an attempt
    ├── Snooze                      put back for a while; costs no attempt
    └── CancelJob                   end this job as cancelled
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class HaulierError(Exception):
    """Root of everything haulier raises on purpose."""


WorkerServiceError = HaulierError


class ConfigurationError(HaulierError):
    """A setting, a task definition or a command line is wrong."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input: which field, why, and on which line of a file."""

    field: str
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.field}: {self.reason}" if self.field else f"{where}{self.reason}"


class ValidationError(HaulierError):
    """Input was refused before anything was done with it."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {problem}" for problem in self.problems)])


class InvalidTaskTypeError(ValidationError):
    """No such kind is registered here."""


class JobNotFoundError(HaulierError):
    """No job or batch has this id."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"no job has the id {job_id}")


class ScheduleNotFoundError(HaulierError):
    """No schedule has this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"no schedule has the name {name[:200]}")


class LimitNotFoundError(HaulierError):
    """No limit has this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"no limit has the name {name[:200]}")


class TokenNotFoundError(HaulierError):
    """No token or session has this id."""

    def __init__(self, token_id: str) -> None:
        self.token_id = token_id
        super().__init__(f"no token or session has the id {token_id[:200]}")


class WebhookNotFoundError(HaulierError):
    """No webhook has this id."""

    def __init__(self, webhook_id: str) -> None:
        self.webhook_id = webhook_id
        super().__init__(f"no webhook has the id {webhook_id[:200]}")


class JobStateError(HaulierError):
    """The job's present state does not allow what was asked."""


class DuplicateJobError(HaulierError):
    """Another job holds the unique name that this one was to have; nothing was enqueued."""

    def __init__(self, message: str, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(message)


class IdempotencyConflictError(DuplicateJobError):
    """The idempotency key was used before, for something else; nothing was enqueued."""


class ResultExpiredError(HaulierError):
    """The job completed, but its result was kept only for a while, and that is over."""


class JobExecutionError(HaulierError):
    """A job failed."""


class PermanentError(JobExecutionError):
    """Raise it, or a subclass, in a task whose further attempts would be useless."""


class ForbiddenAddressError(PermanentError):
    """A URL or a proxy that a user gave leads where it may not; the message has the reason."""


class JobTimeoutError(JobExecutionError):
    """A job, or a wait for one, took longer than it was given."""


class LeaseLostError(HaulierError):
    """The attempt was taken away (worker declared lost); nothing it writes counts any more."""


class ResourceNotAvailableError(HaulierError):
    """Something the work needs is not there."""


class StoreError(ResourceNotAvailableError):
    """The store cannot serve, or the records beside it; the message says which."""


class StoreUnavailableError(StoreError):
    """The store is not reachable, or was locked for too long."""


class StoreClosedError(StoreUnavailableError):
    """The store was closed or never opened; it serves again once somebody opens it."""


class StoreFrozenError(StoreError):
    """The store takes nothing new: it is being moved to another one, or was, or is being filled."""


class StoreFullError(StoreError):
    """The store has no space left. What was acknowledged before is kept."""


class StoreCorruptError(StoreError):
    """The store is damaged, or the file or database is not a haulier store."""


class UiClientError(HaulierError):
    """The catalog's server answered wrongly or not at all."""


class AuthenticationError(HaulierError):
    """Credentials are missing or were refused."""


class RateLimitError(HaulierError):
    """A limit said no. `retry_after`: seconds until it may be tried again, if that was told."""

    def __init__(
        self, message: str = "rate limit reached", *, retry_after: float | None = None
    ) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class JobSignal(HaulierError):  # noqa: N818 - its subclasses are verbs for tasks, not errors
    """How a running task speaks to the engine by raising."""


class RetryLater(JobSignal):
    """Fail this attempt and try again after `delay` seconds (the policy's delay when None)."""

    def __init__(self, message: str = "retry later", *, delay: float | None = None) -> None:
        if delay is not None and not 0 <= delay < float("inf"):
            raise ValueError("a retry needs a delay of 0 seconds or more")
        self.delay = delay
        super().__init__(message)


class Snooze(JobSignal):
    """Put the job back for `delay` seconds; this attempt is not counted."""

    def __init__(self, delay: float) -> None:
        if not 0 <= delay < float("inf"):
            raise ValueError("a snooze needs a delay of 0 seconds or more")
        self.delay = delay
        super().__init__(f"snoozed for {delay:g} s")


class CancelJob(JobSignal):
    """End the job as cancelled."""

    def __init__(self, reason: str = "cancelled by the task") -> None:
        super().__init__(reason)
