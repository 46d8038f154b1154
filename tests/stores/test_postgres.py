"""What only the PostgreSQL store has: its plans, its schema, its listener, its server."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import servers
from haulier.app import App
from haulier.domain.job import JobState, Role
from haulier.domain.moves import Move
from haulier.exceptions import (
    ConfigurationError,
    JobNotFoundError,
    StoreError,
    StoreUnavailableError,
)
from haulier.ports import JobFilter
from haulier.stores import open_store
from haulier.stores.postgres import PostgresStore, migrations
from haulier.stores.postgres.connection import Place
from support import Hand, adds_up, filled_batch, head, items, move, wait_until, work, works


@pytest.fixture(params=["postgres", "postgres-wheel"])
def server(request: pytest.FixtureRequest) -> str:
    """The URL of a running server."""
    with servers.or_skip():
        return servers.server_url(request.param)


@pytest.fixture
def admin(server: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server, autocommit=True) as connection:
        yield connection


@pytest.fixture
def url(server: str, admin: psycopg.Connection) -> Iterator[str]:
    """The URL of a store that is not there yet."""
    schema = f"t_{secrets.token_hex(4)}"
    yield f"{server}?schema={schema}"
    admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def schema_of(url: str) -> str:
    return Place.from_url(url).schema


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    async with PostgresStore.from_url(url) as opened:
        yield opened


class TestPlans:
    """A claim costs the same however much else there is."""

    QUERY = (
        "SELECT seq FROM {schema}.jobs_live WHERE queue = 'default' AND kind = 'work' "
        "AND state = 0 AND rank IS NOT NULL ORDER BY rank, seq LIMIT 100 FOR UPDATE SKIP LOCKED"
    )

    def fill(self, admin, schema: str, count: int) -> None:
        admin.execute(
            f"INSERT INTO {schema}.jobs (id, kind, queue, role, version, payload, state, rank, "
            "priority, run_at, created_at) SELECT gen_random_uuid(), 'other', 'default', 0, 1, "
            f"'{{}}', n % 5, CASE WHEN n % 5 = 0 THEN n END, 0, n, n "
            f"FROM generate_series(1, {count}) n"
        )

    @pytest.mark.parametrize("analyzed", [False, True])
    async def test_a_claim_goes_by_the_index_of_ready_jobs(self, store, url, admin, analyzed):
        schema = schema_of(url)
        self.fill(admin, schema, 100_000)
        await store.insert(works(50))
        if analyzed:
            admin.execute(f"ANALYZE {schema}.jobs_live")
        admin.execute("SET enable_seqscan = off")
        admin.execute("SET enable_bitmapscan = off")
        (told,) = admin.execute(
            f"EXPLAIN (FORMAT JSON) {self.QUERY.format(schema=schema)}"
        ).fetchone()
        plan = json.dumps(told)
        assert '"Index Name": "jobs_ready"' in plan
        assert "Seq Scan" not in plan
        assert '"Sort"' not in plan

    async def test_a_claim_reads_few_pages_among_many_jobs(self, store, url, admin):
        hand = await Hand.enlist(store)
        await store.insert(works(400))
        schema = schema_of(url)
        self.fill(admin, schema, 100_000)
        before = self.pages(admin, schema)
        assert len(await hand.claim(1)) == 1
        few = (await self.read_since(admin, schema, before)) + 1
        assert few < 400

    def pages(self, admin, schema: str) -> int:
        admin.execute("SELECT pg_stat_clear_snapshot()")
        return admin.execute(
            "SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables "
            "WHERE schemaname = %s AND relname IN ('jobs_live', 'jobs_done')",
            [schema],
        ).fetchone()[0]

    async def read_since(self, admin, schema: str, before: int) -> int:
        """Rows that were read by going through a whole table; statistics come a little late."""
        await asyncio.sleep(0)
        return int(self.pages(admin, schema) - before)


class TestSchema:
    """Made by whoever comes first, looked at by all others."""

    async def test_two_that_open_a_new_store_at_once_make_it_once(self, url):
        stores = [PostgresStore.from_url(url) for _ in range(4)]
        await asyncio.gather(*(store.__aenter__() for store in stores))
        try:
            await stores[0].insert([work()])
            assert sum((await stores[3].counts()).values()) == 1
        finally:
            await asyncio.gather(*(store.__aexit__(None, None, None) for store in stores))

    @pytest.mark.parametrize("steps", [1, 4, 8])
    async def test_an_older_store_is_brought_up_to_date(self, url, monkeypatch, steps):
        newest = migrations.STEPS
        monkeypatch.setattr(migrations, "STEPS", newest[:steps])
        # Without the functions of later steps it can be opened, and no more.
        place = Place.from_url(url)
        connection = await place.connect("test", 5)
        try:
            await migrations.prepare(place, connection)
        finally:
            await connection.close()
        monkeypatch.setattr(migrations, "STEPS", newest)
        async with PostgresStore.from_url(url) as store:
            hand = await Hand.enlist(store)
            await store.insert(works(3))
            assert await hand.work_off() == 3

    async def test_a_store_that_serves_only_later_protocols_is_refused(self, url, store, admin):
        schema = schema_of(url)
        admin.execute(f"UPDATE {schema}.store SET step = step + 1")
        async with PostgresStore.from_url(url):
            pass
        admin.execute(f"UPDATE {schema}.store SET protocol = protocol + 1")
        with pytest.raises(ConfigurationError, match="upgrade haulier"):
            await PostgresStore.from_url(url).__aenter__()

    async def test_several_stores_of_one_database_know_nothing_of_each_other(self, server, admin):
        names = [f"t_{secrets.token_hex(4)}" for _ in range(2)]
        try:
            one, two = (PostgresStore.from_url(f"{server}?schema={name}") for name in names)
            async with one, two:
                told: list[int] = []
                with two.watch(lambda: told.append(1), ready=True):
                    await one.insert([work()])
                    assert await two.counts() == {}
                assert await two.events() == []
                assert not told
        finally:
            for name in names:
                admin.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")

    async def test_a_worker_needs_no_right_to_change_the_schema(self, url, server, store, admin):
        schema = schema_of(url)
        role = f"r_{secrets.token_hex(4)}"
        admin.execute(f"CREATE ROLE {role} LOGIN")
        try:
            for what in (
                f"USAGE ON SCHEMA {schema}",
                f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema}",
                f"USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema}",
            ):
                admin.execute(f"GRANT {what} TO {role}")
            own = url.replace("haulier@", f"{role}@")
            async with PostgresStore.from_url(own) as limited:
                hand = await Hand.enlist(limited)
                batch = await filled_batch(limited, 3)
                assert await hand.work_off() == 3
                assert (await limited.batch(batch)).state is JobState.COMPLETED
                assert len(await limited.events()) > 3
                assert hand.renew().alive
                await limited.sweep()
            with psycopg.connect(server.replace("haulier@", f"{role}@")) as db:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    db.execute(f"ALTER TABLE {schema}.jobs_live ADD COLUMN x integer")
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    async def test_a_role_without_rights_is_told_so(self, url, server, store, admin):
        role = f"r_{secrets.token_hex(4)}"
        admin.execute(f"CREATE ROLE {role} LOGIN")
        try:
            with pytest.raises(ConfigurationError, match="permission denied"):
                await PostgresStore.from_url(url.replace("haulier@", f"{role}@")).__aenter__()
        finally:
            admin.execute(f"DROP ROLE {role}")


class TestUrl:
    """What a URL can say, and what is never said of it."""

    @pytest.mark.parametrize(
        "query", ["schema=", "schema=A", "schema=a;b", "pool=0", "pool=x", "pooler=no"]
    )
    def test_options_that_make_no_sense_are_refused(self, query):
        with pytest.raises(ConfigurationError):
            open_store(f"postgresql://u:secret@127.0.0.1/db?{query}")

    async def test_a_password_is_in_no_message(self, monkeypatch):
        monkeypatch.setattr("haulier.stores.postgres.store.OPENING", 0.2)
        url = f"postgres://u:sesame@127.0.0.1:{servers.free_port()}/db"
        with pytest.raises(StoreUnavailableError) as caught:
            await open_store(url).__aenter__()
        error: BaseException | None = caught.value
        while error is not None:
            assert "sesame" not in str(error)
            error = error.__cause__

    async def test_a_call_of_a_store_that_is_not_open_says_so(self, url):
        with pytest.raises(StoreUnavailableError, match="closed"):
            await PostgresStore.from_url(url).get(work().id)


class TestTogether:
    """Several processes' worth of clients at work on the same batches."""

    @pytest.mark.parametrize("seed", range(4))
    async def test_claims_finishes_cancels_pauses_and_retries_end_in_a_settled_batch(
        self, url, store, seed
    ):
        dice = random.Random(seed)
        async with PostgresStore.from_url(url) as other:
            stores = [store, other]
            policy = {
                "concurrency": dice.choice([None, 8, 30]),
                "batch_size": dice.choice([None, 5]),
            }
            batches = [await filled_batch(store, 400, **policy) for _ in range(2)]
            hands = [await Hand.enlist(stores[n % 2]) for n in range(4)]
            until = asyncio.get_running_loop().time() + 4

            async def busy() -> bool:
                return asyncio.get_running_loop().time() < until

            async def labour(hand: Hand) -> None:
                done = []
                ends = [Move.COMPLETE] * 5 + [Move.FAIL, Move.RETRY, Move.GIVE_BACK, Move.SNOOZE]
                while await busy():
                    reply = await hand.exchange(*done, slots=dice.randint(1, 20))
                    done = [move(job, dice.choice(ends), delay=None) for job in reply.jobs]
                    if dice.random() < 0.05:
                        hand.renew()
                await hand.exchange(*done)

            async def operate(client: PostgresStore) -> None:
                while await busy():
                    batch = dice.choice(batches)
                    verbs = [client.pause, client.resume, client.resume, client.retry_failed]
                    try:
                        await dice.choice(verbs)(batch)
                        page = await client.find(JobFilter(batch_id=batch), limit=20)
                        chosen = [job.id for job in page.jobs if dice.random() < 0.3]
                        await dice.choice([client.cancel, client.requeue])(chosen)
                        await client.sweep()
                        assert adds_up(await client.batch(batch))
                    except Exception as error:
                        if type(error).__name__ != "JobStateError":
                            raise
                    await asyncio.sleep(dice.random() * 0.02)

            await asyncio.gather(*map(labour, hands), *map(operate, stores))
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

    async def test_a_listener_that_was_cut_off_listens_again(self, url, store, admin):
        async with PostgresStore.from_url(url) as other:
            for _ in range(2):
                told: list[int] = []
                cut = admin.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE application_name = 'haulier listener'"
                ).fetchone()
                assert cut >= (2,)
                await wait_until(lambda: listeners(admin) >= 2)
                with store.watch(lambda: told.append(1), ready=True):
                    await other.insert([work()])
                    await wait_until(lambda: told, 3)

    async def test_without_a_listener_changes_are_found_by_looking(self, url, store):
        async with PostgresStore.from_url(f"{url}&pooler=transaction") as looking:
            for _ in range(3):
                told: list[int] = []
                with looking.watch(lambda: told.append(1), ready=True):
                    await store.insert([work()])
                    await wait_until(lambda: told, 3)

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


def listeners(admin) -> int:
    (count,) = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'haulier listener'"
    ).fetchone()
    return int(count)


class TestEnqueueFunction:
    """`SELECT haulier.enqueue(...)` from any driver, in the caller's own transaction."""

    async def test_what_is_committed_runs_and_what_is_rolled_back_never_was(
        self, server, url, store
    ):
        hand = await Hand.enlist(store)
        call = f"SELECT {schema_of(url)}.enqueue('work', %s::jsonb, priority => 7, key => 'k')"
        with psycopg.connect(server) as db:
            (gone,) = db.execute(call, ['{"n": 1}']).fetchone()
            db.rollback()
            (kept,) = db.execute(call, ['{"n": 2}']).fetchone()
            assert await hand.claim(9) == []
            told: list[int] = []
            with store.watch(lambda: told.append(1), ready=True):
                db.commit()
                await wait_until(lambda: told)
        job = await hand.claim_one()
        assert (job.id, job.priority, job.key) == (str(kept), 7, "k")
        assert json.loads(job.payload) == {"n": 2}
        assert job.role is Role.SINGLE
        with pytest.raises(JobNotFoundError):
            await store.get(str(gone))

    async def test_from_sqlalchemy(self, server, url, store):
        engine = create_async_engine(server.replace("postgresql://", "postgresql+psycopg://"))
        statement = text(f"SELECT {schema_of(url)}.enqueue('work', '{{\"n\": 1}}')")
        async with engine.begin() as db:
            kept = (await db.execute(statement)).scalar()
        async with engine.connect() as db:
            await db.execute(statement)
            await db.rollback()
        await engine.dispose()
        hand = await Hand.enlist(store)
        assert [job.id for job in await hand.claim(9)] == [str(kept)]

    async def test_when_it_runs_and_what_it_is_called(self, server, url, store):
        schema, job_id = schema_of(url), work().id
        with psycopg.connect(server, autocommit=True) as db:

            def enqueue(arguments: str, *values: object) -> str:
                row = db.execute(f"SELECT {schema}.enqueue({arguments})", values).fetchone()
                return str(row[0])

            later = enqueue("'work', delay => '1 hour'")
            at = enqueue("'work', run_at => now() + interval '2 hours'")
            named = enqueue("'work', unique_name => 'one'")
            assert enqueue("'work', unique_name => 'one'") == named
            for _ in range(2):
                assert enqueue("'work', id => %s", job_id) == job_id
            top = enqueue("'bulk', bulk => true, queue => 'night'")
        created = (await store.get(later)).created_at
        assert (await store.get(later)).run_at - created == 3600 * 1_000_000
        assert 7190 < ((await store.get(at)).run_at - created) / 1_000_000 < 7210
        batch = await store.batch(top)
        assert (batch.queue, batch.sealed) == ("night", False)
        assert sum((await store.counts()).values()) == 5

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("''", "dotted name"),
            ("'a b'", "dotted name"),
            ("NULL", "dotted name"),
            ("'work', queue => 'x y'", "dotted name"),
            ("'work', '[1]'", "JSON object"),
            ("'work', NULL", "JSON object"),
            ("'work', jsonb_build_object('x', repeat('y', 300000))", "262144"),
            ("'work', priority => 10001", "priority"),
            ("'work', delay => '-1 second'", "delay"),
            ("'work', delay => '1 s', run_at => now()", "together"),
            ("'work', run_at => 'infinity'", "instant"),
            ("'work', key => ''", "characters"),
        ],
    )
    async def test_bad_values_are_refused_with_their_reason(
        self, server, url, store, arguments, message
    ):
        with psycopg.connect(server, autocommit=True) as db:
            with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
                db.execute(f"SELECT {schema_of(url)}.enqueue({arguments})")
        assert await store.counts() == {}

    async def test_a_producer_needs_no_right_to_the_tables(self, server, url, store, admin):
        schema, role = schema_of(url), f"r_{secrets.token_hex(4)}"
        admin.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role}")
        try:
            with psycopg.connect(server.replace("haulier@", f"{role}@"), autocommit=True) as db:
                db.execute(f"SELECT {schema}.enqueue('work')")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    db.execute(f"SELECT * FROM {schema}.jobs")
            assert sum((await store.counts()).values()) == 1
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    async def test_its_jobs_are_run_by_their_tasks(self, server, url):
        app = App(url)
        ran: list[int] = []

        @app.task
        async def noted(number: int) -> None:
            ran.append(number)

        async with app, app.working():
            with psycopg.connect(server, autocommit=True) as db:
                db.execute(f"SELECT {schema_of(url)}.enqueue('noted', '{{\"number\": 7}}')")
                db.execute(f"SELECT {schema_of(url)}.enqueue('noted', '{{\"number\": \"x\"}}')")
            await wait_until(lambda: ran)
            page = JobFilter(states=frozenset({JobState.FAILED}))
            await wait_until(lambda: has_jobs(app, page))
        assert ran == [7]


async def has_jobs(app: App, where: JobFilter) -> bool:
    return bool((await app.find(where)).jobs)


class TestConnection:
    """`app.enqueue(..., connection=...)`."""

    @pytest.fixture
    async def app(self, url: str) -> AsyncIterator[App]:
        app = App(url)

        @app.task
        async def work(n: int) -> None:
            del n

        async with app:
            yield app

    async def test_of_asyncpg(self, app, server):
        connection = await Place.from_url(server).connect("test", 5)
        try:
            transaction = connection.transaction()
            await transaction.start()
            gone = await app.enqueue("work", {"n": 1}, connection=connection)
            await transaction.rollback()
            with pytest.raises(JobNotFoundError):
                await app.get(gone)
            async with connection.transaction():
                kept = await app.enqueue("work", {"n": 2}, connection=connection)
                with pytest.raises(JobNotFoundError):
                    await app.get(kept)
            assert (await app.get(kept)).state is JobState.PENDING
        finally:
            await connection.close()

    async def test_of_sqlalchemy(self, app, server):
        engine = create_async_engine(server.replace("postgresql://", "postgresql+asyncpg://"))
        async with engine.connect() as db:
            gone = await app.enqueue("work", {"n": 1}, connection=db)
            await db.rollback()
        async with engine.begin() as db:
            kept = await app.enqueue("work", {"n": 1}, connection=db)
        await engine.dispose()
        with pytest.raises(JobNotFoundError):
            await app.get(gone)
        assert (await app.get(kept)).state is JobState.PENDING

    async def test_anything_else_is_refused(self, app, server):
        with psycopg.connect(server) as db:
            for other in (db, object()):
                with pytest.raises(ConfigurationError, match="asyncpg"):
                    await app.enqueue("work", {"n": 1}, connection=other)


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
