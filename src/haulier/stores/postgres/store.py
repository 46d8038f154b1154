"""The store's face: each verb as one call of a function that lives in the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Self

from haulier.domain.batch import Batch, BatchPolicy
from haulier.domain.event import Event
from haulier.domain.finding import Finding
from haulier.domain.flow import Parent
from haulier.domain.job import MICROSECOND, Job, JobError, JobState, NewJob, Role
from haulier.domain.line import Line
from haulier.domain.moves import Transition
from haulier.domain.retention import Keep, Retention
from haulier.domain.step import Step
from haulier.domain.worker import Demand, Exchange, Note, WorkerRow
from haulier.exceptions import JobNotFoundError, StoreUnavailableError
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
from haulier.stores import checking
from haulier.stores.background import Background
from haulier.stores.codes import RUNNING
from haulier.stores.postgres import (
    check,
    configuring,
    exchanging,
    flows,
    inserting,
    kept,
    limiting,
    migrations,
    operations,
    queries,
)
from haulier.stores.postgres.connection import Connection, Place, translated
from haulier.stores.postgres.heartbeat import PostgresHeartbeat
from haulier.stores.postgres.inserting import Insertion
from haulier.stores.postgres.pool import Pool, Work
from haulier.stores.postgres.rows import storable, uuid_of
from haulier.stores.postgres.signals import Signals
from haulier.stores.postgres.transfer import PostgresTransfer
from haulier.stores.watching import Change

DEFAULT_DEADLINE = 15.0

FRUITLESS = 50
"""Rounds of waiting a little longer each, for somebody else who follows the same flows."""

OPENING = 10.0
"""Seconds that opening a store waits for a server that is just starting."""


class PostgresStore:
    """Jobs in a schema of their own of a PostgreSQL database.

    `ttl` (seconds) is how long a worker lives without renewal, `deadline` (seconds) bounds every
    call. Time is the server's, unless a `clock` is given. `create`: make a store where there is
    none.
    """

    def __init__(
        self,
        place: Place,
        *,
        ttl: float = DEFAULT_TTL,
        deadline: float = DEFAULT_DEADLINE,
        clock: Clock | None = None,
        create: bool = True,
    ) -> None:
        self.ttl = ttl
        self.chunk = CHUNK
        self._place = place
        self._deadline = deadline
        self._clock = clock
        self._create = create
        self._pool = Pool(place, deadline)
        self._signals = Signals(place, self._pool)
        self._background = Background()
        self._turns: dict[str, int] = {}
        self._doubts: dict[str, int] = {}
        self._frontiers: defaultdict[str, exchanging.Frontier] = defaultdict(
            partial(exchanging.Frontier, still=clock is not None)
        )

    @classmethod
    def from_url(cls, url: str, *, ttl: float = DEFAULT_TTL, create: bool = True) -> Self:
        """`postgresql://user:password@host:port/database`, with options of ours and the driver's.

        `schema` names the schema (haulier), `pool` the most connections (4), `pooler=transaction`
        says that there is a pooler in between which changes sessions. Raises ConfigurationError.
        """
        return cls(Place.from_url(url), ttl=ttl, create=create)

    @property
    def url(self) -> str:
        """What `from_url` would make this store of. It may hold the password: never show it."""
        return self._place.whole

    async def __aenter__(self) -> Self:
        self._pool.open()
        try:
            await self._prepare()
            await self._signals.open()
        except BaseException:
            await self._signals.close()
            await self._pool.close()
            raise
        return self

    async def _prepare(self) -> None:
        """Bring the schema up to date, with patience for a server that is just starting."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + OPENING
        while True:
            try:
                prepare = partial(migrations.prepare, self._place, create=self._create)
                await self._pool.run(prepare)
                return
            except StoreUnavailableError:
                if loop.time() > give_up:
                    raise
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            await self._background.end()
        finally:
            await self._signals.close()
            await self._pool.close()

    # ── Producers ────────────────────────────────────────────────────────────────────────────

    async def insert(
        self,
        jobs: Sequence[NewJob],
        *,
        fence: Fence | None = None,
        policy: BatchPolicy | None = None,
        connection: object | None = None,
    ) -> Inserted:
        def what() -> Insertion:
            return Insertion(jobs=jobs, now=self._now, fence=fence, policy=policy)

        if connection is not None:
            with translated(self._place):
                return await inserting.insert_within(connection, self._place.schema, what())
        inserted = await self._write(lambda db: inserting.insert(db, what()), Change.READY)
        if any(job.after or job.unique for job in jobs):
            await self._follow()
        return inserted

    async def open_batch(
        self,
        head: NewJob,
        items: Sequence[NewJob],
        *,
        policy: BatchPolicy | None = None,
        sealed: bool,
    ) -> Inserted:
        async def work(db: Connection) -> Inserted:
            now = self._now
            begun = Insertion(
                jobs=[head], now=now, policy=policy, state=RUNNING, own_expander=False
            )
            async with db.transaction():
                inserted = await inserting.insert(db, begun)
                if not inserted.instead:
                    await inserting.insert(db, Insertion(jobs=items, now=now))
                    if sealed:
                        await db.execute("SELECT seal($1, $2)", now, head.id)
                return inserted

        inserted = await self._write(work, Change.ANY)
        if head.unique:
            await self._follow()
        return inserted

    async def seal(self, batch_id: str) -> None:
        batch = uuid_of(batch_id)
        await self._write(
            lambda db: db.execute("SELECT seal($1, $2)", self._now, batch), Change.ANY
        )
        await self._follow()

    async def cancel(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return await self._operate(operations.cancel, job_ids)

    async def requeue(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return await self._operate(operations.requeue, job_ids)

    async def _operate(
        self, operation: operations.Operation, job_ids: Sequence[str]
    ) -> dict[str, JobState]:
        """Do it to each, then go on with the batches of those that are heads."""
        states, heads = await self._write(lambda db: operation(db, self._now, job_ids), Change.ANY)
        for head in heads:
            await self._drain(head)
            with contextlib.suppress(JobNotFoundError):
                states[head] = (await self.get(head)).state
        await self._follow()
        return states

    async def pause(self, batch_id: str) -> None:
        await self._switch(batch_id, paused=True)

    async def resume(self, batch_id: str) -> None:
        await self._switch(batch_id, paused=False)

    async def _switch(self, batch_id: str, *, paused: bool) -> None:
        batch = uuid_of(batch_id)
        if await self._write(
            lambda db: db.fetchval("SELECT switch_batch($1, $2, $3)", self._now, batch, paused),
            Change.SETTLED if paused else Change.ANY,
        ):
            await self._drain(batch)

    async def alter_batch(
        self, batch_id: str, changes: Mapping[str, int | None], *, by: str = ""
    ) -> None:
        batch, given = uuid_of(batch_id), json.dumps(dict(changes))
        if await self._write(
            lambda db: db.fetchval(
                "SELECT alter_batch($1, $2, $3, $4)", self._now, batch, given, storable(by)
            ),
            Change.ANY,
        ):
            await self._drain(batch)

    async def retry_failed(
        self, batch_id: str, *, error_type: str | None = None, limit: int | None = None
    ) -> int:
        batch = uuid_of(batch_id)
        if limit is not None:
            limit = min(limit, 2**31 - 1)
        begun = await self._write(
            lambda db: db.fetchval(
                "SELECT begin_retry($1, $2, $3, $4)", self._now, batch, error_type, limit
            ),
            Change.SETTLED,
        )
        if not begun:
            return 0
        await self._drain(batch)
        moved = await self._pool.run(
            lambda db: db.fetchval("SELECT moved FROM batches WHERE id = $1", batch)
        )
        return int(moved or 0)

    async def delete(self, job_id: str) -> None:
        job = uuid_of(job_id)
        if await self._write(
            lambda db: db.fetchval("SELECT delete_job($1, $2)", self._now, job), Change.SETTLED
        ):
            await self._drain(job)
        await self._follow()

    async def prune(self, rules: Mapping[str, Retention]) -> int:
        removed = 0
        for kind, rule in rules.items():
            for state, keep in rule.by_state():
                removed += await self._prune(kind, state, keep)
            if rule.result_ttl is not None:
                ttl = round(rule.result_ttl * MICROSECOND)
                await self._repeat("SELECT prune_results($1, $2, $3)", kind, ttl)
        await self._repeat("SELECT prune_rest($1)")
        if removed:
            await self._follow()
        return removed

    async def _prune(self, kind: str, state: JobState, keep: Keep) -> int:
        removed = 0
        while True:
            count, heads = await self._pool.run(
                lambda db: operations.prune(db, self._now, kind=kind, state=state, keep=keep)
            )
            if not count:
                return removed
            removed += count
            for head in heads:
                await self._drain(head)
            self._signals.tell(Change.SETTLED | Change.EVENTS)

    async def _repeat(self, sql: str, *values: object) -> None:
        """Slice after slice, until there is nothing left."""
        while await self._pool.run(lambda db: db.fetchval(sql, self._now, *values)):
            pass

    # ── Workers ──────────────────────────────────────────────────────────────────────────────

    async def enlist(self, worker: WorkerRow) -> None:
        await self._pool.run(lambda db: operations.enlist(db, self._now, worker, self._ttl_us))

    async def exchange(
        self,
        worker_id: str,
        finished: Sequence[Transition],
        demands: Sequence[Demand],
        *,
        turn: int | None = None,
    ) -> Exchange:
        if turn is not None and not self._takes_turn(worker_id, turn):
            return Exchange(lost=tuple(finished))
        doubt, frontier = self._doubts.get(worker_id), self._frontiers[worker_id]
        try:
            told = await self._pool.run(
                lambda db: exchanging.exchange(
                    db, self._now, worker_id, finished, demands, turn, doubt, frontier
                )
            )
        except BaseException:
            # It may still be under way: the next one waits for its end, and lets no other follow.
            if turn is not None:
                self._doubts[worker_id] = turn
            raise
        if doubt is not None:
            self._doubts.pop(worker_id, None)
        if told.wrote:
            self._signals.tell(exchanging.changed(finished, told))
        for batch in told.drain:
            self._background.begin(self._drain(batch))
        if told.follow:
            self._background.begin(self._follow())
        return told.reply

    def _takes_turn(self, worker_id: str, turn: int) -> bool:
        """Whether this exchange is the latest of its worker that passed through here."""
        if turn <= self._turns.get(worker_id, 0):
            return False
        self._turns[worker_id] = turn
        return True

    async def note(self, notes: Sequence[Note]) -> None:
        await self._write(lambda db: operations.note(db, self._now, notes), Change.SETTLED)

    async def keep(self, steps: Sequence[Step]) -> list[Step]:
        return await self._pool.run(lambda db: kept.keep(db, self._now, steps))

    async def retire(self, worker_id: str) -> int:
        released = await self._retire(worker_id, expired=False)
        self._turns.pop(worker_id, None)
        self._doubts.pop(worker_id, None)
        self._frontiers.pop(worker_id, None)
        return released

    async def sweep(self) -> int:
        expired, draining = await self._pool.run(lambda db: operations.look_around(db, self._now))
        released = 0
        for worker_id in expired:
            released += await self._retire(worker_id, expired=True)
        for batch in draining:
            await self._drain(batch)
        await self._follow()
        # Last, and each slice for itself: a long journal must keep nobody's jobs waiting.
        while await self._pool.run(queries.number_some):
            pass
        while await self._pool.run(lambda db: limiting.prune_some(db, self._now)):
            pass
        return released

    async def _retire(self, worker_id: str, *, expired: bool) -> int:
        released, drain = await self._write(
            lambda db: exchanging.retire(db, self._now, worker_id, expired=expired), Change.ANY
        )
        for batch in drain:
            await self._drain(batch)
        await self._follow()
        return released

    def heartbeat(self, worker_id: str) -> Heartbeat:
        deadline = min(self._deadline, self.ttl)
        return PostgresHeartbeat(self._place, worker_id, self._ttl_us, deadline, self._clock)

    def watch(
        self,
        notify: Callable[[], None],
        *,
        ready: bool = False,
        settled: bool = False,
        events: bool = False,
    ) -> AbstractContextManager[None]:
        wanted = Change.of(ready=ready, settled=settled, events=events)
        return self._signals.watch(notify, wanted)

    def limits(self) -> Limiting:
        return limiting.PostgresLimits(self._pool, self._clock, self._signals.tell)

    # ── Moving house, and health ─────────────────────────────────────────────────────────────

    def transferable(self) -> Transferable:
        return PostgresTransfer(self._pool, self._place.schema, self._signals.tell)

    def schedules(self) -> Schedules:
        # Loaded only now: what knows time zones takes longer to load than short commands may.
        from haulier.stores.postgres.schedules import PostgresSchedules

        return PostgresSchedules(self._pool.run, self._write, lambda: self._now, self._drain)

    def configurable(self) -> Configurable:
        return configuring.PostgresConfigurable(self._pool, self._write, lambda: self._now)

    async def check(self) -> list[Finding]:
        found = await self._pool.run(lambda db: check.look(db, self._place, self._now))
        reads = await checking.timed(self.last_event)
        commits = await checking.timed(lambda: self._pool.run(check.touch))
        found.append(checking.schedules(await self.schedules().due(1)))
        part = configuring.PostgresConfigurable(self._pool, self._write, lambda: self._now)
        found.append(await checking.configuration(part, part.noted))
        left_open = await checking.left_open(self, self._now or time.time_ns() // 1000)
        return [
            *found,
            left_open,
            checking.latency("read", reads),
            checking.latency("commit", commits),
        ]

    # ── Questions ────────────────────────────────────────────────────────────────────────────

    async def get(self, job_id: str) -> Job:
        return await self._pool.run(lambda db: queries.get(db, job_id))

    async def find(
        self,
        where: JobFilter,
        *,
        limit: int = 50,
        cursor: int | None = None,
        oldest_first: bool = False,
        payloads: bool = True,
    ) -> Page:
        return await self._pool.run(
            lambda db: queries.find(
                db, where, limit, cursor, oldest_first=oldest_first, payloads=payloads
            )
        )

    async def errors(self, job_id: str) -> list[JobError]:
        return await self._pool.run(lambda db: queries.errors(db, job_id))

    async def steps(self, job_id: str) -> list[Step]:
        return await self._pool.run(lambda db: kept.steps(db, job_id))

    async def parents(self, job_id: str) -> list[Parent]:
        return await self._pool.run(lambda db: flows.parents(db, job_id))

    async def children(self, job_id: str, *, limit: int = 50, cursor: int | None = None) -> Page:
        return await self._pool.run(lambda db: flows.children(db, job_id, limit, cursor))

    async def lines(self, job_id: str) -> list[Line]:
        return await self._pool.run(lambda db: kept.lines(db, job_id))

    async def events(self, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        return await self._pool.run(lambda db: queries.events(db, after, limit))

    async def last_event(self) -> str:
        return await self._pool.run(queries.last_event)

    async def batch(self, batch_id: str) -> Batch:
        return await self._pool.run(lambda db: queries.batch(db, batch_id))

    async def batches(
        self, *, limit: int = 50, cursor: str | None = None, within: str | None = None
    ) -> list[Batch]:
        return await self._pool.run(lambda db: queries.batches(db, limit, cursor, within))

    async def counts(self) -> dict[tuple[str, str, Role, JobState], int]:
        return await self._pool.run(queries.counts)

    async def fronts(self) -> dict[str, int]:
        return await self._pool.run(queries.fronts)

    async def workers(self) -> list[WorkerRow]:
        return await self._pool.run(lambda db: queries.workers(db, self._now))

    # ── Inside ───────────────────────────────────────────────────────────────────────────────

    @property
    def _now(self) -> int | None:
        """None: the server's own clock."""
        return None if self._clock is None else self._clock.now()

    @property
    def _ttl_us(self) -> int:
        return round(self.ttl * MICROSECOND)

    async def _write(self, work: Work[operations.T], change: Change) -> operations.T:
        value = await self._pool.run(work)
        # Nearly every write brings events; to look for them in vain now and then costs little.
        self._signals.tell(change | Change.EVENTS)
        return value

    async def _drain(self, batch: str) -> None:
        """Go on with what is done to a whole batch until it is done."""
        pause = 0.0
        while await self._write(
            lambda db: db.fetchval("SELECT drain_batch($1, $2)", self._now, batch), Change.ANY
        ):
            # Others get a turn; they may also hold what this waits for.
            await asyncio.sleep(pause)
            pause = 0.001
        await self._follow()

    async def _follow(self) -> None:
        """Go on with what follows from jobs that others wait for until it is done.

        What somebody else holds for long is left to a sweep.
        """
        fruitless = 0
        while fruitless < FRUITLESS:
            told = await self._pool.run(
                lambda db: db.fetchval("SELECT follow_flows($1)", self._now)
            )
            if told & 1:
                self._signals.tell(Change.ANY)
            if not told & 2:
                return
            fruitless = 0 if told & 1 else fruitless + 1
            await asyncio.sleep(0.001 * fruitless)
