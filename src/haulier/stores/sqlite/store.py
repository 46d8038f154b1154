"""The store's face: each verb as one operation on the writer's or the reader's thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import unquote, urlsplit

import apsw

from haulier.domain.batch import Batch, BatchPolicy
from haulier.domain.event import Event
from haulier.domain.finding import Finding
from haulier.domain.flow import Parent
from haulier.domain.ids import raw_id
from haulier.domain.job import MICROSECOND, Job, JobError, JobState, NewJob, Role
from haulier.domain.line import Line
from haulier.domain.moves import Move, Transition
from haulier.domain.retention import Retention
from haulier.domain.step import Step
from haulier.domain.worker import Demand, Exchange, Note, Renewal, WorkerRow
from haulier.exceptions import ConfigurationError, JobNotFoundError
from haulier.parts import Configurable, Limiting, Schedules, Transferable
from haulier.ports import (
    CHUNK,
    DEFAULT_TTL,
    Clock,
    Fence,
    Heartbeat,
    Inserted,
    JobFilter,
    Page,
)
from haulier.services.urls import sqlite_url
from haulier.stores import checking
from haulier.stores.background import Background
from haulier.stores.codes import key_of
from haulier.stores.sqlite import (
    altering,
    batches,
    check,
    configuring,
    control,
    events,
    flows,
    inserts,
    kept,
    limits,
    liveness,
    queries,
    retention,
    transfer,
)
from haulier.stores.sqlite.clock import SystemClock
from haulier.stores.sqlite.connection import MEMORY, check_library, connect, translated
from haulier.stores.sqlite.engine import Changes, Lane, Writer
from haulier.stores.sqlite.exchange import Result, exchange, nothing_to_do
from haulier.stores.sqlite.heartbeat import SqliteHeartbeat
from haulier.stores.watching import Change

T = TypeVar("T")

DEFAULT_DEADLINE = 15.0


class SqliteStore:
    """Jobs in one SQLite file, or in memory.

    `ttl` (seconds) is how long a worker lives without renewal, `deadline` (seconds) bounds every
    call. Any number of processes of one machine may share the file. `create`: make a store where
    there is none.
    """

    def __init__(
        self,
        path: str,
        *,
        ttl: float = DEFAULT_TTL,
        deadline: float = DEFAULT_DEADLINE,
        clock: Clock | None = None,
        create: bool = True,
    ) -> None:
        self.path = path
        self.ttl = ttl
        self.chunk = CHUNK
        self._deadline = deadline
        self._clock = clock or SystemClock()
        self._writer = Writer(path, create=create)
        self._background = Background()
        self._turns: dict[str, int] = {}
        # A private in-memory database has one connection, so its reads go through the writer.
        self._reader: Lane = (
            self._writer
            if path == MEMORY
            else Lane("haulier-sqlite-reader", path, lambda: connect(path, readonly=True))
        )

    @classmethod
    def from_url(cls, url: str, *, ttl: float = DEFAULT_TTL, create: bool = True) -> Self:
        """`sqlite:///relative`, `sqlite:////absolute`, or `sqlite://` for memory."""
        parts = urlsplit(url)
        if parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError(
                f"{url!r} is not a store URL; write sqlite:///file.db or sqlite:////folder/file.db"
            )
        return cls(unquote(parts.path[1:]) or MEMORY, ttl=ttl, create=create)

    @property
    def url(self) -> str:
        """What `from_url` would make this store of."""
        return "sqlite://" if self.path == MEMORY else sqlite_url(self.path)

    async def __aenter__(self) -> Self:
        check_library()
        # Opening takes the write lock for a moment, which another process may hold.
        await asyncio.to_thread(self._writer.open)
        if self._reader is not self._writer:
            try:
                await asyncio.to_thread(self._reader.open)
            except BaseException:
                await asyncio.to_thread(self._writer.close)
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            await self._background.end()
        finally:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        # The writer goes last: the last connection to close folds the WAL into the file.
        self._reader.close()
        self._writer.close()

    # ── Producers ────────────────────────────────────────────────────────────────────────────

    async def insert(
        self,
        jobs: Sequence[NewJob],
        *,
        fence: Fence | None = None,
        policy: BatchPolicy | None = None,
        connection: object | None = None,
    ) -> Inserted:
        def run(db: apsw.Connection) -> Inserted:
            return inserts.insert(db, self._clock.now(), jobs, fence, policy)

        if connection is not None:
            # On the event loop: the transaction is the caller's, and so is its time.
            own = self._checked(connection)
            with translated(self.path), own:
                transfer.check_open(own)
                inserted = run(own)
                flows.follow(own, self._clock.now())
                return inserted
        return await self._change(run, Change.READY)

    def _checked(self, connection: object) -> apsw.Connection:
        """The caller's connection; ConfigurationError if it does not lead to this store."""
        if not isinstance(connection, apsw.Connection):
            what = f"{type(connection).__module__}.{type(connection).__qualname__}"
            raise ConfigurationError(f"connection must be an apsw.Connection, not {what}")
        if self.path == MEMORY or not Path(connection.filename).samefile(self.path):
            raise ConfigurationError(f"connection does not lead to the store {self.path}")
        return connection

    async def open_batch(
        self,
        head: NewJob,
        items: Sequence[NewJob],
        *,
        policy: BatchPolicy | None = None,
        sealed: bool,
    ) -> Inserted:
        return await self._change(
            lambda db: inserts.open_batch(db, self._clock.now(), head, items, policy, sealed),
            Change.ANY,
        )

    async def seal(self, batch_id: str) -> None:
        await self._change(
            lambda db: inserts.seal(db, self._clock.now(), key_of(batch_id)), Change.ANY
        )

    async def cancel(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        states, heads = await self._change(
            lambda db: control.cancel(db, self._clock.now(), job_ids), Change.ANY
        )
        for head in heads:
            await self._drain(key_of(head))
            with contextlib.suppress(JobNotFoundError):
                states[head] = (await self.get(head)).state
        return states

    async def pause(self, batch_id: str) -> None:
        batch = key_of(batch_id)
        if await self._change(
            lambda db: batches.begin_pause(db, self._clock.now(), batch), Change.SETTLED
        ):
            await self._drain(batch)

    async def resume(self, batch_id: str) -> None:
        batch = key_of(batch_id)
        if await self._change(
            lambda db: batches.begin_resume(db, self._clock.now(), batch), Change.ANY
        ):
            await self._drain(batch)

    async def alter_batch(
        self, batch_id: str, changes: Mapping[str, int | None], *, by: str = ""
    ) -> None:
        batch = key_of(batch_id)
        if await self._change(
            lambda db: altering.alter(db, self._clock.now(), batch, changes, by), Change.ANY
        ):
            await self._drain(batch)

    async def requeue(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        states, heads = await self._change(
            lambda db: control.requeue(db, self._clock.now(), job_ids), Change.ANY
        )
        for head in heads:
            await self._drain(key_of(head))
            with contextlib.suppress(JobNotFoundError):
                states[head] = (await self.get(head)).state
        return states

    async def retry_failed(
        self, batch_id: str, *, error_type: str | None = None, limit: int | None = None
    ) -> int:
        batch = key_of(batch_id)
        begun = await self._change(
            lambda db: batches.begin_retry(db, self._clock.now(), batch, error_type, limit),
            Change.SETTLED,
        )
        if not begun:
            return 0
        await self._drain(batch)
        return await self._read(lambda db: batches.moved(db, batch))

    async def delete(self, job_id: str) -> None:
        batch = await self._change(
            lambda db: control.delete(db, self._clock.now(), job_id), Change.SETTLED
        )
        if batch is not None:
            await self._drain(batch)

    async def prune(self, rules: Mapping[str, Retention]) -> int:
        removed = 0
        while await self._read(lambda db: retention.prune_needed(db, self._clock.now(), rules)):
            done = await self._change(
                lambda db: retention.prune(db, self._clock.now(), rules), Change.SETTLED
            )
            removed += done.removed
            for batch in done.batches:
                await self._drain(batch)
        return removed

    # ── Workers ──────────────────────────────────────────────────────────────────────────────

    async def enlist(self, worker: WorkerRow) -> None:
        await self._change(
            lambda db: liveness.enlist(
                db, self._clock.now(), self._clock.boot(), worker, self._ttl_us
            )
        )

    async def exchange(
        self,
        worker_id: str,
        finished: Sequence[Transition],
        demands: Sequence[Demand],
        *,
        turn: int | None = None,
    ) -> Exchange:
        def run(db: apsw.Connection) -> Result:
            if turn is not None and not self._takes_turn(worker_id, turn):
                return Result(Exchange(lost=tuple(finished)))
            asked = demands if transfer.gives_jobs(db) else ()
            return exchange(db, self._clock.now(), self._clock.boot(), worker_id, finished, asked)

        def probe(db: apsw.Connection) -> Result | None:
            asked = demands if transfer.gives_jobs(db) else ()
            return nothing_to_do(db, self._clock.now(), self._clock.boot(), worker_id, asked)

        def change(result: Result) -> Change:
            if not finished:
                return Change.NOTHING
            put_back = any(transition.move is not Move.COMPLETE for transition in finished)
            ready = result.settled or result.left_over or put_back
            return Change.ANY if ready else Change.SETTLED

        result = await self._write(run, change, probe=None if finished else probe)
        for batch in result.drain:
            self._background.begin(self._drain(batch))
        if result.follow:
            self._background.begin(self._follow())
        return result.reply

    def _takes_turn(self, worker_id: str, turn: int) -> bool:
        """Whether this exchange is the latest of its worker.

        All exchanges of a worker pass through its own store object, so its memory is enough.
        """
        if turn <= self._turns.get(worker_id, 0):
            return False
        self._turns[worker_id] = turn
        return True

    async def note(self, notes: Sequence[Note]) -> None:
        await self._write(lambda db: liveness.note(db, self._clock.now(), notes), Change.SETTLED)

    async def keep(self, steps: Sequence[Step]) -> list[Step]:
        return await self._write(lambda db: kept.keep(db, self._clock.now(), steps))

    async def retire(self, worker_id: str) -> int:
        released = await self._move(
            lambda db: liveness.retire(db, self._clock.now(), raw_id(worker_id)), Change.ANY
        )
        self._turns.pop(worker_id, None)
        if released:
            await self._drain_all()
        return released

    async def sweep(self) -> int:
        if not await self._read(
            lambda db: liveness.sweep_needed(db, self._clock.now(), self._clock.boot())
        ):
            return 0
        released = await self._move(
            lambda db: liveness.sweep(db, self._clock.now(), self._clock.boot()), Change.ANY
        )
        await self._drain_all()
        return released

    def heartbeat(self, worker_id: str) -> Heartbeat:
        worker, clock = raw_id(worker_id), self._clock

        def renew(db: apsw.Connection) -> Renewal:
            return liveness.renew(db, clock.now(), clock.boot(), worker, self._ttl_us)

        return SqliteHeartbeat(self.path, renew, self._writer)

    def watch(
        self,
        notify: Callable[[], None],
        *,
        ready: bool = False,
        settled: bool = False,
        events: bool = False,
    ) -> AbstractContextManager[None]:
        wanted = Change.of(ready=ready, settled=settled, events=events)
        return self._writer.watch(notify, wanted)

    # ── Limits ───────────────────────────────────────────────────────────────────────────────

    def limits(self) -> Limiting:
        return limits.SqliteLimits(self._read, self._change, self._clock)

    # ── Moving house, and health ─────────────────────────────────────────────────────────────

    def transferable(self) -> Transferable:
        return transfer.SqliteTransfer(self._read, self._write)

    def schedules(self) -> Schedules:
        # Loaded only now: what knows time zones takes longer to load than short commands may.
        from haulier.stores.sqlite import schedules

        return schedules.SqliteSchedules(self._read, self._change, self._clock.now, self._drain)

    def configurable(self) -> Configurable:
        return configuring.SqliteConfigurable(self._read, self._change, self._clock.now)

    async def check(self) -> list[Finding]:
        now, boot = self._clock.now(), self._clock.boot()
        if self.path == MEMORY:
            found = await self._read(lambda db: check.look_at_memory(db, now, boot))
        else:
            found = await asyncio.to_thread(check.look_at_file, self.path, now, boot)
        reads = await checking.timed(self.last_event)
        commits = await checking.timed(lambda: self._write(check.touch))
        found.append(checking.schedules(await self.schedules().due(1)))
        part = configuring.SqliteConfigurable(self._read, self._change, self._clock.now)
        found.append(await checking.configuration(part, part.noted))
        left_open = await checking.left_open(self, now)
        return [
            *found,
            left_open,
            checking.latency("read", reads),
            checking.latency("commit", commits),
        ]

    # ── Questions ────────────────────────────────────────────────────────────────────────────

    async def get(self, job_id: str) -> Job:
        return await self._read(lambda db: queries.get(db, job_id))

    async def find(
        self,
        where: JobFilter,
        *,
        limit: int = 50,
        cursor: int | None = None,
        oldest_first: bool = False,
        payloads: bool = True,
    ) -> Page:
        return await self._read(
            lambda db: queries.find(
                db, where, limit, cursor, oldest_first=oldest_first, payloads=payloads
            )
        )

    async def errors(self, job_id: str) -> list[JobError]:
        return await self._read(lambda db: queries.errors(db, job_id))

    async def steps(self, job_id: str) -> list[Step]:
        return await self._read(lambda db: kept.steps(db, job_id))

    async def parents(self, job_id: str) -> list[Parent]:
        return await self._read(lambda db: flows.parents(db, job_id))

    async def children(self, job_id: str, *, limit: int = 50, cursor: int | None = None) -> Page:
        return await self._read(lambda db: flows.children(db, job_id, limit, cursor))

    async def lines(self, job_id: str) -> list[Line]:
        return await self._read(lambda db: kept.lines(db, job_id))

    async def events(self, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        return await self._read(lambda db: events.read(db, after, limit))

    async def last_event(self) -> str:
        return await self._read(events.last_event)

    async def batch(self, batch_id: str) -> Batch:
        return await self._read(lambda db: queries.batch(db, batch_id))

    async def batches(
        self, *, limit: int = 50, cursor: str | None = None, within: str | None = None
    ) -> list[Batch]:
        return await self._read(lambda db: queries.batches(db, limit, cursor, within))

    async def counts(self) -> dict[tuple[str, str, Role, JobState], int]:
        return await self._read(queries.counts)

    async def fronts(self) -> dict[str, int]:
        return await self._read(queries.fronts)

    async def workers(self) -> list[WorkerRow]:
        return await self._read(lambda db: queries.workers(db, self._clock.boot()))

    # ── The threads ──────────────────────────────────────────────────────────────────────────

    @property
    def _ttl_us(self) -> int:
        return round(self.ttl * MICROSECOND)

    async def _write(
        self,
        run: Callable[[apsw.Connection], T],
        change: Changes[T] = Change.NOTHING,
        *,
        probe: Callable[[apsw.Connection], T | None] | None = None,
    ) -> T:
        def changed(value: T) -> Change:
            # Nearly every write brings events; to look for them in vain now and then costs little.
            # A read must not say so, for in memory it is the look itself.
            return Change.EVENTS | (change(value) if callable(change) else change)

        return await self._writer.call(run, deadline=self._deadline, change=changed, probe=probe)

    async def _change(
        self, run: Callable[[apsw.Connection], T], change: Changes[T] = Change.NOTHING
    ) -> T:
        """A write that a store which is being moved, or was, refuses."""

        def checked(db: apsw.Connection) -> T:
            transfer.check_open(db)
            return run(db)

        return await self._move(checked, change)

    async def _move(
        self, run: Callable[[apsw.Connection], T], change: Changes[T] = Change.NOTHING
    ) -> T:
        """A write that may end jobs which others wait for, or bring them back."""
        followed = flows.Followed()

        def moved(db: apsw.Connection) -> T:
            nonlocal followed
            value = run(db)
            followed = flows.follow(db, self._clock.now())
            return value

        def changed(value: T) -> Change:
            if followed.anything:
                return Change.ANY
            return change(value) if callable(change) else change

        value = await self._write(moved, changed)
        if followed.more:
            await self._follow()
        return value

    async def _follow(self) -> None:
        """Go on with what follows from jobs that others wait for until it is done."""
        while (await self._write(lambda db: flows.follow(db, self._clock.now()), Change.ANY)).more:
            pass

    async def _read(self, run: Callable[[apsw.Connection], T]) -> T:
        return await self._reader.call(run, deadline=self._deadline)

    async def _drain(self, batch: bytes) -> None:
        """Go on with what is done to a whole batch until it is done."""
        while await self._move(lambda db: batches.drain(db, self._clock.now(), batch), Change.ANY):
            pass

    async def _drain_all(self) -> None:
        for batch in await self._read(batches.draining_batches):
            await self._drain(batch)
        await self._follow()
