"""Two clients of a PostgreSQL store that meet in the middle of a verb, step by step."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

import servers
from haulier.domain.configuration import paused
from haulier.domain.job import JobState, Role
from haulier.domain.moves import Move, Transition
from haulier.domain.worker import Demand, Exchange, Portion
from haulier.ports import JobFilter
from haulier.stores.postgres import PostgresStore, exchanging, operations
from haulier.stores.postgres.connection import Connection, Place
from support import Hand, filled_batch, move, wait_until, work, works


@pytest.fixture
def server() -> str:
    with servers.or_skip():
        return servers.server_url("postgres")


@pytest.fixture
def admin(server: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server, autocommit=True) as connection:
        yield connection


@pytest.fixture
def url(server: str, admin: psycopg.Connection) -> Iterator[str]:
    schema = f"t_{secrets.token_hex(4)}"
    yield f"{server}?schema={schema}"
    admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    async with PostgresStore.from_url(url) as opened:
        yield opened


@contextlib.asynccontextmanager
async def open_transaction(url: str) -> AsyncIterator[Connection]:
    """Another client in the middle of a transaction, which is committed when the block ends."""
    connection = await Place.from_url(url).connect("test", 15.0)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


async def claim(connection: Connection, hand: Hand, slots: int, *finished: Transition) -> Exchange:
    """What the hand's store does for an exchange, on this connection."""
    demands = [Demand(hand.queues, (Portion(hand.kinds, slots),), slots)]
    told = await exchanging.exchange(
        connection, None, hand.id, finished, demands, None, None, exchanging.Frontier(still=False)
    )
    return told.reply


async def blocked(admin: psycopg.Connection, count: int = 1) -> None:
    """Wait until so many sessions wait for a lock."""

    def so() -> bool:
        (n,) = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ).fetchone()
        return n >= count

    await wait_until(so)


class TestPause:
    async def test_a_claim_parks_no_item_of_a_batch_that_is_resumed_meanwhile(self, url, store):
        hand = await Hand.enlist(store)
        batch = await filled_batch(store, 4)
        async with open_transaction(url) as db:
            await db.execute("SELECT switch_batch(NULL, $1, true)", batch)
        # The pause has begun and has not parked anything yet.
        async with open_transaction(url) as db:
            assert not (await claim(db, hand, 2)).jobs
            resuming = asyncio.create_task(store.resume(batch))
            await asyncio.wait([resuming], timeout=0.3)
        await resuming
        await store.sweep()
        assert await hand.work_off() == 4
        assert (await store.batch(batch)).settled


class TestPausedQueues:
    async def test_a_pause_waits_for_exchanges_that_are_under_way(self, url, store, admin):
        hand, other = await Hand.enlist(store), await Hand.enlist(store)
        await store.insert(works(3))
        async with open_transaction(url) as db:
            (job,) = (await claim(db, hand, 1)).jobs
            pausing = asyncio.create_task(
                store.configurable().configure({paused("default"): True}, by="ops")
            )
            await blocked(admin)
            # It comes while the pause waits, and begins after it.
            claiming = asyncio.create_task(other.claim(1))
            await blocked(admin, 2)
            assert not pausing.done()
        assert (await pausing).paused == {"default"}
        assert await claiming == []
        assert (await store.get(job.id)).state is JobState.RUNNING
        assert await hand.claim(9) == []

    async def test_a_resume_waits_for_nobody(self, url, store):
        await store.configurable().configure({paused("default"): True}, by="ops")
        hand = await Hand.enlist(store, queues=("other",))
        await store.insert(works(1, queue="other"))
        async with open_transaction(url) as db:
            assert len((await claim(db, hand, 1)).jobs) == 1
            resuming = store.configurable().configure({}, unset=[paused("default")], by="ops")
            assert not (await asyncio.wait_for(resuming, 5)).paused


class TestRequeue:
    async def test_what_fails_while_a_requeue_waits_is_requeued_once(self, url, store, admin):
        hand = await Hand.enlist(store)
        await store.insert(works(2))
        first, second = await hand.claim(2)
        await hand.hand_in(first, Move.FAIL)
        async with open_transaction(url) as one:
            async with open_transaction(url) as blocker:
                await blocker.execute("SELECT FROM jobs WHERE id = $1 FOR UPDATE", first.id)
                waiting = asyncio.create_task(operations.requeue(one, None, [first.id, second.id]))
                await blocked(admin)
                await hand.hand_in(second, Move.FAIL)
                other = contextlib.AsyncExitStack()
                two = await other.enter_async_context(open_transaction(url))
                await operations.requeue(two, None, [second.id])
            async with other:
                await asyncio.wait([waiting], timeout=0.3)
            await waiting
        jobs = (await store.find(JobFilter())).jobs
        counts = await store.counts()
        assert counts == {("default", "work", Role.SINGLE, JobState.PENDING): 2}, jobs
        assert await hand.work_off() == 2


class TestAlone:
    async def test_two_claims_at_once_run_no_more_than_the_batch_may(self, url, store):
        batch = await filled_batch(store, 2, concurrency=1)
        async with open_transaction(url) as db:
            # Both were lost twice; one when the other was not due yet.
            await db.execute("UPDATE jobs_live SET gate = 3, rank = NULL, lost = 2 WHERE role = 2")
        one, two = await Hand.enlist(store), await Hand.enlist(store)
        async with open_transaction(url) as db:
            assert len((await claim(db, one, 1)).jobs) == 1
            reply = await two.exchange(slots=1)
            assert (reply.jobs, reply.due_in) == ((), 0)
        assert await two.claim(1) == []
        assert (await store.batch(batch)).counts.running == 1


class TestLockOrder:
    async def test_an_exchange_and_a_cancel_do_not_wait_for_each_other(self, url, store, admin):
        hand = await Hand.enlist(store)
        await store.insert([work()])
        running = await hand.claim_one()
        due = work(delay=1)
        await store.insert([due])
        async with open_transaction(url) as one, open_transaction(url) as two:
            async with open_transaction(url) as blocker:
                await blocker.execute("SELECT FROM jobs WHERE id = $1 FOR UPDATE", running.id)
                cancelling = asyncio.create_task(operations.cancel(one, None, [running.id, due.id]))
                await blocked(admin, 1)
                finishing = asyncio.create_task(claim(two, hand, 1, move(running, Move.RETRY)))
                await blocked(admin, 2)
            await cancelling
            await one.execute("COMMIT AND CHAIN")
            reply = await finishing
        assert not reply.lost
        states = [(await store.get(job_id)).state for job_id in (running.id, due.id)]
        assert states == [JobState.CANCELLED] * 2


class TestDelete:
    async def test_a_job_that_is_requeued_meanwhile_is_found(self, url, store, admin):
        hand = await Hand.enlist(store)
        await store.insert([work()])
        job = await hand.claim_one()
        await hand.hand_in(job, Move.FAIL)
        async with open_transaction(url) as db:
            await operations.requeue(db, None, [job.id])
            deleting = asyncio.create_task(store.delete(job.id))
            await blocked(admin)
        await deleting
        assert await store.counts() == {}


class TestTurns:
    async def test_an_exchange_that_arrives_while_its_doubt_is_settled_does_nothing(
        self, url, store, admin
    ):
        hand = await Hand.enlist(store)
        await store.insert(works(3))
        async with open_transaction(url) as late_db:
            async with open_transaction(url) as db:
                await exchanging.exchange(
                    db, None, hand.id, [], [], 2, 1, exchanging.Frontier(still=False)
                )
                demands = [Demand(hand.queues, (Portion(hand.kinds, 3),), 3)]
                late = asyncio.create_task(
                    exchanging.exchange(
                        late_db,
                        None,
                        hand.id,
                        [],
                        demands,
                        1,
                        None,
                        exchanging.Frontier(still=False),
                    )
                )
                await blocked(admin)
            assert (await late).reply.jobs == ()
        assert (await store.find(JobFilter(worker=hand.id))).jobs == ()
