"""Runs the hooks of an app's middleware around one attempt."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import Callable

import structlog

from haulier.domain.job import Job, Outcome
from haulier.domain.moves import Move, Transition
from haulier.exceptions import JobSignal, PermanentError
from haulier.services.context import Control
from haulier.services.middleware import Attempt, Ended, Middleware, Told
from haulier.services.secrets import Scrubber
from haulier.worker.outcomes import outcome_of, text_of

HOOK_PATIENCE = 5.0
"""Seconds that each hook after a run is given: a worker that stops waits for it."""

Fate = Callable[[Outcome], Transition]

_FAILED = frozenset({Move.FAIL, Move.RETRY})

_log = structlog.get_logger("haulier.worker")


class Around:
    """The middleware around one attempt, the outermost first."""

    __slots__ = ("_entered", "_layers", "attempt", "context", "exception", "scrubber")

    def __init__(self, job: Job, layers: tuple[Middleware, ...]) -> None:
        self.attempt = Attempt(job)
        self.exception: BaseException | None = None
        self.scrubber = Scrubber()
        self.context: contextvars.Context | None = None
        """What the job runs in, for hooks of an attempt that does not come to an end by itself."""
        self._layers = layers
        self._entered: list[Middleware] = []

    async def enter(self) -> None:
        """Call `before` of each; what one raises is the attempt's own error."""
        for layer in self._layers:
            told = layer.before(self.attempt)
            if inspect.isawaitable(told):
                await told
            self._entered.append(layer)
        self.context = contextvars.copy_context()

    async def leave(self, outcome: Outcome, fate: Fate) -> Transition:
        """Call what follows a run, the innermost first, and say what becomes of the job."""
        seconds = time.monotonic() - self.attempt.began
        transition = fate(outcome)
        while self._entered:
            layer = self._entered.pop()
            ended = self._ended(transition, seconds)
            if transition.move in _FAILED:
                error = await self._call(layer.on_failure, ended)
                if isinstance(error, JobSignal | PermanentError):
                    self.exception = error
                    job = self.attempt.job
                    transition = fate(outcome_of(error, job, Control(), self.scrubber))
                    ended = self._ended(transition, seconds)
                elif error is not None:
                    self._log(layer.on_failure, error)
            elif transition.move is Move.CANCEL:
                await self._tell(layer.on_cancel, ended)
            await self._tell(layer.after, ended)
        return transition

    def _ended(self, transition: Transition, seconds: float) -> Ended:
        return Ended(
            move=transition.move,
            seconds=seconds,
            result=transition.result,
            error=transition.error,
            exception=self.exception,
            delay=transition.delay,
        )

    async def _tell(self, hook: Callable[[Attempt, Ended], Told], ended: Ended) -> None:
        error = await self._call(hook, ended)
        if error is not None:
            self._log(hook, error)

    async def _call(
        self, hook: Callable[[Attempt, Ended], Told], ended: Ended
    ) -> BaseException | None:
        """Call one hook and return what it raised."""
        try:
            told = hook(self.attempt, ended)
            if inspect.isawaitable(told):
                async with asyncio.timeout(HOOK_PATIENCE):
                    await told
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return error
        except BaseException as error:  # noqa: BLE001 - a hook is a user's code, like the task
            return error
        return None

    def _log(self, hook: Callable[..., Told], error: BaseException) -> None:
        job = self.attempt.job
        _log.error(
            "hook failed",
            job=job.id,
            kind=job.kind,
            hook=getattr(hook, "__qualname__", repr(hook)),
            error=self.scrubber.scrub(f"{type(error).__name__}: {text_of(error)}"),
        )
