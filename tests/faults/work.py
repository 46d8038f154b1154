"""What the worker processes of these tests run: kinds that write down each start and each effect.

`spec` says where: the store's URL and ttl, the log, the sink, and where the process is to crash.
The command line loads `app` from here too; then the spec is the file that FAULTS_SPEC names.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from faults.log import Log, now
from faults.sink import SinkClient
from faults.witness import Crash, Witness
from haulier.app import App
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import PermanentError
from haulier.runners.base import BaseTaskRunner, BatchFinished
from haulier.services.context import Context
from haulier.stores import open_store
from haulier.telemetry import configure_logging
from haulier.worker.lanes import WorkerOptions

Spec = dict[str, Any]

EVERY = 0.05
"""Seconds between the effects of a job that holds on."""

LOOK_EVERY = 0.1

AT_ONCE = RetryPolicy(max_attempts=4, delay=0, cap=0)


class Start(BaseModel):
    items: int
    seconds: float = 0.0


class Starts(BaseModel):
    batches: int
    items: int
    seconds: float = 0.0


class Item(BaseModel):
    number: int
    seconds: float = 0.0


class Doing:
    """One attempt at a job, as the log and the sink are told of it."""

    def __init__(self, log: Log, sink: SinkClient, crash: Crash) -> None:
        self.log = log
        self.sink = sink
        self.crash = crash

    async def __call__(self, ctx: Context, seconds: float, how: str = "well") -> int:
        self._begin(ctx)
        try:
            return await self._do(ctx, seconds, how)
        except asyncio.CancelledError:
            self.log.write("halted", job=ctx.job.id, lease=ctx.lease)
            raise

    async def _do(self, ctx: Context, seconds: float, how: str) -> int:
        await self._effect(ctx)
        while how == "hold" and ctx.lease == 1:
            await asyncio.sleep(EVERY)
            await self._effect(ctx)
        if how == "slow at last" and ctx.lease == 1:
            seconds = 0.0
        await asyncio.sleep(seconds / 2)
        ctx.progress(50)
        self.crash.reach("job in the middle")
        await asyncio.sleep(seconds / 2)
        await self._effect(ctx, last=True)
        if how == "flaky" and ctx.job.attempt == 1:
            raise ValueError("at the first attempt it always fails")
        if how == "broken" and ctx.lease == 1:
            raise PermanentError("broken")
        self._end(ctx)
        return ctx.lease

    def in_thread(self, ctx: Context, seconds: float, how: str = "well") -> int:
        self._begin(ctx)
        accepted = self.sink.effect_in_thread(_request(ctx, last=False))
        while how == "stubborn" and ctx.lease == 1 and accepted:
            time.sleep(EVERY)
            accepted = self.sink.effect_in_thread(_request(ctx, last=False))
        if not accepted:
            # It heeds nobody; only the sink is left to tell it.
            self.log.write("halted", job=ctx.job.id, lease=ctx.lease)
            return 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            ctx.progress(50)
            time.sleep(0.01)
        self.sink.effect_in_thread(_request(ctx, last=True))
        self._end(ctx)
        return ctx.lease

    async def by_steps(self, ctx: Context, steps: int, seconds: float) -> int:
        self._begin(ctx)
        await self._effect(ctx)
        for number in range(steps):
            await ctx.step(f"{number}", self._step, ctx, number, seconds)
            self._passed(ctx, number)
        await self._effect(ctx, last=True)
        self._end(ctx)
        return ctx.lease

    async def _step(self, ctx: Context, number: int, seconds: float) -> int:
        self.log.write("did", job=ctx.job.id, lease=ctx.lease, step=number)
        await asyncio.sleep(seconds)
        return ctx.lease

    def by_steps_in_thread(self, ctx: Context, steps: int, seconds: float) -> int:
        self._begin(ctx)
        self.sink.effect_in_thread(_request(ctx, last=False))
        for number in range(steps):
            ctx.step_sync(f"{number}", self._step_in_thread, ctx, number, seconds)
            self._passed(ctx, number)
        self.sink.effect_in_thread(_request(ctx, last=True))
        self._end(ctx)
        return ctx.lease

    def _step_in_thread(self, ctx: Context, number: int, seconds: float) -> int:
        self.log.write("did", job=ctx.job.id, lease=ctx.lease, step=number)
        time.sleep(seconds)
        return ctx.lease

    def _passed(self, ctx: Context, number: int) -> None:
        self.log.write("passed", job=ctx.job.id, lease=ctx.lease, step=number)
        self.crash.reach("job between two steps")

    def _begin(self, ctx: Context) -> None:
        job = ctx.job
        told = {"lease": job.lease, "worker": job.worker, "wall": time.time()}
        told |= {"kind": job.kind, "queue": job.queue, "key": job.key}
        self.log.write("start", job=job.id, **told)
        self.crash.reach("job started")

    async def _effect(self, ctx: Context, *, last: bool = False) -> None:
        # Refused or not, a job of these tests goes on: it is its worker that has to stop it.
        await self.sink.effect(_request(ctx, last=last))

    def _end(self, ctx: Context) -> None:
        self.log.write("end", job=ctx.job.id, lease=ctx.lease)
        self.crash.reach("job before it is handed in")


def _request(ctx: Context, *, last: bool) -> dict[str, Any]:
    return {"job": ctx.job.id, "lease": ctx.lease, "pid": os.getpid(), "last": last}


def runners_of(doing: Doing) -> list[BaseTaskRunner]:
    """Bulk kinds: one, and one whose items are batches of it."""

    class Bulk(BaseTaskRunner[Start, Item]):
        task_type, start_model, item_model, retry = "bulk", Start, Item, AT_ONCE

        def expand(self, ctx: Context, start: Start):
            for number in range(start.items):
                yield Item(number=number, seconds=start.seconds)

        async def run_item(self, ctx: Context, item: Item) -> int:
            return await doing(ctx, item.seconds)

        async def finish(self, ctx: Context, start: Start, finished: BatchFinished) -> int:
            return await doing(ctx, 0.0)

    class Nested(BaseTaskRunner[Starts, Start]):
        task_type, start_model, item_model, retry = "nested", Starts, Start, AT_ONCE
        item_kind = "bulk"

        def expand(self, ctx: Context, start: Starts):
            for _ in range(start.batches):
                yield Start(items=start.items, seconds=start.seconds)

        async def finish(self, ctx: Context, start: Starts, finished: BatchFinished) -> int:
            return await doing(ctx, 0.0)

    return [Bulk(), Nested()]


def app_of(spec: Spec) -> App:
    """The app of one process."""
    log = Log(spec["log"])
    crash = Crash(spec.get("point", ""), spec.get("passes", 1), log, spec.get("stops", False))
    store = Witness(open_store(spec["store"], ttl=spec["ttl"]), log, crash)
    app = App(store)  # type: ignore[arg-type]
    doing = Doing(log, SinkClient(spec["sink"]), crash)

    @app.task(retry=AT_ONCE)
    async def work(ctx: Context, seconds: float = 0.0, how: str = "well") -> int:
        return await doing(ctx, seconds, how)

    @app.task(retry=AT_ONCE)
    def thread_work(ctx: Context, seconds: float = 0.0, how: str = "well") -> int:
        return doing.in_thread(ctx, seconds, how)

    @app.task(retry=AT_ONCE)
    async def by_steps(ctx: Context, steps: int = 3, seconds: float = 0.0) -> int:
        return await doing.by_steps(ctx, steps, seconds)

    @app.task(retry=AT_ONCE)
    def thread_by_steps(ctx: Context, steps: int = 3, seconds: float = 0.0) -> int:
        return doing.by_steps_in_thread(ctx, steps, seconds)

    @app.task(retry=AT_ONCE)
    async def told(ctx: Context, finished: BatchFinished) -> int:
        return await doing(ctx, 0.0)

    for runner in runners_of(doing):
        app.add_runner(runner)
    return app


def work_until_told(spec: Spec) -> None:
    """The whole life of a worker process: SIGTERM lets it drain."""
    configure_logging("info", "console")
    asyncio.run(_work(spec))


def _watch_the_machine(log: Log, ttl: float) -> None:
    """Write down when this process stood still because the machine gave it no time.

    When it was busy with itself that does not count: what it costs is its own doing.
    """

    def watch() -> None:
        began, used = now(), time.process_time()
        while True:
            time.sleep(LOOK_EVERY)
            ended, spent = now(), time.process_time()
            late = (ended - began) / 1e6 - LOOK_EVERY
            if late > ttl / 4 and spent - used < late / 4:
                until = ended + round(ttl * 1e6)
                log.write("stall", pid=os.getpid(), since=began, until=until, late=late)
            began, used = ended, spent

    threading.Thread(target=watch, daemon=True).start()


async def _work(spec: Spec) -> None:
    _watch_the_machine(Log(spec["log"]), spec["ttl"])
    app = app_of(spec)
    async with app:
        options = WorkerOptions(
            queues=tuple(spec.get("queues", ("default",))),
            concurrency=spec.get("concurrency", 8),
            threads=2,
            grace=spec.get("grace", 10.0),
        )
        worker = app.worker(options)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()


def __getattr__(name: str) -> App:
    if name != "app":
        raise AttributeError(name)
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        # libfaketime 0.9.10 spoils the system call behind this function, and no other way to wait.
        time.sleep = lambda seconds: select.select([], [], [], seconds)
    spec = json.loads(Path(os.environ["FAULTS_SPEC"]).read_text())
    _watch_the_machine(Log(spec["log"]), spec["ttl"])
    return app_of(spec)
