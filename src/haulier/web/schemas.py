"""What the API takes and gives, as models. Instants are ISO 8601 in UTC, durations seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
)
from pydantic_core import from_json

from haulier.domain.batch import Batch
from haulier.domain.job import Job, JobState, Role
from haulier.domain.retry import RetryPolicy
from haulier.domain.sealed import masked
from haulier.runners.media_spec import ImageWatermark, PlatformSpec, TextWatermark

MAX_PAGE = 500

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _from_microseconds(value: Any) -> Any:
    return _EPOCH + timedelta(microseconds=value) if isinstance(value, int) else value


def _parsed(value: Any) -> Any:
    return from_json(value) if isinstance(value, bytes) else value


Instant = Annotated[datetime, BeforeValidator(_from_microseconds)]
Json = Annotated[Any, BeforeValidator(_parsed)]
Payload = Annotated[Any, BeforeValidator(lambda value: masked(_parsed(value)))]
Percent = Annotated[float, Field(ge=0, le=100)]


class _View(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class ErrorView(_View):
    """Why the last attempt failed."""

    type: str
    message: str


class ErrorDetail(ErrorView):
    """The same with the attempt it was, and where in the code it happened."""

    traceback: str
    attempt: int
    at: Instant


class JobSummary(_View):
    """A job in a list. `progress` is what its task last reported."""

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
    message: str | None
    cancel_requested: bool
    error: ErrorView | None
    run_at: Instant
    created_at: Instant
    started_at: Instant | None
    finished_at: Instant | None


class ItemView(JobSummary):
    """An item of a batch, with what its task returned."""

    result: Json = None


class JobDetail(JobSummary):
    """All there is to know of a job. Secrets in its payload are masked."""

    payload: Payload
    result: Json = None
    error: ErrorDetail | None
    retry: dict[str, Any] | None = Field(description="None: the policy of the kind.")
    version: int
    lease: int
    lost: int = Field(description="How many workers were lost while they ran this job.")
    worker: str | None

    @field_validator("retry", mode="before")
    @classmethod
    def _policy(cls, value: RetryPolicy | None) -> dict[str, Any] | None:
        return None if value is None else value.as_dict()


class JobList(BaseModel):
    """A page of jobs, newest first. `next` is the `cursor` of the following page."""

    jobs: list[JobSummary]
    next: str | None


class ItemList(BaseModel):
    """A page of a batch's items in their order. `next` is the `cursor` of the following page."""

    items: list[ItemView]
    next: str | None


class CountsView(_View):
    """How many items of a batch are in each state."""

    total: int
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int


class JobStatus(BaseModel):
    """How far a job or a batch is.

    `counts`, `rate` (items a second), `eta_seconds` and `finish_job` are a batch's.
    """

    id: str
    kind: str
    role: Role
    status: JobState
    progress: Percent
    message: str | None
    cancel_requested: bool
    counts: CountsView | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    finish_job: str | None = Field(
        None, description="The job that ran once the batch had settled; its result is the report."
    )
    result: Json = None
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
            cancel_requested=job.cancel_requested or (batch is not None and batch.cancel_requested),
            counts=None if batch is None else CountsView.model_validate(batch.counts),
            rate=None if batch is None else batch.rate(now),
            eta_seconds=None if batch is None else batch.eta(now),
            finish_job=None if batch is None else batch.finish_job,
            result=job.value,
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


class Started(BaseModel):
    """A job that was enqueued, and where to ask how it goes."""

    id: str
    status_url: str


class Health(BaseModel):
    """`degraded`: the store answers, but there is no live worker. `jobs` leaves items out."""

    status: Literal["ok", "degraded"]
    version: str
    store_ms: float = Field(description="How long the store took to answer.")
    workers: int = Field(description="Live worker processes.")
    jobs: dict[JobState, int]
    items: dict[JobState, int]


class _Taken(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class _PageQuery(_Taken):
    state: list[JobState] = Field(default_factory=list, description="Only jobs in these states.")
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    cursor: int | None = Field(
        None, ge=0, lt=2**63, description="The `next` of the page before; made by the server."
    )


class ItemQuery(_PageQuery):
    """Which items of a batch."""


class JobQuery(_PageQuery):
    """Which jobs. Without `role`: the items of a `batch` that is named, else all but items."""

    kind: str | None = Field(None, max_length=200)
    queue: str | None = Field(None, max_length=200)
    batch: UUID | None = None
    role: list[Role] = Field(default_factory=list)


class EnqueueBody(_Taken):
    """One job. What is left out comes from the kind's definition."""

    kind: str = Field(max_length=200)
    payload: dict[str, Any] = Field(default_factory=dict)
    queue: str | None = Field(None, min_length=1, max_length=200)
    priority: int | None = Field(None, description="From -10,000 to 10,000; higher goes first.")
    delay: float | None = Field(None, ge=0, description="Seconds to wait before it may run.")
    run_at: AwareDatetime | None = Field(None, description="When it may run, instead of a delay.")
    key: str | None = Field(None, max_length=200, description="The partition it belongs to.")
    id: UUID | None = Field(None, description="Repeating a request with the same id is harmless.")


RelativePath = Annotated[str, Field(min_length=1, max_length=1024)]


class TextWatermarkBody(TextWatermark):
    """A text watermark; its font is a file below the media folder."""

    font: RelativePath | None = None


class ImageWatermarkBody(ImageWatermark):
    """An image watermark; the image is a file below the media folder."""

    image: RelativePath


def _watermark_kind(value: Any) -> str:
    given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "image" if "image" in given else "text"


WatermarkBody = Annotated[
    Annotated[TextWatermarkBody, Tag("text")] | Annotated[ImageWatermarkBody, Tag("image")],
    Discriminator(_watermark_kind),
]
"""Told apart by what is given, so that a fault is told of the one that is meant."""


class MediaUniqBody(_Taken):
    """Renditions of every source for every account, given as a list or as CSV text.

    Sources are pictures, or folders of them, below the server's media folder; the output is a
    folder below its output folder.
    """

    accounts: list[str] | None = None
    accounts_csv: str | None = Field(None, description="A column `account`, or one name a line.")
    sources: list[RelativePath] = Field(min_length=1, max_length=10_000)
    output: RelativePath
    spec: str | PlatformSpec = "square"
    watermark: WatermarkBody | None = None


class ProxyDiagnosticsBody(_Taken):
    """Proxies to check, given as a list of lines or as CSV text."""

    proxies: list[str] | None = Field(
        None, description="Each `scheme://user:password@host:port` or `host:port:user:password`."
    )
    proxies_csv: str | None = Field(
        None, description="Columns scheme, host, port, username and password, or such lines."
    )
    tries: int = Field(5, ge=1, le=50)
    timeout: float = Field(5.0, ge=0.1, le=60, description="Seconds that one try may take.")
