"""One worker incarnation: claim, run, hand in, until it is stopped or declared lost."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import partial

import structlog

from haulier.domain.configuration import Configuration
from haulier.domain.job import MICROSECOND, Job, JobState, Outcome
from haulier.domain.moves import Move, Transition, decide
from haulier.domain.retention import Retention
from haulier.domain.retry import RetryPolicy
from haulier.domain.shares import shares_of, weights_of
from haulier.domain.worker import Demand, Exchange, Note, Renewal, WorkerRow
from haulier.exceptions import StoreError
from haulier.ports import JobFilter, JobStore, pages
from haulier.services.baggage import carry
from haulier.services.ids import new_id
from haulier.services.jobs import JobManager
from haulier.services.registry import Executor
from haulier.services.schedules import ScheduleManager
from haulier.worker.around import Around
from haulier.worker.configured import Configured
from haulier.worker.execution import Executors, execute
from haulier.worker.heartbeat import HeartbeatThread
from haulier.worker.lanes import WorkerOptions, lanes
from haulier.worker.notes import Notes
from haulier.worker.outcomes import policy_failed
from haulier.worker.patience import pause_after
from haulier.worker.running import Running, RunningJobs, Stop
from haulier.worker.runtime import WorkerRuntime
from haulier.worker.steps import StepKeeper
from haulier.worker.ticking import tick_often
from haulier.worker.upkeep import prune_often, sweep_often

LONGEST_WAIT = 5.0
"""Seconds after which an idle worker looks by itself, should a wake-up ever be missed."""

_log = structlog.get_logger("haulier.worker")


class Session:
    """One incarnation of a worker; its id is random and used once."""

    def __init__(
        self,
        manager: JobManager,
        options: WorkerOptions,
        executors: Executors,
        worker_id: str | None = None,
    ) -> None:
        self.id = worker_id or new_id()
        self._manager = manager
        self._store: JobStore = manager.store
        self._options = options
        self._executors = executors
        self._lanes = lanes(options, manager.registry)
        self._configured = Configured(self._store, self._apply)
        self._prune_now = asyncio.Event()
        self._weights: tuple[int, ...] = ()
        self._weigh({})
        self._jobs = RunningJobs(
            self._lanes,
            self._execute,
            self._fate,
            self._settle,
            self._break,
            executors.abandoned,
        )
        self._layers = manager.registry.layers()
        self._finished: list[Transition] = []
        self._notes = Notes(self._store)
        self._steps = StepKeeper(self._store)
        self._runtime = WorkerRuntime(self._manager, self._notes, self._steps)
        self._schedules = ScheduleManager(self._store, manager.registry, manager.sealer)
        self._wake = asyncio.Event()
        self._claiming = True
        self._stopping = False
        self._ended = False
        self._interrupted = False
        self._in_doubt = False
        self._turn = 0
        self._bug: BaseException | None = None
        self._grace_over: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # ── Life ─────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Work until stopped and drained, or until this incarnation is declared lost."""
        await self._store.enlist(self._row())
        try:
            with self._store.watch(self._wake.set, ready=True):
                async with self._heartbeat():
                    try:
                        await self._work()
                    finally:
                        # Those of a lost incarnation, or of a worker that ends by an error.
                        self._jobs.halt_all(Stop.SHUTDOWN)
                        await self._jobs.all_over()
        finally:
            if self._grace_over is not None:
                self._grace_over.cancel()
            try:
                await asyncio.shield(self._hand_in())
            finally:
                self._steps.end()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            sides = [
                group.create_task(sweep_often(self._store)),
                group.create_task(prune_often(self._store, self._retention, self._prune_now)),
                group.create_task(self._configured.follow()),
                group.create_task(tick_often(self._store, self._schedules)),
                group.create_task(self._notes.flush_often()),
                group.create_task(self._jobs.scan()),
            ]
            await self._exchange_until_done()
            for side in sides:
                side.cancel()

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
        self._jobs.halt_all(Stop.SHUTDOWN)

    def _row(self) -> WorkerRow:
        return WorkerRow(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self._options.names,
            kinds=tuple(definition.kind for definition in self._manager.registry),
            slots=sum(lane.slots for lane in self._lanes.values()),
        )

    async def _hand_in(self) -> None:
        """The last word of this incarnation: what finished, and nothing held any more."""
        if self._ended:
            return
        # Jobs that the embedding program cancelled before they could say a word.
        self._give_back(self._jobs)
        try:
            await self._steps.settle(transition.job.id for transition in self._finished)
            await self._notes.flush()
            if self._finished or self._in_doubt:
                await self._exchange(self._finished, ())
            if self._in_doubt:
                self._finished.clear()
                self._give_back(await self._missed())
                await self._exchange(self._finished, ())
            await self._store.retire(self.id)
        except StoreError as error:
            # The expiry of the incarnation releases its jobs instead, a little later.
            _log.warning("could not sign off", worker=self.id, error=str(error))

    def _give_back(self, jobs: Iterable[Job]) -> None:
        self._finished.extend(Transition(job, Move.GIVE_BACK) for job in jobs)

    # ── The loop ─────────────────────────────────────────────────────────────────────────────

    async def _exchange_until_done(self) -> None:
        trouble = 0
        while not self._ended:
            if self._bug is not None:
                raise self._bug
            self._wake.clear()
            finished, self._finished = self._finished, []
            demands = self._demands()
            try:
                if finished:
                    await self._steps.settle(transition.job.id for transition in finished)
                    await self._notes.flush()
                reply = await self._exchange(finished, demands)
            except BaseException as error:
                # Kept and handed in again: repeating a fenced transition does no harm.
                self._finished = finished + self._finished
                # It may have been applied all the same, with jobs claimed that nobody runs.
                self._in_doubt = True
                if not isinstance(error, StoreError):
                    raise
                trouble += 1
                _log.warning("exchange failed", worker=self.id, error=str(error), times=trouble)
                if self._interrupted and not self._jobs:
                    return
                await asyncio.sleep(pause_after(trouble))
                continue
            trouble = 0
            self._take(reply)
            if self._in_doubt and not await self._adopt():
                continue
            if self._stopping and not self._jobs and not self._finished:
                return
            if not self._finished and not self._wants_more(reply, demands):
                due = LONGEST_WAIT if reply.due_in is None else reply.due_in / MICROSECOND
                await self._wait(min(due, LONGEST_WAIT))

    async def _exchange(
        self, finished: Sequence[Transition], demands: Sequence[Demand]
    ) -> Exchange:
        self._turn += 1
        return await self._store.exchange(self.id, finished, demands, turn=self._turn)

    def _take(self, reply: Exchange) -> None:
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
        self._configured.told(reply.version)
        if self._weights and reply.jobs:
            for lane in self._lanes.values():
                lane.shared(self._options.names, reply.jobs)
        for job in reply.jobs:
            self._start(job)
        for job_id in reply.cancels:
            self._cancel(job_id)

    async def _adopt(self) -> bool:
        """Start what was claimed by an exchange whose answer got lost; false to try it again."""
        try:
            missed = await self._missed()
        except StoreError as error:
            _log.warning("exchange failed", worker=self.id, error=str(error), times=1)
            return False
        self._in_doubt = False
        if not self._ended:
            for job in missed:
                self._start(job)
        return True

    async def _missed(self) -> list[Job]:
        """Jobs that this incarnation holds by the store's account and knows nothing of."""
        where = JobFilter(worker=self.id, states=frozenset({JobState.RUNNING}))
        held = [job async for job in pages(self._store, where)]
        finished = {transition.job.id for transition in self._finished}
        return [job for job in held if job.id not in finished and job.id not in self._jobs]

    def _demands(self) -> list[Demand]:
        if self._stopping or not self._claiming:
            return []
        # Threads that hang and were given up on cost nothing until there are as many as slots;
        # each further one withholds a slot. So there are never more than twice as many threads.
        threads = self._lanes[Executor.THREAD]
        threads.withheld = max(0, self._executors.threads.abandoned - threads.slots)
        demands = (lane.demand(self._options.names) for lane in self._lanes.values())
        return [demand for demand in demands if demand is not None]

    def _wants_more(self, reply: Exchange, demands: Sequence[Demand]) -> bool:
        """Whether a lane got everything that it asked for, and there is room for more."""
        got = Counter(job.kind for job in reply.jobs)
        filled = any(
            sum(got[kind] for portion in demand.portions for kind in portion.kinds) >= demand.slots
            for demand in demands
        )
        return filled and bool(self._demands())

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    # ── What operators change ────────────────────────────────────────────────────────────────

    def _apply(self, configuration: Configuration) -> None:
        self._weigh(configuration.weights)
        self._prune_now.set()

    def _weigh(self, stored: Mapping[str, int]) -> None:
        """Share the queues anew; without any weights they are one line."""
        options = self._options
        weights = weights_of(options.names, options.weights, stored)
        if weights != self._weights:
            self._weights = weights
            for lane in self._lanes.values():
                lane.shares = shares_of(weights)

    def _retention(self) -> dict[str, Retention]:
        """What is kept of each kind: by its definition, or by what the store says before that."""
        now = self._configured.now
        return {
            definition.kind: now.retention(definition.kind, definition.retention)
            for definition in self._manager.registry
        }

    # ── Jobs ─────────────────────────────────────────────────────────────────────────────────

    def _start(self, job: Job) -> None:
        if self._interrupted:
            # Claimed by an exchange that was under way when running jobs were given back.
            self._give_back([job])
            return
        self._jobs.start(job, self._manager.registry.get(job.kind))

    def _execute(self, entry: Running) -> Awaitable[Outcome]:
        job = entry.job
        if job.baggage is not None:
            # Each job has an asyncio task of its own, and this is it.
            carry(job.baggage)
        if self._layers and job.kind in self._layers:
            entry.around = Around(job, self._layers[job.kind])
        return execute(
            job,
            entry.definition,
            entry.control,
            self._runtime,
            self._manager,
            self._executors,
            entry.around,
        )

    def _fate(self, entry: Running, outcome: Outcome) -> Transition:
        job, policy = entry.job, entry.job.retry or entry.definition.retry
        try:
            return decide(job, outcome, policy, random.random())
        except BaseException as error:  # noqa: BLE001 - the policy's function is a user's code
            return decide(job, policy_failed(outcome, error), RetryPolicy.never(), 0.0)

    def _settle(self, transition: Transition) -> None:
        if not self._ended:
            self._finished.append(transition)
            self._wake.set()

    def _break(self, error: BaseException) -> None:
        self._bug = error
        self._wake.set()

    def _cancel(self, job_id: str) -> None:
        job = self._jobs.cancel(job_id)
        if job is not None:
            self._notes.take(Note(job.id, job.lease, heard=True))

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
        self._configured.told(renewal.version)
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
        _log.error("incarnation lost", worker=self.id, jobs=len(self._jobs))
        self._ended = True
        self._steps.end()
        self._finished.clear()
        self._jobs.halt_all(Stop.LOST)
        self._wake.set()
