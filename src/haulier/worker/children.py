"""Child processes for plain functions that must not share the worker's interpreter.

A child that dies costs exactly the attempt that ran in it. Children are spawned, never forked, when
there is a job for them; an idle one is used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Self

import structlog
from pydantic import BaseModel

from haulier.domain.job import Cancelled, Failed, Job, JobError, Outcome
from haulier.domain.line import LONGEST_LINE, Said
from haulier.domain.step import Step
from haulier.domain.worker import Note
from haulier.exceptions import HaulierError
from haulier.services.context import Control, Runtime
from haulier.services.payload import opened
from haulier.services.registry import TaskDefinition
from haulier.services.secrets import scrub_current
from haulier.worker.child import CANCEL_SIGNAL, TIMEOUT_SIGNAL, main
from haulier.worker.lanes import JOBS_PER_CHILD
from haulier.worker.threads import ThreadExecutor
from haulier.worker.wire import (
    Message,
    code_to,
    job_to,
    outcome_from,
    parent_to,
    receive,
    send,
)

KILL_AFTER = 5.0
"""Seconds that a cancelled job gets to end before its process is killed."""

LAST_WORDS = 2.0
"""Seconds that a child which is no longer needed gets to end by itself."""

_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})

_log = structlog.get_logger("haulier.job")


class _Died(Exception):  # noqa: N818 - not an error of ours: what happened to a child
    """The connection to a child has ended."""


class _Process:
    """One child process. All but `converse` and `end` is for the event loop's thread alone.

    Its file descriptors are closed when nothing refers to it any more: a thread that converses with
    it may still be looking at them when the event loop has done away with it.
    """

    def __init__(self, memory: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(theirs, memory), name="haulier-child")
        self._process.start()
        theirs.close()
        self._death = _death_of(self._process)
        self._ready = False
        self.jobs = 0

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    # ── In a thread ──────────────────────────────────────────────────────────────────────────

    def converse(self, request: Message, hear: Callable[[Message], Message | None]) -> Message:
        """Have one job done, and answer what it asks. Raises _Died when the child ends first."""
        if not self._ready:
            self._next()
            self._ready = True
        self._say(request)
        while (message := self._next())["is"] != "done":
            answer = hear(message)
            if answer is not None:
                self._say(answer)
        self.jobs += 1
        return message

    def end(self) -> None:
        """Let it end by itself, within a short time."""
        with contextlib.suppress(_Died):
            self._say({"is": "end"})
            wait([self._death], LAST_WORDS)

    def _say(self, message: Message) -> None:
        try:
            send(self._connection, message)
        except OSError as error:
            raise self._died() from error

    def _next(self) -> Message:
        # Its death is watched for beside the connection: what the job has forked may hold that.
        if self._connection not in wait([self._connection, self._death]):
            raise self._died()
        try:
            return receive(self._connection)
        except (EOFError, OSError, ValueError, TypeError) as error:
            raise self._died() from error

    def _died(self) -> _Died:
        # The connection ends a little before the process does.
        wait([self._death], LAST_WORDS)
        return _Died()

    # ── On the event loop ────────────────────────────────────────────────────────────────────

    def signal(self, number: signal.Signals) -> None:
        """Tell it something, if it is there."""
        if self._process.is_alive():
            os.kill(self._pid, number)

    def strike(self) -> None:
        """Kill it, with all that its job has started."""
        if not self._process.is_alive():
            return
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            # It has not come to make its group yet.
            self._process.kill()

    def bury(self) -> int | None:
        """Make sure that it is gone, and return its exit code."""
        self.strike()
        self._process.join(LAST_WORDS)
        return self._process.exitcode

    @property
    def _pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid


def _death_of(process: SpawnProcess) -> Any:
    """What becomes readable when the process ends.

    Its sentinel is a pipe that processes forked by the job may keep open; Linux tells by a pidfd.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # A Connection only because it closes the descriptor with itself.
            return Connection(os.pidfd_open(process.pid or 0), writable=False)
    return process.sentinel


class _Visit:
    """One job in one child: what is told to it, and what is heard of it."""

    def __init__(
        self, job: Job, seconds: float | None, child: _Process, control: Control, runtime: Runtime
    ) -> None:
        self._job = job
        self._seconds = seconds
        self._child = child
        self._control = control
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        self._strike: asyncio.TimerHandle | None = None
        self._sent: set[signal.Signals] = set()
        self._began = self._over = self.heard = False

    def __enter__(self) -> Self:
        self._control.listener = self._told
        # It may have been told before anybody listened.
        self._told()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._control.listener = None
        for timer in (self._expiry, self._strike):
            if timer is not None:
                timer.cancel()

    def hear(self, message: Message) -> Message | None:
        """Take a message of the child, in the thread that converses with it; what to answer."""
        match message["is"]:
            case "began":
                self.heard = True
                self._loop.call_soon_threadsafe(self._begin)
            case "note":
                self.note(message)
            case "line":
                said = Said(message["number"], _masked(message["text"])[:LONGEST_LINE])
                self._runtime.report(Note(self._job.id, self._job.lease, lines=(said,)))
            case "steps" | "keep" | "parents" | "tick":
                return self._answer(message)
            case "log":
                level = message["level"] if message["level"] in _LEVELS else "info"
                fields = {name: _masked(value) for name, value in message["fields"].items()}
                getattr(_log, level)(_masked(message["event"]), **fields)
        return None

    def _answer(self, message: Message) -> Message:
        """What the child asks of the store; waits for that, as the job does."""
        job = self._job
        try:
            if message["is"] == "steps":
                steps = self._runtime.steps_of(job).result()
                found = {step.name: step.result.decode() for step in steps}
                return {"is": "answer", "steps": found}
            if message["is"] == "parents":
                parents = self._runtime.parents_of(job).result()
                return {"is": "answer", "parents": [parent_to(each) for each in parents]}
            if message["is"] == "tick":
                tick = self._runtime.tick_of(job).result()
                return {"is": "answer", "tick": None if tick is None else asdict(tick)}
            step = Step(job.id, job.lease, message["name"], message["result"].encode())
            return {"is": "answer", "kept": self._runtime.keep(step).result()}
        except HaulierError as error:
            return {"is": "answer", "error": str(error)}

    def note(self, message: Message | None) -> None:
        """Report progress as the child told it, if it is this job's."""
        job = self._job
        if message is not None and message["lease"] == job.lease and message["job"] == job.id:
            text = _masked(message["message"])
            self._runtime.report(Note(job.id, job.lease, message["progress"], text))

    def _begin(self) -> None:
        if self._over:
            return
        self._began = True
        if self._seconds is not None:
            self._expiry = self._loop.call_later(self._seconds, self._control.expire, self._seconds)
        self._told()

    def _told(self) -> None:
        """Pass on what the control says; by signals only once the job's own code runs."""
        if self._control.cancelled and self._strike is None:
            self._strike = self._loop.call_later(KILL_AFTER, self._child.strike)
        if self._began and self._control.cancelled:
            self._signal(CANCEL_SIGNAL)
        elif self._began and self._control.late is not None:
            self._signal(TIMEOUT_SIGNAL)

    def _signal(self, number: signal.Signals) -> None:
        if number not in self._sent:
            self._sent.add(number)
            self._child.signal(number)


class Children:
    """The child processes of a worker: never more than there are slots in their lane.

    A child is replaced after `jobs_per_child` jobs (0: never); `memory` is the limit of each, in
    megabytes of address space.
    """

    def __init__(self, jobs_per_child: int = JOBS_PER_CHILD, memory: int | None = None) -> None:
        self._jobs_per_child = jobs_per_child
        self._memory = memory
        self._threads = ThreadExecutor()
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()

    async def run(
        self,
        job: Job,
        definition: TaskDefinition,
        payload: BaseModel,
        control: Control,
        runtime: Runtime,
    ) -> Outcome:
        """Run the job in a child and say what it came to; kill the child when cancelled."""
        assert definition.code is not None
        request = {
            "is": "run",
            "job": job_to(job),
            "code": code_to(definition.code),
            "payload": opened(definition, payload),
            "seconds": definition.timeout,
        }
        outcome = None
        while outcome is None:
            child = self._take()
            self._busy.add(child)
            try:
                outcome = await self._visit(child, job, request, control, runtime)
            finally:
                self._busy.discard(child)
        return outcome

    async def _visit(
        self, child: _Process, job: Job, request: Message, control: Control, runtime: Runtime
    ) -> Outcome | None:
        """What the job came to; None if the child had died while it was idle, unnoticed so far."""
        with _Visit(job, request["seconds"], child, control, runtime) as visit:
            try:
                done = await self._threads.run(child.converse, request, visit.hear)
            except _Died:
                exit_code = child.bury()
                if child.jobs and not visit.heard:
                    # The job's own code has not begun: the attempt was none.
                    return None
                return _after_death(job, control, exit_code)
            except BaseException:
                # Cancelled: a hard timeout, or this attempt is not the worker's any more.
                child.bury()
                raise
            visit.note(done["note"])
        used_up = self._jobs_per_child and child.jobs >= self._jobs_per_child
        if done["spent"] or used_up:
            await self._dismiss(child)
        else:
            self._idle.append(child)
        return outcome_from(done["outcome"])

    async def close(self) -> None:
        """Let idle children end; those that do not are killed."""
        children, self._idle = self._idle, []
        try:
            await asyncio.gather(*(self._threads.run(child.end) for child in children))
        finally:
            for child in (*children, *self._busy):
                child.bury()
            self._threads.close()

    def _take(self) -> _Process:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            child.bury()
        return _Process(self._memory)

    async def _dismiss(self, child: _Process) -> None:
        try:
            await self._threads.run(child.end)
        except asyncio.CancelledError:
            # Its job is done, and what that came to is told all the same.
            return
        finally:
            child.bury()


def _after_death(job: Job, control: Control, exit_code: int | None) -> Outcome:
    """What an attempt came to whose process is gone."""
    if control.cancelled:
        return Cancelled("cancelled on request")
    message = f"the process of this job {_how(exit_code)}"
    error = JobError(type="ProcessDied", message=message, attempt=job.attempt)
    return Failed(error, classes=("ProcessDied", "Exception"))


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "does not answer any more"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


def _masked(value: Any) -> Any:
    return scrub_current(value) if isinstance(value, str) else value
