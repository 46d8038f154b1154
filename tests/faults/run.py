"""One run over one store: the processes in it, what strikes them, and the proof at its end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from faults.history import Report, prove
from faults.log import Log, now, read
from faults.sink import Sink
from faults.witness import Crash, Witness
from haulier.ports import JobStore
from haulier.stores import open_store
from nursery import Child, Nursery, alive
from simulation.history import MANY, look
from support import wait_until

TTL = 3.0
LOOK_EVERY = 0.1


class Run:
    """Everything about one store for as long as its block lasts; nothing outlives that.

    `store` is the test's own way to it, written down like that of the processes. `url` may lead
    the processes over a proxy, `straight` never does. `lag`: by how many seconds this process was
    late at most, which has little to do: a measure of how much the machine has to do.
    """

    def __init__(
        self,
        nursery: Nursery,
        folder: Path,
        straight: str,
        *,
        url: str | None = None,
        ttl: float = TTL,
        name: str = "run",
    ) -> None:
        self.folder = folder
        self.ttl = ttl
        self.url = url or straight
        self.path = folder / f"{name}.history"
        self.log = Log(self.path)
        self.lag = 0.0
        self.children: list[Child] = []
        self._nursery = nursery
        self._stack = AsyncExitStack()
        opened = open_store(straight, ttl=ttl)
        self.store: JobStore = Witness(opened, self.log, Crash("", 0, self.log))  # type: ignore[assignment]

    async def __aenter__(self) -> Self:
        self._stack.callback(self.log.close)
        # A folder with a short name: the addresses of sockets are limited to a hundred letters.
        short = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="haulier-"))
        self.sink = await self._stack.enter_async_context(Sink(Path(short) / "sink", self.log))
        await self._stack.enter_async_context(self.store)
        self._stack.push_async_callback(self._end_all)
        watch = asyncio.create_task(self._watch_the_machine())
        self._stack.push_async_callback(_cancelled, watch)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.__aexit__(*exc)

    async def _end_all(self) -> None:
        for child in self.children:
            child.send(signal.SIGCONT)
            child.kill()
        for child in self.children:
            await child.ended()

    async def _watch_the_machine(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(LOOK_EVERY)
            self.lag = max(self.lag, loop.time() - began - LOOK_EVERY)

    # ── Processes ────────────────────────────────────────────────────────────────────────────

    def spec(self, **more: Any) -> dict[str, Any]:
        """What a process is told."""
        common = {"store": self.url, "ttl": self.ttl, "log": str(self.path)}
        return {**common, "sink": str(self.sink.path), **more}

    def start(self, main: str = "work:work_until_told", **spec: Any) -> Child:
        """Fork a process."""
        child = self._nursery.start(f"faults.{main}", self.spec(**spec))
        self.children.append(child)
        return child

    def produce(self, dice: random.Random, *, longest: float) -> Child:
        """Fork a process that enqueues jobs of up to so many seconds until it is killed."""
        return self.start("producing:produce", seed=dice.randrange(1_000_000), longest=longest)

    def kill(self, child: Child) -> None:
        """SIGKILL, after it was written down."""
        self.log.write("kill", pid=child.pid)
        child.kill()
        self.sink.forget(child.pid)

    def kill_pid(self, pid: int) -> None:
        if alive(pid):
            self.log.write("kill", pid=pid)
            os.kill(pid, signal.SIGKILL)
            self.sink.forget(pid)

    def stop(self, child: Child) -> None:
        """SIGSTOP: the process stands still until it is told to go on."""
        self.log.write("stop", pid=child.pid)
        child.stopped = True
        child.send(signal.SIGSTOP)

    def wake(self, child: Child) -> None:
        child.stopped = False
        child.send(signal.SIGCONT)

    @contextmanager
    def trouble(self, after: float) -> Iterator[None]:
        """While this lasts, and `after` seconds more, workers may lose their jobs."""
        began = now()
        try:
            yield
        finally:
            until = now() + round(after * 1e6)
            self.log.write("trouble", since=began, until=until)

    # ── The end ──────────────────────────────────────────────────────────────────────────────

    async def rest(self, timeout: float = 60) -> None:
        """Wait until every job has its fate."""
        await self._seal_all()

        async def none_left() -> bool:
            return not [
                key for key, n in (await self.store.counts()).items() if n and not key[3].final
            ]

        await wait_until(none_left, timeout)

    async def _seal_all(self) -> None:
        """Close the batches that a producer opened and died over."""
        for batch in await self.store.batches(limit=MANY):
            if batch.kind == "work" and not batch.sealed:
                await self.store.seal(batch.id)

    async def prove(self) -> Report:
        """The checker's report, which must be without findings."""
        report = prove(read(self.path), await look(self.store))
        if report.findings:
            said = [line for child in self.children for line in child.complaints()]
            raise AssertionError("\n".join([str(report), *report.findings[:40], *said[-40:]]))
        return report


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
