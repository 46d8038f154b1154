"""PostgreSQL: plans, the schema and who may do what in it, URLs."""

from __future__ import annotations

import asyncio
import json
import secrets

import psycopg
import pytest

import servers
from haulier.domain.job import JobState
from haulier.domain.moves import Move
from haulier.exceptions import (
    ConfigurationError,
    StoreUnavailableError,
)
from haulier.stores import open_store
from haulier.stores.postgres import PostgresStore, bulk, migrations
from haulier.stores.postgres.connection import Place
from support import (
    Hand,
    filled_batch,
    move,
    remove_all_that_left_something,
    wait_until,
    work,
    works,
)


def schema_of(url: str) -> str:
    return Place.from_url(url).schema


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

    async def test_no_verb_reads_a_whole_table_or_index_of_jobs(self, store, url, admin):
        schema = schema_of(url)
        hand = await Hand.enlist(store)
        # The plans are made while there is nothing, and used when there is much.
        await store.insert(works(1))
        await hand.work_off()
        admin.execute(f"ANALYZE {schema}.jobs_live")
        for _ in range(3):
            await store.insert(works(1))
            await hand.work_off()
        self.fill(admin, schema, 100_000)
        before = self.entries_read(admin, schema)
        for job in works(20):
            await store.insert([job])
            await hand.exchange(move(await hand.claim_one(), Move.COMPLETE))
        await wait_until(lambda: self.entries_read(admin, schema) > before)
        await asyncio.sleep(1.5)
        assert self.entries_read(admin, schema) - before < 20_000

    async def test_many_jobs_at_once_read_no_whole_table_or_index(self, store, url, admin):
        schema = schema_of(url)
        hand = await Hand.enlist(store)
        # As above: plans for nothing.
        for _ in range(8):
            await store.insert(works(bulk.FEWEST))
            admin.execute(f"ANALYZE {schema}.jobs_live, {schema}.jobs_done")
        await hand.work_off()
        self.fill(admin, schema, 100_000)
        before = self.entries_read(admin, schema)
        for _ in range(20):
            jobs = works(bulk.FEWEST)
            await store.insert(jobs)
            await store.insert(jobs)
        await asyncio.sleep(1.5)
        assert self.entries_read(admin, schema) - before < 50_000

    async def test_what_is_done_to_a_whole_batch_reads_its_items_a_few_times(
        self, store, url, admin
    ):
        schema = schema_of(url)
        hand = await Hand.enlist(store)
        # The plans are made for a table that is small.
        for _ in range(8):
            await self.pause_and_cancel(store, hand, 1)
            admin.execute(f"ANALYZE {schema}.jobs_live")
        before = self.entries_read(admin, schema)
        await self.pause_and_cancel(store, hand, 6000)
        await wait_until(lambda: self.entries_read(admin, schema) > before + 6000)
        await asyncio.sleep(1.5)
        assert self.entries_read(admin, schema) - before < 100 * 6000

    async def pause_and_cancel(self, store, hand, items: int) -> None:
        batch = await filled_batch(store, items)
        await store.pause(batch)
        await store.resume(batch)
        running = await hand.claim(items // 2)
        await store.cancel([batch])
        await hand.exchange(*(move(job, Move.CANCEL) for job in running))
        assert (await store.batch(batch)).counts.cancelled == items

    def entries_read(self, admin, schema: str) -> int:
        """Index entries and rows of whole tables; what a session has read is told a second late."""
        admin.execute("SELECT pg_stat_clear_snapshot()")
        (count,) = admin.execute(
            "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = %s) + "
            "(SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE schemaname = %s "
            " AND relname LIKE 'jobs%%')",
            [schema, schema],
        ).fetchone()
        return int(count)


class TestRemoval:
    async def test_nothing_of_a_removed_job_stays(self, store, url, admin):
        await remove_all_that_left_something(store)
        for table in ("jobs", "batches", "errors", "steps", "lines"):
            rows = admin.execute(f"SELECT * FROM {schema_of(url)}.{table}").fetchall()
            assert rows == [], table


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

    @pytest.mark.parametrize("steps", range(1, len(migrations.STEPS)))
    async def test_an_older_store_is_brought_up_to_date(self, url, monkeypatch, steps):
        newest, functions = migrations.STEPS, migrations.FUNCTIONS
        monkeypatch.setattr(migrations, "STEPS", newest[:steps])
        # Those of today need the tables of today.
        monkeypatch.setattr(migrations, "FUNCTIONS", ())
        place = Place.from_url(url)
        connection = await place.connect("test", 5)
        try:
            await migrations.prepare(place, connection)
        finally:
            await connection.close()
        monkeypatch.setattr(migrations, "STEPS", newest)
        monkeypatch.setattr(migrations, "FUNCTIONS", functions)
        async with PostgresStore.from_url(url) as store:
            hand = await Hand.enlist(store)
            # One call for few jobs, COPY for many.
            await store.insert(works(3))
            await store.insert(works(300))
            assert await hand.work_off() == 303

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
            with (
                psycopg.connect(server.replace("haulier@", f"{role}@")) as db,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
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
