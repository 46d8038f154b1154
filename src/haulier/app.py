"""The library's face: an App holds task definitions and speaks to one store."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, overload

from anyio.from_thread import start_blocking_portal

from haulier.domain.batch import Batch
from haulier.domain.event import Event
from haulier.domain.flow import Parent
from haulier.domain.job import Job, JobError, JobState
from haulier.domain.line import Line
from haulier.domain.step import Step
from haulier.exceptions import (
    ConfigurationError,
    JobExecutionError,
    ResultExpiredError,
    ValidationError,
)
from haulier.ports import JobFilter, JobStore, Page
from haulier.progress import ProgressBar
from haulier.runners.base import BaseTaskRunner, register_runner
from haulier.services.batches import Batches
from haulier.services.configuring import Queues, WorkerSettings
from haulier.services.filling import Filling
from haulier.services.flow import Flow
from haulier.services.following import follow
from haulier.services.jobs import JobManager
from haulier.services.limits import LimitOptions, Limits, limit_from
from haulier.services.middleware import Middleware
from haulier.services.options import Options
from haulier.services.payload import Payload
from haulier.services.registry import Registry, TaskOptions, Upcast, task_from
from haulier.services.schedules import AnyCadence, ScheduleManager, ScheduleOptions
from haulier.services.secrets import KeyFile, Sealer
from haulier.services.selection import check_limit
from haulier.stores import open_store
from haulier.worker.beside import beside
from haulier.worker.lanes import WorkerOptions
from haulier.worker.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_STORE = "sqlite:///haulier.db"


class Task(Generic[P, R]):
    """A registered function. Calling it runs it here and now, as if it were not a task."""

    def __init__(self, app: App, function: Callable[P, R], kind: str) -> None:
        self.app = app
        self.kind = kind
        functools.update_wrapper(self, function)
        self.function = function
        """The function as it was written. A child process finds it here."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    async def enqueue(self, **payload: Any) -> str:
        """Enqueue one job with these arguments and default options; returns its id."""
        return await self.app.enqueue(self, payload)


class App:
    """Task definitions, and the store their jobs live in.

    `store` is a URL or an opened-by-you JobStore. `secret_key_file` holds the key that seals
    `Secret` fields (32 bytes in base64, mode 0600); by default one in the user's configuration
    folder, made on first use. Enter the app as an async context manager, or with plain `with`
    from code that has no event loop.
    """

    def __init__(
        self,
        store: str | JobStore = DEFAULT_STORE,
        *,
        secret_key_file: str | Path | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.registry = registry or Registry()
        key_file = KeyFile(Path(secret_key_file)) if secret_key_file else KeyFile.default()
        self._sealer = Sealer(key_file.load)
        self.use(open_store(store) if isinstance(store, str) else store)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: ExitStack | None = None
        self._alone = threading.Lock()

    def use(
        self, store: JobStore | None = None, *, secret_key_file: str | Path | None = None
    ) -> None:
        """Speak to another store from now on, or seal with another key; None leaves it as it is.

        For whoever runs an app that was made elsewhere, before it is opened.
        """
        if store is not None:
            self.store: JobStore = store
        if secret_key_file is not None:
            self._sealer = Sealer(KeyFile(Path(secret_key_file)).load)
        self.jobs = JobManager(self.store, self.registry, self._sealer)

    # ── Lifetime ─────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._loop = None
        await self.store.__aexit__(exc_type, exc, tb)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Self]:
        async with self:
            yield self

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(portal.wrap_async_context_manager(self._opened()))
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        assert held is not None
        held.__exit__(exc_type, exc, tb)

    # ── Define ───────────────────────────────────────────────────────────────────────────────

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(self, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    # Neither overload's parameters can be told in one signature that mypy would accept for both.
    def task(  # type: ignore[misc]
        self, function: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptions]
    ) -> Any:
        """Register a function as a kind of job, named after it unless `kind` says otherwise.

        A coroutine function runs on the worker's event loop, a plain one in a thread, or with
        `executor="process"` in a process of its own. Its parameters make the payload, which is
        checked at enqueue and again before it runs; a parameter annotated `Context` is filled in.
        `TaskOptions` describes the options. Raises ConfigurationError for a signature that cannot
        be called with JSON, for options that do not fit, or for a kind that is taken.
        """

        def register(target: Callable[..., Any]) -> Task[..., Any]:
            definition = task_from(target, options)
            self.registry.add(definition)
            cadence = options.get("schedule")
            if cadence is not None:
                self.schedules.declare(definition.kind, definition.kind, cadence)
            return Task(self, target, definition.kind)

        return register if function is None else register(function)

    def add_runner(self, runner: BaseTaskRunner[Any, Any]) -> None:
        """Register a bulk kind."""
        register_runner(self.registry, runner)

    def schedule(
        self,
        name: str,
        task: Task[..., Any] | str,
        cadence: AnyCadence,
        payload: Payload | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> None:
        """Declare that a task is enqueued at each tick of a cadence; see ScheduleOptions.

        A worker that starts stores it, if it is new or the declaration has changed: what was set at
        run time (`app.schedules`, the command line) stays until then. Raises ValidationError with
        the fields at fault.
        """
        self.schedules.declare(name, _kind(task), cadence, payload, options)

    def upcast(
        self, task: Task[..., Any] | str, *, from_version: int
    ) -> Callable[[Upcast], Upcast]:
        """Register a function that brings stored payloads of a version to the next one.

        It is given the payload as plain JSON values, a Secret in place of each secret, and returns
        what the next version would have been given; several of them make a chain. It is plain code
        without effects: it may be called any number of times for one job. Raises
        ConfigurationError unless `from_version` is below the task's `version` and new.
        """

        def register(function: Upcast) -> Upcast:
            self.registry.upcast(_kind(task), from_version, function)
            return function

        return register

    def middleware(
        self, *layers: Middleware, kinds: Iterable[Task[..., Any] | str] | None = None
    ) -> None:
        """Run hooks around every job, or around those of some kinds; see Middleware.

        Those given first are the outermost, also over several calls. For workers that start later.
        Raises ConfigurationError for what is no Middleware.
        """
        chosen = None if kinds is None else frozenset(_kind(task) for task in kinds)
        for layer in layers:
            self.registry.put_around(layer, chosen)

    def limit(self, name: str, **options: Unpack[LimitOptions]) -> None:
        """Declare a limit on all jobs, or on those of a queue or a kind; see LimitOptions.

        A worker puts it into the store when it starts, unless the same was declared before: what an
        operator has changed since stays. Raises ConfigurationError for what is no limit, and for a
        name that is taken.
        """
        try:
            limit = limit_from(name, **options)
        except ValidationError as error:
            raise ConfigurationError(str(error)) from None
        self.registry.limit(limit)

    # ── Enqueue ──────────────────────────────────────────────────────────────────────────────

    async def enqueue(
        self,
        task: Task[..., Any] | str,
        payload: Payload | None = None,
        *,
        connection: object | None = None,
        **options: Unpack[Options],
    ) -> str:
        """Insert one job and return its id. It is durable when this returns.

        With a `connection` of your own to the store's database, the job belongs to the transaction
        that is open on it: it is there once you commit, and never was if you roll back. For
        PostgreSQL a connection of asyncpg or an async one of SQLAlchemy over asyncpg, for SQLite
        one of apsw.

        Raises InvalidTaskTypeError, or ValidationError with the fields at fault.
        """
        return await self.jobs.enqueue(_kind(task), payload or {}, options, connection=connection)

    async def enqueue_many(
        self,
        task: Task[..., Any] | str,
        payloads: Iterable[Payload],
        **options: Unpack[Options],
    ) -> list[str]:
        """Insert a job per payload, in order; returns their ids."""
        return await self.jobs.enqueue_many(_kind(task), payloads, options)

    async def enqueue_batch(
        self,
        task: Task[..., Any] | str,
        items: Iterable[Payload],
        *,
        on_finish: Task[..., Any] | str | None = None,
        **options: Unpack[Options],
    ) -> str:
        """Insert one batch of items and return its id, which is also its head job's.

        `on_finish` is enqueued once when the last item is settled, with `batch_id`, `state` and
        `counts` as its payload.
        """
        finish = None if on_finish is None else _kind(on_finish)
        return await self.jobs.enqueue_batch(_kind(task), items, options, finish_kind=finish)

    def flow(self) -> Flow:
        """Begin a flow: jobs that wait for each other, inserted together by its `start`."""
        return self.jobs.flow(_kind)

    def open_batch(
        self,
        task: Task[..., Any] | str,
        *,
        on_finish: Task[..., Any] | str | None = None,
        keep_open: bool = False,
        **options: Unpack[Options],
    ) -> Filling:
        """Open a batch to be filled as its items come, in flat memory.

        Used as `async with app.open_batch(resize) as batch: await batch.add(items)`. At the end of
        the block the batch is sealed: it settles with its last item. A block that
        ends by an exception cancels it, or leaves it open with `keep_open`; one whose process dies
        leaves it open. With the same `job_id` a later block goes on with it and doubles nothing;
        see `Filling.add`.
        """
        finish = None if on_finish is None else _kind(on_finish)
        return Filling(self.jobs, _kind(task), options, finish_kind=finish, keep_open=keep_open)

    def enqueue_sync(
        self, task: Task[..., Any] | str, payload: Payload | None = None, **options: Unpack[Options]
    ) -> str:
        """`enqueue` for code without an event loop; blocks until the job is durable.

        Cheap while the app is open (`with app:`, or entered by an event loop in another thread);
        otherwise it opens and closes the store for this one call.
        """
        return self._blocking(lambda: self.enqueue(task, payload, **options))

    def _blocking(self, call: Callable[[], Awaitable[R]]) -> R:
        async def run() -> R:
            return await call()

        async def open_and_run() -> R:
            async with self.store:
                return await call()

        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not None:
            raise ConfigurationError(
                "enqueue_sync would block the running event loop: await enqueue instead"
            )
        if self._loop is not None:
            return asyncio.run_coroutine_threadsafe(run(), self._loop).result()
        # One thread at a time: the store can be open only once. Its loop is nobody else's to use,
        # for it ends with the call.
        with self._alone:
            return asyncio.run(open_and_run())

    # ── Look and operate ─────────────────────────────────────────────────────────────────────

    async def get(self, job_id: str) -> Job:
        """The job as it is now; raises JobNotFoundError."""
        return await self.store.get(job_id)

    async def find(
        self, where: JobFilter | None = None, *, limit: int = 50, cursor: int | None = None
    ) -> Page:
        """A page of jobs, newest first."""
        check_limit(limit, least=1)
        return await self.store.find(where or JobFilter(), limit=limit, cursor=cursor)

    async def batch(self, batch_id: str) -> Batch:
        """The batch as it is now; raises JobNotFoundError."""
        return await self.store.batch(batch_id)

    async def wait(
        self, job_id: str, *, timeout: float | None = None, progress: bool | None = None
    ) -> Job:
        """Wait until a job or a batch is done and return it, whatever it came to.

        Shows a progress bar on standard error if that is a terminal, or as `progress` says.
        Raises JobTimeoutError after `timeout` seconds; the job goes on.
        """
        if progress is None:
            progress = sys.stderr.isatty()
        if not progress:
            return await self.jobs.wait(job_id, timeout=timeout)
        with ProgressBar() as bar:
            return await self.jobs.wait(job_id, timeout=timeout, on_change=bar.show)

    async def result(self, job_id: str, *, timeout: float | None = None) -> Any:
        """Wait for a job and return what its task returned, as plain JSON values.

        Raises JobExecutionError if it failed or was cancelled, ResultExpiredError if its result is
        kept no longer.
        """
        job = await self.jobs.wait(job_id, timeout=timeout)
        if job.state is JobState.COMPLETED:
            if job.result_expired:
                raise ResultExpiredError(f"the result of job {job_id} is kept no longer")
            return job.value
        why = f": {job.error.type}: {job.error.message}" if job.error else ""
        raise JobExecutionError(f"job {job_id} {job.state}{why}")

    async def cancel(self, job_id: str) -> JobState:
        """Request that a job or batch stops; returns its state now."""
        return await self.jobs.cancel(job_id)

    async def retry(self, job_id: str) -> JobState:
        """Make a failed or cancelled job pending again."""
        return await self.jobs.retry(job_id)

    async def delete(self, job_id: str) -> None:
        """Delete a job that is not running; a batch goes with its items."""
        await self.store.delete(job_id)

    async def cancel_all(self, where: JobFilter, *, limit: int | None = None) -> int:
        """Request that all jobs that a filter finds stop; returns how many."""
        return await self.jobs.cancel_all(where, limit=limit)

    async def retry_all(self, where: JobFilter, *, limit: int | None = None) -> int:
        """Make the failed jobs that a filter finds pending again; returns how many."""
        return await self.jobs.retry_all(where, limit=limit)

    async def delete_all(self, where: JobFilter, *, limit: int | None = None) -> int:
        """Delete the finished jobs that a filter finds; returns how many."""
        return await self.jobs.delete_all(where, limit=limit)

    async def errors(self, job_id: str) -> list[JobError]:
        """The errors of a job's attempts, the latest first."""
        return await self.store.errors(job_id)

    async def steps(self, job_id: str) -> list[Step]:
        """The finished steps of a job, in the order in which they were kept."""
        return await self.store.steps(job_id)

    async def parents(self, job_id: str) -> list[Parent]:
        """What a job waits for or has waited for, in the order in which it named them."""
        return await self.store.parents(job_id)

    async def children(self, job_id: str, *, limit: int = 50, cursor: int | None = None) -> Page:
        """A page of the jobs that wait for a job or have waited for it."""
        check_limit(limit, least=1)
        return await self.store.children(job_id, limit=limit, cursor=cursor)

    async def lines(self, job_id: str) -> list[Line]:
        """The last log lines that a job has written with `ctx.log("…")`, the oldest first."""
        return await self.store.lines(job_id)

    async def events(self, *, after: str | int | None = None) -> AsyncIterator[Event]:
        """Everything that happens to jobs, in order, without gap or repetition; never ends.

        Begins after the given event (its `cursor`, or its `seq` in the present epoch), else with
        the oldest that is kept. Goes on by itself when the store was away for a while; raises
        StoreClosedError when the app was closed. An event of the type `reset` says that some are
        missing, because they are kept no longer.
        """
        # Closed with us, not whenever it is collected: it watches the store.
        async with aclosing(follow(self.store, after)) as found:
            async for event in found:
                yield event

    async def last_event(self) -> str:
        """The cursor of the latest event, to follow what happens from now on."""
        return await self.store.last_event()

    # ── Parts, each with verbs of its own ────────────────────────────────────────────────────

    @property
    def batches(self) -> Batches:
        """What is done to whole batches: pause, resume, retry the failed, alter, seal."""
        return Batches(self.jobs)

    @property
    def schedules(self) -> ScheduleManager:
        """The schedules of the store: look at them, set, pause, resume, run and delete them."""
        return ScheduleManager(self.store, self.registry, self.jobs.sealer)

    @property
    def queues(self) -> Queues:
        """What is done to whole queues: pause, resume, weigh."""
        return Queues(self.store)

    @property
    def limits(self) -> Limits:
        """The limits of the store, to be looked at and changed while everything runs."""
        return Limits(self.store)

    @property
    def settings(self) -> WorkerSettings:
        """What operators have set for all workers of the store: look at it, change it."""
        return WorkerSettings(self.store)

    # ── Work ─────────────────────────────────────────────────────────────────────────────────

    def worker(
        self, options: WorkerOptions | None = None, *, worker_id: str | None = None
    ) -> Worker:
        """A worker for this app's kinds; the app must be open while it runs."""
        return Worker(self.jobs, options, first_id=worker_id)

    def working(self, options: WorkerOptions | None = None) -> AbstractAsyncContextManager[Worker]:
        """A worker that runs beside the block and is stopped and drained at its end."""
        return beside(self.worker(options))


def _kind(task: Task[..., Any] | str) -> str:
    return task if isinstance(task, str) else task.kind
