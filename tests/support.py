"""What tests share: a patient wait, homes for stores, and a worker by hand."""

from __future__ import annotations

import asyncio
import functools
import inspect
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import psycopg
import redis

import servers
from haulier.domain.batch import Batch, BatchPolicy
from haulier.domain.ids import derived_id
from haulier.domain.job import MICROSECOND, Job, JobError, NewJob, Role
from haulier.domain.line import Said
from haulier.domain.moves import Move, Transition
from haulier.domain.retention import Keep, Retention
from haulier.domain.step import Step
from haulier.domain.worker import Demand, Exchange, Note, Portion, WorkerRow
from haulier.exceptions import StoreUnavailableError
from haulier.ports import JobStore
from haulier.services.ids import new_id, new_ids
from haulier.stores.postgres import PostgresStore
from haulier.stores.postgres.connection import Place
from haulier.stores.redis import RedisStore
from haulier.stores.sqlite import SqliteStore
from haulier.testing import FakeClock
from redis_keys import Keyspace, check

TTL = 15.0


async def wait_until(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """Ask until the condition holds and return what it said. The only place where tests sleep."""
    give_up = time.monotonic() + timeout
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > give_up:
            raise AssertionError(f"still not so after {timeout:g} s: {condition}")
        await asyncio.sleep(0.01)


class StoreTime(Protocol):
    """The store's time as a conformance test turns it."""

    def now(self) -> int: ...

    def advance(self, seconds: float) -> None: ...


class StoreHome(Protocol):
    """Where the jobs of one test live.

    Each `client` is a store object of its own on the same jobs; `several` says whether two can be
    open at once. Clients read `clock` unless they are asked for in real time.
    """

    several: bool
    clock: StoreTime

    def client(self, *, ttl: float = TTL, real_time: bool = False) -> JobStore: ...

    def beside(self, name: str) -> Self:
        """A second one of the same kind, empty."""
        ...


class SqliteFile:
    """One SQLite file in the test's own folder."""

    several = True

    def __init__(self, folder: Path, name: str = "jobs") -> None:
        self.clock = FakeClock()
        self.path = folder / f"{name}.db"
        self.url = f"sqlite:///{self.path}"

    def client(self, *, ttl: float = TTL, real_time: bool = False) -> SqliteStore:
        return SqliteStore(str(self.path), ttl=ttl, clock=None if real_time else self.clock)

    def beside(self, name: str) -> Self:
        return type(self)(self.path.parent, name)


class SqliteMemory:
    """SQLite in memory: gone when its only client closes."""

    several = False

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()

    def client(self, *, ttl: float = TTL, real_time: bool = False) -> SqliteStore:
        return SqliteStore(":memory:", ttl=ttl, clock=None if real_time else self.clock)

    def beside(self, name: str) -> Self:
        return type(self)(Path(name))


class RedisPrefix:
    """A prefix of its own on a server that all tests of this process share."""

    several = True
    made: ClassVar[list[RedisPrefix]] = []

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.clock = FakeClock()
        self.prefix = f"t{secrets.token_hex(6)}:"
        self.server = servers.server_url(name)
        self.url = f"{self.server}?prefix={self.prefix}"
        self.made.append(self)

    @classmethod
    def check_all(cls) -> None:
        """See that no test left keys that do not belong together, and remove them all."""
        while cls.made:
            home = cls.made.pop()
            keys = Keyspace(_asking(home.server), home.prefix)
            try:
                check(keys)
            finally:
                keys.clear()

    def client(self, *, ttl: float = TTL, real_time: bool = False) -> RedisStore:
        return RedisStore(self.url, ttl=ttl, clock=None if real_time else self.clock)

    def beside(self, name: str) -> Self:
        return type(self)(self.name, self.folder / name)


@functools.cache
def _asking(server: str) -> redis.Redis:
    """The tests' own client of a server: to make one takes as long as to look at a few keys."""
    return redis.Redis.from_url(server, decode_responses=True)


class Postgres:
    """A schema of the shared server, emptied: that takes milliseconds, to make one a lot more."""

    several = True
    server = "postgres"

    def __init__(self, folder: Path, schema: str = "haulier") -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.url = f"{servers.server_url(self.server)}?schema={schema}"
        _empty(self.url, schema)

    def client(self, *, ttl: float = TTL, real_time: bool = False) -> PostgresStore:
        clock = None if real_time else self.clock
        return PostgresStore(Place.from_url(self.url), ttl=ttl, clock=clock)

    def beside(self, name: str) -> Self:
        return type(self)(self.folder, f"haulier_{name}")


class PostgresWheel(Postgres):
    """The same on the newest version."""

    server = "postgres-wheel"


_KEPT_TABLES = ("history", "store")

MANY_ROWS = 4_000_000
"""Bytes of tables above which the dead rows of earlier tests would get into the way."""


@functools.cache
def _connected(url: str) -> psycopg.Connection:
    """The tests' own connection to a server; before it is made, there is a store."""

    async def make() -> None:
        async with PostgresStore(Place.from_url(url)):
            pass

    # In a thread, for there may be a loop here already.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, make()).result()
    return psycopg.connect(url.partition("?")[0], autocommit=True)


def _empty(url: str, schema: str) -> None:
    db = _connected(url)
    found = db.execute(
        "SELECT relname, pg_table_size(oid) FROM pg_class WHERE relnamespace = %s::regnamespace "
        "AND relkind IN ('r', 'p') AND relname <> ALL (%s)",
        [schema, list(_KEPT_TABLES)],
    ).fetchall()
    names = [f"{schema}.{name}" for name, _ in found]
    if sum(size for _, size in found) > MANY_ROWS:
        empty = f"TRUNCATE {', '.join(names)}"
    else:
        # TRUNCATE makes new files for every table and index, which takes 30 times as long.
        empty = "; ".join(f"DELETE FROM {name}" for name in names)
    db.execute(
        f"{empty}; UPDATE {schema}.history SET last = 0, epoch = substr(md5(random()::text), 1, 8)"
    )


STORE_HOMES: dict[str, Callable[[Path], StoreHome]] = {
    "sqlite-file": SqliteFile,
    "sqlite-memory": SqliteMemory,
    "redis": functools.partial(RedisPrefix, "redis"),
    "valkey": functools.partial(RedisPrefix, "valkey"),
    "postgres": Postgres,
    "postgres-wheel": PostgresWheel,
}


def work(kind: str = "work", **fields: Any) -> NewJob:
    """A plain job."""
    return NewJob(**{"id": new_id(), "kind": kind, "payload": b'{"n":1}', **fields})


def works(count: int, kind: str = "work", **fields: Any) -> list[NewJob]:
    return [work(kind, id=job_id, **fields) for job_id in new_ids(count)]


def head(kind: str = "bulk", **fields: Any) -> NewJob:
    """The head job of a batch."""
    return work(kind, role=Role.HEAD, **fields)


def items(batch_id: str, count: int, *, first: int = 0, kind: str = "work") -> list[NewJob]:
    """Items of a batch; the same positions always have the same ids."""
    return [
        work(
            kind,
            id=derived_id(batch_id, str(position)),
            role=Role.ITEM,
            batch_id=batch_id,
            position=position,
        )
        for position in range(first, first + count)
    ]


async def filled_batch(store: JobStore, count: int, *, sealed: bool = True, **policy: Any) -> str:
    """A batch that its producer filled, with the fields of a policy; returns its id."""
    top = head()
    await store.open_batch(top, items(top.id, count), policy=BatchPolicy(**policy), sealed=sealed)
    return top.id


def move(job: Job, how: Move, *, delay: float | None = None) -> Transition:
    """A transition as a worker hands it in; `delay` in seconds."""
    failed = how in (Move.FAIL, Move.RETRY)
    return Transition(
        job,
        how,
        delay=None if delay is None else round(delay * MICROSECOND),
        result=b'{"ok":true}' if how is Move.COMPLETE else None,
        error=JobError(type="Boom", message="it broke", attempt=job.attempt) if failed else None,
    )


class Hand:
    """A worker whose every step the test takes itself, over the port alone."""

    def __init__(self, store: JobStore, queues: Sequence[str], kinds: Sequence[str]) -> None:
        self.id = new_id()
        self.store = store
        self.queues = tuple(queues)
        self.kinds = tuple(kinds)

    @classmethod
    async def enlist(
        cls,
        store: JobStore,
        *,
        queues: Sequence[str] = ("default",),
        kinds: Sequence[str] = ("work", "bulk"),
    ) -> Self:
        """A new incarnation, known to the store."""
        hand = cls(store, queues, kinds)
        row = WorkerRow(
            id=hand.id, host="here", pid=1, queues=hand.queues, kinds=hand.kinds, slots=100
        )
        await store.enlist(row)
        return hand

    async def exchange(
        self, *finished: Transition, slots: int = 0, turn: int | None = None
    ) -> Exchange:
        """Hand in, and ask for up to `slots` jobs of any kind this worker knows."""
        demands = [Demand(self.queues, (Portion(self.kinds, slots),), slots)] if slots else []
        return await self.store.exchange(self.id, finished, demands, turn=turn)

    async def claim(self, slots: int = 1) -> list[Job]:
        return list((await self.exchange(slots=slots)).jobs)

    async def claim_one(self) -> Job:
        (job,) = await self.claim(1)
        return job

    async def hand_in(self, job: Job, how: Move, *, delay: float | None = None) -> bool:
        """Hand in one move; whether it was applied."""
        return not (await self.exchange(move(job, how, delay=delay))).lost

    async def work_off(self, how: Move = Move.COMPLETE, slots: int = 500) -> int:
        """Claim and finish until there is nothing left to claim; how many jobs that were."""
        done = 0
        while jobs := await self.claim(slots):
            reply = await self.exchange(*(move(job, how) for job in jobs))
            assert not reply.lost
            done += len(jobs)
        return done

    def renew(self) -> Any:
        """One heartbeat."""
        heartbeat = self.store.heartbeat(self.id)
        try:
            return heartbeat.renew()
        finally:
            heartbeat.close()


async def remove_all_that_left_something(store: JobStore) -> None:
    """Jobs that have left errors, steps and log lines go, in each way in which jobs go."""
    hand = await Hand.enlist(store)
    jobs, batches = works(2), [await filled_batch(store, 3) for _ in range(2)]
    await store.insert(jobs)
    for job in await hand.claim(100):
        await store.keep([Step(job.id, job.lease, "upload", b"1")])
        await store.note([Note(job.id, job.lease, lines=(Said(1, "said"),))])
        await hand.hand_in(job, Move.FAIL)
    await store.delete(jobs[0].id)
    await store.delete(batches[0])
    none = Keep(count=0)
    gone = Retention(completed=none, failed=none, cancelled=none)
    assert await store.prune({"work": gone, "bulk": gone}) == 5


def adds_up(batch: Batch) -> bool:
    """Whether the counters of a batch agree with its total."""
    counts = batch.counts
    parts = (counts.pending, counts.running, counts.completed, counts.failed, counts.cancelled)
    return counts.total == sum(parts) and min(parts) >= 0


class TroubledStore:
    """A store whose answers fail while there is trouble: before it did what was asked, or after."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._failures: dict[str, int] = {}
        self._after = False

    def trouble(self, *verbs: str, times: int, after: bool = False) -> None:
        """Let the next so many calls of each verb fail; with `after`, only their answer is lost."""
        self._failures = dict.fromkeys(verbs, times)
        self._after = after

    @property
    def over(self) -> bool:
        """Whether all failures that were asked for have happened."""
        return not any(self._failures.values())

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._store, verb)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **options: Any) -> Any:
            if not self._failures.get(verb):
                return await found(*arguments, **options)
            self._failures[verb] -= 1
            if self._after:
                await found(*arguments, **options)
            raise StoreUnavailableError(f"{verb}: trouble")

        return call

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._store.__aexit__(*exc)
