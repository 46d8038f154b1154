"""A store that writes down what it was asked and what it answered, and dies where it is told to."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from faults.log import Log
from haulier.domain.batch import BatchPolicy
from haulier.domain.job import NewJob
from haulier.domain.moves import Transition
from haulier.domain.schedule import Firing
from haulier.domain.tick import Tick
from haulier.domain.worker import Demand, Exchange, Renewal, WorkerRow
from haulier.parts import Schedules
from haulier.ports import Heartbeat, Inserted, JobStore

SLICES = {"SqliteStore": "_write", "PostgresStore": "_write", "RedisStore": "_write"}
"""The method of each kind of store that is called once for each transaction."""


@dataclass(slots=True)
class Crash:
    """Kills this process, as nobody could catch it, or stops it, at the n-th pass of a point.

    A point is a verb with what it carries, or a step of a job, and `before` or `after` it.
    """

    point: str
    passes: int
    log: Log
    stops: bool = False

    def reach(self, point: str) -> None:
        if point != self.point:
            return
        self.passes -= 1
        if self.passes == 0:
            self.log.write("stop" if self.stops else "crash", point=point)
            os.kill(os.getpid(), signal.SIGSTOP if self.stops else signal.SIGKILL)


class Witness:
    """Stands before a store. What it does not know it passes on."""

    def __init__(self, store: JobStore, log: Log, crash: Crash) -> None:
        self._store = store
        self._log = log
        self._crash = crash

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._store, verb)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **options: Any) -> Any:
            self._crash.reach(f"{verb} before")
            answer = await found(*arguments, **options)
            self._crash.reach(f"{verb} after")
            return answer

        return call

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._store.__aexit__(*exc)

    # ── Producers ────────────────────────────────────────────────────────────────────────────

    async def insert(
        self, jobs: Sequence[NewJob], *, policy: BatchPolicy | None = None, **options: Any
    ) -> Inserted:
        self._crash.reach("insert before")
        self._enqueue(jobs, policy, None)
        answer = await self._store.insert(jobs, policy=policy, **options)
        self._crash.reach("insert after")
        self._enqueue(jobs, policy, True)
        return answer

    async def open_batch(
        self,
        head: NewJob,
        items: Sequence[NewJob],
        *,
        policy: BatchPolicy | None = None,
        sealed: bool,
    ) -> Inserted:
        self._crash.reach("open_batch before")
        self._enqueue([head, *items], policy, None)
        answer = await self._store.open_batch(head, items, policy=policy, sealed=sealed)
        self._crash.reach("open_batch after")
        self._enqueue([head, *items], policy, True)
        return answer

    def _enqueue(self, jobs: Sequence[NewJob], policy: BatchPolicy | None, ok: bool | None) -> None:
        back = policy is not None and policy.finish is not None
        heads = [job.id for job in jobs if back and job.role.heads]
        told = [[job.id, job.batch_id] for job in jobs]
        self._log.write("enqueue", ok=ok, jobs=told, heads=heads)

    def schedules(self) -> Any:
        return _Schedules(self._store.schedules(), self._enqueue, self._crash)

    # ── Workers ──────────────────────────────────────────────────────────────────────────────

    async def enlist(self, worker: WorkerRow) -> None:
        self._log.write("enlist", worker=worker.id)
        self._crash.reach("enlist before")
        await self._store.enlist(worker)
        self._crash.reach("enlist after")

    async def exchange(
        self,
        worker_id: str,
        finished: Sequence[Transition],
        demands: Sequence[Demand],
        **options: Any,
    ) -> Exchange:
        handed = [[each.job.id, each.job.lease, each.move] for each in finished]
        if handed:
            self._log.write("hand_in", ok=None, moves=handed)
        self._crash.reach(f"exchange with {'finished' if handed else 'claims'} before")
        reply = await self._store.exchange(worker_id, finished, demands, **options)
        if handed:
            self._crash.reach("exchange with finished after")
        if reply.jobs:
            self._crash.reach("exchange with claims after")
        if handed:
            lost = [[each.job.id, each.job.lease, each.move] for each in reply.lost]
            kept = [each for each in handed if each not in lost]
            self._log.write("hand_in", ok=True, moves=kept)
            if lost:
                self._log.write("hand_in", ok=False, moves=lost)
        return reply

    def heartbeat(self, worker_id: str) -> Heartbeat:
        return _Heartbeat(self._store.heartbeat(worker_id), self._crash)

    # ── Between the transactions of one verb ─────────────────────────────────────────────────

    @contextlib.contextmanager
    def slices(self, verb: str) -> Iterator[None]:
        """Within the block each transaction of the store passes the point `<verb> slice`."""
        name = SLICES[type(self._store).__name__]
        found = getattr(self._store, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            answer = await found(*arguments, **options)
            self._crash.reach(f"{verb} slice")
            return answer

        setattr(self._store, name, call)
        try:
            yield
        finally:
            delattr(self._store, name)


class _Schedules:
    """Of what schedulers do, only that jobs are enqueued is to be written down."""

    def __init__(self, schedules: Schedules, enqueue: Callable[..., None], crash: Crash) -> None:
        self._schedules = schedules
        self._enqueue = enqueue
        self._crash = crash

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._schedules, verb)

    async def fire(self, firings: Sequence[Firing]) -> list[tuple[Tick, ...] | None]:
        self._crash.reach("fire before")
        for firing in firings:
            jobs = [planned.job for planned in firing.ticks if planned.job]
            self._enqueue(jobs, firing.policy, None)
        answer = await self._schedules.fire(firings)
        self._crash.reach("fire after")
        for firing, ticks in zip(firings, answer, strict=True):
            made = {tick.job for tick in ticks or ()}
            jobs = [p.job for p in firing.ticks if p.job and p.job.id in made]
            self._enqueue(jobs, firing.policy, True)
        return answer


class _Heartbeat:
    def __init__(self, heartbeat: Heartbeat, crash: Crash) -> None:
        self._heartbeat = heartbeat
        self._crash = crash

    def renew(self) -> Renewal:
        self._crash.reach("renew before")
        renewal = self._heartbeat.renew()
        self._crash.reach("renew after")
        return renewal

    def close(self) -> None:
        self._heartbeat.close()
