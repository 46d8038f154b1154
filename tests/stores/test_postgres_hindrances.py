"""A PostgreSQL store where something around it is in the way: a silent server, rights, long lines."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import traceback
from collections.abc import Iterator

import psycopg
import pytest

import servers
from haulier.domain.job import JobState, Role
from haulier.exceptions import HaulierError, StoreUnavailableError
from haulier.stores.postgres import PostgresStore
from haulier.stores.postgres.connection import Place
from support import Hand, filled_batch, wait_until, work


def nested(levels: int) -> str:
    return '{"x": ' * levels + "1" + "}" * levels


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


class TestSilence:
    @pytest.fixture
    def private(self) -> Iterator[servers.Server]:
        with servers.or_skip(), servers.private("postgres") as server:
            yield server

    @pytest.mark.parametrize("pooler", ["session", "transaction"])
    async def test_work_of_several_statements_is_given_up_after_the_deadline(
        self, private, pooler, monkeypatch
    ):
        monkeypatch.setattr("haulier.stores.postgres.pool.GRACE", 0.2)
        place = Place.from_url(f"{private.url}?pooler={pooler}")
        async with PostgresStore(place, deadline=0.5) as store:
            await filled_batch(store, 1)
            private.pause()
            try:
                async with asyncio.timeout(5):
                    with pytest.raises(StoreUnavailableError, match="did not answer"):
                        await filled_batch(store, 1)
            finally:
                private.unpause()

    async def test_connections_that_lay_idle_meanwhile_are_not_tried_one_by_one(self, private):
        async with PostgresStore(Place.from_url(private.url), deadline=0.5) as store:
            await asyncio.gather(*(store.insert([work()]) for _ in range(4)))
            assert len(store._pool._idle) > 1
            private.pause()
            try:
                with pytest.raises(StoreUnavailableError):
                    await store.insert([work()])
                assert not store._pool._idle
            finally:
                private.unpause()


class TestSecrets:
    @pytest.mark.parametrize(
        "where",
        [
            "u:s3cret/x@127.0.0.1:1/db",
            "u:s3cret#x@127.0.0.1:1/db",
            "u:s3cret@127.0.0.1:1/db",
            "u:s3cret?x@127.0.0.1:1/db",
            "u:s3c[ret@127.0.0.1:1/db",
            "127.0.0.1:1/db?password=s3cret",
            "u@127.0.0.1:1/db?sslmode=s3cret",
            "u:%zzs3cret@127.0.0.1:1/db",
        ],
    )
    async def test_no_password_is_in_an_error_nor_in_what_led_to_it(self, where, monkeypatch):
        monkeypatch.setattr("haulier.stores.postgres.store.OPENING", 0.0)
        with pytest.raises(HaulierError) as caught:
            async with PostgresStore.from_url(f"postgresql://{where}"):
                pass
        told = "".join(traceback.format_exception(caught.value))
        assert "s3cret" not in told.replace(where, ""), told
        assert "s3c[ret" not in told.replace(where, ""), told


class TestRights:
    async def test_a_schema_made_by_somebody_else_is_enough(self, url, server, admin):
        schema = Place.from_url(url).schema
        role = f"r_{secrets.token_hex(4)}"
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        try:
            admin.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")
            theirs = url.replace("haulier@", f"{role}:x@", 1)
            async with PostgresStore.from_url(theirs) as store:
                await store.insert([work()])
        finally:
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")


class TestLongJournal:
    """Nobody read events nor swept for a long time, while producers went on."""

    async def test_it_is_numbered_in_slices(self, url, admin):
        schema = Place.from_url(url).schema
        async with PostgresStore.from_url(url) as store:
            epoch, _, _ = (await store.last_event()).partition(":")
            admin.execute(
                f"INSERT INTO {schema}.journal (n, at, type, kind, queue, role, target, body) "
                "SELECT 1, 0, 'insert', 'work', 'default', 0, 0, decode(repeat('00', 24), 'hex') "
                "FROM generate_series(1, 12000)"
            )
            admin.execute(f"SELECT {schema}.number_events()")
            (left,) = admin.execute(f"SELECT count(*) FROM {schema}.journal").fetchone()
            assert 0 < left < 12_000
            assert len(await store.events(limit=20_000)) == 12_000
            assert await store.last_event() == f"{epoch}:12000"
            assert await store.counts() == {
                ("default", "work", Role.SINGLE, JobState.PENDING): 12_000
            }

    async def test_lost_workers_are_swept_before_it_is_numbered(self, url, server, admin):
        place = Place.from_url(url)
        async with PostgresStore(place, ttl=0.2, deadline=0.5) as store:
            hand = await Hand.enlist(store)
            await store.insert([work()])
            await hand.claim_one()
            with psycopg.connect(server) as blocker:
                blocker.execute(f"LOCK TABLE {place.schema}.events IN EXCLUSIVE MODE")
                await wait_until(lambda: swept(store))


async def swept(store: PostgresStore) -> bool:
    with contextlib.suppress(StoreUnavailableError):
        await store.sweep()
    return bool((await store.counts()).get(("default", "work", Role.SINGLE, JobState.PENDING)))


class TestEnqueueFunction:
    """What the library refuses at its edge, `enqueue()` refuses too."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("'work', version => 0", "version"),
            ("'work', version => NULL", "version"),
            ("'work', bulk => NULL", "bulk"),
            ("'work', run_at => '20000-01-01Z'", "year 10000"),
            (f"'work', '{nested(33)}'", "32 levels"),
        ],
    )
    async def test_bad_values_are_refused_with_their_reason(self, server, url, arguments, message):
        async with PostgresStore.from_url(url) as store:
            with psycopg.connect(server, autocommit=True) as db:
                call = f"SELECT {Place.from_url(url).schema}.enqueue"
                with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
                    db.execute(f"{call}({arguments})")
                db.execute(f"{call}('work', '{nested(32)}')")
            assert sum((await store.counts()).values()) == 1
