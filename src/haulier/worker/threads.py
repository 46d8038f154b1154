"""Threads for plain functions: as many as are busy at once, and none that keeps a process alive."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Call:
    work: Callable[[], None]
    over: bool = False
    abandoned: bool = False


class ThreadExecutor:
    """Runs plain functions in daemon threads.

    The worker's slots bound how many run at once, so a call never waits for a thread. The
    standard pool is not used because its threads must end before the interpreter can: a job that
    does not heed its cancellation would keep a stopped worker from exiting.

    `abandoned` is how many calls still go on although nobody waits for them any more.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0
        self.abandoned = 0

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function in a thread, with this task's context variables.

        When the waiting task is cancelled the thread goes on, and its answer is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            value, failure = None, None
            try:
                value = context.run(function, *arguments)
            except BaseException as error:  # noqa: BLE001 - it belongs to the job
                failure = error
            try:
                loop.call_soon_threadsafe(_settle, future, value, failure)
            except RuntimeError:
                # The loop closed while an abandoned job was still running.
                return

        call = _Call(work)
        self._put(call)
        try:
            return await future
        except asyncio.CancelledError:
            self._give_up(call)
            raise

    def close(self) -> None:
        """Let idle threads end; busy ones end with their job or with the process."""
        with self._lock:
            for _ in range(self._threads):
                self._calls.put(None)

    def _give_up(self, call: _Call) -> None:
        with self._lock:
            if not call.over:
                call.abandoned = True
                self.abandoned += 1

    def _put(self, call: _Call) -> None:
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            else:
                self._threads += 1
                threading.Thread(
                    target=self._serve, name=f"haulier-job-{self._threads}", daemon=True
                ).start()
        self._calls.put(call)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.work()
            with self._lock:
                self._idle += 1
                call.over = True
                self.abandoned -= call.abandoned


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, (StopIteration, GeneratorExit, asyncio.CancelledError)):
        # A future refuses the first, the second would close the coroutine that waits for it, and
        # the third would pass for the future's own cancellation.
        future.set_exception(RuntimeError(f"the task raised {type(error).__name__}"))
    else:
        future.set_exception(error)
