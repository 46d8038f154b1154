"""What routes share: their prefix, what they are given, and how they answer a new job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from haulier.domain.batch import Batch
from haulier.domain.job import Job, Role
from haulier.services.jobs import JobManager
from haulier.services.options import LONGEST_KEY
from haulier.web.access import identity_of
from haulier.web.options import WebOptions
from haulier.web.schemas import Started
from haulier.web.streams import Streams

PREFIX = "/api/v1"

ITEMS = frozenset({Role.ITEM, Role.INNER})
"""What a batch consists of."""


# Coroutines, though they wait for nothing: of plain functions each call would go to a thread.
async def _manager(request: Request) -> JobManager:
    jobs: JobManager = request.app.state.jobs
    return jobs


async def _options(request: Request) -> WebOptions:
    options: WebOptions = request.app.state.options
    return options


Jobs = Annotated[JobManager, Depends(_manager)]
Settings = Annotated[WebOptions, Depends(_options)]


async def _one_stream(connection: HTTPConnection) -> AsyncIterator[None]:
    streams: Streams = connection.app.state.streams
    with streams.one(identity_of(connection).name):
        yield


OneStream = Annotated[None, Depends(_one_stream)]
"""A route's parameter: it is one of the streams of its caller, until its answer is out."""
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=LONGEST_KEY,
        description="Repeating the request with the same key within a day answers with the same "
        "job; with another body, 409.",
    ),
]


async def job_and_batch(jobs: JobManager, job_id: str) -> tuple[Job, Batch | None]:
    """A job, with its batch if it is the head of one; raises JobNotFoundError."""
    job = await jobs.store.get(job_id)
    return job, await jobs.store.batch(job_id) if job.role.heads else None


def started(job_id: str, response: Response) -> Started:
    """The answer that tells of a new job, and where it is."""
    response.headers["Location"] = f"{PREFIX}/jobs/{job_id}"
    return told_of(job_id)


def told_of(job_id: str) -> Started:
    """What is told of a new job."""
    return Started(id=job_id, status_url=f"{PREFIX}/jobs/{job_id}/status")


def token(cursor: int | None) -> str | None:
    """A cursor as it is told: JSON's numbers do not hold all of them."""
    return None if cursor is None else str(cursor)


def tagged(request: Request, view: BaseModel, version: str) -> Response:
    """A view with its version as ETag; 304 without a body for who has that version already."""
    tag = f'"{version}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
    if tag in known or f"W/{tag}" in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(view.model_dump_json(), headers=headers, media_type="application/json")
