"""The worker: incarnation after incarnation, until it is stopped."""

from __future__ import annotations

import asyncio

import structlog

from haulier.exceptions import StoreError
from haulier.services.jobs import JobManager
from haulier.worker.session import Session, WorkerOptions
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

    async def run(self) -> None:
        """Work until stopped. An incarnation that was declared lost is followed by another."""
        threads = ThreadExecutor()
        try:
            while not self._stopped.is_set():
                self._session = Session(self._manager, self._options, threads, self._first_id)
                self._first_id = None
                try:
                    await self._session.run()
                except StoreError as error:
                    _log.error("store failed at start", error=str(error))
                if not self._stopped.is_set():
                    await self._pause()
        finally:
            self._session = None
            threads.close()

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
