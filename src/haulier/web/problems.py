"""Our errors as HTTP problems (RFC 9457): one table, and the handlers that look it up.

A problem names what is wrong with an input, by field and line, but does not repeat its values: they
may be secrets. Only the name of an unknown kind or spec is told again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from haulier.exceptions import (
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

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "haulier.request_id"
"""Where in the ASGI scope the id of a request is."""

STREAM = "haulier.stream"
"""Where in the ASGI scope it is told how far the stream of a request was taken."""

MAX_ERRORS = 1000
LONGEST_FIELD = 200

_URN = "urn:haulier:problem:"
_log = structlog.get_logger("haulier.web")


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one class of errors is told. Without a `detail` the error's own message is taken."""

    status: int
    name: str
    title: str
    detail: str | None = None
    retry_after: int | None = None


@dataclass(slots=True)
class StreamTold:
    """What became of a stream so far; `errors` are lines at fault that were left out."""

    taken: int = 0
    new: int = 0
    skipped: int = 0
    errors: list[Problem] = field(default_factory=list)


PROBLEMS: Mapping[type[HaulierError], _Kind] = {
    ValidationError: _Kind(422, "invalid-input", "The input was refused"),
    InvalidTaskTypeError: _Kind(422, "unknown-kind", "There is no such kind"),
    JobNotFoundError: _Kind(
        404, "job-not-found", "There is no such job", "No job or batch has this id"
    ),
    ScheduleNotFoundError: _Kind(404, "schedule-not-found", "There is no such schedule"),
    LimitNotFoundError: _Kind(404, "limit-not-found", "There is no such limit"),
    WebhookNotFoundError: _Kind(
        404, "webhook-not-found", "There is no such webhook", "No webhook has this id"
    ),
    TokenNotFoundError: _Kind(
        404, "token-not-found", "There is no such token", "No token or session has this id"
    ),
    JobStateError: _Kind(409, "job-state", "The job's state does not allow this"),
    DuplicateJobError: _Kind(
        409, "duplicate-job", "There is such a job already", "Another job holds the unique name"
    ),
    IdempotencyConflictError: _Kind(
        409,
        "idempotency-conflict",
        "The idempotency key was used before",
        "It belongs to a request with another body",
    ),
    RateLimitError: _Kind(429, "rate-limit", "A limit was reached", retry_after=5),
    ResourceNotAvailableError: _Kind(501, "not-installed", "This is not installed here"),
    StoreError: _Kind(
        503,
        "store-failed",
        "The store cannot serve",
        "The server's log says why",
    ),
    StoreUnavailableError: _Kind(
        503,
        "store-unavailable",
        "The store cannot be reached",
        "The request may be repeated",
        retry_after=5,
    ),
    StoreFrozenError: _Kind(
        503,
        "store-frozen",
        "The store is being moved",
        "Nothing new is taken until it is done; the server then needs the URL of the new store",
        retry_after=30,
    ),
    StoreFullError: _Kind(
        507,
        "store-full",
        "The store is full",
        "There is no space left to store this",
    ),
}
"""Errors that clients are told about, with their subclasses. Any other one is a plain 500."""


class FieldError(BaseModel):
    """One thing wrong with the input; `line` is that of a list or a CSV text, counted from 1."""

    field: str
    reason: str
    line: int | None = None


class ProblemDetails(BaseModel):
    """What went wrong, as RFC 9457 has it; `errors` has an entry per field or line at fault."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    job_id: str | None = Field(None, description="Of a conflict: the job that was there before.")
    taken: int | None = Field(
        None, description="Of a stream: how many of its lines were taken before, and stay."
    )
    errors: list[FieldError] | None = None
    errors_omitted: int | None = Field(
        None, description=f"How many more there were than the {MAX_ERRORS:,} that are told."
    )


def problem_response(
    status: int,
    *,
    name: str | None = None,
    title: str | None = None,
    detail: str | None = None,
    job_id: str | None = None,
    errors: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
    taken: int | None = None,
) -> Response:
    """A problem as a response; without a `name` it says no more than its status."""
    omitted = len(errors) - MAX_ERRORS
    body = ProblemDetails(
        type=f"{_URN}{name}" if name else "about:blank",
        title=title or HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        job_id=job_id,
        taken=taken,
        errors=[_field_error(error) for error in errors[:MAX_ERRORS]] or None,
        errors_omitted=omitted if omitted > 0 else None,
    )
    # Escaped to ASCII: a field is named by the client and may not be encodable otherwise.
    content = json.dumps(body.model_dump(exclude_none=True), separators=(",", ":"))
    return Response(content, status, headers, media_type=MEDIA_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the statuses of which a route has something special to say, and the others."""
    told: dict[int | str, dict[str, Any]] = {
        status: {"model": ProblemDetails, "description": HTTPStatus(status).phrase}
        for status in statuses
    }
    return told | {"default": {"model": ProblemDetails, "description": "Any other problem"}}


def install_handlers(app: FastAPI) -> None:
    """Answer every error that a route raises with a problem. Routes are in `app.state.routes`."""
    app.add_exception_handler(HaulierError, _on_our_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_refused_request)


async def _on_our_error(request: Request, error: Exception) -> Response:
    kind = next((PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS), None)
    if kind is None:
        raise error
    if isinstance(error, StoreError):
        _log.warning("store failed a request", request=request.scope[REQUEST_ID], error=str(error))
    stream: StreamTold | None = request.scope.get(STREAM)
    return problem_response(
        kind.status,
        name=kind.name,
        title=kind.title,
        taken=None if stream is None else stream.taken,
        detail=kind.detail or getattr(error, "message", str(error)),
        job_id=error.job_id if isinstance(error, DuplicateJobError) else None,
        errors=getattr(error, "problems", ()) or (() if stream is None else stream.errors),
        headers={"Retry-After": str(kind.retry_after)} if kind.retry_after else None,
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    detail = None if error.detail == phrase else error.detail
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request) or headers.get("Allow", "")
    stream: StreamTold | None = request.scope.get(STREAM)
    taken = None if stream is None else stream.taken
    return problem_response(error.status_code, detail=detail, headers=headers, taken=taken)


def _allowed(request: Request) -> str:
    """All methods of the address: the framework tells only those of the first route that fits."""
    routes: Iterable[Route] = request.app.state.routes
    fitting = [route for route in routes if route.matches(request.scope)[0] is Match.PARTIAL]
    # `/jobs/stop` would do as the id of a job, but is an address of its own.
    fitting = [route for route in fitting if "{" not in route.path] or fitting
    return ", ".join(sorted({method for route in fitting for method in route.methods or ()}))


async def _on_refused_request(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return problem_response(400, detail="The body is not JSON")
    kind = PROBLEMS[ValidationError]
    # Only where and why are taken over: pydantic's errors also carry the input.
    problems = [
        Problem(_field(fault["loc"]), fault["msg"], _line(fault["loc"])) for fault in faults
    ]
    return problem_response(
        kind.status,
        name=kind.name,
        title=kind.title,
        detail="The request was refused",
        errors=problems,
    )


def _field(location: Sequence[Any]) -> str:
    """The name of a field without the part of the request it is in."""
    return ".".join(str(part) for part in location[1:]) or str(location[0])


def _line(location: Sequence[Any]) -> int | None:
    """The place, from 1, in the list of jobs of a body."""
    in_list = location[:2] == ("body", "jobs") and len(location) > 2
    return location[2] + 1 if in_list and isinstance(location[2], int) else None


def _field_error(problem: Problem) -> FieldError:
    return FieldError(
        field=problem.field[:LONGEST_FIELD],
        reason=problem.reason.removeprefix("Value error, "),
        line=problem.line,
    )
