"""What the core calls out through. A store implements `JobStore`; nothing else touches jobs.

Its parts beside the jobs have Protocols of their own, in `parts`.

The verbs speak of jobs, never of SQL or Lua, and each is one atomic step. `exchange` is the hot
one: finished transitions go in, newly claimed jobs come out, one round trip and one commit. Every
call raises StoreError when the store cannot serve, within the store's deadline (or a shorter one of
the caller's, see services/deadlines.py), and may then have been applied or not: each verb can be
repeated without harm. StoreClosedError says that the store is not open, so that waiting does not
help.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from haulier.domain.batch import Batch, BatchPolicy
from haulier.domain.event import Event
from haulier.domain.finding import Finding
from haulier.domain.flow import Parent
from haulier.domain.job import Job, JobError, JobState, NewJob, Role
from haulier.domain.line import Line
from haulier.domain.moves import Transition
from haulier.domain.retention import Retention
from haulier.domain.step import Step
from haulier.domain.worker import Demand, Exchange, Note, Renewal, WorkerRow
from haulier.parts import Configurable, Limiting, Schedules, Transferable

DEFAULT_TTL = 15.0
"""Seconds that a worker incarnation lives without renewal, unless a store is told otherwise."""

CHUNK = 2000
"""Jobs that one insert takes where there is nothing against it: it stays far below the 50 ms that a
writer may take."""


class Clock(Protocol):
    """The time of the machine a store runs on."""

    def now(self) -> int:
        """Microseconds since 1970 UTC."""
        ...

    def boot(self) -> tuple[str, int]:
        """The id of this boot, and microseconds since it; unlike `now` it never jumps."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a query is about; fields left None do not restrict."""

    states: frozenset[JobState] | None = None
    kind: str | None = None
    queue: str | None = None
    batch_id: str | None = None
    roles: frozenset[Role] | None = None
    worker: str | None = None
    key: str | None = None
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Inserted:
    """What became of the jobs given to `insert`.

    `new` is how many were not there before. `instead` says for each job that was not inserted
    because another one holds its unique name or idempotency key, which one that is: id to id.
    """

    new: int
    instead: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of jobs; `next` is the cursor of the following one, None at the end."""

    jobs: tuple[Job, ...]
    next: int | None = None


@dataclass(frozen=True, slots=True)
class Fence:
    """A worker's right to write: the job and the number of the claim it holds it by."""

    job_id: str
    lease: int


class Heartbeat(Protocol):
    """Renews one worker incarnation. Lives in a thread of its own, with its own connection."""

    def renew(self) -> Renewal:
        """Put the expiry of the incarnation forward by the ttl; blocking."""
        ...

    def close(self) -> None: ...


class JobReader(Protocol):
    """Questions about jobs. They never wait for a writer."""

    async def get(self, job_id: str) -> Job:
        """The job; raises JobNotFoundError."""
        ...

    async def find(
        self,
        where: JobFilter,
        *,
        limit: int = 50,
        cursor: int | None = None,
        oldest_first: bool = False,
        payloads: bool = True,
    ) -> Page:
        """A page of jobs in the order of their sequence numbers, newest first unless told.

        Without `payloads` each job has the payload `null`: those of heads may be megabytes long.
        """
        ...

    async def errors(self, job_id: str) -> list[JobError]:
        """The errors of a job's attempts, the latest first; at most those of its last 100 claims.

        They outlive a retry that succeeds and a requeue, and go with the job.
        """
        ...

    async def steps(self, job_id: str) -> list[Step]:
        """The finished steps of a job, in the order in which they were kept.

        They outlive every retry and requeue, and go with the job. Raises JobNotFoundError.
        """
        ...

    async def parents(self, job_id: str) -> list[Parent]:
        """The jobs that a job waits for or has waited for, in the order in which it named them.

        Raises JobNotFoundError.
        """
        ...

    async def children(self, job_id: str, *, limit: int = 50, cursor: int | None = None) -> Page:
        """A page of the jobs that wait for a job or have waited for it, without their payloads.

        In the order of their insertion. Raises JobNotFoundError for a job that is not there.
        """
        ...

    async def lines(self, job_id: str) -> list[Line]:
        """The last log lines of a job, the oldest first; at most KEPT_LINES.

        They outlive every retry and requeue, and go with the job. Raises JobNotFoundError.
        """
        ...

    async def events(self, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """Events in the order of their numbers, those that follow the cursor `after`.

        Without `after`, from the oldest that is kept. A cursor that lies before it, or belongs to
        another epoch, is answered by one event `reset` whose cursor leads on.
        """
        ...

    async def last_event(self) -> str:
        """The cursor of the latest event: what is appended from now on follows it."""
        ...

    async def batch(self, batch_id: str) -> Batch:
        """The batch; raises JobNotFoundError."""
        ...

    async def batches(
        self, *, limit: int = 50, cursor: str | None = None, within: str | None = None
    ) -> list[Batch]:
        """Batches, newest first; `cursor` is the id of the last one seen.

        Those that are items of no other, or with `within` those that are items of that one.
        """
        ...

    def schedules(self) -> Schedules:
        """The part of this store that keeps schedules."""
        ...

    async def counts(self) -> dict[tuple[str, str, Role, JobState], int]:
        """How many jobs there are per queue, kind, role and state."""
        ...

    async def fronts(self) -> dict[str, int]:
        """Since when the first job of each queue has been due (microseconds UTC).

        The first in its order, which is nearly the oldest. Queues in which nothing is ready are
        left out; what waits for a limit, or for other jobs, is not ready.
        """
        ...

    async def workers(self) -> list[WorkerRow]:
        """The worker incarnations the store remembers, the youngest first."""
        ...


async def pages(reader: JobReader, where: JobFilter) -> AsyncIterator[Job]:
    """All jobs of a query in the order of their insertion, read page by page."""
    cursor: int | None = None
    while True:
        page = await reader.find(where, limit=500, cursor=cursor, oldest_first=True)
        for job in page.jobs:
            yield job
        if page.next is None:
            return
        cursor = page.next


class JobStore(JobReader, Protocol):
    """Where jobs live. `ttl` is how many seconds a worker incarnation lives without renewal.

    Who has more than `chunk` jobs to insert does so in several calls, between which others get
    their turn. A longer call is one transaction all the same, and keeps them waiting.
    """

    @property
    def ttl(self) -> float: ...

    @property
    def chunk(self) -> int: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...

    # ── Producers ────────────────────────────────────────────────────────────────────────────

    async def insert(
        self,
        jobs: Sequence[NewJob],
        *,
        fence: Fence | None = None,
        policy: BatchPolicy | None = None,
        connection: object | None = None,
    ) -> Inserted:
        """Insert jobs in one transaction.

        A job whose id exists already is left as it is. A head job starts a batch with the given
        policy; so does one of the role inner, which is an item of another batch as well, at most
        `domain.batch.DEEPEST` deep. Items name their batch, which must not be sealed. With a
        `fence` nothing happens unless it holds: raises LeaseLostError. A job whose unique name is
        held by another is dealt with as its `Conflict` says: raises DuplicateJobError or
        IdempotencyConflictError, and then nothing was inserted. Raises ValidationError for
        a job that is to run `after` one that is not there or, in a circle, after itself. Two jobs
        of one call may hold the same name: the first one has it.

        With the caller's own `connection` to the store's database, in the transaction that is open
        on it: the jobs are there once the caller commits. Raises ConfigurationError for one that is
        of no use to this store.
        """
        ...

    async def seal(self, batch_id: str) -> None:
        """Declare that a batch opened by `open_batch` has all its items."""
        ...

    async def open_batch(
        self,
        head: NewJob,
        items: Sequence[NewJob],
        *,
        policy: BatchPolicy | None = None,
        sealed: bool,
    ) -> Inserted:
        """Insert a head job that its producer expands itself, with the first items.

        The head is running from the start, held by nobody; it settles like any other once it is
        sealed and its last item is done. When another head holds its unique name, no item is
        inserted either. The items are plain ones.
        """
        ...

    async def pause(self, batch_id: str) -> None:
        """Let no more items of a batch start, nor of those within it; those that run go on.

        Raises JobNotFoundError.
        Raises JobStateError for a batch that has settled. Pausing a paused batch changes nothing.
        """
        ...

    async def resume(self, batch_id: str) -> None:
        """Let the items of a paused batch start again.

        Those of a batch within it that was paused by itself stay as they are.
        """
        ...

    async def alter_batch(
        self, batch_id: str, changes: Mapping[str, int | None], *, by: str = ""
    ) -> None:
        """Change limits of a batch (the names of `domain.batch.LIMITS`); None removes one.

        It holds at once: items that were let into the line beyond it are taken back, those that
        run go on. With more failed items than it may have now, the batch is cut short. Appends an
        `alter` event that tells who did it, unless nothing changes. A settled batch keeps the
        limits for when it is reopened. Raises JobNotFoundError, or JobStateError for a batch that
        is being cancelled, retried or deleted.
        """
        ...

    async def cancel(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Request that jobs stop; returns the state each is in now, absent ids left out.

        Pending ones become cancelled at once, running ones are told by their next exchange or
        renewal. A head takes its items with it.
        """
        ...

    async def requeue(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Make failed or cancelled jobs pending again, with fresh attempts.

        One whose unique name another active job holds meanwhile stays as it is.
        """
        ...

    async def retry_failed(
        self, batch_id: str, *, error_type: str | None = None, limit: int | None = None
    ) -> int:
        """Requeue failed items of a batch and reopen its head; returns how many.

        All, or only those whose last error is of that class, and at most `limit`, the first ones
        first. Not of batches within it, nor these themselves: see `services.nesting`.
        """
        ...

    async def delete(self, job_id: str) -> None:
        """Remove a job that is not running, a head with all its items.

        Raises JobNotFoundError, or JobStateError for one that is running.
        """
        ...

    # ── Workers ──────────────────────────────────────────────────────────────────────────────

    async def enlist(self, worker: WorkerRow) -> None:
        """Record a new worker incarnation; it lives for one ttl unless its heartbeat renews it."""
        ...

    async def exchange(
        self,
        worker_id: str,
        finished: Sequence[Transition],
        demands: Sequence[Demand],
        *,
        turn: int | None = None,
    ) -> Exchange:
        """Apply finished transitions and claim new jobs, in one transaction.

        `turn` rises from one exchange of a worker to its next. One that arrives after a later one
        was served, because the network held it up, does nothing: all that it hands in comes back
        as lost. So a worker whose exchange got no answer has to make only one more, and what it
        holds then is all that it will ever hold of the one before.
        """
        ...

    async def note(self, notes: Sequence[Note]) -> None:
        """Record what running jobs say of themselves; notes with a stale lease are dropped.

        A note that its cancel was heard appends an event, the first time. Of log lines that were
        recorded before, by their numbers, nothing is recorded twice.
        """
        ...

    async def keep(self, steps: Sequence[Step]) -> list[Step]:
        """Keep finished steps of running jobs; returns those not kept, as their lease is stale.

        In one transaction. A step that is kept already stays as it is.
        """
        ...

    async def retire(self, worker_id: str) -> int:
        """End an incarnation for good and release its jobs; returns how many it still held.

        Released jobs count as lost: a worker that shuts down gives its jobs back first.
        """
        ...

    async def sweep(self) -> int:
        """End every expired incarnation as `retire` does; returns how many jobs were released."""
        ...

    async def prune(self, rules: Mapping[str, Retention]) -> int:
        """Remove what is kept no longer: finished jobs of these kinds, results, old events.

        A batch goes as one, by the rule of its head's kind; its items by no other. In slices that
        keep no claim waiting for more than 20 ms; returns how many jobs were removed.
        """
        ...

    def heartbeat(self, worker_id: str) -> Heartbeat:
        """The renewer of an incarnation, to be used from one thread of its own."""
        ...

    # ── Limits ───────────────────────────────────────────────────────────────────────────────

    def limits(self) -> Limiting:
        """The part of this store that is told of limits."""
        ...

    # ── Moving house, and health ─────────────────────────────────────────────────────────────

    def transferable(self) -> Transferable:
        """The part of this store that copies speak to."""
        ...

    def configurable(self) -> Configurable:
        """The part of this store that keeps its configuration."""
        ...

    async def check(self) -> list[Finding]:
        """Look at everything that says how healthy the store is; takes seconds."""
        ...

    # ── Waking ───────────────────────────────────────────────────────────────────────────────

    def watch(
        self,
        notify: Callable[[], None],
        *,
        ready: bool = False,
        settled: bool = False,
        events: bool = False,
    ) -> AbstractContextManager[None]:
        """Within the block, call `notify` on the running loop when something may have changed.

        `ready`: there may be jobs to claim or cancels to hear; `settled`: jobs may have finished
        or reported; `events`: there may be new events. By this process or another; several changes
        may be told as one.
        """
        ...
