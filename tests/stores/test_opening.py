"""A store is opened: made if that is meant, and looked for if not."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis

import servers
from haulier.exceptions import ConfigurationError
from haulier.ports import JobStore
from haulier.stores import open_store
from processes import haulier
from support import STORE_HOMES, work

USAGE = 2


@dataclass
class Nowhere:
    """A place where no store is: its URL, and what there is of one by now."""

    url: str
    found: Callable[[], list[str]]


def sqlite_file(folder: Path) -> Nowhere:
    return Nowhere(
        f"sqlite:///{folder / 'none.db'}", lambda: sorted(each.name for each in folder.iterdir())
    )


def redis_prefix(name: str) -> Callable[[Path], Nowhere]:
    def make(folder: Path) -> Nowhere:
        server, prefix = servers.server_url(name), f"t{secrets.token_hex(6)}:"

        def keys() -> list[str]:
            with redis.Redis.from_url(server, decode_responses=True) as client:
                return sorted(client.scan_iter(f"{prefix}*"))

        return Nowhere(f"{server}?prefix={prefix}", keys)

    return make


def postgres_schema(name: str) -> Callable[[Path], Nowhere]:
    def make(folder: Path) -> Nowhere:
        server, schema = servers.server_url(name), f"t{secrets.token_hex(6)}"

        def schemas() -> list[str]:
            with psycopg.connect(server) as db:
                asked = "SELECT nspname FROM pg_namespace WHERE nspname = %s"
                return [row[0] for row in db.execute(asked, [schema])]

        return Nowhere(f"{server}?schema={schema}", schemas)

    return make


NOWHERE: dict[str, Callable[[Path], Nowhere]] = {
    "sqlite-file": sqlite_file,
    "redis": redis_prefix("redis"),
    "valkey": redis_prefix("valkey"),
    "postgres": postgres_schema("postgres"),
    "postgres-wheel": postgres_schema("postgres-wheel"),
}


@pytest.fixture(params=NOWHERE)
def nowhere(request, tmp_path) -> Nowhere:
    with servers.or_skip():
        return NOWHERE[request.param](tmp_path)


def looking(url: str) -> JobStore:
    return open_store(url, create=False)


class TestLooking:
    async def test_where_no_store_is_it_says_so_and_makes_none(self, nowhere):
        store = looking(nowhere.url)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="there is no haulier store at"):
                await store.__aenter__()
        assert nowhere.found() == []

    @pytest.mark.parametrize("home_kind", sorted({*STORE_HOMES} - {"sqlite-memory"}), indirect=True)
    async def test_one_that_is_there_is_opened_and_can_be_written(self, home):
        job = work()
        async with home.client(real_time=True) as store:
            await store.insert([job])
        async with looking(home.url) as store:
            assert (await store.get(job.id)).id == job.id
            await store.insert([work()])

    @pytest.mark.parametrize(
        "command",
        [
            ("jobs", "list"),
            ("store", "check"),
            ("batches", "list"),
            ("events",),
            ("store", "thaw"),
            ("store", "copy"),
        ],
        ids=" ".join,
    )
    def test_commands_that_only_look_leave_nothing(self, nowhere, tmp_path, command):
        where = {
            ("store", "thaw"): (nowhere.url,),
            ("store", "copy"): (nowhere.url, f"sqlite:///{tmp_path}/target.db"),
        }.get(command, ("--store", nowhere.url))
        done = haulier(tmp_path, *command, *where)
        assert done.returncode == USAGE, done.stderr
        assert "there is no haulier store at" in done.stderr
        assert nowhere.found() == []


async def test_an_empty_file_stays_one(tmp_path):
    path = tmp_path / "empty.db"
    path.touch()
    with pytest.raises(ConfigurationError, match="there is no haulier store at"):
        await looking(f"sqlite:///{path}").__aenter__()
    assert [each.name for each in tmp_path.iterdir()] == ["empty.db"]
    assert path.stat().st_size == 0


async def test_a_schema_that_an_administrator_made_stays_empty():
    with servers.or_skip():
        server, schema = servers.server_url("postgres"), f"t{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as db, contextlib.ExitStack() as after:
        db.execute(f"CREATE SCHEMA {schema}")
        after.callback(db.execute, f"DROP SCHEMA {schema} CASCADE")
        with pytest.raises(ConfigurationError, match="there is no haulier store at"):
            await looking(f"{server}?schema={schema}").__aenter__()
        asked = "SELECT count(*) FROM pg_class WHERE relnamespace = %s::regnamespace"
        assert db.execute(asked, [schema]).fetchone() == (0,)
