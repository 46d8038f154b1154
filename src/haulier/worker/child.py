"""The inside of a child process: runs one job after the other for the worker that spawned it.

The worker says what to run by the names of a module and of a function in it, which it has from its
own registry. The child has neither store nor key; it hears of a timeout by SIGUSR1 and of a cancel
by SIGUSR2.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import resource
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel

from haulier.domain.flow import Parent
from haulier.domain.job import Failed, Job, Outcome, Succeeded
from haulier.domain.step import Step
from haulier.domain.tick import Tick, TickState
from haulier.domain.worker import Note
from haulier.exceptions import ConfigurationError, PermanentError, StoreError
from haulier.ports import JobReader
from haulier.services.baggage import carrying
from haulier.services.code import Code, Name
from haulier.services.context import Context, Control
from haulier.services.payload import encode_result
from haulier.services.registry import define_task
from haulier.services.secrets import Scrubber, scrub_current
from haulier.worker.outcomes import outcome_of
from haulier.worker.wire import (
    Message,
    code_from,
    job_from,
    outcome_to,
    parent_from,
    receive,
    send,
)

TIMEOUT_SIGNAL = signal.SIGUSR1
CANCEL_SIGNAL = signal.SIGUSR2
NOTE_EVERY = 0.2
MEGABYTE = 1024 * 1024

T = TypeVar("T")

Call = Callable[[Context, Any], Any]


def main(connection: Connection, memory: int | None) -> None:
    """The whole life of one child; `memory` is its limit in megabytes of address space."""
    # A group of its own: what the job starts can be ended with it, and Ctrl-C reaches neither.
    os.setpgid(0, 0)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory * MEGABYTE, memory * MEGABYTE))
    Child(connection).serve()


class _Attempt:
    """The job that runs now, and whether its own code is running."""

    def __init__(self, job: Job, seconds: float | None) -> None:
        self.job = job
        self.seconds = seconds
        self.control = Control()
        self.inside = False


class Child:
    """Serves its worker; is also the runtime that the contexts of its jobs reach through."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._sending = False
        self._owed = False
        self._attempt: _Attempt | None = None
        self._note: Note | None = None
        self._known: dict[Code, tuple[type[BaseModel], Call]] = {}

    def serve(self) -> None:
        """Run jobs until the worker says that it was the last, or is gone."""
        for number in (TIMEOUT_SIGNAL, CANCEL_SIGNAL):
            signal.signal(number, self._told)
        # The worker decides what these mean. Not SIG_IGN, which programs started here would keep.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, name="haulier-watch", daemon=True).start()
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.format_exc_info,
                self._log,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        self._send({"is": "ready"})
        while (message := receive(self._connection))["is"] == "run":
            self._send(self._run(message))

    # ── One job ──────────────────────────────────────────────────────────────────────────────

    def _run(self, message: Message) -> Message:
        attempt = _Attempt(job_from(message["job"]), message["seconds"])
        self._note, self._owed = None, False
        with Scrubber() as scrubber:
            try:
                outcome: Outcome = self._call(attempt, code_from(message["code"]), message)
            except BaseException as error:  # noqa: BLE001 - a job ends here, also by SystemExit
                attempt.inside = False
                outcome = outcome_of(error, attempt.job, attempt.control, scrubber)
            self._attempt = None
        with self._lock:
            note, self._note = self._note, None
        # Memory that could not be had may be in pieces, and a signal may have struck anywhere.
        starved = isinstance(outcome, Failed) and "MemoryError" in outcome.classes
        struck = attempt.control.cancelled or attempt.control.late is not None
        return {
            "is": "done",
            "outcome": outcome_to(outcome),
            "note": None if note is None else _told_of(note),
            "spent": starved or struck,
        }

    def _call(self, attempt: _Attempt, code: Code, message: Message) -> Outcome:
        model, call = self._known.get(code) or self._load(code)
        self._known[code] = model, call
        payload = model.model_validate_json(message["payload"])
        ctx = Context(attempt.job, attempt.control, self)
        self._attempt = attempt
        # From now on the worker may send signals for this job.
        self._send({"is": "began"})
        try:
            attempt.inside = True
            ctx.check()
            with carrying(attempt.job.baggage):
                value = call(ctx, payload)
        finally:
            attempt.inside = False
        return Succeeded(encode_result(value))

    def _load(self, code: Code) -> tuple[type[BaseModel], Call]:
        """The payload model and the function, as the worker has them."""
        found = _find(code.target)
        if inspect.isclass(found):
            runner: Any = found()
            return runner.item_model, runner.run_item
        # What stands at that name is the function, or the Task that its decorator made of it.
        function = found if inspect.isfunction(found) else getattr(found, "function", None)
        if not inspect.isfunction(function):
            raise ConfigurationError(f"{code.target.name} in {code.target.module} is no task")
        model = None if code.model is None else _find(code.model)
        definition = define_task(function, model=model)
        assert definition.call is not None
        return definition.model, definition.call

    # ── Being told ───────────────────────────────────────────────────────────────────────────

    def _told(self, number: int, _: Any) -> None:
        """Raise in the job's own code what the worker has signalled.

        A signal that comes when the job has just ended finds nothing to stop: the worker sends the
        next job only after it heard of that end, and signals only after it heard of a beginning.
        """
        attempt = self._attempt
        if attempt is None:
            return
        if number == CANCEL_SIGNAL:
            attempt.control.cancel()
        else:
            attempt.control.expire(attempt.seconds or 0.0)
        if attempt.inside and self._sending:
            # Half a message must not stay half: raised when it is out.
            self._owed = True
        elif attempt.inside:
            Context(attempt.job, attempt.control, self).check()

    def _watch(self) -> None:
        """Report the latest progress now and then, and end with the worker."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (TIMEOUT_SIGNAL, CANCEL_SIGNAL))
        poller = select.poll()
        # No event is asked for: the end of the connection is told all the same.
        poller.register(self._connection.fileno(), 0)
        while not poller.poll(NOTE_EVERY * 1000):
            with self._lock:
                note = None
                if self._attempt is not None:
                    note, self._note = self._note, None
                if note is not None:
                    send(self._connection, _told_of(note))
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    # ── Telling ──────────────────────────────────────────────────────────────────────────────

    def _send(self, message: Message) -> None:
        with self._uncut(), self._lock:
            send(self._connection, message)

    def _ask(self, message: Message) -> Message:
        """Send what the worker answers; only a job asks, and one thread of it after the other."""
        with self._uncut(), self._asking:
            with self._lock:
                send(self._connection, message)
            answer = receive(self._connection)
        if "error" in answer:
            raise StoreError(answer["error"])
        return answer

    @contextlib.contextmanager
    def _uncut(self) -> Iterator[None]:
        """Within the block no signal raises; what one is owed is raised at its end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._sending = True
        try:
            yield
        finally:
            self._sending = False
        attempt = self._attempt
        if self._owed and attempt is not None and attempt.inside:
            self._owed = False
            Context(attempt.job, attempt.control, self).check()

    def _log(self, _: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """Hand a log event to the worker, which logs it as its own."""
        fields = {str(name): _loggable(value) for name, value in event.items()}
        level = fields.pop("level", "info")
        told = fields.pop("event", "")
        self._send({"is": "log", "level": level, "event": str(told), "fields": fields})
        raise structlog.DropEvent

    def report(self, note: Note) -> None:
        if note.lines:
            for said in note.lines:
                self._send({"is": "line", "number": said.number, "text": said.text})
            return
        # One assignment: safe from any thread; the watching thread sends the latest.
        self._note = note

    def steps_of(self, job: Job) -> Future[list[Step]]:
        found = self._ask({"is": "steps"})["steps"].items()
        return _done([Step(job.id, job.lease, name, text.encode()) for name, text in found])

    def parents_of(self, job: Job) -> Future[list[Parent]]:
        del job
        return _done([parent_from(each) for each in self._ask({"is": "parents"})["parents"]])

    def keep(self, step: Step) -> Future[bool]:
        request = {"is": "keep", "name": step.name, "result": step.result.decode()}
        return _done(bool(self._ask(request)["kept"]))

    def tick_of(self, job: Job) -> Future[Tick | None]:
        del job
        found = self._ask({"is": "tick"})["tick"]
        return _done(
            None if found is None else Tick(**found | {"state": TickState(found["state"])})
        )

    @property
    def reader(self) -> JobReader:
        raise PermanentError(
            "ctx.batch, ctx.items and ctx.payload_of read the store, which a child process has not"
        )

    def payload_of(self, job: Job) -> BaseModel:
        del job
        raise PermanentError("a child process cannot open the payloads of other jobs")


def _find(name: Name) -> Any:
    found = getattr(importlib.import_module(name.module), name.name, None)
    if found is None:
        raise ConfigurationError(f"there is no {name.name} in the module {name.module}")
    return found


def _done(value: T) -> Future[T]:
    done: Future[T] = Future()
    done.set_result(value)
    return done


def _told_of(note: Note) -> Message:
    return {
        "is": "note",
        "job": note.job_id,
        "lease": note.lease,
        "progress": note.progress,
        "message": note.message,
    }


def _loggable(value: Any) -> Any:
    if isinstance(value, str):
        return scrub_current(value)
    return value if isinstance(value, int | float | None) else scrub_current(repr(value))
