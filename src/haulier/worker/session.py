"""One worker incarnation: claim, run, hand in, until it is stopped or declared lost."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import structlog
from pydantic import BaseModel

from haulier.domain.job import (
    MICROSECOND,
    Cancelled,
    Failed,
    Interrupted,
    Job,
    JobError,
    JobState,
    Outcome,
)
from haulier.domain.moves import Move, Transition, decide
from haulier.domain.worker import Demand, Exchange, Note, Portion, Renewal, WorkerRow
from haulier.exceptions import StoreError
from haulier.ports import JobFilter, JobReader, JobStore, pages
from haulier.services.context import Context, Control
from haulier.services.ids import new_id
from haulier.services.jobs import JobManager
from haulier.services.payload import decode
from haulier.services.registry import Executor, TaskDefinition
from haulier.worker.execution import execute
from haulier.worker.heartbeat import RENEWALS_PER_TTL, HeartbeatThread
from haulier.worker.threads import ThreadExecutor

LONGEST_WAIT = 5.0
"""Seconds after which an idle worker looks by itself, should a wake-up ever be missed."""

NOTE_EVERY = 0.25
STORE_PATIENCE = 2.0

_log = structlog.get_logger("haulier.worker")


class Stop(Enum):
    """Why a running job is being stopped from outside."""

    CANCEL = "cancel"
    SHUTDOWN = "shutdown"
    LOST = "lost"


@dataclass(slots=True, eq=False)
class _Running:
    job: Job
    definition: TaskDefinition
    control: Control
    task: asyncio.Task[None] | None = None
    stop: Stop | None = None
    started: bool = False


@dataclass(slots=True)
class Lane:
    """The kinds that share one kind of slot, and how many of these there are."""

    slots: int
    free_kinds: tuple[str, ...]
    capped: dict[str, int]
    busy: int = 0
    busy_by_kind: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, slots: int, definitions: Iterable[TaskDefinition]) -> Lane:
        """A lane for the given definitions; those with `per_worker` are capped."""
        definitions = list(definitions)
        return cls(
            slots=slots,
            free_kinds=tuple(d.kind for d in definitions if d.per_worker is None),
            capped={d.kind: d.per_worker for d in definitions if d.per_worker is not None},
        )

    def demand(self, queues: tuple[str, ...]) -> Demand | None:
        """What this lane could start now; None if nothing."""
        free = self.slots - self.busy
        if free <= 0:
            return None
        together = list(self.free_kinds)
        portions = []
        for kind, cap in self.capped.items():
            room = cap - self.busy_by_kind.get(kind, 0)
            if room >= free:
                # The cap does not bind now: claimed with the others, in one line of priorities.
                together.append(kind)
            elif room > 0:
                portions.append(Portion((kind,), room))
        if together:
            portions.insert(0, Portion(tuple(together), free))
        return Demand(queues, tuple(portions), free) if portions else None

    def took(self, kind: str, change: int) -> None:
        """Count a job of the lane in (+1) or out (-1)."""
        self.busy += change
        self.busy_by_kind[kind] = self.busy_by_kind.get(kind, 0) + change


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    concurrency: jobs on the event loop at once. threads: plain functions at once. grace: seconds
    that running jobs are given to finish after a stop.
    """

    queues: tuple[str, ...] = ("default",)
    concurrency: int = 100
    threads: int = 16
    grace: float = 30.0


class Session:
    """One incarnation of a worker; its id is random and used once.

    Is also the runtime that the contexts of its jobs reach through.
    """

    def __init__(
        self,
        manager: JobManager,
        options: WorkerOptions,
        threads: ThreadExecutor,
        worker_id: str | None = None,
    ) -> None:
        self.id = worker_id or new_id()
        self._manager = manager
        self._store: JobStore = manager.store
        self._options = options
        self._threads = threads
        definitions = list(manager.registry)
        self._lanes = {
            Executor.ASYNC: Lane.of(
                options.concurrency, (d for d in definitions if d.executor is Executor.ASYNC)
            ),
            Executor.THREAD: Lane.of(
                options.threads, (d for d in definitions if d.executor is Executor.THREAD)
            ),
        }
        self._running: dict[str, _Running] = {}
        self._finished: list[Transition] = []
        self._notes: dict[str, Note] = {}
        self._wake = asyncio.Event()
        self._claiming = True
        self._stopping = False
        self._ended = False
        self._interrupted = False
        self._in_doubt = False
        self._task: asyncio.Task[None] | None = None
        self._grace_over: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # ── Life ─────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Work until stopped and drained, or until this incarnation is declared lost."""
        self._task = asyncio.current_task()
        await self._store.enlist(self._row())
        try:
            with self._store.watch(self._wake.set, ready=True):
                async with self._heartbeat(), asyncio.TaskGroup() as group:
                    sides = [
                        group.create_task(self._sweep_often()),
                        group.create_task(self._store_notes()),
                    ]
                    await self._exchange_until_done(group)
                    for side in sides:
                        side.cancel()
        finally:
            if self._grace_over is not None:
                self._grace_over.cancel()
            await asyncio.shield(self._hand_in())

    def stop(self, *, now: bool = False) -> None:
        """Claim nothing more; let running jobs finish within the grace time, or `now` not."""
        if now:
            self._interrupt()
        elif not self._stopping:
            self._grace_over = self._loop.call_later(self._options.grace, self._interrupt)
        self._stopping = True
        self._wake.set()

    def _interrupt(self) -> None:
        self._interrupted = True
        for entry in tuple(self._running.values()):
            self._halt(entry, Stop.SHUTDOWN)

    def _row(self) -> WorkerRow:
        return WorkerRow(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self._options.queues,
            kinds=tuple(definition.kind for definition in self._manager.registry),
            slots=sum(lane.slots for lane in self._lanes.values()),
        )

    async def _hand_in(self) -> None:
        """The last word of this incarnation: what finished, and nothing held any more."""
        if self._ended:
            return
        # Jobs that the embedding program cancelled before they could say a word.
        self._give_back(entry.job for entry in self._running.values())
        try:
            if self._finished or self._in_doubt:
                await self._store.exchange(self.id, self._finished, ())
            if self._in_doubt:
                self._finished.clear()
                self._give_back(await self._missed())
                await self._store.exchange(self.id, self._finished, ())
            await self._store.retire(self.id)
        except StoreError as error:
            # The expiry of the incarnation releases its jobs instead, a little later.
            _log.warning("could not sign off", worker=self.id, error=str(error))

    def _give_back(self, jobs: Iterable[Job]) -> None:
        self._finished.extend(Transition(job, Move.GIVE_BACK) for job in jobs)

    # ── The loop ─────────────────────────────────────────────────────────────────────────────

    async def _exchange_until_done(self, group: asyncio.TaskGroup) -> None:
        trouble = 0
        while not self._ended:
            self._wake.clear()
            finished, self._finished = self._finished, []
            try:
                if finished and self._notes:
                    await self._flush_notes()
                reply = await self._store.exchange(self.id, finished, self._demands())
            except BaseException as error:
                # Kept and handed in again: repeating a fenced transition does no harm.
                self._finished = finished + self._finished
                # It may have been applied all the same, with jobs claimed that nobody runs.
                self._in_doubt = True
                if not isinstance(error, StoreError):
                    raise
                trouble += 1
                _log.warning("exchange failed", worker=self.id, error=str(error), times=trouble)
                if self._interrupted and not self._running:
                    return
                pause = min(0.05 * 2.0 ** min(trouble, 10), STORE_PATIENCE)
                await asyncio.sleep(pause * random.random())
                continue
            trouble = 0
            self._take(reply, group)
            if self._in_doubt and not await self._adopt(group):
                continue
            if self._stopping and not self._running and not self._finished:
                return
            if not self._finished:
                due = LONGEST_WAIT if reply.due_in is None else reply.due_in / MICROSECOND
                await self._wait(min(due, LONGEST_WAIT))

    def _take(self, reply: Exchange, group: asyncio.TaskGroup) -> None:
        for transition in reply.lost:
            _log.warning(
                "lease lost",
                job=transition.job.id,
                kind=transition.job.kind,
                lease=transition.job.lease,
                dropped=transition.move,
            )
        if not reply.alive:
            self._lose()
            return
        for job in reply.jobs:
            self._start(job, group)
        for job_id in reply.cancels:
            self._cancel(job_id)

    async def _adopt(self, group: asyncio.TaskGroup) -> bool:
        """Start what was claimed by an exchange whose answer got lost; false to try it again."""
        try:
            missed = await self._missed()
        except StoreError as error:
            _log.warning("exchange failed", worker=self.id, error=str(error), times=1)
            return False
        self._in_doubt = False
        if not self._ended:
            for job in missed:
                self._start(job, group)
        return True

    async def _missed(self) -> list[Job]:
        """Jobs that this incarnation holds by the store's account and knows nothing of."""
        where = JobFilter(worker=self.id, states=frozenset({JobState.RUNNING}))
        held = [job async for job in pages(self._store, where)]
        known = {transition.job.id for transition in self._finished} | self._running.keys()
        return [job for job in held if job.id not in known]

    def _demands(self) -> list[Demand]:
        if self._stopping or not self._claiming:
            return []
        demands = (lane.demand(self._options.queues) for lane in self._lanes.values())
        return [demand for demand in demands if demand is not None]

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    # ── Jobs ─────────────────────────────────────────────────────────────────────────────────

    def _start(self, job: Job, group: asyncio.TaskGroup) -> None:
        if self._interrupted:
            # Claimed by an exchange that was under way when running jobs were given back.
            self._give_back([job])
            return
        definition = self._manager.registry.get(job.kind)
        entry = _Running(job, definition, Control())
        self._lanes[definition.executor].took(job.kind, 1)
        self._running[job.id] = entry
        entry.task = group.create_task(self._run(entry))

    async def _run(self, entry: _Running) -> None:
        job, definition = entry.job, entry.definition
        entry.started = True
        try:
            outcome = await self._attempt(entry) if entry.stop is None else _STOPPED[entry.stop]
        finally:
            del self._running[job.id]
            self._lanes[definition.executor].took(job.kind, -1)
        if outcome is None or self._ended:
            return
        policy = job.retry or definition.retry
        self._finished.append(decide(job, outcome, policy, random.random()))
        self._wake.set()

    async def _attempt(self, entry: _Running) -> Outcome | None:
        ctx = Context(entry.job, entry.control, self)
        try:
            return await execute(entry.job, entry.definition, ctx, self._manager, self._threads)
        except asyncio.CancelledError:
            if entry.stop is None and not self._cancelled_from_outside():
                error = JobError(
                    type="CancelledError",
                    message="the task cancelled itself",
                    attempt=entry.job.attempt,
                )
                return Failed(error)
            # A thread goes on although nobody waits for it; let it hear that it is over.
            entry.control.lost = True
            return _STOPPED[entry.stop]

    def _cancelled_from_outside(self) -> bool:
        return self._task is not None and self._task.cancelling() > 0

    def _halt(self, entry: _Running, why: Stop) -> None:
        """Stop a running job: a coroutine is cancelled, a thread finds out by its context."""
        if entry.stop is None or why is Stop.LOST:
            entry.stop = why
        if why is Stop.CANCEL:
            entry.control.cancelled = True
            if entry.definition.executor is Executor.THREAD and not entry.definition.expand:
                # The slot is freed when the thread has really stopped.
                return
        else:
            entry.control.lost = True
        # A task cancelled before its first step would end without a word; it looks by itself then.
        if entry.task is not None and entry.started:
            entry.task.cancel()

    def _cancel(self, job_id: str) -> None:
        entry = self._running.get(job_id)
        if entry is not None and entry.stop is None:
            self._halt(entry, Stop.CANCEL)

    # ── Staying alive ────────────────────────────────────────────────────────────────────────

    def _heartbeat(self) -> HeartbeatThread:
        return HeartbeatThread(
            self._store.heartbeat(self.id),
            self._store.ttl,
            renewed=lambda renewal: self._loop.call_soon_threadsafe(self._renewed, renewal),
            failing=partial(self._loop.call_soon_threadsafe, self._renewal_failed),
            expired=partial(self._loop.call_soon_threadsafe, self._lose),
        )

    def _renewed(self, renewal: Renewal) -> None:
        for job_id in renewal.cancels:
            self._cancel(job_id)
        if not self._claiming:
            self._claiming = True
            self._wake.set()

    def _renewal_failed(self) -> None:
        self._claiming = False

    def _lose(self) -> None:
        """Others may be running these jobs by now: stop them and hand in nothing."""
        if self._ended:
            return
        _log.error("incarnation lost", worker=self.id, jobs=len(self._running))
        self._ended = True
        self._finished.clear()
        for entry in tuple(self._running.values()):
            self._halt(entry, Stop.LOST)
        self._wake.set()

    async def _sweep_often(self) -> None:
        pause = self._store.ttl / RENEWALS_PER_TTL
        while True:
            try:
                released = await self._store.sweep()
                if released:
                    _log.warning("released jobs of lost workers", jobs=released)
            except StoreError as error:
                _log.warning("sweep failed", error=str(error))
            # Uneven, so that many workers do not sweep in step.
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))

    # ── What contexts reach through ──────────────────────────────────────────────────────────

    @property
    def reader(self) -> JobReader:
        return self._store

    def payload_of(self, job: Job) -> BaseModel:
        return decode(
            self._manager.registry.get(job.kind), job.payload, job.id, self._manager.sealer
        )

    def report(self, note: Note) -> None:
        # One dict assignment: safe from any thread, and only the latest note is kept.
        self._notes[note.job_id] = note

    async def _store_notes(self) -> None:
        while True:
            await asyncio.sleep(NOTE_EVERY)
            if self._notes:
                try:
                    await self._flush_notes()
                except StoreError as error:
                    _log.warning("progress not stored", error=str(error))

    async def _flush_notes(self) -> None:
        notes, self._notes = self._notes, {}
        try:
            await self._store.note(list(notes.values()))
        except StoreError:
            self._notes = notes | self._notes
            raise


_STOPPED: dict[Stop | None, Outcome | None] = {
    Stop.CANCEL: Cancelled("cancelled on request"),
    Stop.SHUTDOWN: Interrupted(),
    Stop.LOST: None,
    # The whole worker was cancelled by the program it is embedded in.
    None: Interrupted(),
}
