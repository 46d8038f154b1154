"""Starts of bulk kinds, and the shapes that older front ends know, as models."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt
from pydantic.alias_generators import to_camel, to_snake

from haulier.domain.batch import Batch
from haulier.domain.job import Job, JobState
from haulier.services.orchestrator import StartOptions
from haulier.web.bodies import Taken
from haulier.web.schemas import Instant, JobStatus, Json


class StartBody(Taken):
    """What a bulk kind is to work on: a task of the catalog by its id, or the input itself."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"task_id": 123, "options": {"concurrency": 4}}}
    )

    task_id: StrictInt | str | None = None
    input: dict[str, Any] = Field(default_factory=dict, description="What its runner takes.")
    options: StartOptions = StartOptions()


class GenerateBody(BaseModel):
    """How many accounts to provision; what else is given goes to the platform's runner."""

    model_config = ConfigDict(
        extra="allow",
        hide_input_in_errors=True,
        json_schema_extra={"example": {"count": 1, "priority": "high"}},
    )

    count: StrictInt = Field(1, ge=1, le=100_000)
    priority: Annotated[str | StrictInt | None, Field(description="A name or a number.")] = None

    def given(self) -> dict[str, Any]:
        """What the runner is given."""
        return {"count": self.count, **(self.model_extra or {})}


class WorkflowOptions(BaseModel):
    """Options of a workflow job; what is not the engine's goes to the task."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    priority: str | None = None


class WorkflowBody(BaseModel):
    """The data of a workflow job, in camel case; `jobId` is the id that the job will have."""

    model_config = ConfigDict(
        extra="allow",
        alias_generator=to_camel,
        hide_input_in_errors=True,
        json_schema_extra={
            "example": {
                "issueNumber": 7,
                "repoFullName": "owner/name",
                "options": {"priority": "high"},
            }
        },
    )

    job_id: str | None = Field(None, max_length=36)
    options: WorkflowOptions = WorkflowOptions()

    def given(self) -> dict[str, Any]:
        """The payload, by the names that a Python task has."""
        extra = self.options.model_extra or {}
        told = {to_snake(name): value for name, value in (self.model_extra or {}).items()}
        return told | {to_snake(name): value for name, value in extra.items()}


class CamelStatus(BaseModel):
    """The status of a job as front ends in camel case know it."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    job_id: str
    status: JobState
    progress: float
    result: Json = None
    error: str | None
    created_at: Instant
    updated_at: Instant

    @classmethod
    def of(cls, job: Job, batch: Batch | None, now: int) -> Self:
        """The status of a job, with its batch if it is the head of one, at an instant."""
        told = JobStatus.of(job, batch, now)
        return cls(
            job_id=job.id,
            status=told.status,
            progress=told.progress,
            result=told.result,
            error=told.error.message if told.error else None,
            created_at=told.created_at,
            updated_at=told.finished_at or told.started_at or told.created_at,
        )


class Cancelled(BaseModel):
    """The state of a job that was to be cancelled."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    job_id: str
    status: JobState
