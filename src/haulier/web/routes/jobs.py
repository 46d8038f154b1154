"""Single jobs and head jobs: how they are, and what is done to them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from haulier.domain.job import JobState
from haulier.ports import JobFilter
from haulier.services.jobs import JobManager
from haulier.services.selection import CANCELLABLE, DELETABLE, RETRYABLE, TOP, count_all
from haulier.web.access import (
    OPERATOR,
    VIEWER,
    VIEWER_IN_SCOPE,
    Caller,
    check_covered,
    tell_audit,
)
from haulier.web.bodies import DeleteBody, JobQuery, RetryBody, SelectionBody, StopBody
from haulier.web.problems import problem_responses
from haulier.web.routes.common import ITEMS, PREFIX, Jobs, job_and_batch, token
from haulier.web.schemas import (
    Count,
    ErrorDetail,
    ErrorList,
    JobDetail,
    JobList,
    JobRecord,
    JobStatus,
    JobSummary,
    LineList,
    LineView,
    StateChange,
    StepList,
    StepView,
    instant_of,
)

router = APIRouter(prefix=PREFIX, tags=["jobs"])


@router.get(
    "/jobs",
    summary="List jobs",
    dependencies=[VIEWER_IN_SCOPE],
    responses=problem_responses(403, 422),
)
async def list_jobs(jobs: Jobs, caller: Caller, query: Annotated[JobQuery, Query()]) -> JobList:
    """Newest first, page by page. With a token for some kinds or queues, name one of them."""
    if caller.scoped:
        check_covered(caller, query.kind, query.queue)
    roles = frozenset(query.role) or (TOP if query.batch is None else ITEMS)
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
    view = JobRecord if query.full else JobSummary
    return JobList(jobs=[view.model_validate(job) for job in page.jobs], next=token(page.next))


@router.get(
    "/jobs/{job_id}", summary="Show a job", dependencies=[VIEWER], responses=problem_responses(404)
)
async def show_job(jobs: Jobs, job_id: str) -> JobDetail:
    """Everything about a job, with its payload."""
    job = await jobs.store.get(job_id)
    tick = await jobs.store.schedules().tick_of(job_id)
    # The payload of a head may be megabytes: taken apart beside the event loop.
    detail = await asyncio.to_thread(JobDetail.model_validate, job)
    if tick is None:
        return detail
    return detail.model_copy(update={"schedule": tick.schedule, "tick": instant_of(tick.tick)})


@router.get(
    "/jobs/{job_id}/status",
    summary="How far a job or batch is",
    dependencies=[VIEWER],
    responses=problem_responses(404),
)
async def job_status(jobs: Jobs, job_id: str) -> JobStatus:
    """Cheap enough to be asked again and again, also of a batch of a million items."""
    job, batch = await job_and_batch(jobs, job_id)
    return JobStatus.of(job, batch, now=time.time_ns() // 1000)


@router.get(
    "/jobs/{job_id}/errors",
    summary="List how the attempts of a job failed",
    dependencies=[VIEWER],
    responses=problem_responses(404),
)
async def list_errors(jobs: Jobs, job_id: str) -> ErrorList:
    """The latest first. They outlive a retry that succeeded, and go with the job."""
    found = await jobs.store.errors(job_id)
    return ErrorList(errors=[ErrorDetail.model_validate(error) for error in found])


@router.get(
    "/jobs/{job_id}/steps",
    summary="List the finished steps of a job",
    dependencies=[VIEWER],
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
    dependencies=[VIEWER],
    responses=problem_responses(404),
)
async def list_lines(jobs: Jobs, job_id: str) -> LineList:
    """What its task has said, over all attempts, the oldest first."""
    found = await jobs.store.lines(job_id)
    return LineList(lines=[LineView.model_validate(line) for line in found])


@router.post(
    "/jobs/{job_id}/stop",
    status_code=202,
    summary="Stop a job or batch",
    dependencies=[OPERATOR],
    responses=problem_responses(404),
)
async def stop_job(jobs: Jobs, job_id: str) -> StateChange:
    """Pending jobs are cancelled at once, running ones are told. A batch stops with its items."""
    return StateChange(id=job_id, state=await jobs.cancel(job_id))


@router.post(
    "/jobs/{job_id}/retry",
    summary="Retry a job",
    dependencies=[OPERATOR],
    responses=problem_responses(404, 409),
)
async def retry_job(jobs: Jobs, job_id: str) -> StateChange:
    """A failed or cancelled job becomes pending again, with fresh attempts."""
    return StateChange(id=job_id, state=await jobs.retry(job_id))


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    summary="Delete a job or batch",
    dependencies=[OPERATOR],
    responses=problem_responses(404, 409),
)
async def delete_job(jobs: Jobs, job_id: str) -> None:
    """A batch goes with its items. What still runs must be stopped first."""
    await jobs.store.delete(job_id)


@router.post(
    "/jobs/stop",
    status_code=202,
    summary="Stop all jobs that a filter finds",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 413, 415, 422),
)
async def stop_jobs(jobs: Jobs, body: StopBody, request: Request) -> Count:
    """As stopping each; jobs that are done already do not count."""
    tell_audit(request, filter=body.model_dump(mode="json", exclude_defaults=True))
    if body.dry_run:
        return await _counted(jobs, body, CANCELLABLE)
    return Count(count=await jobs.cancel_all(body.where(), limit=body.limit))


@router.post(
    "/jobs/retry",
    summary="Retry all jobs that a filter finds",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 413, 415, 422),
)
async def retry_jobs(jobs: Jobs, body: RetryBody, request: Request) -> Count:
    """As retrying each. One whose unique name another job holds meanwhile is left as it is."""
    tell_audit(request, filter=body.model_dump(mode="json", exclude_defaults=True))
    if body.dry_run:
        return await _counted(jobs, body, RETRYABLE)
    return Count(count=await jobs.retry_all(body.where(), limit=body.limit))


@router.post(
    "/jobs/delete",
    summary="Delete all finished jobs that a filter finds",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 413, 415, 422),
)
async def delete_jobs(jobs: Jobs, body: DeleteBody, request: Request) -> Count:
    """As deleting each; what is not finished stays."""
    tell_audit(request, filter=body.model_dump(mode="json", exclude_defaults=True))
    if body.dry_run:
        return await _counted(jobs, body, DELETABLE)
    return Count(count=await jobs.delete_all(body.where(), limit=body.limit))


async def _counted(jobs: JobManager, body: SelectionBody, states: frozenset[JobState]) -> Count:
    return Count(count=await count_all(jobs.store, body.where(), states, limit=body.limit))
