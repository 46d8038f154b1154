"""PostgreSQL: jobs in the caller's own transaction, from SQL and from Python."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from haulier.app import App
from haulier.domain.flow import PARENT_FAILED, Otherwise
from haulier.domain.job import JobState, Role
from haulier.domain.moves import Move
from haulier.exceptions import (
    ConfigurationError,
    JobNotFoundError,
)
from haulier.ports import JobFilter
from haulier.stores.postgres.connection import Place
from support import Hand, wait_until, work

NOBODY = "01990000-0000-7000-8000-000000000000"


def schema_of(url: str) -> str:
    return Place.from_url(url).schema


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
            ("'work', baggage => '[1]'", "baggage must be a JSON object"),
            ("'work', baggage => '{\"a\": []}'", "baggage holds texts"),
            ("'work', baggage => '{\"a b\": 1}'", "baggage holds texts"),
            ("'work', baggage => jsonb_build_object('x', repeat('y', 2100))", "2048"),
            (f"'work', after => '{{{NOBODY}}}'", f"after: there is no job {NOBODY}"),
            (f"'work', id => '{NOBODY}', after => '{{{NOBODY}}}'", "waits for itself"),
            (f"'work', after => '{{{NOBODY},{NOBODY}}}'", "twice"),
            ("'work', after => '{NULL}'", "names nothing"),
            ("'work', otherwise => 'maybe'", "cancel or run"),
            ("'work', otherwise => NULL", "cancel or run"),
        ],
    )
    async def test_bad_values_are_refused_with_their_reason(
        self, server, url, store, arguments, message
    ):
        with (
            psycopg.connect(server, autocommit=True) as db,
            pytest.raises(psycopg.errors.InvalidParameterValue, match=message),
        ):
            db.execute(f"SELECT {schema_of(url)}.enqueue({arguments})")
        assert await store.counts() == {}

    async def test_jobs_that_wait_for_others(self, server, url, store):
        hand = await Hand.enlist(store)
        schema = schema_of(url)
        with psycopg.connect(server) as db:

            def enqueue(arguments: str, *values: object) -> str:
                row = db.execute(f"SELECT {schema}.enqueue({arguments})", values).fetchone()
                return str(row[0])

            first, second = enqueue("'work'"), enqueue("'work', priority => -1")
            both = enqueue("'work', after => %s::uuid[]", [first, second])
            last = enqueue("'work', after => ARRAY[%s::uuid], otherwise => 'run'", both)
            again = enqueue("'work', id => %s, after => ARRAY[%s::uuid]", both, second)
            assert again == both
            db.commit()
        parents = [(p.job_id, p.otherwise) for p in await store.parents(both)]
        assert parents == [(first, Otherwise.CANCEL), (second, Otherwise.CANCEL)]
        one, two = await hand.claim(9)
        assert {one.id, two.id} == {first, second}
        await hand.hand_in(one, Move.COMPLETE)
        await hand.hand_in(two, Move.FAIL)
        assert (await store.get(both)).error.type == PARENT_FAILED
        assert [job.id for job in await hand.claim(9)] == [last]

    async def test_a_job_whose_parents_have_ended_need_not_wait(self, server, url, store):
        hand = await Hand.enlist(store)
        await store.insert([first := work()])
        await hand.work_off()
        with psycopg.connect(server, autocommit=True) as db:
            call = f"SELECT {schema_of(url)}.enqueue('work', after => ARRAY[%s::uuid])"
            (child,) = db.execute(call, [first.id]).fetchone()
        await store.sweep()
        assert [job.id for job in await hand.claim(9)] == [str(child)]

    async def test_baggage_goes_along(self, server, url, store):
        schema = schema_of(url)
        with psycopg.connect(server, autocommit=True) as db:
            db.execute(
                f"SELECT {schema}.enqueue('work', priority => 1, baggage => %s)",
                ['{"request_id": "r-1", "n": 2, "ok": true}'],
            )
            db.execute(f"SELECT {schema}.enqueue('work', baggage => '{{}}')")
        hand = await Hand.enlist(store)
        carrying, plain = await hand.claim(2)
        assert json.loads(carrying.baggage) == {"request_id": "r-1", "n": 2, "ok": True}
        assert plain.baggage is None

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

    async def test_jobs_that_wait_for_others(self, app, store, server):
        hand = await Hand.enlist(store)
        await store.insert([parent := work()])
        connection = await Place.from_url(server).connect("test", 5)
        try:
            async with connection.transaction():
                child = await app.enqueue("work", {"n": 1}, after=parent.id, connection=connection)
                last = await app.enqueue("work", {"n": 2}, after=child, connection=connection)
        finally:
            await connection.close()
        for job_id in (parent.id, child, last):
            (job,) = await hand.claim(9)
            assert job.id == job_id
            await hand.hand_in(job, Move.COMPLETE)

    async def test_anything_else_is_refused(self, app, server):
        with psycopg.connect(server) as db:
            for other in (db, object()):
                with pytest.raises(ConfigurationError, match="asyncpg"):
                    await app.enqueue("work", {"n": 1}, connection=other)
