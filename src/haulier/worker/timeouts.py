"""A soft timeout for coroutines: JobTimeoutError is raised inside, where the job waits just then.

The error is also a CancelledError. So task groups, `asyncio.timeout` and cancel scopes inside the
job clean up as for any cancellation, while the job itself may catch it by its name and go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

from haulier.exceptions import JobTimeoutError
from haulier.services.context import Control, overdue


class _ExpiredError(JobTimeoutError, asyncio.CancelledError):
    """What is raised inside the job; in tracebacks it goes by its public name."""

    __module__ = JobTimeoutError.__module__
    __qualname__ = JobTimeoutError.__qualname__


class Timed:
    """Awaits a coroutine, and once `seconds` are over replaces our own cancellation inside it."""

    __slots__ = ("_asked", "_control", "_coroutine", "_seconds")

    def __init__(self, awaitable: Awaitable[Any], seconds: float, control: Control) -> None:
        self._coroutine = _entered(awaitable)
        self._seconds = seconds
        self._control = control
        self._asked = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        timer = task.get_loop().call_later(self._seconds, self._expire, task)
        try:
            return (yield from self._drive(task))
        finally:
            timer.cancel()
            if self._asked:
                # Something inside took our cancellation for its own and ended in time after all.
                task.uncancel()

    def _expire(self, task: asyncio.Task[Any]) -> None:
        if not (self._control.cancelled or self._control.lost):
            self._control.expire(self._seconds)
            self._asked = True
            task.cancel()

    def _drive(self, task: asyncio.Task[Any]) -> Generator[Any, Any, Any]:
        """What `yield from` does, but for the exception that is thrown in."""
        coroutine, thrown, sent = self._coroutine, None, None
        while True:
            try:
                waiting = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown = sent = None
            try:
                sent = yield waiting
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 - passed on inwards
                thrown = self._ours(error, task)

    def _ours(self, error: BaseException, task: asyncio.Task[Any]) -> BaseException:
        stopped = self._control.cancelled or self._control.lost
        if not isinstance(error, asyncio.CancelledError) or not self._asked or stopped:
            return error
        self._asked = False
        task.uncancel()
        return _ExpiredError(overdue(self._seconds))


async def _entered(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
