"""What a running task is given: its job, its lease, and ways to speak while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cached_property
from typing import Any, Protocol

import structlog
from pydantic import BaseModel

from haulier.domain.batch import Batch
from haulier.domain.job import Job, JobState
from haulier.domain.worker import Note
from haulier.exceptions import CancelJob, JobTimeoutError, LeaseLostError
from haulier.ports import JobFilter, JobReader, pages
from haulier.services.baggage import baggage_of, loggable
from haulier.services.secrets import scrub_current

LONGEST_MESSAGE = 500


class Control:
    """What the worker tells a running job: set on the event loop, read from any thread.

    `late` is the number of seconds the job was given, once they are over. `listener` is called
    when a cancel or a timeout has been told.
    """

    __slots__ = ("cancelled", "late", "listener", "lost")

    def __init__(self) -> None:
        self.cancelled = False
        self.late: float | None = None
        self.lost = False
        self.listener: Callable[[], None] | None = None

    def cancel(self) -> None:
        """A cancel was requested."""
        self.cancelled = True
        if self.listener is not None:
            self.listener()

    def expire(self, seconds: float) -> None:
        """The time that the job was given is over."""
        self.late = seconds
        if self.listener is not None:
            self.listener()

    def lose(self) -> None:
        """The attempt no longer counts."""
        self.lost = True


class Runtime(Protocol):
    """What a context reaches through: the worker that runs the job, or a stand-in in tests."""

    @property
    def reader(self) -> JobReader: ...

    def report(self, note: Note) -> None:
        """Take a note to be stored soon; callable from any thread."""
        ...

    def payload_of(self, job: Job) -> BaseModel:
        """The checked payload of a job, its secrets bound."""
        ...


class Context:
    """A running job's view of itself and its way to report.

    Name it by annotating a parameter of the task: `def task(ctx: Context, …)`. All methods that
    are not coroutines may be called from any thread.
    """

    def __init__(self, job: Job, control: Control, runtime: Runtime) -> None:
        self.job = job
        self._control = control
        self._runtime = runtime

    @property
    def lease(self) -> int:
        """The number of this claim. It only ever rises: give it to outside systems as a fence."""
        return self.job.lease

    @property
    def cancelled(self) -> bool:
        """Whether this job should stop: cancelled on request, out of time, or its lease lost."""
        control = self._control
        return control.cancelled or control.lost or control.late is not None

    @property
    def lost(self) -> bool:
        """Whether this attempt no longer counts: its lease was lost, or it is to be given back."""
        return self._control.lost

    def check(self) -> None:
        """Raise if this job should stop: CancelJob, JobTimeoutError, or LeaseLostError.

        For plain functions: they run in threads, which cannot be stopped from outside.
        """
        if self._control.lost:
            raise LeaseLostError(f"job {self.job.id} was taken away from this worker")
        if self._control.cancelled:
            raise CancelJob("cancelled on request")
        if self._control.late is not None:
            raise JobTimeoutError(overdue(self._control.late))

    def progress(self, percent: float, message: str | None = None) -> None:
        """Say how far the job is, 0 to 100, with an optional message. Calls `check` as well.

        Cheap enough for a loop: only the latest report is stored, a few times a second. Secrets
        that the job has revealed are masked in the message, which is cut after 500 characters.
        """
        self.check()
        if not 0 <= percent <= 100:
            raise ValueError(f"progress is a percentage from 0 to 100, not {percent!r}")
        text = None if message is None else storable(scrub_current(str(message)))[:LONGEST_MESSAGE]
        self._runtime.report(Note(self.job.id, self.job.lease, int(percent), text))

    @cached_property
    def state(self) -> dict[str, Any]:
        """A dict of this attempt, shared with its middleware; in a child process the job's own."""
        return {}

    @cached_property
    def baggage(self) -> dict[str, Any]:
        """What `haulier.baggage` bound when this job was enqueued; what it enqueues has it too."""
        return baggage_of(self.job.baggage)

    @cached_property
    def log(self) -> Any:
        """A structured logger that carries the job's id, kind, attempt and lease."""
        job = self.job
        return structlog.get_logger("haulier.job").bind(
            **loggable(job.baggage), job=job.id, kind=job.kind, attempt=job.attempt, lease=job.lease
        )

    async def batch(self, batch_id: str | None = None) -> Batch:
        """A batch, by default the one this job is the head or an item of."""
        return await self._runtime.reader.batch(batch_id or self.job.batch_id or self.job.id)

    async def payload_of(self, job_id: str) -> BaseModel:
        """The payload of another job, for instance the head's in a finish callback."""
        return self._runtime.payload_of(await self._runtime.reader.get(job_id))

    async def items(
        self, batch_id: str | None = None, *, state: JobState | None = None
    ) -> AsyncIterator[Job]:
        """The items of that batch in their order, read page by page."""
        where = JobFilter(
            batch_id=batch_id or self.job.batch_id or self.job.id,
            states=frozenset({state}) if state else None,
        )
        async for job in pages(self._runtime.reader, where):
            yield job


def overdue(seconds: float) -> str:
    """What is said of a job that was given so many seconds."""
    return f"took longer than {seconds:g} s"


def storable(text: str) -> str:
    """Text that any store can keep: lone surrogates are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
