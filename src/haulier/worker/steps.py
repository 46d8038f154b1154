"""Keeps the finished steps of an incarnation's jobs: those that finish together in one call."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import structlog

from haulier.domain.flow import Parent
from haulier.domain.job import Job
from haulier.domain.step import Step
from haulier.domain.tick import Tick
from haulier.exceptions import StoreClosedError, StoreError
from haulier.ports import JobStore
from haulier.worker.patience import LONGEST, pause_after

T = TypeVar("T")

_log = structlog.get_logger("haulier.worker")


class _Waiting(NamedTuple):
    """A step on its way, and who waits to hear that it is kept."""

    step: Step
    told: Future[bool]


class StepKeeper:
    """While one call is under way the next steps gather. Waits for a store that is away.

    `steps_of`, `parents_of`, `tick_of`, `keep` are for any thread, the rest for the event loop's.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._gathered: list[_Waiting] = []
        self._under_way: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def steps_of(self, job: Job) -> Future[list[Step]]:
        """The steps that a job has finished so far."""

        async def read() -> list[Step]:
            return await self._patiently(lambda: self._store.steps(job.id))

        return asyncio.run_coroutine_threadsafe(read(), self._loop)

    def parents_of(self, job: Job) -> Future[list[Parent]]:
        """What a job has waited for."""

        async def read() -> list[Parent]:
            return await self._patiently(lambda: self._store.parents(job.id))

        return asyncio.run_coroutine_threadsafe(read(), self._loop)

    def tick_of(self, job: Job) -> Future[Tick | None]:
        """The tick that a job was enqueued for."""

        async def read() -> Tick | None:
            return await self._patiently(lambda: self._store.schedules().tick_of(job.id))

        return asyncio.run_coroutine_threadsafe(read(), self._loop)

    def keep(self, step: Step) -> Future[bool]:
        """Keep a step; false once its lease no longer holds, or this incarnation has ended."""
        told: Future[bool] = Future()
        # Whoever waits may be cancelled; the step is kept all the same.
        told.set_running_or_notify_cancel()
        with self._lock:
            if not self._over:
                self._gathered.append(_Waiting(step, told))
                self._loop.call_soon_threadsafe(self._begin)
                return told
        told.set_result(False)
        return told

    async def settle(self, job_ids: Iterable[str]) -> None:
        """Wait a short while for steps of these jobs that are still on their way.

        To be done before what the jobs came to is handed in, since that ends their leases.
        """
        if not self._gathered and not self._under_way:
            return
        ended = set(job_ids)
        with self._lock:
            waiting = [*self._gathered, *self._under_way]
        told = [asyncio.wrap_future(each.told) for each in waiting if each.step.job_id in ended]
        if told:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LONGEST):
                    await asyncio.gather(*told, return_exceptions=True)

    def end(self) -> None:
        """This incarnation is over: what is not kept by now is not kept."""
        with self._lock:
            self._over = True
            waiting = [*self._gathered, *self._under_way]
            self._gathered.clear()
        if self._task is not None:
            self._task.cancel()
        for each in waiting:
            if not each.told.done():
                each.told.set_result(False)

    # ── On the event loop ────────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        if self._task is None and not self._over:
            self._task = self._loop.create_task(self._keep_all())

    async def _keep_all(self) -> None:
        try:
            while self._gathered:
                with self._lock:
                    self._under_way, self._gathered = self._gathered, []
                await self._keep_some(self._under_way)
                self._under_way = []
        finally:
            self._task = None

    async def _keep_some(self, some: list[_Waiting]) -> None:
        steps = [each.step for each in some]
        try:
            lost = await self._patiently(lambda: self._store.keep(steps))
        except Exception as error:  # noqa: BLE001 - told to each job that waits
            for each in some:
                each.told.set_exception(error)
            return
        for each in some:
            each.told.set_result(each.step not in lost)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until the store serves: what a job has done is worth the wait."""
        failures = 0
        while True:
            try:
                return await call()
            except StoreClosedError:
                raise
            except StoreError as error:
                if self._over:
                    raise
                failures += 1
                _log.warning("steps wait for the store", error=str(error), times=failures)
            await asyncio.sleep(pause_after(failures))
