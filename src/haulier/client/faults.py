"""Problems (RFC 9457) that a server tells, as the errors that the library would raise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from haulier.exceptions import (
    AuthenticationError,
    ConfigurationError,
    DuplicateJobError,
    HaulierError,
    IdempotencyConflictError,
    InvalidTaskTypeError,
    JobNotFoundError,
    JobStateError,
    LimitNotFoundError,
    Problem,
    RateLimitError,
    ResourceNotAvailableError,
    ScheduleNotFoundError,
    StoreError,
    StoreFrozenError,
    StoreFullError,
    StoreUnavailableError,
    TokenNotFoundError,
    ValidationError,
    WebhookNotFoundError,
)

URN = "urn:haulier:problem:"

Make = Callable[["Told"], HaulierError]


class Told:
    """An answer that tells of a problem; what is no problem document has only its status."""

    def __init__(self, reply: httpx.Response, subject: str) -> None:
        self.status, self.subject = reply.status_code, subject
        self.document = _document(reply)
        self.name = str(self.document.get("type", "")).removeprefix(URN)
        self.retry_after = seconds(reply.headers.get("retry-after"))
        self.request = reply.headers.get("x-request-id")
        detail, title = self.document.get("detail"), self.document.get("title")
        self.message = str(detail or title or f"the server answered {self.status}")

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with which field."""
        return tuple(
            Problem(str(each.get("field", "")), str(each.get("reason", "")), each.get("line"))
            for each in self.document.get("errors") or ()
        )

    @property
    def job_id(self) -> str:
        """The job that was there before."""
        return str(self.document.get("job_id", ""))

    def error(self) -> HaulierError:
        """What the library would raise."""
        make = BY_NAME.get(self.name) or BY_STATUS.get(self.status) or _otherwise(self.status)
        error = make(self)
        if self.request:
            error.add_note(f"request {self.request}")
        if self.document.get("taken") is not None:
            error.add_note(f"{self.document['taken']} lines were taken before")
        return error


def _document(reply: httpx.Response) -> Mapping[str, Any]:
    if "json" not in reply.headers.get("content-type", ""):
        return {}
    try:
        document = json.loads(reply.content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def seconds(text: str | None) -> float | None:
    """What a Retry-After says, if it is a number."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _plain(kind: type[HaulierError]) -> Make:
    return lambda told: kind(told.message)


def _refused(kind: type[ValidationError]) -> Make:
    return lambda told: kind(told.message, told.problems)


def _taken(kind: type[DuplicateJobError]) -> Make:
    return lambda told: kind(told.message, told.job_id)


BY_NAME: Mapping[str, Make] = {
    "invalid-input": _refused(ValidationError),
    "unknown-kind": _refused(InvalidTaskTypeError),
    "job-not-found": lambda told: JobNotFoundError(told.subject),
    "schedule-not-found": lambda told: ScheduleNotFoundError(told.subject),
    "limit-not-found": lambda told: LimitNotFoundError(told.subject),
    "webhook-not-found": lambda told: WebhookNotFoundError(told.subject),
    "token-not-found": lambda told: TokenNotFoundError(told.subject),
    "job-state": _plain(JobStateError),
    "duplicate-job": _taken(DuplicateJobError),
    "idempotency-conflict": _taken(IdempotencyConflictError),
    "rate-limit": lambda told: RateLimitError(told.message, retry_after=told.retry_after),
    "not-installed": _plain(ResourceNotAvailableError),
    "store-failed": _plain(StoreError),
    "store-unavailable": _plain(StoreUnavailableError),
    "store-frozen": _plain(StoreFrozenError),
    "store-full": _plain(StoreFullError),
}
"""The other end of the server's table of problems."""

BY_STATUS: Mapping[int, Make] = {
    400: _refused(ValidationError),
    401: _plain(AuthenticationError),
    403: _plain(AuthenticationError),
    408: _plain(StoreUnavailableError),
    409: _plain(JobStateError),
    413: _refused(ValidationError),
    415: _refused(ValidationError),
    422: _refused(ValidationError),
    429: lambda told: RateLimitError(told.message, retry_after=told.retry_after),
    502: _plain(StoreUnavailableError),
    503: _plain(StoreUnavailableError),
    504: _plain(StoreUnavailableError),
}
"""Of problems without a name of ours, such as those of a proxy in between."""


def _otherwise(status: int) -> Make:
    if status >= 500:
        return lambda told: StoreError(f"the server failed: {told.message}")
    if 300 <= status < 400:
        return lambda _: ConfigurationError("the server's address leads elsewhere: give that one")
    return lambda told: ConfigurationError(
        f"the server does not know this request ({told.status}): is it a haulier server, and new?"
    )
