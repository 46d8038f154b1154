"""PostgreSQL: many at work at once, signals, and a server that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator

import psycopg
import pytest

import servers
from haulier.app import App
from haulier.domain.job import JobState
from haulier.domain.moves import Move, Transition
from haulier.exceptions import (
    JobStateError,
    StoreError,
    StoreUnavailableError,
)
from haulier.ports import JobFilter
from haulier.stores.postgres import PostgresStore
from haulier.stores.postgres.connection import Place
from support import Hand, adds_up, filled_batch, head, items, move, wait_until, work, works


def schema_of(url: str) -> str:
    return Place.from_url(url).schema


class Crowd:
    """Workers and operators at work on the same batches for some seconds, by one set of dice."""

    ENDS = (*[Move.COMPLETE] * 5, Move.FAIL, Move.RETRY, Move.GIVE_BACK, Move.SNOOZE)

    def __init__(self, dice: random.Random, batches: list[str], seconds: float) -> None:
        self.dice = dice
        self.batches = batches
        self.loop = asyncio.get_running_loop()
        self.until = self.loop.time() + seconds

    def at_work(self) -> bool:
        return self.loop.time() < self.until

    async def labour(self, hand: Hand) -> None:
        done: list[Transition] = []
        while self.at_work():
            reply = await hand.exchange(*done, slots=self.dice.randint(1, 20))
            done = [move(job, self.dice.choice(self.ENDS)) for job in reply.jobs]
            if self.dice.random() < 0.05:
                hand.renew()
        await hand.exchange(*done)

    async def operate(self, store: PostgresStore) -> None:
        while self.at_work():
            with contextlib.suppress(JobStateError):
                await self.something(store, self.dice.choice(self.batches))
            await asyncio.sleep(self.dice.random() * 0.02)

    async def something(self, store: PostgresStore, batch: str) -> None:
        verbs = [store.pause, store.resume, store.resume, store.retry_failed]
        await self.dice.choice(verbs)(batch)
        page = await store.find(JobFilter(batch_id=batch), limit=20)
        chosen = [job.id for job in page.jobs if self.dice.random() < 0.3]
        await self.dice.choice([store.cancel, store.requeue])(chosen)
        await store.sweep()
        assert adds_up(await store.batch(batch))


class TestTogether:
    """Several processes' worth of clients at work on the same batches."""

    @pytest.mark.parametrize("seed", range(4))
    async def test_claims_finishes_cancels_pauses_and_retries_end_in_a_settled_batch(
        self, url, store, seed
    ):
        dice = random.Random(seed)
        async with PostgresStore.from_url(url) as other:
            stores = [store, other]
            limits = {
                "concurrency": dice.choice([None, 8, 30]),
                "batch_size": dice.choice([None, 5]),
            }
            batches = [await filled_batch(store, 400, **limits) for _ in range(2)]
            hands = [await Hand.enlist(stores[n % 2]) for n in range(4)]
            crowd = Crowd(dice, batches, 4)
            await asyncio.gather(*map(crowd.labour, hands), *map(crowd.operate, stores))
            await store.cancel(batches)
            for hand in hands:
                await store.retire(hand.id)
            for batch in batches:
                await wait_until(lambda batch=batch: self.settled(store, batch))
                told = await store.batch(batch)
                assert adds_up(told)
                assert (told.counts.pending, told.counts.running, told.counts.total) == (0, 0, 400)
                await self.counted_right(store, batch, told)

    async def settled(self, store, batch: str) -> bool:
        await store.sweep()
        return (await store.batch(batch)).settled

    async def counted_right(self, store, batch: str, told) -> None:
        page = await store.find(JobFilter(batch_id=batch), limit=1000)
        states = [job.state for job in page.jobs]
        for state in JobState:
            assert states.count(state) == getattr(told.counts, state)

    async def test_items_that_end_on_two_clients_at_once_settle_their_batch_once(self, url, store):
        async with PostgresStore.from_url(url) as other:
            one, two = await Hand.enlist(store), await Hand.enlist(other)
            for _ in range(40):
                batch = await filled_batch(store, 2)
                (first,), (second,) = await one.claim(1), await two.claim(1)
                await asyncio.gather(
                    one.exchange(move(first, Move.COMPLETE)),
                    two.exchange(move(second, Move.COMPLETE)),
                )
                assert (await store.batch(batch)).settled
                events = await store.events(after=await self.before_last(store, 1), limit=5)
                assert events[-1].type == "settle"

    async def before_last(self, store, count: int) -> str:
        epoch, _, last = (await store.last_event()).partition(":")
        return f"{epoch}:{int(last) - count}"


class TestTurns:
    """An exchange that got no answer, and the one after it."""

    async def test_the_next_exchange_waits_for_one_that_was_given_up(
        self, url, store, admin, monkeypatch
    ):
        monkeypatch.setattr("haulier.stores.postgres.pool.GRACE", 0.0)
        hand = await Hand.enlist(store)
        await store.insert(works(4))
        schema = schema_of(url)
        with psycopg.connect(url.split("?")[0]) as blocker:
            blocker.execute(f"LOCK TABLE {schema}.journal IN SHARE MODE")
            late = asyncio.create_task(hand.exchange(slots=2, turn=1))
            await wait_until(lambda: waiting(admin))
            late.cancel()
            await asyncio.wait([late])
            following = asyncio.create_task(hand.exchange(turn=2))
            await wait_until(lambda: waiting(admin, 2))
            assert not following.done()
        await following
        held = (await store.find(JobFilter(worker=hand.id))).jobs
        await asyncio.sleep(0.1)
        assert (await store.find(JobFilter(worker=hand.id))).jobs == held


def waiting(admin, count: int = 1) -> bool:
    """Whether so many sessions wait for a lock."""
    (n,) = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    ).fetchone()
    return n >= count


class TestSignals:
    """Who waits is told, also when the connection that listens is lost."""

    async def tells(self, store: PostgresStore, other: PostgresStore) -> None:
        """The one is told within seconds what the other does."""
        told: list[int] = []
        with store.watch(lambda: told.append(1), ready=True):
            await other.insert([work()])
            await wait_until(lambda: told, 3)

    async def test_a_listener_that_was_cut_off_listens_again(self, url, store, admin):
        async with PostgresStore.from_url(url) as other:
            for _ in range(2):
                cut = await wait_until(lambda: two_listeners(admin))
                admin.execute("SELECT pg_terminate_backend(p) FROM unnest(%s) p", [list(cut)])
                # Those that were ended may be seen for a while yet.
                await wait_until(lambda cut=cut: two_listeners(admin, but=cut))
                await self.tells(store, other)

    async def test_without_a_listener_changes_are_found_by_looking(self, url, store):
        async with PostgresStore.from_url(f"{url}&pooler=transaction") as looking:
            for _ in range(3):
                await self.tells(looking, store)

    async def test_behind_a_pooler_everything_works(self, url):
        async with PostgresStore.from_url(f"{url}&pooler=transaction") as store:
            hand = await Hand.enlist(store)
            batch = await filled_batch(store, 5)
            assert await hand.work_off() == 5
            assert (await store.batch(batch)).settled
            assert [event.seq for event in await store.events()][:3] == [1, 2, 3]
            assert hand.renew().alive

    async def test_notifications_of_many_changes_are_few(self, url, store, admin):
        heard = []
        with psycopg.connect(url.split("?")[0], autocommit=True) as db:
            db.execute(f"LISTEN {schema_of(url)}")
            await asyncio.gather(*(store.insert([work()]) for _ in range(100)))
            await asyncio.sleep(0.1)
            heard = [n.payload for n in db.notifies(timeout=0.2) if not n.payload.startswith("0 ")]
        assert 1 <= len(heard) <= 40


def two_listeners(admin, but: frozenset[int] = frozenset()) -> frozenset[int]:
    """The sessions that listen, but for some; none if they are fewer than two."""
    rows = admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'haulier listener'"
    ).fetchall()
    found = frozenset(pid for (pid,) in rows) - but
    return found if len(found) >= 2 else frozenset()


class TestServer:
    """A server that goes away and comes back."""

    @pytest.fixture
    def private(self) -> Iterator[servers.Server]:
        with servers.or_skip(), servers.private("postgres") as server:
            yield server

    async def test_a_worker_goes_on_after_a_restart(self, private):
        app = App(private.url)
        ran: list[int] = []

        @app.task
        async def noted(number: int) -> None:
            ran.append(number)

        async with app, app.working():
            await app.enqueue("noted", {"number": 1})
            await wait_until(lambda: ran == [1])
            private.kill()
            with pytest.raises(StoreUnavailableError):
                await app.enqueue("noted", {"number": 2})
            private.start()
            began = asyncio.get_running_loop().time()
            await wait_until(lambda: enqueued(app, 3))
            await wait_until(lambda: 3 in ran)
            assert asyncio.get_running_loop().time() - began < 5

    async def test_a_server_that_stands_still_is_given_up_after_the_deadline(self, private):
        store = PostgresStore(Place.from_url(private.url), deadline=0.5)
        async with store:
            await store.insert([work()])
            private.pause()
            try:
                began = asyncio.get_running_loop().time()
                with pytest.raises(StoreUnavailableError, match="did not answer"):
                    await store.insert([work()])
                assert asyncio.get_running_loop().time() - began < 3
            finally:
                private.unpause()
            await wait_until(lambda: inserted(store))

    async def test_a_heartbeat_goes_on_after_a_restart(self, private):
        async with PostgresStore(Place.from_url(private.url)) as store:
            hand = await Hand.enlist(store)
            heartbeat = store.heartbeat(hand.id)
            try:
                assert heartbeat.renew().alive
                private.kill()
                with pytest.raises(StoreError):
                    heartbeat.renew()
                private.start()
                assert heartbeat.renew().alive
            finally:
                heartbeat.close()


async def enqueued(app: App, number: int) -> bool:
    try:
        await app.enqueue("noted", {"number": number})
    except StoreError:
        return False
    return True


async def inserted(store: PostgresStore) -> bool:
    try:
        await store.insert([head(), *items(work().id, 0)])
    except StoreError:
        return False
    return True
