"""Flows: what a job waits for, and what waits for it."""

from __future__ import annotations

from pydantic import AliasChoices, BaseModel, Field

from haulier.domain.flow import Otherwise
from haulier.domain.job import JobState
from haulier.web.bodies import MAX_PAGE, Taken
from haulier.web.schemas import ErrorDetail, JobSummary, Json, View


class ParentView(View):
    """A job that another one waits for, as it is now or as it was when it ended.

    `otherwise`: what becomes of the other one if it fails or is cancelled.
    """

    id: str = Field(validation_alias=AliasChoices("job_id"))
    otherwise: Otherwise
    state: JobState
    ended: bool
    result: Json = None
    error: ErrorDetail | None


class ParentList(BaseModel):
    """What a job waits for or has waited for, in the order in which it named them."""

    parents: list[ParentView]


class ChildList(BaseModel):
    """A page of the jobs that wait for a job; `next` is the `cursor` of the following page."""

    children: list[JobSummary]
    next: str | None


class ChildQuery(Taken):
    """Which page."""

    limit: int = Field(50, ge=1, le=MAX_PAGE, description="At most so many.")
    cursor: int | None = Field(None, ge=0, lt=2**63, description="The `next` of the page before.")
