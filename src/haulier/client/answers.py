"""What the HTTP API answers, as values. Instants are aware datetimes in UTC, durations seconds.

A field that a newer server adds is passed over.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from haulier.domain.flow import Otherwise
from haulier.domain.job import JobState, Role
from haulier.domain.limits import Circuit
from haulier.domain.schedule import Overlap
from haulier.domain.tick import TickState

T = TypeVar("T")


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Started(Answer):
    """A job that was enqueued, and where to ask how it goes."""

    id: str
    status_url: str


class ManyStarted(Answer):
    """The ids of jobs that were enqueued together, in their order."""

    ids: tuple[str, ...]


class LineError(Answer):
    """A line of a stream that was left out."""

    field: str
    reason: str
    line: int | None = None


class StreamTaken(Answer):
    """What became of a stream: `new` are those of the `taken` lines that were not there before."""

    taken: int
    new: int
    skipped: int
    errors: tuple[LineError, ...]


class Failure(Answer):
    """Why the last attempt failed."""

    type: str
    message: str


class FailureDetail(Failure):
    """The same with the attempt it was, its claim, and where in the code it happened."""

    traceback: str
    attempt: int
    at: datetime
    lease: int
    worker: str | None


class JobSummary(Answer):
    """A job in a list; see the documentation of the HTTP API."""

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
    progress: float | None
    message: str | None
    parked: bool
    waiting: bool
    unique: bool
    cancel_requested: bool
    cancel_heard: bool
    error: Failure | None
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Item(JobSummary):
    """An item of a batch, with what its task returned."""

    result: Any = None


class JobRecord(JobSummary):
    """All there is to know of a job, but for its payload."""

    result: Any = None
    result_expired: bool
    error: FailureDetail | None
    retry: dict[str, Any] | None
    version: int
    lease: int
    lost: int
    worker: str | None
    baggage: dict[str, Any]


class Job(JobRecord):
    """All there is to know of a job. Secrets in its payload are masked.

    `schedule` and `tick`: where it comes from, if a schedule has enqueued it.
    """

    payload: Any
    schedule: str | None = None
    tick: datetime | None = None


class Counts(Answer):
    """How many items of a batch are in each state."""

    total: int
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int


class BatchLimits(Answer):
    """How a batch is worked on; None does not limit."""

    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


class JobStatus(Answer):
    """How far a job or a batch is; from `counts` to `finish_job` it is a batch's."""

    id: str
    kind: str
    role: Role
    status: JobState
    progress: float
    message: str | None
    parked: bool
    cancel_requested: bool
    cancel_heard: bool
    counts: Counts | None = None
    paused: bool | None = None
    limits: BatchLimits | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    finish_job: str | None = None
    result: Any = None
    result_expired: bool
    error: Failure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class StateChange(Answer):
    """The state a job is in now. A running one that was told to stop runs until it has."""

    id: str
    state: JobState


class Requeued(Answer):
    """How many failed items of a batch became pending again."""

    id: str
    requeued: int


class PauseChange(Answer):
    """Whether a batch is paused now."""

    id: str
    paused: bool


class Count(Answer):
    """How many jobs an operation by filter concerned."""

    count: int


class Step(Answer):
    """A finished step of a job: its result, and the number of the claim that finished it."""

    name: str
    result: Any = None
    lease: int
    at: datetime


class Line(Answer):
    """A log line of a job, and the number of the claim that wrote it."""

    at: datetime
    lease: int
    text: str


class Parent(Answer):
    """A job that another one waits for, as it is now or as it was when it ended."""

    id: str
    otherwise: Otherwise
    state: JobState
    ended: bool
    result: Any = None
    error: FailureDetail | None


class Batch(Answer):
    """A batch as its counters tell it. `rate` is items a second."""

    id: str
    kind: str
    queue: str
    state: JobState
    counts: Counts
    limits: BatchLimits
    open: bool
    sealed: bool
    settled: bool
    paused: bool
    cancel_requested: bool
    progress: float
    rate: float | None
    eta_seconds: float | None
    within: str | None
    finish_job: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Event(Answer):
    """One thing that happened. `type` names it; `reset` says that events are missing."""

    cursor: str
    seq: int
    epoch: str
    at: datetime
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


class QueueLine(Answer):
    """The jobs of a kind in a queue; `workers` are those alive that take them."""

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
    weight: int | None


class Queues(Answer):
    """What waits where, how many live workers there are, and which queues are paused."""

    workers: int
    queues: tuple[QueueLine, ...]
    paused: tuple[str, ...]


class QueueSetting(Answer):
    """How a queue is set now, and in which version of the configuration."""

    queue: str
    paused: bool
    weight: int | None
    version: int


class Worker(Answer):
    """A worker incarnation. `alive`: it has renewed itself within its ttl."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    kinds: tuple[str, ...]
    slots: int
    started_at: datetime
    renewed_at: datetime
    alive: bool


class Rate(Answer):
    """So many starts in `per` seconds; `burst` at once after a rest."""

    count: int
    per: float
    burst: int | None = None


class Breaker(Answer):
    """When a circuit opens, and for how long."""

    failures: float
    least: int
    window: float
    pause: float
    probes: int


class Limit(Answer):
    """A limit and how many jobs hold slots of it."""

    name: str
    concurrency: int | None = None
    rate: Rate | None = None
    breaker: Breaker | None = None
    queue: str | None = None
    kind: str | None = None
    per_key: bool
    running: int
    declared: bool
    changed_by: str
    changed_at: datetime


class LimitChange(Answer):
    """Whether a limit is another one now than before."""

    name: str
    changed: bool


class LimitKey(Answer):
    """How a key stands under a limit: `ready_at` where its next start is a matter of time."""

    key: str
    running: int
    ready_at: datetime | None
    circuit: Circuit | None
    succeeded: int
    failed: int


class BreakerChange(Answer):
    """Whether the breaker had counted anything of the key."""

    name: str
    key: str
    reset: bool


class Schedule(Answer):
    """A schedule as it is now: with `cron` and `zone`, or `every` so many seconds from `start`."""

    name: str
    kind: str
    payload: Any
    cron: str | None = None
    zone: str | None = None
    every: float | None = None
    start: datetime | None = None
    missed: str
    overlap: Overlap
    paused: bool
    next: datetime | None
    last_job: str | None
    queue: str
    priority: int
    key: str | None
    concurrency: int | None
    batch_size: int | None
    max_failures: int | None
    declared: bool
    revision: int
    changed_by: str
    changed_at: datetime


class Tick(Answer):
    """A tick and what became of it. `since`: the first of several that it makes up for."""

    tick: datetime
    state: TickState
    since: datetime | None
    job: str | None
    at: datetime


class Setting(Answer):
    """What a setting is, the version that set it, who and when."""

    value: Any
    version: int
    changed_by: str
    changed_at: datetime


class Configuration(Answer):
    """All settings that operators have set for all workers of the store."""

    version: int
    settings: dict[str, Setting]


class Alteration(Answer):
    """One setting that was changed; None where it was not set."""

    version: int
    at: datetime
    by: str
    name: str
    before: Any
    after: Any


class Health(Answer):
    """How the service is; what is None was not told, as to those without a token."""

    status: str
    live: bool = True
    ready: bool = True
    version: str | None = None
    versions: dict[str, str] | None = None
    store_ms: float | None = None
    workers: int | None = None
    oldest_ready_seconds: float | None = None
    sweep_lag_seconds: float | None = None
    jobs: dict[JobState, int] | None = None
    items: dict[JobState, int] | None = None


class JobMetrics(Answer):
    """Figures of all jobs that are kept: single and head jobs, never items, but for accounts."""

    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    total_accounts_processed: int
    total_uploads_success: int
    total_uploads_failed: int
    jobs_by_type: dict[str, int]
    running_jobs_count: int


class Message(Answer):
    """One message of a live stream; `cursor` is where the stream goes on after it.

    `type` is that of an event, or snapshot, stats, queues, workers, batch.
    """

    type: str
    cursor: str | None
    data: dict[str, Any]


class Page(Answer, Generic[T]):
    """A page of a list, and what leads to the following one (None: this was the last)."""

    found: tuple[T, ...]
    next: str | None
