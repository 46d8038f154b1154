"""For your own tests: a clock to turn, a store in memory, jobs run here and now, what was enqueued.

Jobs run through the same pieces as in a worker, one after the other, in the task that asks for it.
Plain functions run in a thread, those of a process executor too; timeouts do not act, and nothing
hears of a cancel while it runs, since nobody is there to request one.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic_core import from_json, to_json, to_jsonable_python

from haulier.app import App, Task
from haulier.domain.job import MICROSECOND, Job, Outcome
from haulier.domain.moves import Move, Transition, decide
from haulier.domain.worker import Demand, Portion, WorkerRow
from haulier.exceptions import JobExecutionError
from haulier.ports import Clock, JobFilter, JobStore, pages
from haulier.services.baggage import carrying
from haulier.services.context import Context, Control
from haulier.services.ids import new_id
from haulier.services.jobs import JobManager
from haulier.services.options import Options
from haulier.services.payload import Payload
from haulier.services.registry import Executor, TaskDefinition
from haulier.services.secrets import Sealer
from haulier.stores.sqlite import SqliteStore
from haulier.worker.around import Around
from haulier.worker.children import Children
from haulier.worker.execution import Executors, execute
from haulier.worker.notes import Notes
from haulier.worker.runtime import WorkerRuntime
from haulier.worker.steps import StepKeeper
from haulier.worker.threads import ThreadExecutor

LIMIT = 10_000
"""Attempts after which jobs that never come to an end are taken for what they are."""

TOGETHER = 1000
DICE = 0.5
"""Where a worker throws dice for the delay of a retry, tests always get the same number."""

SHOWN = 20


class FakeClock:
    """A clock that stands still until a test moves it. It begins with 2026, unless told."""

    def __init__(self, start: datetime | None = None) -> None:
        seconds = 1_767_225_600 if start is None else start.timestamp()
        self._now = round(seconds * MICROSECOND)
        self._boots = 1
        self._since_boot = 3600 * MICROSECOND

    def now(self) -> int:
        """Microseconds since 1970 UTC."""
        return self._now

    def boot(self) -> tuple[str, int]:
        """The id of this boot of the machine, and microseconds since it."""
        return f"boot-{self._boots}", self._since_boot

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self._now += round(seconds * MICROSECOND)
        self._since_boot += round(seconds * MICROSECOND)

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock; no time passes."""
        self._now += round(seconds * MICROSECOND)

    def reboot(self) -> None:
        """The machine starts anew."""
        self._boots += 1
        self._since_boot = 0


def memory_store(clock: Clock | None = None) -> JobStore:
    """A store in memory for `App(memory_store(clock))`: empty, and gone when it is closed."""
    return SqliteStore(":memory:", clock=clock)


@asynccontextmanager
async def in_memory(app: App, clock: Clock | None = None) -> AsyncIterator[App]:
    """Within the block the app is open on a new store in memory instead of its own.

    For apps that are made when their module is imported. Secrets are sealed with a key that is
    drawn for the block. Do not use it on an app that is open already.
    """
    key = os.urandom(32)
    store, jobs = app.store, app.jobs
    app.store = memory_store(clock)
    app.jobs = JobManager(app.store, app.registry, Sealer(lambda: key))
    try:
        async with app:
            yield app
    finally:
        app.store, app.jobs = store, jobs


# ── Running ──────────────────────────────────────────────────────────────────────────────────


async def run_until_idle(
    app: App, *, clock: FakeClock | None = None, limit: int = LIMIT, raises: bool = False
) -> list[Job]:
    """Run what is ready, one job after the other, until nothing is; returns each as it was then.

    In the order in which one worker with one slot would take them, from all queues, but only of
    kinds that the app knows. A job that is tried three times is in the list three times. With the
    `clock` of the app's store, time moves on to the next job that is due later (delayed, retried,
    snoozed), until none is left. With `raises` the exception of a job that failed for good leaves
    this call. Raises AssertionError after `limit` attempts.
    """
    ran: list[Job] = []
    async with _enlisted(_Solo(app, limit=limit, raises=raises, ran=ran)) as solo:
        while True:
            await app.store.sweep()
            due_in = await solo.work_off(slots=1)
            if clock is None or due_in is None:
                return ran
            clock.advance(due_in / MICROSECOND)


@asynccontextmanager
async def inline(app: App, *, limit: int = LIMIT, raises: bool = False) -> AsyncIterator[App]:
    """Within the block, whatever the app enqueues has also run when enqueue returns.

    Whole batches too, with their finish callback, and what these jobs enqueue themselves. A job
    that fails is tried again at once, as often as its policy says, and keeps its error; with
    `raises` its own exception leaves enqueue. What is to run later (delayed, snoozed) is left
    pending. Raises AssertionError when one enqueue leads to more than `limit` attempts. The app
    must be open, and nobody else work on its store.
    """
    jobs = app.jobs
    async with _enlisted(_Solo(app, limit=limit, raises=raises, inline=True)) as solo:
        app.jobs = _InlineJobs(jobs, solo)
        try:
            yield app
        finally:
            app.jobs = jobs


class _InlineJobs(JobManager):
    """A job manager that runs what it has enqueued."""

    def __init__(self, jobs: JobManager, solo: _Solo) -> None:
        super().__init__(jobs.store, jobs.registry, jobs.sealer)
        self._solo = solo

    async def enqueue(
        self, kind: str, payload: Payload, options: Options, *, connection: object | None = None
    ) -> str:
        job_id = await super().enqueue(kind, payload, options, connection=connection)
        await self._solo.work_off(slots=TOGETHER)
        return job_id

    async def enqueue_many(
        self, kind: str, payloads: Iterable[Payload], options: Options
    ) -> list[str]:
        ids = await super().enqueue_many(kind, payloads, options)
        await self._solo.work_off(slots=TOGETHER)
        return ids

    async def enqueue_batch(
        self,
        kind: str,
        items: Iterable[Payload],
        options: Options,
        *,
        finish_kind: str | None = None,
    ) -> str:
        batch_id = await super().enqueue_batch(kind, items, options, finish_kind=finish_kind)
        await self._solo.work_off(slots=TOGETHER)
        return batch_id


_turn: ContextVar[asyncio.Lock | None] = ContextVar("_turn", default=None)
"""Within a job that is run here: held while something that this very job enqueued is run."""


class _Solo:
    """A worker that runs one job after the other, in the task that asks for it."""

    def __init__(
        self,
        app: App,
        *,
        limit: int,
        raises: bool,
        inline: bool = False,
        ran: list[Job] | None = None,
    ) -> None:
        self._jobs = app.jobs
        self._store = app.store
        self._limit = limit
        self._raises = raises
        self._inline = inline
        self._ran = ran
        self._attempts = 0
        self._ids: list[str] = []
        self._executors = Executors(ThreadExecutor(), Children())
        self._notes = Notes(self._store)
        self._steps = StepKeeper(self._store)
        self._runtime = WorkerRuntime(self._jobs, self._notes, self._steps)
        self._first_turn = asyncio.Lock()
        self._layers = app.registry.layers()

    # ── Life ─────────────────────────────────────────────────────────────────────────────────

    async def enlist(self) -> None:
        """Become known to the store, as an incarnation of one ttl without a heartbeat.

        A test may turn the clock further than that, or sit in a debugger for longer: then the next
        claim finds the incarnation ended, and another one goes on.
        """
        row = WorkerRow(
            id=new_id(),
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=(),
            kinds=tuple(definition.kind for definition in self._jobs.registry),
            slots=1,
        )
        await self._store.enlist(row)
        self._ids.append(row.id)

    async def sign_off(self) -> None:
        """End all incarnations and the threads."""
        self._executors.threads.close()
        self._steps.end()
        for worker_id in self._ids:
            await self._store.retire(worker_id)

    # ── Work ─────────────────────────────────────────────────────────────────────────────────

    async def work_off(self, *, slots: int) -> int | None:
        """Run what is ready until nothing is; how long until the next is due, in microseconds.

        A job may enqueue others and have them run before it goes on. It finds only those ready:
        whatever was ready before it is already claimed by the call that runs it.
        """
        own = _turn.get()
        async with own or self._first_turn:
            if self._inline and own is None:
                self._attempts = 0
            while True:
                due_in, waiting = await self._claim(slots)
                if not waiting:
                    return due_in
                try:
                    while waiting:
                        await self._run(waiting[0])
                        waiting.popleft()
                finally:
                    # Those that were claimed and not run, because one before them raised.
                    await self._give_back(waiting)

    async def _claim(self, slots: int) -> tuple[int | None, deque[Job]]:
        queues = sorted({queue for queue, *_ in await self._store.counts()})
        kinds = tuple(definition.kind for definition in self._jobs.registry)
        demand = Demand(tuple(queues), (Portion(kinds, slots),), slots)
        reply = await self._store.exchange(self._ids[-1], (), [demand])
        if not reply.alive:
            await self.enlist()
            reply = await self._store.exchange(self._ids[-1], (), [demand])
        return reply.due_in, deque(reply.jobs)

    async def _run(self, job: Job) -> None:
        with carrying(job.baggage):
            await self._run_here(job)

    async def _run_here(self, job: Job) -> None:
        self._attempts += 1
        if self._attempts > self._limit:
            raise AssertionError(
                f"still not idle after {self._limit} attempts; the next is {_shown(job)}"
            )
        definition = self._jobs.registry.get(job.kind)
        raised: list[BaseException] = []
        control = Control()
        layers = self._layers.get(job.kind)
        around = Around(job, layers) if layers else None
        token = _turn.set(asyncio.Lock())
        try:
            outcome = await execute(
                job,
                _overheard(definition, raised),
                control,
                self._runtime,
                self._jobs,
                self._executors,
                around,
            )

            def fate(outcome: Outcome) -> Transition:
                return decide(job, outcome, job.retry or definition.retry, DICE)

            transition = await around.leave(outcome, fate) if around else fate(outcome)
        except asyncio.CancelledError:
            # A thread goes on although nobody waits for it; let it hear that it is over.
            control.lost = True
            raise
        finally:
            _turn.reset(token)
        if self._inline and transition.move is Move.RETRY:
            transition = transition._replace(delay=0)
        await self._hand_in(transition)
        if self._ran is not None:
            self._ran.append(await self._store.get(job.id))
        if self._raises and transition.move is Move.FAIL:
            raise raised[-1] if raised else _as_exception(transition)

    async def _hand_in(self, transition: Transition) -> None:
        await self._steps.settle([transition.job.id])
        await self._notes.flush()
        await self._store.exchange(self._ids[-1], [transition], ())

    async def _give_back(self, jobs: Iterable[Job]) -> None:
        transitions = [Transition(job, Move.GIVE_BACK) for job in jobs]
        if transitions:
            await asyncio.shield(self._store.exchange(self._ids[-1], transitions, ()))


@asynccontextmanager
async def _enlisted(solo: _Solo) -> AsyncIterator[_Solo]:
    await solo.enlist()
    try:
        yield solo
    finally:
        await solo.sign_off()


def _overheard(definition: TaskDefinition, raised: list[BaseException]) -> TaskDefinition:
    """The task with its exceptions remembered: a job keeps only their text."""
    call = definition.call
    if call is None:
        return definition
    if definition.executor is Executor.ASYNC:

        async def call_async(ctx: Context, payload: Any) -> Any:
            try:
                return await call(ctx, payload)
            except BaseException as error:
                raised.append(error)
                raise

        return replace(definition, call=call_async, timeout=None, hard_timeout=None)

    def call_plain(ctx: Context, payload: Any) -> Any:
        try:
            return call(ctx, payload)
        except BaseException as error:
            raised.append(error)
            raise

    return replace(
        definition,
        call=call_plain,
        executor=Executor.THREAD,
        timeout=None,
        hard_timeout=None,
    )


def _as_exception(transition: Transition) -> JobExecutionError:
    error = transition.error
    return JobExecutionError(f"{error.type}: {error.message}" if error else "the job failed")


# ── What was enqueued ────────────────────────────────────────────────────────────────────────


async def enqueued(
    app: App,
    task: Task[..., Any] | str | None = None,
    payload: Payload | None = None,
    *,
    queue: str | None = None,
    priority: int | None = None,
) -> list[Job]:
    """The jobs of a task that were enqueued, the oldest first, whatever became of them since.

    `payload` is a part of theirs: fields that it does not name may hold anything. The items of a
    batch are among them; its head only if it is of a bulk kind.
    """
    kind = task.kind if isinstance(task, Task) else task
    part = to_jsonable_python(payload or {})
    return [
        job
        async for job in pages(app.store, JobFilter(kind=kind, queue=queue))
        if (priority is None or job.priority == priority)
        and not _stands_for_items(app, job)
        and _is_part(part, from_json(job.payload))
    ]


async def assert_enqueued(
    app: App,
    task: Task[..., Any] | str,
    payload: Payload | None = None,
    *,
    queue: str | None = None,
    priority: int | None = None,
    count: int | None = None,
) -> list[Job]:
    """Fail unless such a job was enqueued, or exactly `count` of them; returns them."""
    found = await enqueued(app, task, payload, queue=queue, priority=priority)
    if found if count is None else len(found) == count:
        return found
    wanted = _wanted(task, payload, queue=queue, priority=priority)
    number = "at least one" if count is None else count
    raise AssertionError(
        f"expected {number} of {wanted}, found {len(found) or 'none'}; {await _all(app)}"
    )


async def refute_enqueued(
    app: App,
    task: Task[..., Any] | str,
    payload: Payload | None = None,
    *,
    queue: str | None = None,
    priority: int | None = None,
) -> None:
    """Fail if such a job was enqueued."""
    if found := await enqueued(app, task, payload, queue=queue, priority=priority):
        wanted = _wanted(task, payload, queue=queue, priority=priority)
        raise AssertionError(f"expected none of {wanted}, found {len(found)}; {await _all(app)}")


def _stands_for_items(app: App, job: Job) -> bool:
    """Whether it is only the head of a batch that its producer filled."""
    if not job.role.heads or job.kind not in app.registry:
        return False
    return app.registry.get(job.kind).expand is None


def _is_part(part: Any, whole: Any) -> bool:
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(name in whole and _is_part(part[name], whole[name]) for name in part)
    return bool(part == whole)


def _wanted(task: Task[..., Any] | str, payload: Payload | None, **options: object) -> str:
    kind = task.kind if isinstance(task, Task) else task
    text = kind if payload is None else f"{kind} {to_json(payload).decode()}"
    return ", ".join([text, *(f"{name} {it}" for name, it in options.items() if it is not None)])


async def _all(app: App) -> str:
    jobs = (await app.store.find(JobFilter(), limit=SHOWN, oldest_first=True)).jobs
    shown = [_shown(job) for job in jobs if not _stands_for_items(app, job)]
    return "\n  ".join(["what there is:", *shown]) if shown else "nothing was enqueued"


def _shown(job: Job) -> str:
    payload = job.payload.decode("utf-8", "replace")[:200]
    return f"{job.kind} {payload}, queue {job.queue}, priority {job.priority}, {job.state}"
