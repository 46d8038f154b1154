"""Jobs that wait for each other."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from haulier.web.access import VIEWER, Caller
from haulier.web.models.flows import ChildList, ChildQuery, ParentList, ParentView
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, Jobs, token
from haulier.web.schemas import JobSummary
from haulier.web.scopes import exists_for

router = APIRouter(prefix=PREFIX, tags=["jobs"])


@router.get(
    "/jobs/{job_id}/parents",
    summary="List what a job waits for",
    dependencies=[VIEWER],
    responses=problem_responses(404),
)
async def list_parents(jobs: Jobs, caller: Caller, job_id: str) -> ParentList:
    """In the order in which it named them, with what they came to. They outlive their jobs here."""
    found = await jobs.store.parents(job_id)
    if caller.scoped:
        found = [each for each in found if await exists_for(jobs, caller, each.job_id)]
    return ParentList(parents=[ParentView.model_validate(parent) for parent in found])


@router.get(
    "/jobs/{job_id}/children",
    summary="List what waits for a job",
    dependencies=[VIEWER],
    responses=problem_responses(404, 422),
)
async def list_children(
    jobs: Jobs, caller: Caller, job_id: str, query: Annotated[ChildQuery, Query()]
) -> ChildList:
    """In the order of their insertion, page by page; also those that wait no longer."""
    page = await jobs.store.children(job_id, limit=query.limit, cursor=query.cursor)
    return ChildList(
        children=[
            JobSummary.model_validate(job)
            for job in page.jobs
            if caller.covers(job.kind, job.queue)
        ],
        next=token(page.next),
    )
