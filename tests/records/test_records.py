"""The relational database beside the store: opened, made, shared, and in trouble."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from haulier.exceptions import (
    ConfigurationError,
    StoreClosedError,
    StoreCorruptError,
    StoreUnavailableError,
)
from haulier.records import open_records
from haulier.records.database import Records
from haulier.records.migrations import scripts
from haulier.records.places import SqliteFile, beside, place_of
from haulier.records.tables import HEAD, METADATA
from haulier.services.deadlines import at_most
from haulier.stores.sqlite import SqliteStore


async def version(records):
    async def work(db):
        return (await db.execute(text("SELECT version FROM access_version"))).scalar_one()

    return await records.read(work)


async def count_up(records):
    async def work(db):
        await db.execute(text("UPDATE access_version SET version = version + 1"))

    await records.write(work)


class TestPlaces:
    @pytest.mark.parametrize(
        ("store", "records"),
        [
            ("sqlite:///haulier.db", "sqlite:///haulier.records.db"),
            ("sqlite:////var/lib/jobs.sqlite", "sqlite:////var/lib/jobs.records.sqlite"),
            ("sqlite:///jobs", "sqlite:///jobs.records.db"),
            ("sqlite:///a%3Fb%25/j.db", "sqlite:///a%3Fb%25/j.records.db"),
            ("sqlite://", "sqlite://"),
            ("postgresql://me:pw@db/jobs", "postgresql://me:pw@db/jobs?schema=haulier_records"),
            (
                "postgres://db/jobs?sslmode=require&schema=mine&pool=9&pooler=transaction",
                "postgres://db/jobs?sslmode=require&schema=mine_records&pooler=transaction",
            ),
            ("redis://localhost:6379/0", "sqlite:///haulier-records.db"),
            ("rediss+sentinel://a,b/main", "sqlite:///haulier-records.db"),
        ],
    )
    def test_those_of_a_store_are_beside_it(self, store, records):
        assert beside(store) == records
        place_of(records)

    @pytest.mark.parametrize(
        "url",
        [
            "redis://localhost",
            "mysql://localhost/x",
            "jobs.db",
            "sqlite://host/x.db",
            "sqlite:///x.db?mode=ro",
            'postgresql://db/x?schema="; DROP',
            "postgresql://db/x?pooler=maybe",
            "postgresql://db/x?pool=0",
        ],
    )
    def test_what_is_no_place_for_records_is_refused(self, url):
        with pytest.raises(ConfigurationError):
            place_of(url)

    def test_a_password_is_not_shown(self):
        place = place_of("postgresql://me:canary-7@db/jobs")
        assert "canary-7" not in place.shown


class TestOpening:
    async def test_the_tables_are_those_of_the_migrations(self, records):
        def differences(connection):
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "include_object": ours}
            )
            return compare_metadata(context, METADATA)

        def ours(thing, name, kind, reflected, compared):
            return name != "alembic_version"

        assert await records.read(lambda db: db.run_sync(differences)) == []

    def test_the_newest_migration_is_the_one_that_is_opened_to(self):
        assert scripts().get_heads() == [HEAD]

    async def test_they_are_there_again_when_they_are_opened_again(self, shared_url):
        async with open_records(shared_url) as records:
            await count_up(records)
        async with open_records(shared_url, create=False) as records:
            assert await version(records) == 2

    async def test_several_open_them_for_the_first_time_at_once(self, shared_url):
        async def opened():
            async with open_records(shared_url) as records:
                await count_up(records)

        await asyncio.gather(*(opened() for _ in range(5)))
        async with open_records(shared_url) as records:
            assert await version(records) == 6

    def test_several_processes_open_them_for_the_first_time_at_once(self, shared_url, tmp_path):
        script = tmp_path / "opens.py"
        script.write_text(
            "import asyncio, sys\n"
            "from haulier.records import open_records\n"
            "async def main():\n"
            "    async with open_records(sys.argv[1]): pass\n"
            "sys.stdin.readline()\n"
            "asyncio.run(main())\n"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), shared_url],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for _ in range(3)
        ]
        for process in processes:
            process.stdin.write(b"\n")
            process.stdin.flush()
        told = [process.communicate()[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], told

    async def test_where_there_are_none_they_are_not_made_unasked(self, shared_url, tmp_path):
        with pytest.raises(ConfigurationError, match="there are no records"):
            async with open_records(shared_url, create=False):
                pass
        assert list(tmp_path.iterdir()) == []

    async def test_those_of_a_newer_haulier_are_refused(self, shared_url):
        async with open_records(shared_url) as records:

            async def from_the_future(db):
                await db.execute(text("UPDATE alembic_version SET version_num = '9999'"))

            await records.write(from_the_future)
        with pytest.raises(ConfigurationError, match="upgrade haulier"):
            async with open_records(shared_url):
                pass

    async def test_a_file_is_its_owners_alone_and_has_no_log_beside_it(self, tmp_path):
        path = tmp_path / "x.records.db"
        async with open_records(f"sqlite:///{path}") as records:
            await count_up(records)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert [each.name for each in tmp_path.iterdir()] == [path.name]

    async def test_the_store_itself_is_not_taken_for_records(self, tmp_path):
        path = tmp_path / "jobs.db"
        async with SqliteStore(str(path)):
            pass
        with pytest.raises(StoreCorruptError, match="something else"):
            async with open_records(f"sqlite:///{path}"):
                pass
        async with SqliteStore(str(path), create=False) as store:
            assert await store.counts() == {}

    async def test_a_file_that_is_no_database_is_told(self, tmp_path):
        path = tmp_path / "notes.txt"
        path.write_text("not a database at all, but long enough to be looked at\n" * 50)
        with pytest.raises(StoreCorruptError, match="no records"):
            async with open_records(f"sqlite:///{path}"):
                pass


class TestTrouble:
    async def test_a_write_that_fails_leaves_nothing(self, records):
        async def half(db):
            await db.execute(text("UPDATE access_version SET version = 77"))
            raise ValueError("on the way")

        with pytest.raises(ValueError, match="on the way"):
            await records.write(half)
        assert await version(records) == 1

    async def test_a_caller_that_is_cancelled_tears_nothing(self, records):
        asked = asyncio.Event()

        async def slow(db):
            await db.execute(text("UPDATE access_version SET version = version + 1"))
            asked.set()
            await asyncio.sleep(0)
            await db.execute(text("UPDATE access_version SET version = version + 1"))

        task = asyncio.ensure_future(records.write(slow))
        await asked.wait()
        task.cancel()
        await asyncio.wait([task])
        await count_up(records)
        assert await version(records) == 4

    async def test_what_is_closed_says_so(self, url):
        async with open_records(url) as records:
            pass
        with pytest.raises(StoreClosedError):
            await version(records)

    async def test_a_file_that_stays_locked_is_unavailable_within_the_deadline(self, tmp_path):
        path = tmp_path / "x.records.db"
        async with Records(SqliteFile(str(path)), deadline=8.0) as records:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            try:
                with at_most(0.2), pytest.raises(StoreUnavailableError, match=r"within 0\.2 s"):
                    await version(records)
            finally:
                other.execute("ROLLBACK")
                other.close()
            assert await version(records) == 1

    async def test_a_server_that_is_not_there_is_told_without_the_password(self):
        url = "postgresql://me:canary-7@127.0.0.1:1/none"
        with pytest.raises(StoreUnavailableError) as told:
            async with open_records(url):
                pass
        assert "canary-7" not in str(told.value)
        assert "127.0.0.1:1" in str(told.value)
