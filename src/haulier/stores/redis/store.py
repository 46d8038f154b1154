"""The store's face: each verb as one script, or as slices of one."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from haulier.domain import flow
from haulier.domain.batch import Batch, BatchPolicy
from haulier.domain.event import Event
from haulier.domain.finding import Finding
from haulier.domain.flow import Parent
from haulier.domain.job import MICROSECOND, Job, JobError, JobState, NewJob, Role
from haulier.domain.line import Line
from haulier.domain.moves import Transition
from haulier.domain.retention import Retention
from haulier.domain.step import Step
from haulier.domain.worker import Demand, Exchange, Note, WorkerRow
from haulier.exceptions import ConfigurationError, JobNotFoundError
from haulier.parts import Schedules
from haulier.ports import (
    DEFAULT_TTL,
    Clock,
    Fence,
    Heartbeat,
    Inserted,
    JobFilter,
    Page,
)
from haulier.services.ids import new_id
from haulier.stores import checking
from haulier.stores.background import Background
from haulier.stores.codes import STATES
from haulier.stores.redis import check, reading, safety
from haulier.stores.redis.address import Address
from haulier.stores.redis.configuring import RedisConfigurable
from haulier.stores.redis.heartbeat import RedisHeartbeat
from haulier.stores.redis.history import History, Loss
from haulier.stores.redis.limits import RedisLimits
from haulier.stores.redis.packing import (
    canonical,
    known_id,
    list_of,
    optional,
    pack_demands,
    pack_finished,
    pack_jobs,
    pack_notes,
    pack_policy,
    pack_steps,
)
from haulier.stores.redis.rows import job_from_row
from haulier.stores.redis.transfer import RedisTransfer
from haulier.stores.redis.waking import Listener
from haulier.stores.watching import Change

DEFAULT_DEADLINE = 15.0

CHUNK = 400
"""Jobs that one script inserts in some 5 ms, in which the server serves nobody else."""

EMPTY = Exchange()


class RedisStore:
    """Jobs in one Redis or Valkey server, or in one prefix of it.

    `ttl` (seconds) is how long a worker lives without renewal, `deadline` (seconds) bounds every
    call. The time is the server's; a `clock` replaces it in tests. `create`: make a store where
    there is none.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl: float = DEFAULT_TTL,
        deadline: float = DEFAULT_DEADLINE,
        clock: Clock | None = None,
        create: bool = True,
    ) -> None:
        self.address = Address.of(url)
        self.ttl = ttl
        self.chunk = CHUNK
        self._deadline = deadline
        self._clock = clock
        self._history = History(self.address, deadline, self._now, create=create)
        self._listener = Listener(self._history, self._look_into_inboxes)
        self._background = Background()
        self._queues: set[str] = set()
        self._moving: set[str] = set()

    @classmethod
    def from_url(cls, url: str, *, ttl: float = DEFAULT_TTL, create: bool = True) -> Self:
        """`redis://`, `rediss://`, `unix://` or `redis+sentinel://`; see docs/stores.md."""
        return cls(url, ttl=ttl, create=create)

    async def __aenter__(self) -> Self:
        await self._history.open()
        try:
            await safety.look(self._history)
        except BaseException:
            await self._history.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._background.end()
        await self._listener.close()
        await self._history.close()

    # ── Producers ────────────────────────────────────────────────────────────────────────────

    async def insert(
        self,
        jobs: Sequence[NewJob],
        *,
        fence: Fence | None = None,
        policy: BatchPolicy | None = None,
        connection: object | None = None,
    ) -> Inserted:
        if connection is not None:
            raise ConfigurationError("a Redis store has no transactions of yours to take part in")
        if any(job.after for job in jobs):
            flow.check(jobs)
        fenced = (canonical(fence.job_id), fence.lease) if fence else ("", "")
        new, instead = await self._write(
            "insert", *fenced, *pack_policy(policy), *pack_jobs(jobs), change=Change.READY
        )
        return _inserted(new, instead, jobs)

    async def open_batch(
        self,
        head: NewJob,
        items: Sequence[NewJob],
        *,
        policy: BatchPolicy | None = None,
        sealed: bool,
    ) -> Inserted:
        new, instead = await self._write(
            "open_batch",
            *(int(sealed), *pack_policy(policy), *pack_jobs([head]), *pack_jobs(items)),
            change=Change.ANY,
        )
        return _inserted(new, instead, [head])

    async def seal(self, batch_id: str) -> None:
        await self._write("seal", known_id(batch_id), change=Change.ANY)

    async def cancel(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return await self._on_jobs("cancel", job_ids)

    async def requeue(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return await self._on_jobs("requeue", job_ids)

    async def _on_jobs(self, verb: str, job_ids: Sequence[str]) -> dict[str, JobState]:
        given = {known_id(job_id): job_id for job_id in job_ids}
        pairs, heads = await self._write(verb, *list_of(list(given)), change=Change.ANY)
        states = {given[pairs[n].decode()]: STATES[pairs[n + 1]] for n in range(0, len(pairs), 2)}
        for head in heads:
            await self._drain(head.decode())
            job_id = given[head.decode()]
            with contextlib.suppress(JobNotFoundError):
                states[job_id] = (await self.get(job_id)).state
        return states

    async def pause(self, batch_id: str) -> None:
        await self._switch(batch_id, paused=True)

    async def resume(self, batch_id: str) -> None:
        await self._switch(batch_id, paused=False)

    async def _switch(self, batch_id: str, *, paused: bool) -> None:
        batch = known_id(batch_id)
        change = Change.SETTLED if paused else Change.ANY
        if await self._write("switch", batch, int(paused), change=change):
            await self._drain(batch)

    async def alter_batch(
        self, batch_id: str, changes: Mapping[str, int | None], *, by: str = ""
    ) -> None:
        batch = known_id(batch_id)
        given = [each for name, limit in changes.items() for each in (name, optional(limit))]
        if await self._write("alter", batch, by, len(changes), *given, change=Change.ANY):
            await self._drain(batch)

    async def retry_failed(
        self, batch_id: str, *, error_type: str | None = None, limit: int | None = None
    ) -> int:
        batch = known_id(batch_id)
        which = (batch, "" if error_type is None else json.dumps(error_type), optional(limit))
        begun, following = 0, 0
        while not begun and following is not None:
            begun, following = await self._write("retry", *which, following, change=Change.SETTLED)
        return await self._drain(batch) if begun else 0

    async def delete(self, job_id: str) -> None:
        job = known_id(job_id)
        if await self._write("delete", job, change=Change.SETTLED):
            await self._drain(job)

    async def prune(self, rules: Mapping[str, Retention]) -> int:
        total, more = 0, 1
        while more:
            packed = reading.pack_rules(rules, await self._time())
            removed, batches, more = await self._write("prune", *packed, change=Change.SETTLED)
            total += removed
            for batch in batches:
                await self._drain(batch.decode())
        return total

    # ── Workers ──────────────────────────────────────────────────────────────────────────────

    async def enlist(self, worker: WorkerRow) -> None:
        await self._write(
            "enlist",
            *(canonical(worker.id), self._ttl_us, worker.host, worker.pid),
            *(json.dumps(worker.queues), json.dumps(worker.kinds), worker.slots),
        )

    async def exchange(
        self,
        worker_id: str,
        finished: Sequence[Transition],
        demands: Sequence[Demand],
        *,
        turn: int | None = None,
    ) -> Exchange:
        reply = await self._history.script(
            "exchange",
            *(canonical(worker_id), "" if turn is None else turn),
            *(*pack_finished(finished), *pack_demands(demands)),
        )
        if self._history.unfinished:
            self._background.begin(self._follow())
        if reply == b"late":
            return Exchange(lost=tuple(finished))
        rows, lost, cancels, due_in, alive, drain_later, pushed, ready, version = reply
        jobs = tuple(map(job_from_row, rows))
        if finished or jobs:
            change = Change.EVENTS | Change.SETTLED if finished else Change.EVENTS
            self._listener.tell(change | Change.READY if ready else change)
        for batch in drain_later:
            self._background.begin(self._drain(batch.decode()))
        self._queues.update(queue for demand in demands for queue in demand.queues)
        if pushed:
            self._background.begin(self._move_inboxes(self._queues))
        return Exchange(
            jobs=jobs,
            lost=tuple(finished[int(number)] for number in lost) if lost else (),
            cancels=tuple(each.decode() for each in cancels) if cancels else (),
            due_in=due_in,
            alive=bool(alive),
            version=version,
        )

    async def note(self, notes: Sequence[Note]) -> None:
        await self._write("note", *pack_notes(notes), change=Change.SETTLED)

    async def keep(self, steps: Sequence[Step]) -> list[Step]:
        stale = await self._write("keep", *pack_steps(steps))
        return [steps[place - 1] for place in stale or ()]

    async def retire(self, worker_id: str) -> int:
        total, more, drains = 0, 1, 0
        while more:
            released, more, drain_later = await self._write(
                "retire", canonical(worker_id), change=Change.ANY
            )
            total += released
            drains += len(drain_later)
        if total or drains:
            await self.sweep()
        return total

    async def sweep(self) -> int:
        total, more = 0, 1
        while more:
            released, more, draining = await self._write("sweep", change=Change.NOTHING)
            total += released
            if released:
                self._listener.tell(Change.ANY)
        for batch in draining:
            await self._drain(batch.decode())
        return total

    def heartbeat(self, worker_id: str) -> Heartbeat:
        return RedisHeartbeat(self.address, canonical(worker_id), self._ttl_us, self._now)

    def watch(
        self,
        notify: Callable[[], None],
        *,
        ready: bool = False,
        settled: bool = False,
        events: bool = False,
    ) -> AbstractContextManager[None]:
        return self._listener.watch(notify, Change.of(ready=ready, settled=settled, events=events))

    # ── Limits ───────────────────────────────────────────────────────────────────────────────

    def limits(self) -> RedisLimits:
        return RedisLimits(self._history, self._listener.tell, self._time)

    # ── Moving house, and health ─────────────────────────────────────────────────────────────

    def transferable(self) -> RedisTransfer:
        return RedisTransfer(self._history, self._listener.tell, self._take_inboxes)

    def schedules(self) -> Schedules:
        # Loaded only now: what knows time zones takes longer to load than short commands may.
        from haulier.stores.redis.schedules import RedisSchedules

        return RedisSchedules(self._history, self._write, self._drain)

    async def _take_inboxes(self) -> None:
        """Of all queues: what was pushed before is to be copied too."""
        from haulier.stores.redis import inbox

        await self._move_inboxes(await inbox.queues(self._history))

    def configurable(self) -> RedisConfigurable:
        return RedisConfigurable(self._history, self._write)

    async def check(self) -> list[Finding]:
        now = None if self._clock is None else self._clock.now()
        found = await check.look(self._history, self.transferable(), now)
        reads = await checking.timed(self.last_event)
        commits = await checking.timed(lambda: check.touch(self._history))
        found.append(checking.schedules(await self.schedules().due(1)))
        part = self.configurable()
        found.append(await checking.configuration(part, part.noted))
        left_open = await checking.left_open(self, now or time.time_ns() // 1000)
        return [
            *found,
            left_open,
            checking.latency("read", reads),
            checking.latency("commit", commits),
        ]

    # ── Questions ────────────────────────────────────────────────────────────────────────────

    async def get(self, job_id: str) -> Job:
        return await reading.get(self._history, job_id)

    async def find(
        self,
        where: JobFilter,
        *,
        limit: int = 50,
        cursor: int | None = None,
        oldest_first: bool = False,
        payloads: bool = True,
    ) -> Page:
        return await reading.find(
            self._history, where, limit, cursor, oldest_first=oldest_first, payloads=payloads
        )

    async def errors(self, job_id: str) -> list[JobError]:
        return await reading.errors(self._history, job_id)

    async def steps(self, job_id: str) -> list[Step]:
        return await reading.steps(self._history, job_id)

    async def parents(self, job_id: str) -> list[Parent]:
        return await reading.parents(self._history, job_id)

    async def children(self, job_id: str, *, limit: int = 50, cursor: int | None = None) -> Page:
        return await reading.children(self._history, job_id, limit, cursor)

    async def lines(self, job_id: str) -> list[Line]:
        return await reading.lines(self._history, job_id)

    async def events(self, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        return await reading.events(self._history, after, limit)

    async def last_event(self) -> str:
        return await reading.last_event(self._history)

    async def batch(self, batch_id: str) -> Batch:
        return await reading.batch(self._history, batch_id)

    async def batches(
        self, *, limit: int = 50, cursor: str | None = None, within: str | None = None
    ) -> list[Batch]:
        return await reading.batches(self._history, limit, cursor, within)

    async def counts(self) -> dict[tuple[str, str, Role, JobState], int]:
        return await reading.counts(self._history)

    async def fronts(self) -> dict[str, int]:
        return await reading.fronts(self._history)

    async def workers(self) -> list[WorkerRow]:
        return await reading.workers(self._history)

    # ── Beside ───────────────────────────────────────────────────────────────────────────────

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses of acknowledged history that this process has noticed, the first one first."""
        return tuple(self._history.losses)

    @property
    def _ttl_us(self) -> int:
        return round(self.ttl * MICROSECOND)

    def _now(self) -> int | str:
        """The instant as scripts take it: empty for the server's own."""
        return "" if self._clock is None else self._clock.now()

    async def _time(self) -> int:
        if self._clock is not None:
            return self._clock.now()
        seconds, micros = await self._history.call("TIME")
        return int(seconds) * MICROSECOND + int(micros)

    async def _write(self, verb: str, *args: Any, change: Change = Change.NOTHING) -> Any:
        value = await self._history.script(verb, *args)
        unfinished = self._history.unfinished
        if change:
            self._listener.tell(change | Change.EVENTS)
        if unfinished:
            await self._follow()
        return value

    async def _follow(self) -> None:
        """Go on with what follows from jobs that others wait for until it is done."""
        unfinished = True
        while unfinished:
            await self._history.script("follow")
            unfinished = self._history.unfinished
            self._listener.tell(Change.ANY)

    async def _drain(self, batch: str) -> int:
        """Go on with what is done to a whole batch until it is done; how many items that were."""
        more = 1
        while more:
            more, moved = await self._write("drain", batch, change=Change.ANY)
        return int(moved)

    async def _look_into_inboxes(self) -> None:
        """Of the queues that workers of this process listen to."""
        queues = sorted(self._queues - self._moving)
        if queues:
            commands = [("EXISTS", self._history.key(f"inbox:{queue}")) for queue in queues]
            there = await self._history.pool.pipeline(commands, deadline=self._deadline)
            await self._move_inboxes({q for q, one in zip(queues, there, strict=True) if one})

    async def _move_inboxes(self, queues: set[str]) -> None:
        # Loaded only now: it needs what checks payloads, and short commands have none to check.
        from haulier.stores.redis import inbox

        for queue in queues - self._moving:
            self._moving.add(queue)
            try:
                if await inbox.move(self._history, queue, new_id, await self._time()):
                    self._listener.tell(Change.READY | Change.EVENTS)
            finally:
                self._moving.discard(queue)


def _inserted(new: int, instead: list[bytes], jobs: Sequence[NewJob]) -> Inserted:
    if not instead:
        return Inserted(new)
    given = {canonical(job.id): job.id for job in jobs}
    pairs = zip(instead[::2], instead[1::2], strict=True)
    return Inserted(new, {given[one.decode()]: other.decode() for one, other in pairs})
