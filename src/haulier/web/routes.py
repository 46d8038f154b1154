"""The routes of API v1. Each turns a request into one call on the JobManager and back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from haulier.domain.job import JobState, Role
from haulier.domain.routing import lines_of
from haulier.exceptions import (
    Problem,
    StoreError,
    StoreUnavailableError,
    ValidationError,
)
from haulier.ports import JobFilter
from haulier.services.jobs import JobManager
from haulier.services.options import LONGEST_KEY
from haulier.services.payload import validate
from haulier.services.selection import TOP
from haulier.web.bodies import (
    DeleteBody,
    EnqueueBody,
    EventQuery,
    ItemQuery,
    JobQuery,
    MediaUniqBody,
    ProxyDiagnosticsBody,
    RetryBody,
    RetryFailedBody,
    StopBody,
)
from haulier.web.options import WebOptions
from haulier.web.problems import problem_responses
from haulier.web.schemas import (
    Count,
    ErrorDetail,
    ErrorList,
    EventList,
    EventView,
    Health,
    ItemList,
    ItemView,
    JobDetail,
    JobList,
    JobStatus,
    JobSummary,
    LineList,
    LineView,
    PauseChange,
    QueueLineView,
    QueueList,
    Requeued,
    Started,
    StateChange,
    StepList,
    StepView,
)
from haulier.web.starts import START_PATHS, media_uniq_start, own_echo_url, proxy_diagnostics_start

PREFIX = "/api/v1"

_ITEMS = frozenset({Role.ITEM, Role.INNER})

router = APIRouter(prefix=PREFIX)


def _manager(request: Request) -> JobManager:
    jobs: JobManager = request.app.state.jobs
    return jobs


def _options(request: Request) -> WebOptions:
    options: WebOptions = request.app.state.options
    return options


Jobs = Annotated[JobManager, Depends(_manager)]
Settings = Annotated[WebOptions, Depends(_options)]
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


@router.get("/health", summary="Whether the service works", responses=problem_responses(503))
async def health(jobs: Jobs, options: Settings) -> Health:
    """Asks the store; answers 503 when it fails."""
    asked = time.perf_counter()
    try:
        counts, workers = await jobs.store.counts(), await jobs.store.workers()
    except StoreError as error:
        # A store that is full or damaged does not serve either, whatever other routes call it.
        raise StoreUnavailableError(str(error)) from error
    answered = time.perf_counter()
    tops, items = Counter[JobState](), Counter[JobState]()
    for (_, _, role, state), number in counts.items():
        (items if role in _ITEMS else tops)[state] += number
    alive = sum(worker.alive for worker in workers)
    return Health(
        status="ok" if alive else "degraded",
        version=options.version,
        store_ms=round(1000 * (answered - asked), 3),
        workers=alive,
        jobs={state: tops[state] for state in JobState},
        items={state: items[state] for state in JobState},
    )


@router.get("/queues", summary="Count jobs by queue and kind", responses=problem_responses())
async def list_queues(jobs: Jobs) -> QueueList:
    """By queue and kind, from counters: as quick with a million jobs as with ten."""
    counts, workers = await jobs.store.counts(), await jobs.store.workers()
    now = await jobs.store.configurable().configuration()
    lines = [QueueLineView.model_validate(line) for line in lines_of(counts, workers, now)]
    return QueueList(
        workers=sum(worker.alive for worker in workers), queues=lines, paused=sorted(now.paused)
    )


@router.get("/jobs", summary="List jobs", responses=problem_responses(422))
async def list_jobs(jobs: Jobs, query: Annotated[JobQuery, Query()]) -> JobList:
    """Newest first, page by page."""
    roles = frozenset(query.role) or (TOP if query.batch is None else _ITEMS)
    where = JobFilter(
        states=frozenset(query.state) or None,
        kind=query.kind,
        queue=query.queue,
        key=query.key,
        error_type=query.error_type,
        batch_id=None if query.batch is None else str(query.batch),
        roles=roles,
    )
    page = await jobs.store.find(where, limit=query.limit, cursor=query.cursor, payloads=False)
    return JobList(
        jobs=[JobSummary.model_validate(job) for job in page.jobs], next=_token(page.next)
    )


@router.get("/jobs/{job_id}", summary="Show a job", responses=problem_responses(404))
async def show_job(jobs: Jobs, job_id: str) -> JobDetail:
    """Everything about a job, with its payload."""
    job = await jobs.store.get(job_id)
    # The payload of a head may be megabytes: taken apart beside the event loop.
    return await asyncio.to_thread(JobDetail.model_validate, job)


@router.get(
    "/jobs/{job_id}/status", summary="How far a job or batch is", responses=problem_responses(404)
)
async def job_status(jobs: Jobs, job_id: str) -> JobStatus:
    """Cheap enough to be asked again and again, also of a batch of a million items."""
    job = await jobs.store.get(job_id)
    batch = await jobs.store.batch(job_id) if job.role.heads else None
    return JobStatus.of(job, batch, now=time.time_ns() // 1000)


@router.get(
    "/jobs/{job_id}/errors",
    summary="List how the attempts of a job failed",
    responses=problem_responses(404),
)
async def list_errors(jobs: Jobs, job_id: str) -> ErrorList:
    """The latest first. They outlive a retry that succeeded, and go with the job."""
    found = await jobs.store.errors(job_id)
    return ErrorList(errors=[ErrorDetail.model_validate(error) for error in found])


@router.get(
    "/jobs/{job_id}/steps",
    summary="List the finished steps of a job",
    responses=problem_responses(404),
)
async def list_steps(jobs: Jobs, job_id: str) -> StepList:
    """In the order in which they were finished. No later attempt does them again."""
    found = await jobs.store.steps(job_id)
    # Results of a thousand steps may be megabytes: taken apart beside the event loop.
    return await asyncio.to_thread(
        lambda: StepList(steps=[StepView.model_validate(step) for step in found])
    )


@router.get(
    "/jobs/{job_id}/lines",
    summary="List the last log lines of a job",
    responses=problem_responses(404),
)
async def list_lines(jobs: Jobs, job_id: str) -> LineList:
    """What its task has said, over all attempts, the oldest first."""
    found = await jobs.store.lines(job_id)
    return LineList(lines=[LineView.model_validate(line) for line in found])


@router.get(
    "/jobs/{job_id}/items",
    summary="List the items of a batch",
    responses=problem_responses(404, 422),
)
async def list_items(jobs: Jobs, job_id: str, query: Annotated[ItemQuery, Query()]) -> ItemList:
    """In the order in which the batch was filled, page by page, with their results."""
    await jobs.store.batch(job_id)
    where = JobFilter(states=frozenset(query.state) or None, batch_id=job_id, roles=_ITEMS)
    page = await jobs.store.find(
        where, limit=query.limit, cursor=query.cursor, oldest_first=True, payloads=False
    )
    return ItemList(
        items=[ItemView.model_validate(job) for job in page.jobs], next=_token(page.next)
    )


def _token(cursor: int | None) -> str | None:
    return None if cursor is None else str(cursor)


@router.post(
    "/jobs/{job_id}/stop",
    status_code=202,
    summary="Stop a job or batch",
    responses=problem_responses(404),
)
async def stop_job(jobs: Jobs, job_id: str) -> StateChange:
    """Pending jobs are cancelled at once, running ones are told. A batch stops with its items."""
    return StateChange(id=job_id, state=await jobs.cancel(job_id))


@router.post("/jobs/{job_id}/retry", summary="Retry a job", responses=problem_responses(404, 409))
async def retry_job(jobs: Jobs, job_id: str) -> StateChange:
    """A failed or cancelled job becomes pending again, with fresh attempts."""
    return StateChange(id=job_id, state=await jobs.retry(job_id))


@router.post(
    "/jobs/{job_id}/retry-failed",
    summary="Retry the failed items of a batch",
    responses=problem_responses(400, 404, 409, 413, 415, 422),
)
async def retry_failed(jobs: Jobs, job_id: str, body: RetryFailedBody | None = None) -> Requeued:
    """Only those items run again that have failed; with a body, only some of them."""
    wanted = body or RetryFailedBody()
    count = await jobs.retry_failed(job_id, error_type=wanted.error_type, limit=wanted.limit)
    return Requeued(id=job_id, requeued=count)


@router.post("/jobs/{job_id}/pause", summary="Pause a batch", responses=problem_responses(404, 409))
async def pause_batch(jobs: Jobs, job_id: str) -> PauseChange:
    """No more of its items start; those that run go on."""
    await jobs.store.pause(job_id)
    return PauseChange(id=job_id, paused=True)


@router.post(
    "/jobs/{job_id}/resume", summary="Resume a batch", responses=problem_responses(404, 409)
)
async def resume_batch(jobs: Jobs, job_id: str) -> PauseChange:
    """Its items start again."""
    await jobs.store.resume(job_id)
    return PauseChange(id=job_id, paused=False)


@router.post(
    "/jobs/stop",
    status_code=202,
    summary="Stop all jobs that a filter finds",
    responses=problem_responses(400, 413, 415, 422),
)
async def stop_jobs(jobs: Jobs, body: StopBody) -> Count:
    """As stopping each; jobs that are done already do not count."""
    return Count(count=await jobs.cancel_all(body.where(), limit=body.limit))


@router.post(
    "/jobs/retry",
    summary="Retry all jobs that a filter finds",
    responses=problem_responses(400, 413, 415, 422),
)
async def retry_jobs(jobs: Jobs, body: RetryBody) -> Count:
    """As retrying each. One whose unique name another job holds meanwhile is left as it is."""
    return Count(count=await jobs.retry_all(body.where(), limit=body.limit))


@router.post(
    "/jobs/delete",
    summary="Delete all finished jobs that a filter finds",
    responses=problem_responses(400, 413, 415, 422),
)
async def delete_jobs(jobs: Jobs, body: DeleteBody) -> Count:
    """As deleting each; what is not finished stays."""
    return Count(count=await jobs.delete_all(body.where(), limit=body.limit))


@router.get("/events", summary="List what happened to jobs", responses=problem_responses(422))
async def list_events(jobs: Jobs, query: Annotated[EventQuery, Query()]) -> EventList:
    """In order, page by page: each `next` leads on, also from a page without events.

    An event of the type `reset` says that some are missing, because they are kept no longer.
    """
    # Asked for first: what is appended while the page is read must follow its cursor.
    last = await jobs.store.last_event()
    found = await jobs.store.events(after=query.after, limit=query.limit)
    following = found[-1].cursor if found else query.after or last
    return EventList(events=[EventView.model_validate(event) for event in found], next=following)


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    summary="Delete a job or batch",
    responses=problem_responses(404, 409),
)
async def delete_job(jobs: Jobs, job_id: str) -> None:
    """A batch goes with its items. What still runs must be stopped first."""
    await jobs.store.delete(job_id)


@router.post(
    "/jobs",
    status_code=201,
    summary="Enqueue a job",
    responses=problem_responses(400, 409, 413, 415, 422, 507),
)
async def enqueue(
    jobs: Jobs, body: EnqueueBody, response: Response, idempotency_key: IdempotencyKey = None
) -> Started:
    """A job of any registered kind; bulk kinds that have a start route of their own go there."""
    family = body.kind.partition(".")[0]
    if family in START_PATHS:
        raise ValidationError(
            "this kind is not enqueued directly",
            [Problem("kind", f"is started by POST {START_PATHS[family]}")],
        )
    options = body.options(idempotency_key)
    return _started(await jobs.enqueue(body.kind, _payload(jobs, body), options), response)


@router.post(
    START_PATHS["media_uniq"].removeprefix(PREFIX),
    status_code=202,
    summary="Start renditions of pictures for accounts",
    responses=problem_responses(400, 409, 413, 415, 422, 507),
)
async def start_media_uniq(
    jobs: Jobs,
    options: Settings,
    body: MediaUniqBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Started:
    """One batch: every source for every account. All faults are told at once."""
    start = await asyncio.to_thread(media_uniq_start, body, options)
    given = body.options(idempotency_key)
    return _started(await jobs.enqueue("media_uniq", start, given), response)


@router.post(
    START_PATHS["proxy_diagnostics"].removeprefix(PREFIX),
    status_code=202,
    summary="Start checks of proxies",
    responses=problem_responses(400, 409, 413, 415, 422, 507),
)
async def start_proxy_diagnostics(
    jobs: Jobs,
    options: Settings,
    request: Request,
    body: ProxyDiagnosticsBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Started:
    """One batch, an item per proxy. All lines at fault are told at once."""
    check_url = options.check_url or own_echo_url(request.scope.get("server"))
    start = await asyncio.to_thread(proxy_diagnostics_start, body, check_url)
    given = body.options(idempotency_key)
    return _started(await jobs.enqueue("proxy_diagnostics", start, given), response)


def _payload(jobs: JobManager, body: EnqueueBody) -> Any:
    """The checked payload; faults are told with their place in the body."""
    definition = jobs.registry.get(body.kind)
    try:
        return validate(definition, body.payload)
    except ValidationError as error:
        faults = [
            Problem(f"payload.{fault.field}".removesuffix(".payload"), fault.reason)
            for fault in error.problems
        ]
        raise ValidationError(error.message, faults) from None


def _started(job_id: str, response: Response) -> Started:
    location = f"{PREFIX}/jobs/{job_id}"
    response.headers["Location"] = location
    return Started(id=job_id, status_url=f"{location}/status")
