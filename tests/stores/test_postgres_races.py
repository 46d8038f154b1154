"""Two clients of a PostgreSQL store that meet in the middle of a verb, step by step."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

import servers
from haulier.domain.batch import BatchPolicy
from haulier.domain.configuration import paused
from haulier.domain.job import Job, JobState, Role
from haulier.domain.limits import Breaker, Limit, Rate
from haulier.domain.moves import Move, Transition
from haulier.domain.worker import Demand, Exchange, Portion
from haulier.ports import JobFilter
from haulier.stores.postgres import PostgresStore, exchanging, operations
from haulier.stores.postgres.connection import Connection, Place
from support import Hand, filled_batch, head, items, move, wait_until, work, works


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


class TestLimits:
    async def test_two_claims_at_once_make_lanes_of_one_key(self, url, store):
        await store.limits().put(Limit(name="key", concurrency=1, per_key=True), by="test")
        one = await Hand.enlist(store, kinds=("work",))
        two = await Hand.enlist(store, kinds=("play",))
        await store.insert([work(key="a"), work("play", key="a")])
        async with open_transaction(url) as db, open_transaction(url) as other:
            first = await claim(db, one, 1)
            second = asyncio.create_task(claim(other, two, 1))
            await asyncio.wait({second}, timeout=0.2)
            await db.execute("COMMIT AND CHAIN")
            assert len(first.jobs) + len((await second).jobs) == 1

    async def test_what_another_claim_holds_is_asked_for_again(self, url, store):
        await store.limits().put(Limit(name="key", concurrency=2, per_key=True), by="test")
        one, two = await Hand.enlist(store), await Hand.enlist(store)
        await store.insert(works(5, key="a"))
        await one.hand_in(await one.claim_one(), Move.COMPLETE)
        async with open_transaction(url) as db:
            assert len((await claim(db, one, 1)).jobs) == 1
            reply = await two.exchange(slots=1)
            assert (reply.jobs, reply.due_in) == ((), 0)
        assert len(await two.claim(1)) == 1

    async def test_a_run_that_ends_while_its_lane_is_held_frees_it(self, url, store):
        await store.limits().put(Limit(name="key", concurrency=1, per_key=True), by="test")
        one, two = await Hand.enlist(store), await Hand.enlist(store)
        await store.insert(works(2, key="a"))
        job = await one.claim_one()
        async with open_transaction(url) as db:
            assert (await claim(db, two, 1)).jobs == ()
            assert await one.hand_in(job, Move.COMPLETE)
        assert len(await two.claim(1)) == 1

    @pytest.mark.parametrize("seed", range(2))
    async def test_many_at_once_keep_them_and_leave_nothing_behind(self, url, store, admin, seed):
        """Clients that claim, end, retry and are lost, while limits change and jobs come."""
        dice, limits, before = random.Random(seed), store.limits(), deadlocks(admin)
        for limit in HELD:
            await limits.put(limit, by="test")
        tops = [head() for _ in range(3)]
        for top in tops:
            each = [job._replace(key=dice.choice(KEYS)) for job in items(top.id, 40)]
            await store.open_batch(top, each, policy=BatchPolicy(concurrency=3), sealed=True)
        rush = Rush(url, seed, left=400 + 3 * 40)
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(rush.work_off())
            group.create_task(rush.look(admin))
            group.create_task(rush.change(store))
            for _ in range(40):
                await store.insert(
                    [work(dice.choice(KINDS), key=dice.choice(KEYS)) for _ in range(10)]
                )
        assert rush.over == []
        assert {state.running for state in await limits.list()} == {0}
        assert await limits.keys("key") == []
        for top in tops:
            assert (await store.batch(top.id)).state is JobState.COMPLETED
        assert deadlocks(admin) == before


KINDS = ("work", "play")
KEYS = "abcdefgh"
HELD = (
    Limit(name="all", concurrency=9),
    Limit(name="key", concurrency=2, per_key=True),
    Limit(name="play", concurrency=4, kind="play"),
    Limit(name="often", rate=Rate(2000), per_key=True),
    Limit(
        name="broken",
        breaker=Breaker(failures=0.7, least=5, window=1.0, pause=0.05),
        per_key=True,
    ),
)
MOST = (9, 2, 4, 3)
_RUNNING = """
SELECT (SELECT count(*) FROM r), (SELECT coalesce(max(n), 0) FROM (
        SELECT count(*) AS n FROM r WHERE key IS NOT NULL GROUP BY key) k),
    (SELECT count(*) FROM r WHERE kind = 'play'), (SELECT coalesce(max(n), 0) FROM (
        SELECT count(*) AS n FROM r WHERE batch IS NOT NULL GROUP BY batch) b)
"""


class Rush:
    """Several clients at work at once, until so many jobs are done."""

    def __init__(self, url: str, seed: int, left: int) -> None:
        self.url = url
        self.dice = random.Random(seed)
        self.left = left
        self.over: list[tuple[int, ...]] = []

    async def work_off(self) -> None:
        async with PostgresStore.from_url(self.url) as client:
            hand, held = await Hand.enlist(client, kinds=KINDS), []
            while self.left:
                ends = [self._end(job) for job in held]
                reply = await hand.exchange(*ends, slots=self.dice.randint(1, 6))
                assert not reply.lost
                self.left -= sum(end.move is Move.COMPLETE for end in ends)
                held = list(reply.jobs)
                if self.dice.random() < 0.02:
                    await client.sweep()
                if self.dice.random() < 0.02:
                    await client.retire(hand.id)
                    hand, held = await Hand.enlist(client, kinds=KINDS), []

    def _end(self, job: Job) -> Transition:
        # What lost its worker too often is to run alone, and then nothing else does.
        how = Move.RETRY if self.dice.random() < 0.4 else Move.COMPLETE
        return move(job, how, delay=0)

    async def look(self, admin: psycopg.Connection) -> None:
        """Note whatever is beyond the limits at any moment."""
        schema = self.url.rpartition("=")[2]
        running = f"SELECT * FROM {schema}.jobs_live WHERE state = 1 AND role <> 1"
        while self.left:
            seen = await asyncio.to_thread(
                lambda: admin.execute(f"WITH r AS ({running}) {_RUNNING}").fetchone()
            )
            if any(n > most for n, most in zip(seen, MOST, strict=True)):
                self.over.append(seen)

    async def change(self, store: PostgresStore) -> None:
        limits = store.limits()
        while self.left:
            limit = Limit(name="extra", concurrency=self.dice.randint(3, 9))
            await limits.put(limit, by="test")
            await asyncio.sleep(0)
            await limits.drop("extra", by="test")


def deadlocks(admin: psycopg.Connection) -> int:
    """How many the server has broken so far; the store repeats what they ended."""
    sql = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    (n,) = admin.execute(sql).fetchone()
    return int(n)
