"""A parent that keeps a number of worker processes running: starts, restarts and reports them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess

import structlog

from haulier.exceptions import StoreError
from haulier.ports import JobStore
from haulier.services.ids import new_id
from haulier.worker.configured import follow_log_level

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
STEADY_AFTER = 60.0
"""Seconds a process must live for its next death to count as the first again."""

KILL_AFTER = 10.0
"""Seconds beyond the grace time after which a process that does not end is killed. It gives 5 of
them to coroutines that clean up, and 2 to its own children."""

_log = structlog.get_logger("haulier.processes")

Target = Callable[[str], None]


@dataclass(slots=True, eq=False)
class _Slot:
    """One of the N places; a process in it dies, the next one takes over the place."""

    process: SpawnProcess | None = None
    worker_id: str = ""
    started: float = 0.0
    deaths: int = 0


class WorkerProcesses:
    """Runs `target(worker_id)` in `count` spawned processes until stopped.

    When a process dies, its jobs are released at once, without waiting for its row to expire, and
    another process takes its place: at once the first time, then after a growing pause. `target`
    must be importable by name, since processes are spawned and never forked.
    """

    def __init__(self, store: JobStore, target: Target, count: int, *, grace: float) -> None:
        self._store = store
        self._target = target
        self._slots = [_Slot() for _ in range(count)]
        self._grace = grace
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep all processes running; returns when they have ended after `stop()`."""
        following = asyncio.create_task(follow_log_level(self._store))
        try:
            async with asyncio.TaskGroup() as group:
                for slot in self._slots:
                    group.create_task(self._keep(slot))
        finally:
            following.cancel()

    def stop(self) -> None:
        """Ask every process to stop gracefully; asked again, they stop at once."""
        self._stopping.set()
        for slot in self._slots:
            if slot.process is not None and slot.process.is_alive():
                slot.process.terminate()

    async def _keep(self, slot: _Slot) -> None:
        while not self._stopping.is_set():
            process = self._start(slot)
            await self._ended(process)
            if self._stopping.is_set():
                return
            pause = self._pause_after_death(slot)
            _log.warning(
                "worker process ended",
                pid=process.pid,
                worker=slot.worker_id,
                exit=process.exitcode,
                restart_in=round(pause, 1),
            )
            await self._release(slot.worker_id)
            await self._sleep(pause)

    def _start(self, slot: _Slot) -> SpawnProcess:
        slot.worker_id = new_id()
        process = multiprocessing.get_context("spawn").Process(
            target=self._target, args=(slot.worker_id,), name="haulier-worker"
        )
        process.start()
        slot.process, slot.started = process, time.monotonic()
        _log.info("worker process started", pid=process.pid, worker=slot.worker_id)
        return process

    async def _ended(self, process: SpawnProcess) -> None:
        """Wait for the end of a process; once stopping, kill it when its time is over."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(process.sentinel, ended.set)
        try:
            stopping = asyncio.create_task(self._stopping.wait())
            ending = asyncio.create_task(ended.wait())
            await asyncio.wait({stopping, ending}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not ended.is_set():
                await asyncio.wait({ending}, timeout=self._grace + KILL_AFTER)
            if not ended.is_set():
                _log.error("worker process killed", pid=process.pid)
                process.kill()
            await ending
        finally:
            loop.remove_reader(process.sentinel)
        process.join()

    def _pause_after_death(self, slot: _Slot) -> float:
        if time.monotonic() - slot.started > STEADY_AFTER:
            slot.deaths = 0
        slot.deaths += 1
        return min(FIRST_PAUSE * 2.0 ** min(slot.deaths - 1, 20), LONGEST_PAUSE)

    async def _release(self, worker_id: str) -> None:
        try:
            released = await self._store.retire(worker_id)
        except StoreError as error:
            # Its row expires by itself a little later.
            _log.warning("could not release jobs", worker=worker_id, error=str(error))
        else:
            if released:
                _log.warning("released jobs of lost workers", jobs=released)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


def on_parent_death(callback: Callable[[], object]) -> None:
    """Call back, from a thread, when the process that spawned this one is gone."""
    import threading

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        callback()

    threading.Thread(target=wait, name=f"haulier-parent-of-{os.getpid()}", daemon=True).start()
