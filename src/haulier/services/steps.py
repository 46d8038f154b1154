"""The durable steps of one attempt: what an earlier attempt has finished is not done again."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from pydantic_core import PydanticSerializationError, from_json, to_json

from haulier.domain.job import Job
from haulier.domain.step import Step, complaint_about
from haulier.exceptions import LeaseLostError, PermanentError, Problem, ValidationError

MAX_RESULT = 256 * 1024
"""Bytes of JSON of a result: of a job, and of a step."""

MOST_STEPS = 1_000
MOST_BYTES = 4 * 1024 * 1024
"""How much the steps of one job may be: the next attempt reads all of them at once."""


class Keeper(Protocol):
    """What keeps steps: the worker that runs the job, or a stand-in. Callable from any thread."""

    def steps_of(self, job: Job) -> Future[list[Step]]:
        """The steps that the job has finished so far."""
        ...

    def keep(self, step: Step) -> Future[bool]:
        """Keep a finished step; false once it is known that its lease no longer holds."""
        ...


class Steps:
    """The steps of one attempt, for use from any thread."""

    def __init__(self, job: Job, keeper: Keeper) -> None:
        self._job = job
        self._keeper = keeper
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._reading: Future[list[Step]] | None = None
        self._earlier: dict[str, bytes] = {}
        self._own: dict[str, tuple[bytes, Future[bool]]] = {}

    async def run(self, name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """What the step came to, now or in an earlier attempt."""
        self._take(name)
        try:
            if name not in self._own:
                # Shielded: other steps may wait for the same answer when this one is given up.
                steps = await asyncio.shield(asyncio.wrap_future(self._read()))
                if (earlier := self._found(name, steps)) is not None:
                    return from_json(earlier)
                value = function(*arguments)
                if inspect.isawaitable(value):
                    value = await value
                self._finished(name, value)
            result, keeping = self._own[name]
            return self._kept(name, result, kept=await asyncio.wrap_future(keeping))
        except BaseException:
            self._give_back(name)
            raise

    def run_sync(self, name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """The same, blocking."""
        self._take(name)
        try:
            if name not in self._own:
                if (earlier := self._found(name, self._read().result())) is not None:
                    return from_json(earlier)
                value = function(*arguments)
                self._finished(name, _plain(name, value))
            result, keeping = self._own[name]
            return self._kept(name, result, kept=keeping.result())
        except BaseException:
            self._give_back(name)
            raise

    # ── The name ─────────────────────────────────────────────────────────────────────────────

    def _take(self, name: str) -> None:
        complaint = complaint_about(name)
        if complaint is not None:
            raise _refused(name, complaint)
        with self._lock:
            if name in self._taken:
                raise _refused(
                    name, "is used twice in one attempt: each step has a name of its own"
                )
            self._taken.add(name)

    def _give_back(self, name: str) -> None:
        """A step that was not passed may be tried again in the same attempt."""
        with self._lock:
            self._taken.discard(name)

    # ── Before the function ──────────────────────────────────────────────────────────────────

    def _read(self) -> Future[list[Step]]:
        """What earlier attempts have finished, asked for once."""
        with self._lock:
            failed = (
                self._reading is not None
                and self._reading.done()
                and (self._reading.cancelled() or self._reading.exception() is not None)
            )
            if self._reading is None or failed:
                self._reading = self._ask()
            return self._reading

    def _ask(self) -> Future[list[Step]]:
        if self._job.lease > 1:
            return self._keeper.steps_of(self._job)
        # Nobody has run this job before.
        nothing: Future[list[Step]] = Future()
        nothing.set_result([])
        return nothing

    def _found(self, name: str, steps: Sequence[Step]) -> bytes | None:
        """The result that an earlier attempt came to, if one did."""
        if len(self._earlier) < len(steps):
            self._earlier = {step.name: step.result for step in steps}
        if name in self._earlier:
            return self._earlier[name]
        if len(self._earlier) + len(self._own) >= MOST_STEPS:
            raise _refused(name, f"is one too many: a job may have {MOST_STEPS:,} steps")
        own = sum(len(result) for result, _ in self._own.values())
        if own + sum(map(len, self._earlier.values())) > MOST_BYTES:
            raise _refused(
                name, f"cannot be kept: the results of a job's steps may have {MOST_BYTES:,} bytes"
            )
        return None

    # ── After it ─────────────────────────────────────────────────────────────────────────────

    def _finished(self, name: str, value: Any) -> None:
        """Have it kept. From here on it is done, whatever becomes of whoever waits for that."""
        result = _encoded(name, value)
        step = Step(self._job.id, self._job.lease, name, result)
        self._own[name] = result, self._keeper.keep(step)

    def _kept(self, name: str, result: bytes, *, kept: bool) -> Any:
        if not kept:
            raise LeaseLostError(
                f"job {self._job.id} was taken away from this worker: its step {name!r} is not kept"
            )
        # What the next attempt would get, so that the first one meets no other types.
        return from_json(result)


def _plain(name: str, value: Any) -> Any:
    """What a plain function returned; ValidationError for a coroutine, which it must not be."""
    if inspect.iscoroutine(value):
        value.close()
        raise _refused(name, "is a coroutine: `await ctx.step(…)` in a task that is one too")
    return value


def _encoded(name: str, value: Any) -> bytes:
    if value is None:
        return b"null"
    try:
        result = to_json(value, inf_nan_mode="null")
    except (PydanticSerializationError, RecursionError, ValueError) as error:
        raise PermanentError(
            f"the result of the step {name!r} cannot be written as JSON: {error}"
        ) from None
    if len(result) > MAX_RESULT:
        raise PermanentError(
            f"the result of the step {name!r} has {len(result):,} bytes, at most {MAX_RESULT:,} "
            "are allowed"
        )
    return result


def _refused(name: object, reason: str) -> ValidationError:
    shown = name if isinstance(name, str) else repr(name)
    return ValidationError("the step was refused", [Problem(f"step {shown[:100]!r}", reason)])
