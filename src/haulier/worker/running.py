"""The jobs that one incarnation runs: each is started once, may be stopped, and ends once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import structlog

from haulier.domain.job import (
    Cancelled,
    Failed,
    Interrupted,
    Job,
    JobError,
    Outcome,
    Succeeded,
    TimedOut,
)
from haulier.domain.moves import Transition
from haulier.services.context import Control, overdue
from haulier.services.registry import LONGEST_RUN, Executor, TaskDefinition
from haulier.worker.around import Around
from haulier.worker.lanes import Lane

ABANDON_AFTER = 5.0
"""Seconds that a cancelled coroutine gets to clean up before nobody waits for it any more."""

SCAN_EVERY = 1.0

AT_ONCE = 32
"""Jobs that are started before the loop looks at its sockets again: what the worker asks next of
the store should not wait until all that it has got just now have run."""

_log = structlog.get_logger("haulier.worker")


class Stop(Enum):
    """Why a running job is being stopped from outside."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    LOST = "lost"


@dataclass(slots=True, eq=False)
class Running:
    """One attempt under way. `since` is the loop's time of its start.

    `over`: it has come to its end, by itself or not; only what is `around` it may still go on.
    """

    job: Job
    definition: TaskDefinition
    control: Control
    since: float
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    stop: Stop | None = None
    started: bool = False
    over: bool = False
    around: Around | None = None


class RunningJobs:
    """Starts jobs as tasks of its own, and tells `ended` what becomes of each one: its `fate`.

    They are no tasks of a task group, since that would wait for ever for a coroutine that does not
    heed its cancellation. Such a one is abandoned: its slot is free, what it returns is dropped,
    and the shared set `abandoned` has its task for as long as it goes on.
    """

    def __init__(
        self,
        lanes: Mapping[Executor, Lane],
        run: Callable[[Running], Awaitable[Outcome]],
        fate: Callable[[Running, Outcome], Transition],
        ended: Callable[[Transition], None],
        broken: Callable[[BaseException], None],
        abandoned: set[asyncio.Task[None]],
    ) -> None:
        self._lanes = lanes
        self._do = run
        self._fate = fate
        self._ended = ended
        self._broken = broken
        self._abandoned = abandoned
        self._entries: dict[str, Running] = {}
        self._to_start: deque[Running] = deque()
        self._leaving: set[asyncio.Task[None]] = set()
        self._none = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._outer = asyncio.current_task()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._entries

    def __iter__(self) -> Iterator[Job]:
        return (entry.job for entry in self._entries.values())

    # ── One job ──────────────────────────────────────────────────────────────────────────────

    def start(self, job: Job, definition: TaskDefinition) -> None:
        """Run a claimed job."""
        entry = Running(job, definition, Control(), self._loop.time())
        self._lanes[definition.executor].took(job.kind, 1)
        self._entries[job.id] = entry
        if definition.hard_timeout is not None:
            entry.timer = self._loop.call_later(definition.hard_timeout, self._expire, entry)
        if not self._to_start:
            self._loop.call_soon(self._start_some)
        self._to_start.append(entry)

    def _start_some(self) -> None:
        for _ in range(min(AT_ONCE, len(self._to_start))):
            entry = self._to_start.popleft()
            entry.task = self._loop.create_task(self._run(entry))
        if self._to_start:
            self._loop.call_soon(self._start_some)

    async def _run(self, entry: Running) -> None:
        entry.started = True
        outcome: Outcome | None = None
        try:
            if entry.stop is None:
                outcome = await self._do(entry)
        except asyncio.CancelledError:
            if entry.stop is None:
                outcome = self._cancelled_unasked(entry)
        except BaseException as error:  # noqa: BLE001 - a bug of ours, told aloud by the session
            self._broken(error)
        if entry.over:
            return
        if entry.timer is not None:
            entry.timer.cancel()
        entry.over = True
        if outcome is None or entry.stop is not None:
            outcome = _final(entry, outcome)
        if entry.around is None:
            self._end(entry, self._fate(entry, outcome))
        else:
            await self._leave(entry, entry.around, outcome)

    async def _leave(self, entry: Running, around: Around, outcome: Outcome) -> None:
        """Let the hooks around a run that is over have their say; the slot is theirs meanwhile."""
        task = asyncio.current_task()
        # It was cancelled to stop the job, which it has. The hooks are not meant.
        while task is not None and task.cancelling():
            task.uncancel()
        transition: Transition | None = None
        try:
            transition = await around.leave(outcome, lambda given: self._fate(entry, given))
        except asyncio.CancelledError:
            # The program that the worker is embedded in ends.
            transition = self._fate(entry, outcome)
        except BaseException as error:  # noqa: BLE001 - a bug of ours, told aloud by the session
            self._broken(error)
        self._end(entry, transition or self._fate(entry, outcome))

    def _end(self, entry: Running, transition: Transition) -> None:
        del self._entries[entry.job.id]
        self._lanes[entry.definition.executor].took(entry.job.kind, -1)
        if not self._entries:
            self._none.set()
        self._ended(transition)

    def _cancelled_unasked(self, entry: Running) -> Outcome:
        if self._outer is not None and self._outer.cancelling():
            # The whole worker was cancelled by the program it is embedded in. A thread goes on
            # although nobody waits for it; let it hear that it is over.
            entry.control.lose()
            return Interrupted()
        message = "the task cancelled itself"
        return Failed(
            JobError(type="CancelledError", message=message, attempt=entry.job.attempt),
            classes=("CancelledError", "asyncio.exceptions.CancelledError", "BaseException"),
        )

    # ── Stopping ─────────────────────────────────────────────────────────────────────────────

    def cancel(self, job_id: str) -> Job | None:
        """Stop a job on request; returns it if this was news to it."""
        entry = self._entries.get(job_id)
        if entry is None or entry.stop is not None or entry.over:
            return None
        self._halt(entry, Stop.CANCEL)
        return entry.job

    def halt_all(self, why: Stop) -> None:
        """Stop every job that runs."""
        for entry in tuple(self._entries.values()):
            self._halt(entry, why)

    async def all_over(self) -> None:
        """Wait until no job runs any more; one that does not listen is abandoned by then."""
        while self._entries:
            self._none.clear()
            await self._none.wait()

    async def scan(self) -> None:
        """Stop jobs that have run for `LONGEST_RUN` and were given no time of their own."""
        while True:
            await asyncio.sleep(SCAN_EVERY)
            began_before = self._loop.time() - LONGEST_RUN
            for entry in tuple(self._entries.values()):
                # In the order of their start: all that follow are younger.
                if entry.since > began_before:
                    break
                if entry.definition.hard_timeout is None and not (entry.stop or entry.over):
                    self._expire(entry)

    def _halt(self, entry: Running, why: Stop) -> None:
        """Stop a running job: a coroutine is cancelled, a plain function told or killed."""
        if entry.over:
            return
        if entry.stop is None or why is Stop.LOST:
            entry.stop = why
        if entry.control.lost:
            # It is on its way out; a second cancellation would only cut its clean-up short.
            return
        if why is Stop.CANCEL:
            entry.control.cancel()
            if entry.definition.executor is not Executor.ASYNC and not entry.definition.expand:
                # The slot is freed when the thread or the process has really stopped.
                return
        else:
            entry.control.lose()
            if entry.timer is not None:
                entry.timer.cancel()
            entry.timer = self._loop.call_later(ABANDON_AFTER, self._abandon, entry)
        # A task cancelled before its first step would end without a word; it looks by itself then.
        if entry.task is not None and entry.started:
            entry.task.cancel()

    def _expire(self, entry: Running) -> None:
        self._halt(entry, Stop.TIMEOUT)
        if _in_thread(entry.definition):
            # Its task ends at once; the thread goes on, and counts as abandoned while it does.
            self._log_abandoned(entry)

    def _abandon(self, entry: Running) -> None:
        if entry.over or entry.task is None:
            return
        self._log_abandoned(entry)
        self._abandoned.add(entry.task)
        entry.task.add_done_callback(self._abandoned.discard)
        entry.over = True
        outcome = _final(entry, None)
        if entry.around is None:
            self._end(entry, self._fate(entry, outcome))
            return
        # Its own task does not come to this.
        leaving = self._loop.create_task(
            self._leave(entry, entry.around, outcome), context=entry.around.context
        )
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def _log_abandoned(self, entry: Running) -> None:
        why = entry.stop.value if entry.stop is not None else ""
        _log.warning("job abandoned", job=entry.job.id, kind=entry.job.kind, why=why)


def _final(entry: Running, outcome: Outcome | None) -> Outcome:
    """What an attempt came to in the end, however its own code took it."""
    if entry.stop is Stop.TIMEOUT and not isinstance(outcome, Succeeded):
        # Whatever it raised on being stopped is a consequence, not the reason.
        outcome = None
    return outcome if outcome is not None else _stopped(entry)


def _stopped(entry: Running) -> Outcome:
    """What a job that was stopped from outside came to."""
    match entry.stop:
        case Stop.CANCEL:
            return Cancelled("cancelled on request")
        case Stop.TIMEOUT:
            message = overdue(entry.definition.hard_timeout or LONGEST_RUN)
            if _in_thread(entry.definition):
                message += "; its thread cannot be stopped and goes on"
            attempt = entry.job.attempt
            return TimedOut(JobError(type="JobTimeoutError", message=message, attempt=attempt))
        case _:
            return Interrupted()


def _in_thread(definition: TaskDefinition) -> bool:
    return definition.executor is Executor.THREAD or definition.expand is not None
