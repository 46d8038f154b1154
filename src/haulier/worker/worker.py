"""The worker: incarnation after incarnation, until it is stopped."""

from __future__ import annotations

import asyncio

import structlog

from haulier.exceptions import StoreError
from haulier.services.baggage import carrying
from haulier.services.jobs import JobManager
from haulier.services.limits import declare
from haulier.worker.children import Children
from haulier.worker.execution import Executors
from haulier.worker.lanes import WorkerOptions
from haulier.worker.session import Session
from haulier.worker.threads import ThreadExecutor

RESTART_PAUSE = 1.0

_log = structlog.get_logger("haulier.worker")


class Worker:
    """Claims and runs the jobs of the kinds that its registry knows.

    `await run()` returns after `stop()`, when running jobs have finished or were given back.
    """

    def __init__(
        self,
        manager: JobManager,
        options: WorkerOptions | None = None,
        *,
        first_id: str | None = None,
    ) -> None:
        self._manager = manager
        self._options = options or WorkerOptions()
        self._first_id = first_id
        self._stopped = asyncio.Event()
        self._session: Session | None = None
        self._abandoned: set[asyncio.Task[None]] = set()

    @property
    def abandoned(self) -> int:
        """How many coroutines go on that did not heed their cancellation."""
        return len(self._abandoned)

    async def run(self) -> None:
        """Work until stopped. An incarnation that was declared lost is followed by another."""
        options = self._options
        executors = Executors(
            ThreadExecutor(),
            Children(options.jobs_per_child, options.child_memory),
            self._abandoned,
        )
        declared = False
        try:
            while not self._stopped.is_set():
                self._session = Session(self._manager, options, executors, self._first_id)
                self._first_id = None
                try:
                    if not declared:
                        await declare(self._manager.store, self._manager.registry.limits())
                        declared = True
                    # What the program around carries is no job's.
                    with carrying(None):
                        await self._session.run()
                except StoreError as error:
                    _log.error("store failed at start", error=str(error))
                if not self._stopped.is_set():
                    await self._pause()
        finally:
            self._session = None
            executors.threads.close()
            await executors.children.close()

    def stop(self, *, now: bool = False) -> None:
        """Claim nothing more and drain; with `now`, give running jobs back at once."""
        self._stopped.set()
        if self._session is not None:
            self._session.stop(now=now)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(RESTART_PAUSE):
                await self._stopped.wait()
        except TimeoutError:
            return
