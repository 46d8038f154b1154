"""What live streams take and give."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field

from haulier.domain.batch import Batch
from haulier.domain.job import JobState
from haulier.web.bodies import Taken
from haulier.web.live.interest import EVERY_EVENT, Interest, Topic
from haulier.web.schemas import CountsView, Instant, LimitsView, QueueLineView, View

LONGEST_NAME = 200
MOST_TYPES = 50


def _by_commas(given: Any) -> Any:
    """A list as one text, as it is written by hand in an address, or as a parameter repeated."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not all(isinstance(part, str) for part in given):
        return given
    return [word for part in given for word in part.split(",") if word]


Cursor = Annotated[str, Field(max_length=100, pattern=r"^[^:\s]+:[0-9]{1,15}$")]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Words = BeforeValidator(_by_commas)


class StreamFilter(Taken):
    """What restricts the events and batches that are shown; all that is given must hold."""

    batch: UUID | None = Field(None, description="A batch: its head and its items.")
    job: UUID | None = Field(None, description="One job.")
    kind: Name | None = Field(None, description="Only jobs of this kind.")
    queue: Name | None = Field(None, description="Only jobs in this queue.")
    types: Annotated[list[Name], Words] = Field(
        default_factory=list,
        max_length=MOST_TYPES,
        description="Types of events, by commas: `complete,fail`.",
    )

    def interest(self, topics: list[Topic]) -> Interest:
        """What is to be shown of such topics; of none, every event."""
        return Interest(
            topics=frozenset(topics) or EVERY_EVENT,
            batch=None if self.batch is None else str(self.batch),
            job=None if self.job is None else str(self.job),
            kind=self.kind,
            queue=self.queue,
            types=frozenset(self.types),
        )


class StreamQuery(StreamFilter):
    """What a stream shows, and from where on."""

    topics: Annotated[list[Topic], Words] = Field(
        default_factory=list,
        max_length=len(Topic),
        description="By commas: `jobs,stats`. Without any, every event.",
    )
    after: Cursor | None = Field(
        None, description="Begin after this event; a `Last-Event-ID` comes before it."
    )


class LiveRates(BaseModel):
    """What happened a second, since the sample before."""

    enqueued: float = 0
    started: float = 0
    completed: float = 0
    failed: float = 0
    cancelled: float = 0
    retried: float = 0


class LiveStats(BaseModel):
    """How much there is of everything. `jobs` leaves items out; `workers` are those alive."""

    at: Instant
    workers: int
    jobs: dict[JobState, int]
    items: dict[JobState, int]
    rates: LiveRates


class LiveQueue(BaseModel):
    """A line that has no more jobs."""

    queue: str
    kind: str


class LiveQueues(BaseModel):
    """Lines that changed, lines that have gone, and all queues that are paused."""

    changed: list[QueueLineView]
    removed: list[LiveQueue]
    paused: list[str]


class LiveWorker(View):
    """A live worker."""

    id: str
    host: str
    pid: int
    queues: list[str]
    kinds: list[str]
    slots: int
    started_at: Instant


class LiveWorkers(BaseModel):
    """Workers that came, and the ids of those that went."""

    changed: list[LiveWorker]
    removed: list[str]


class LiveBatch(BaseModel):
    """How far a batch is."""

    id: str
    kind: str
    queue: str
    state: JobState
    progress: float
    counts: CountsView
    limits: LimitsView
    paused: bool
    sealed: bool
    settled: bool
    cancel_requested: bool
    rate: float | None
    eta_seconds: float | None
    created_at: Instant
    started_at: Instant | None
    finished_at: Instant | None

    @classmethod
    def of(cls, batch: Batch, now: int) -> Self:
        """A batch as it is at an instant."""
        return cls.model_validate(
            {
                "id": batch.id,
                "kind": batch.kind,
                "queue": batch.queue,
                "state": batch.state,
                "progress": round(batch.progress, 2),
                "counts": CountsView.model_validate(batch.counts),
                "limits": LimitsView.model_validate(batch),
                "paused": batch.paused,
                "sealed": batch.sealed,
                "settled": batch.settled,
                "cancel_requested": batch.cancel_requested,
                "rate": batch.rate(now),
                "eta_seconds": batch.eta(now),
                "created_at": batch.created_at,
                "started_at": batch.started_at,
                "finished_at": batch.finished_at,
            }
        )


class Snapshot(BaseModel):
    """How everything stands; what happens from `cursor` on follows.

    `reason`: `start` of a stream without a cursor; `resume` of one with a cursor, after what it had
    missed; `slow`: events are missing, since they were not read in time; `expired`: events are
    missing, since they are kept no longer. `batches` are the newest ones, or the one asked for.
    Topics that were not asked for are null.
    """

    reason: Literal["start", "resume", "slow", "expired"]
    cursor: str
    stats: LiveStats | None = None
    queues: LiveQueues | None = None
    workers: LiveWorkers | None = None
    batches: list[LiveBatch] | None = None


class Subscribe(Taken):
    """Show this from now on, in place of what was shown before.

    Without `after`, a socket that shows something already goes on where it is.
    """

    type: Literal["subscribe"]
    topics: list[Topic] = Field(default_factory=list, max_length=len(Topic))
    filter: StreamFilter = Field(default_factory=StreamFilter)
    after: Cursor | None = None


class Unsubscribe(Taken):
    """Show these topics no longer; without any, nothing."""

    type: Literal["unsubscribe"]
    topics: list[Topic] = Field(default_factory=list, max_length=len(Topic))


class Ping(Taken):
    """To be answered by a `pong`."""

    type: Literal["ping"]


Message = Annotated[Subscribe | Unsubscribe | Ping, Field(discriminator="type")]
