"""What only one kind of store can have wrong, and how a look finds it."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
import redis

import servers
from haulier.domain.finding import Level
from haulier.domain.unique import Uniqueness
from haulier.services.transfer import End, copy
from haulier.stores import open_store
from haulier.stores.redis.check import PROBES
from haulier.stores.redis.scripts import PARTS, script
from support import STORE_HOMES, Hand, wait_until, work

DOCS = Path(__file__).parents[2] / "docs"


async def found(url):
    async with open_store(url) as store:
        return {each.name: each for each in await store.check()}


class TestPostgres:
    ROLE = "haulier_worker"

    @pytest.fixture(params=["postgres", "postgres-wheel"])
    def home(self, request, tmp_path):
        with servers.or_skip():
            return STORE_HOMES[request.param](tmp_path)

    @pytest.fixture
    def admin(self, home):
        with psycopg.connect(servers.server_url(home.server), autocommit=True) as connection:
            yield connection

    @pytest.fixture
    def worker_url(self, home, admin):
        """The URL of a role that owns nothing and reads and writes rows."""
        admin.execute(f"CREATE ROLE {self.ROLE} LOGIN")
        admin.execute(f"GRANT USAGE ON SCHEMA haulier TO {self.ROLE}")
        rows = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES"
        admin.execute(f"GRANT {rows} IN SCHEMA haulier TO {self.ROLE}")
        admin.execute(
            f"GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA haulier TO {self.ROLE}"
        )
        yield home.url.replace("haulier@", f"{self.ROLE}@")
        admin.execute(f"DROP OWNED BY {self.ROLE}; DROP ROLE {self.ROLE}")

    async def test_a_server_that_does_not_sync_is_a_problem(self, home, admin):
        (fsync,) = admin.execute("SHOW fsync").fetchone()
        durability = (await found(home.url))["durability"]
        expected = Level.PROBLEM if fsync == "off" else Level.OK
        assert (durability.level, f"fsync={fsync}" in durability.what) == (expected, True)

    async def test_a_superuser_is_told_of(self, home):
        rights = (await found(home.url))["rights"]
        assert (rights.level, rights.what) == (Level.WARNING, "haulier is a superuser")

    async def test_a_workers_role_can_work_and_cannot_change_the_schema(self, worker_url):
        findings = await found(worker_url)
        assert findings["rights"].level is Level.OK, findings["rights"]
        async with open_store(worker_url) as store:
            await store.insert([work()])
            hand = await Hand.enlist(store)
            assert await hand.work_off() == 1

    async def test_a_missing_right_is_named(self, worker_url, admin):
        admin.execute(f"REVOKE UPDATE ON haulier.batches FROM {self.ROLE}")
        rights = (await found(worker_url))["rights"]
        assert (rights.level, rights.what) == (
            Level.PROBLEM,
            f"{self.ROLE} lacks UPDATE on batches",
        )

    async def test_a_missing_index_is_named(self, home, admin):
        definition = admin.execute(
            "SELECT pg_get_indexdef('haulier.jobs_ready'::regclass)"
        ).fetchone()[0]
        admin.execute("DROP INDEX haulier.jobs_ready")
        try:
            indexes = (await found(home.url))["indexes"]
            assert (indexes.level, "jobs_ready" in indexes.what) == (Level.PROBLEM, True)
        finally:
            admin.execute(definition)
        assert (await found(home.url))["indexes"].level is Level.OK

    async def test_counters_that_do_not_agree_are_a_problem(self, home, admin):
        async with home.client(real_time=True) as store:
            await store.insert([work()])
            await store.last_event()
        admin.execute("UPDATE haulier.counts SET n = n + 1")
        counters = (await found(home.url))["counters"]
        assert (counters.level, counters.what) == (
            Level.PROBLEM,
            "1 jobs, and 2 by the counters",
        )

    async def test_the_clock_is_compared(self, home):
        clock = (await found(home.url))["clock"]
        assert clock.level is Level.OK
        assert clock.what.startswith("the store's is 0.0")


class TestRedis:
    USER, PASSWORD = "limited", "p4ss"

    @pytest.fixture(params=["redis", "valkey"])
    def home(self, request, tmp_path):
        with servers.or_skip():
            return STORE_HOMES[request.param](tmp_path)

    @pytest.fixture
    def admin(self, home):
        with redis.Redis.from_url(home.server, decode_responses=True) as client:
            yield client

    @pytest.fixture
    def limited(self, home, admin):
        """Makes a user with these rights; the URL that names it."""

        def make(*rights):
            keys = (f"~{home.prefix}*", f"&{home.prefix}*")
            admin.execute_command(
                *("ACL", "SETUSER", self.USER, "reset", "on", f">{self.PASSWORD}", *keys, *rights)
            )
            return home.url.replace("redis://", f"redis://{self.USER}:{self.PASSWORD}@")

        yield make
        admin.execute_command("ACL", "DELUSER", self.USER)

    def test_every_command_of_the_scripts_is_tried(self):
        text = "\n".join(script(verb).source.decode() for verb in PARTS)
        used = set(re.findall(r"(?:call|many)\('([A-Z]+)'", text))
        assert len(used) > 30
        assert used - {command.split()[0] for command, *_ in PROBES} == {"TIME"}

    async def test_the_default_user_is_told_of(self, home):
        rights = (await found(home.url))["rights"]
        assert (rights.level, rights.what) == (
            Level.WARNING,
            "default may administer the server",
        )

    async def test_the_documented_user_can_work_and_copy_and_not_administer(self, home, limited):
        text = (DOCS / "stores.md").read_text()
        documented = re.search(r"ACL SETUSER haulier (.*?)```", text, re.DOTALL)[1].split()
        url = limited(*(right for right in documented if right[0] in "+-"))
        findings = await found(url)
        assert findings["rights"].level is Level.OK, findings["rights"]
        assert findings["version"].level is Level.OK
        async with open_store(url) as store, home.beside("other").client() as other:
            await store.insert([work(), work(unique=(Uniqueness("n"),))])
            hand = await Hand.enlist(store)
            assert await hand.work_off() == 2
            await store.retire(hand.id)
            await copy(End(store, "from"), End(other, "to"), keep_source=True)

    async def test_a_missing_right_is_named(self, limited):
        rights = (await found(limited("+@all", "-xadd", "-zpopmin")))["rights"]
        assert (rights.level, rights.what) == (
            Level.PROBLEM,
            f"{self.USER} may not use ZPOPMIN, XADD",
        )

    async def test_what_may_not_be_asked_is_said(self, limited):
        findings = await found(limited("+@all", "-@admin", "-info"))
        assert findings["version"].level is Level.WARNING
        assert findings["durability"].level is Level.WARNING

    async def test_settings_that_lose_jobs_are_problems(self, tmp_path):
        with servers.or_skip(), servers.private("redis") as server:
            url = f"{server.url}?prefix=x:"
            with redis.Redis.from_url(server.url) as admin:
                assert (await found(url))["durability"].level is Level.OK
                async with open_store(url) as store:
                    admin.config_set("maxmemory-policy", "allkeys-lru")
                    admin.config_set("appendonly", "no")
                    findings = {each.name: each for each in await store.check()}
        assert findings["eviction"].level is Level.PROBLEM
        assert findings["durability"].level is Level.PROBLEM

    async def test_refused_entries_of_an_inbox_are_told_of(self, home, admin):
        admin.rpush(f"{home.prefix}inbox:default", "nonsense")
        async with home.client(real_time=True) as store:
            hand = await Hand.enlist(store)

            async def refused():
                await hand.claim()
                return admin.exists(f"{home.prefix}rejected")

            await wait_until(refused)
            (inboxes,) = (each for each in await store.check() if each.name == "inboxes")
        assert (inboxes.level, inboxes.what) == (Level.WARNING, "0 entries wait, 1 were refused")

    async def test_nothing_is_left_of_the_look(self, home, admin):
        async with home.client(real_time=True) as store:
            before = set(admin.scan_iter(f"{home.prefix}*"))
            await store.check()
            assert set(admin.scan_iter(f"{home.prefix}*")) == before
