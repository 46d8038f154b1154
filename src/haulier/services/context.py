"""What a running task is given: its job, its lease, and ways to speak while it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import cached_property
from itertools import count
from typing import Any, Protocol

import structlog
from pydantic import BaseModel

from haulier.domain.batch import Batch
from haulier.domain.flow import Parent
from haulier.domain.job import Job, JobState
from haulier.domain.line import LONGEST_LINE, Said
from haulier.domain.tick import Tick
from haulier.domain.worker import Note
from haulier.exceptions import CancelJob, JobTimeoutError, LeaseLostError
from haulier.ports import JobFilter, JobReader, pages
from haulier.services.baggage import baggage_of, loggable
from haulier.services.secrets import LOOKED_AT, scrub_current
from haulier.services.steps import Keeper, Steps

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


class Runtime(Keeper, Protocol):
    """What a context reaches through: the worker that runs the job, or a stand-in in tests."""

    @property
    def reader(self) -> JobReader: ...

    def parents_of(self, job: Job) -> Future[list[Parent]]:
        """What a job has waited for; callable from any thread."""
        ...

    def report(self, note: Note) -> None:
        """Take a note to be stored soon; callable from any thread."""
        ...

    def payload_of(self, job: Job) -> BaseModel:
        """The checked payload of a job, its secrets bound."""
        ...

    def tick_of(self, job: Job) -> Future[Tick | None]:
        """The tick that a job was enqueued for; callable from any thread."""
        ...


_making = threading.Lock()


class JobLog:
    """`ctx.log("…")` keeps a line with the job; its methods (`ctx.log.info`) log in the worker.

    Callable from any thread.
    """

    def __init__(self, job: Job, runtime: Runtime) -> None:
        self._job = job
        self._runtime = runtime
        self._numbers = count(1)

    def __call__(self, text: object) -> None:
        """Keep a line with the job: its last 200 are shown with it. Never raises for a cancel.

        Stored a few times a second, and before the job's end. Secrets that the job has revealed are
        masked; the line is cut after 2,000 characters.
        """
        line = storable(scrub_current(str(text)[:LOOKED_AT]))[:LONGEST_LINE]
        said = Said(next(self._numbers), line)
        self._runtime.report(Note(self._job.id, self._job.lease, lines=(said,)))

    def __getattr__(self, method: str) -> Any:
        return getattr(self._logger, method)

    @cached_property
    def _logger(self) -> Any:
        job = self._job
        return structlog.get_logger("haulier.job").bind(
            **loggable(job.baggage), job=job.id, kind=job.kind, attempt=job.attempt, lease=job.lease
        )


class Context:
    """A running job's view of itself and its way to report.

    Name it by annotating a parameter of the task: `def task(ctx: Context, …)`. All methods that
    are not coroutines may be called from any thread.
    """

    # Made when they are first used, which in most jobs is never.
    _steps: Steps | None = None
    _log: JobLog | None = None

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
        text = (
            None
            if message is None
            else storable(scrub_current(str(message)[:LOOKED_AT]))[:LONGEST_MESSAGE]
        )
        self._runtime.report(Note(self.job.id, self.job.lease, int(percent), text))

    @cached_property
    def state(self) -> dict[str, Any]:
        """A dict of this attempt, shared with its middleware; in a child process the job's own."""
        return {}

    @cached_property
    def baggage(self) -> dict[str, Any]:
        """What `haulier.baggage` bound when this job was enqueued; what it enqueues has it too."""
        return baggage_of(self.job.baggage)

    @property
    def log(self) -> JobLog:
        """`ctx.log("…")` keeps a line with the job, shown wherever the job is.

        `ctx.log.info("…", n=3)` and the like log in the worker, as a structured logger that carries
        the job's id, kind, attempt and lease.
        """
        with _making:
            if self._log is None:
                self._log = JobLog(self.job, self._runtime)
            return self._log

    async def step(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Do a part of the job once, however often the job is tried. Calls `check` as well.

        The function, plain or async, is called with the arguments; what it returns is kept with the
        job as JSON (at most 256 KiB) before this returns. A later attempt gets that back instead,
        and the function is not called. In both cases it is what JSON makes of it: a tuple comes
        back as a list. When the function raises, nothing is kept.

        Should the worker die between the function's end and the keeping of its result, the function
        is called once more: give the job's id and the step's name to outside systems as an
        idempotency key. Raises ValidationError for a name that is used twice in one attempt,
        PermanentError for a result that cannot be kept, LeaseLostError when the job was taken away.
        """
        self.check()
        try:
            return await self._durable.run(name, function, arguments)
        except LeaseLostError:
            self._control.lose()
            raise

    def step_sync(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same for plain functions: blocks until the step is kept."""
        self.check()
        if _on_event_loop():
            raise RuntimeError("step_sync would block the event loop: use `await ctx.step(…)`")
        try:
            return self._durable.run_sync(name, function, arguments)
        except LeaseLostError:
            self._control.lose()
            raise

    @property
    def _durable(self) -> Steps:
        with _making:
            if self._steps is None:
                self._steps = Steps(self.job, self._runtime)
            return self._steps

    async def parents(self) -> list[Parent]:
        """The jobs that this one has waited for, in the order in which it named them.

        Each with its `state` and, as `value`, what it returned; of one that did not complete, its
        `error`. Works in child processes too.
        """
        return await asyncio.wrap_future(self._runtime.parents_of(self.job))

    def parents_sync(self) -> list[Parent]:
        """The same for plain functions: blocks until the store has told."""
        if _on_event_loop():
            raise RuntimeError("parents_sync would block the event loop: use `await ctx.parents()`")
        return self._runtime.parents_of(self.job).result()

    async def batch(self, batch_id: str | None = None) -> Batch:
        """A batch, by default the one this job is the head of, or else an item."""
        return await self._runtime.reader.batch(batch_id or self._own_batch)

    @property
    def _own_batch(self) -> str:
        job = self.job
        return job.id if job.role.heads or job.batch_id is None else job.batch_id

    async def tick(self) -> Tick | None:
        """The tick that this job was enqueued for; None if no schedule has enqueued it.

        A scheduled job that is late should take its time from `tick.tick`, not from the clock.
        """
        return await asyncio.wrap_future(self._runtime.tick_of(self.job))

    def tick_sync(self) -> Tick | None:
        """The same for plain functions."""
        if _on_event_loop():
            raise RuntimeError("tick_sync would block the event loop: use `await ctx.tick()`")
        return self._runtime.tick_of(self.job).result()

    async def payload_of(self, job_id: str) -> BaseModel:
        """The payload of another job, for instance the head's in a finish callback."""
        return self._runtime.payload_of(await self._runtime.reader.get(job_id))

    async def items(
        self, batch_id: str | None = None, *, state: JobState | None = None
    ) -> AsyncIterator[Job]:
        """The items of that batch in their order, read page by page."""
        where = JobFilter(
            batch_id=batch_id or self._own_batch,
            states=frozenset({state}) if state else None,
        )
        async for job in pages(self._runtime.reader, where):
            yield job


def overdue(seconds: float) -> str:
    """What is said of a job that was given so many seconds."""
    return f"took longer than {seconds:g} s"


def storable(text: str) -> str:
    """Text that any store can keep: lone surrogates and zero bytes are replaced."""
    return (
        text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    )


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
