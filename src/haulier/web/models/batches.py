"""Batches as a thing of their own: what they are opened with, and how they are shown."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictInt, WithJsonSchema
from typing_extensions import override

from haulier.domain.batch import Batch
from haulier.domain.job import JobState
from haulier.services.options import BatchLimits, Options
from haulier.web.bodies import MAX_PAGE, BatchBody, Taken
from haulier.web.models.enqueuing import PRIORITY
from haulier.web.schemas import CountsView, Instant, LimitsView, Percent, View


class OpenBody(BatchBody):
    """A batch of items of a kind, to be filled by streams and then sealed."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"kind": "resize", "concurrency": 20, "on_finish": "report"}}
    )

    kind: str = Field(max_length=200)
    queue: str | None = Field(None, min_length=1, max_length=200)
    # What it may be is checked where the library's is: with the names in the reason.
    priority: Annotated[Any, WithJsonSchema(PRIORITY)] = None
    key: str | None = Field(
        None, min_length=1, max_length=200, description="The partition its items belong to."
    )
    on_finish: str | None = Field(
        None, max_length=200, description="The kind of the job that is enqueued when it has ended."
    )
    id: UUID | None = Field(None, description="Repeating a request with the same id is harmless.")

    @override
    def options(self, idempotency_key: str | None) -> Options:
        return {
            **super().options(idempotency_key),
            "queue": self.queue,
            "priority": self.priority,
            "key": self.key,
            "job_id": None if self.id is None else str(self.id),
        }


class AlterBody(Taken):
    """Limits to change; null removes one, what is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"concurrency": 50, "max_failures": None}}
    )

    concurrency: StrictInt | None = Field(None, ge=1)
    batch_size: StrictInt | None = Field(None, ge=1)
    max_failures: StrictInt | None = Field(None, ge=0)

    def changes(self) -> BatchLimits:
        """Those that were named."""
        changes: BatchLimits = self.model_dump(exclude_unset=True)  # type: ignore[assignment]
        return changes


class BatchQuery(Taken):
    """Which batches: those that are items of no other, or with `within` of that one."""

    within: UUID | None = Field(None, description="The batch whose items they are.")
    limit: int = Field(50, ge=1, le=MAX_PAGE, description="At most so many.")
    cursor: UUID | None = Field(None, description="The `next` of the page before.")


class BatchView(View):
    """A batch as its counters tell it. `open`: it waits for more items.

    `settled`: nothing of it runs or will run any more. `finish_job` is the id of its finish
    callback. `rate` is items a second.
    """

    id: str
    kind: str
    queue: str
    state: JobState
    counts: CountsView
    limits: LimitsView
    open: bool
    sealed: bool
    settled: bool
    paused: bool
    cancel_requested: bool
    progress: Percent
    rate: float | None
    eta_seconds: float | None
    within: str | None
    finish_job: str | None
    created_at: Instant
    started_at: Instant | None
    finished_at: Instant | None

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """As it is now."""
        now = time.time_ns() // 1000
        return cls(
            id=batch.id,
            kind=batch.kind,
            queue=batch.queue,
            state=batch.state,
            counts=CountsView.model_validate(batch.counts),
            limits=LimitsView.model_validate(batch),
            open=batch.open,
            sealed=batch.sealed,
            settled=batch.settled,
            paused=batch.paused,
            cancel_requested=batch.cancel_requested,
            progress=round(batch.progress, 2),
            rate=batch.rate(now),
            eta_seconds=batch.eta(now),
            within=batch.within,
            finish_job=batch.finish_job,
            created_at=batch.created_at,
            started_at=batch.started_at,
            finished_at=batch.finished_at,
        )


class BatchList(BaseModel):
    """A page of batches, newest first. `next` is the `cursor` of the following page."""

    batches: list[BatchView]
    next: str | None


class ExportQuery(Taken):
    """Which items, as what; without `cursor` from the first one."""

    format: Literal["ndjson", "csv"] = Field(
        "ndjson", description="A JSON object a line, or a table with a head."
    )
    state: list[JobState] = Field(default_factory=list, description="Only items in these states.")
    cursor: int | None = Field(
        None, ge=0, lt=2**63, description="That of the last row that was read: go on behind it."
    )
