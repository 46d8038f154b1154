"""What the API gives, as models. Instants are ISO 8601 in UTC, durations seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import from_json

from haulier.domain.batch import Batch
from haulier.domain.job import Job, JobState, Role
from haulier.domain.redaction import shown, without_credentials
from haulier.domain.retry import RetryPolicy

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_of(microseconds: int) -> datetime:
    """An instant of the store, as it is told."""
    return _EPOCH + timedelta(microseconds=microseconds)


def _from_microseconds(value: Any) -> Any:
    return instant_of(value) if isinstance(value, int) else value


def _cleaned(value: Any) -> Any:
    # Workers of earlier releases, and producers in other languages, have masked less.
    return without_credentials(value) if isinstance(value, str) else value


def _parsed(value: Any) -> Any:
    return from_json(value) if isinstance(value, bytes) else value


Instant = Annotated[datetime, BeforeValidator(_from_microseconds)]
Json = Annotated[Any, BeforeValidator(lambda value: shown(_parsed(value)))]
Text = Annotated[str, BeforeValidator(_cleaned)]
Percent = Annotated[float, Field(ge=0, le=100)]


class View(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class ErrorView(View):
    """Why the last attempt failed."""

    type: str
    message: Text


class ErrorDetail(ErrorView):
    """The same with the attempt it was, and where in the code it happened.

    `lease` is the number of the claim that ended so, `worker` who had it.
    """

    traceback: Text
    attempt: int
    at: Instant
    lease: int
    worker: str | None


class ErrorList(BaseModel):
    """How the attempts of a job failed, the latest first; at most those of its last 100 claims."""

    errors: list[ErrorDetail]


class StepView(View):
    """A finished step of a job: its result, and the number of the claim that finished it."""

    name: str
    result: Json
    lease: int
    at: Instant


class StepList(BaseModel):
    """What a job has finished on its way, in that order."""

    steps: list[StepView]


class LineView(View):
    """A log line of a job, and the number of the claim that wrote it."""

    at: Instant
    lease: int
    text: Text


class LineList(BaseModel):
    """The last log lines of a job, the oldest first; at most 200."""

    lines: list[LineView]


class JobSummary(View):
    """A job in a list. `progress` is what its task last reported.

    `parked`: it is due, but its batch is paused or has no slot free for it. `cancel_heard`: its
    worker knows that it is to stop.
    """

    id: str
    kind: str
    queue: str
    role: Role
    state: JobState
    priority: int
    attempt: int
    key: str | None
    batch_id: str | None
    position: int | None
    progress: Percent | None
    message: Text | None
    parked: bool
    waiting: bool
    unique: bool
    cancel_requested: bool
    cancel_heard: bool
    error: ErrorView | None
    run_at: Instant
    created_at: Instant
    started_at: Instant | None
    finished_at: Instant | None


class ItemView(JobSummary):
    """An item of a batch, with what its task returned."""

    result: Json = None


class JobRecord(JobSummary):
    """All there is to know of a job, but for its payload."""

    result: Json = None
    result_expired: bool = Field(description="It completed; its result is kept no longer.")
    error: ErrorDetail | None
    retry: dict[str, Any] | None = Field(description="None: the policy of the kind.")
    version: int
    lease: int
    lost: int = Field(description="How many workers were lost while they ran this job.")
    worker: str | None
    baggage: dict[str, Any] = Field(description="What it carries since its enqueue.")

    @field_validator("baggage", mode="before")
    @classmethod
    def _baggage(cls, value: str | None) -> dict[str, Any]:
        return {} if value is None else from_json(value)

    @field_validator("retry", mode="before")
    @classmethod
    def _policy(cls, value: RetryPolicy | None) -> dict[str, Any] | None:
        return None if value is None else value.as_dict()


class JobDetail(JobRecord):
    """All there is to know of a job. Secrets in its payload are masked.

    `schedule` and `tick`: where it comes from, if a schedule has enqueued it.
    """

    payload: Json
    schedule: str | None = None
    tick: Instant | None = None


class JobList(BaseModel):
    """A page of jobs, newest first. `next` is the `cursor` of the following page."""

    jobs: list[JobRecord | JobSummary]
    next: str | None


class ItemList(BaseModel):
    """A page of a batch's items in their order. `next` is the `cursor` of the following page."""

    items: list[ItemView]
    next: str | None


class CountsView(View):
    """How many items of a batch are in each state."""

    total: int
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int


class LimitsView(View):
    """How a batch is worked on; null does not limit. A start has fields of the same names."""

    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


class JobStatus(BaseModel):
    """How far a job or a batch is.

    `counts`, `paused`, `limits`, `rate` (items a second), `eta_seconds` and `finish_job` are a
    batch's.
    """

    id: str
    kind: str
    role: Role
    status: JobState
    progress: Percent
    message: Text | None
    parked: bool
    cancel_requested: bool
    cancel_heard: bool
    counts: CountsView | None = None
    paused: bool | None = None
    limits: LimitsView | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    finish_job: str | None = Field(
        None, description="The job that ran once the batch had settled; its result is the report."
    )
    result: Json = None
    result_expired: bool
    error: ErrorView | None
    created_at: Instant
    started_at: Instant | None
    finished_at: Instant | None

    @classmethod
    def of(cls, job: Job, batch: Batch | None, now: int) -> Self:
        """The status of a job, with its batch if it is the head of one, at an instant."""
        return cls(
            id=job.id,
            kind=job.kind,
            role=job.role,
            status=job.state,
            progress=_progress(job, batch),
            message=job.message,
            parked=job.parked,
            cancel_heard=job.cancel_heard,
            cancel_requested=job.cancel_requested or (batch is not None and batch.cancel_requested),
            counts=None if batch is None else CountsView.model_validate(batch.counts),
            paused=None if batch is None else batch.paused,
            limits=None if batch is None else LimitsView.model_validate(batch),
            rate=None if batch is None else batch.rate(now),
            eta_seconds=None if batch is None else batch.eta(now),
            finish_job=None if batch is None else batch.finish_job,
            result=job.value,
            result_expired=job.result_expired,
            error=None if job.error is None else ErrorView.model_validate(job.error),
            created_at=_from_microseconds(job.created_at),
            started_at=_from_microseconds(job.started_at),
            finished_at=_from_microseconds(job.finished_at),
        )


def _progress(job: Job, batch: Batch | None) -> float:
    if job.state is JobState.COMPLETED:
        return 100.0
    if batch is not None:
        return round(batch.progress, 2)
    return float(job.progress or 0)


class StateChange(BaseModel):
    """The state a job is in now. A running one that was told to stop is running until it has."""

    id: str
    state: JobState


class Requeued(BaseModel):
    """How many failed items of a batch became pending again."""

    id: str
    requeued: int


class PauseChange(BaseModel):
    """Whether a batch is paused now. Items that were running when it was paused go on."""

    id: str
    paused: bool


class Count(BaseModel):
    """How many jobs an operation on a filter concerned."""

    count: int


class EventView(View):
    """One thing that happened to one job. `type` names it, `reset` that events are missing."""

    cursor: str
    seq: int
    epoch: str
    at: Instant
    type: str
    job_id: str
    kind: str
    queue: str
    role: Role
    batch_id: str | None
    attempt: int
    lease: int
    worker: str | None
    error_type: str | None
    setting: str | None
    by: str | None


class EventList(BaseModel):
    """A page of events in their order. `next` is the `after` of the following page.

    There always is one: a page without events is to be asked for again, later.
    """

    events: list[EventView]
    next: str


class Started(BaseModel):
    """A job that was enqueued, and where to ask how it goes."""

    id: str
    status_url: str


class QueueLineView(View):
    """The jobs of a kind in a queue, items among them; `workers` are those alive that take them.

    `unroutable`: why no live worker would take those that wait. They are not failed: they wait.
    """

    queue: str
    kind: str
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int
    workers: int
    unroutable: str | None
    paused: bool
    weight: int | None = Field(description="As the store's configuration has it.")


class QueueList(BaseModel):
    """What waits where, how many live workers there are, and which queues are paused."""

    workers: int
    queues: list[QueueLineView]
    paused: list[str]
