"""Batches, by the id of their head job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from haulier.ports import JobFilter
from haulier.web.access import OPERATOR, VIEWER
from haulier.web.bodies import ItemQuery, RetryFailedBody
from haulier.web.problems import problem_responses
from haulier.web.routes.common import ITEMS, PREFIX, Jobs, token
from haulier.web.schemas import ItemList, ItemView, PauseChange, Requeued

router = APIRouter(prefix=PREFIX, tags=["batches"])


@router.get(
    "/batches/{job_id}/items",
    name="list_items_by_batch",
    summary="List the items of a batch",
    dependencies=[VIEWER],
    responses=problem_responses(404, 422),
)
@router.get(
    "/jobs/{job_id}/items",
    summary="List the items of a batch",
    dependencies=[VIEWER],
    responses=problem_responses(404, 422),
)
async def list_items(jobs: Jobs, job_id: str, query: Annotated[ItemQuery, Query()]) -> ItemList:
    """In the order in which the batch was filled, page by page, with their results."""
    await jobs.store.batch(job_id)
    where = JobFilter(states=frozenset(query.state) or None, batch_id=job_id, roles=ITEMS)
    page = await jobs.store.find(
        where, limit=query.limit, cursor=query.cursor, oldest_first=True, payloads=False
    )
    return ItemList(
        items=[ItemView.model_validate(job) for job in page.jobs], next=token(page.next)
    )


@router.post(
    "/batches/{job_id}/retry-failed",
    name="retry_failed_by_batch",
    summary="Retry the failed items of a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 404, 409, 413, 415, 422),
)
@router.post(
    "/jobs/{job_id}/retry-failed",
    summary="Retry the failed items of a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 404, 409, 413, 415, 422),
)
async def retry_failed(jobs: Jobs, job_id: str, body: RetryFailedBody | None = None) -> Requeued:
    """Only those items run again that have failed; with a body, only some of them."""
    wanted = body or RetryFailedBody()
    count = await jobs.retry_failed(job_id, error_type=wanted.error_type, limit=wanted.limit)
    return Requeued(id=job_id, requeued=count)


@router.post(
    "/batches/{job_id}/pause",
    name="pause_batch_by_batch",
    summary="Pause a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(404, 409),
)
@router.post(
    "/jobs/{job_id}/pause",
    summary="Pause a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(404, 409),
)
async def pause_batch(jobs: Jobs, job_id: str) -> PauseChange:
    """No more of its items start; those that run go on."""
    await jobs.store.pause(job_id)
    return PauseChange(id=job_id, paused=True)


@router.post(
    "/batches/{job_id}/resume",
    name="resume_batch_by_batch",
    summary="Resume a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(404, 409),
)
@router.post(
    "/jobs/{job_id}/resume",
    summary="Resume a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(404, 409),
)
async def resume_batch(jobs: Jobs, job_id: str) -> PauseChange:
    """Its items start again."""
    await jobs.store.resume(job_id)
    return PauseChange(id=job_id, paused=False)
