"""Copies between stores of all kinds, and by a process that is killed on the way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import psycopg
import pytest
import redis
from conformance.transfer import busy, copied, everything, mark

import servers
from haulier.domain.transfer import Section, Stage
from haulier.exceptions import StoreFrozenError
from haulier.services.transfer import End, thaw
from processes import environment
from support import STORE_HOMES, Hand, wait_until, work, works

SHARED = [kind for kind in STORE_HOMES if kind != "sqlite-memory"]
"""Stores that a process can reach from outside."""

ROUND = [("sqlite-file", "postgres"), ("postgres", "redis"), ("redis", "sqlite-file")]
"""Every engine read once and written once."""

JOBS = 4000


@pytest.fixture
def homes(tmp_path):
    """Makes the homes of a source and a target of any kind."""

    def make(source_kind, target_kind):
        with servers.or_skip():
            source = STORE_HOMES[source_kind](tmp_path)
            if source_kind == target_kind:
                return source, source.beside("other")
            return source, STORE_HOMES[target_kind](tmp_path)

    return make


@pytest.mark.parametrize("target_kind", STORE_HOMES)
@pytest.mark.parametrize("source_kind", STORE_HOMES)
async def test_everything_arrives_whatever_the_two_stores_are(homes, source_kind, target_kind):
    home, other_home = homes(source_kind, target_kind)
    async with home.client() as source, other_home.client() as target:
        await busy(source, home.clock)
        before = await everything(source)
        done = await copied(source, target)
        assert await everything(target) == before
        assert done.tallies[Section.JOBS].count == len(before["jobs"])
        with pytest.raises(StoreFrozenError):
            await source.insert([work()])
        hand = await Hand.enlist(target)
        assert await hand.work_off()


@pytest.mark.parametrize(("source_kind", "target_kind"), ROUND)
async def test_a_copy_that_is_killed_again_and_again_arrives_whole(
    homes, source_kind, target_kind, tmp_path
):
    home, other_home = homes(source_kind, target_kind)
    async with home.client() as source, other_home.client() as target:
        await busy(source, home.clock)
        plain = works(JOBS)
        await source.insert(plain)
        before = await everything(source, plain=plain)
        for part in (0.2, 0.7):
            await _kill_a_copy(home, other_home, target, part * JOBS, tmp_path)
            found = (await target.transferable().standing()).mark
            assert found is None or found.stage is Stage.RECEIVING
        done = _copy(home, other_home, tmp_path)
        out, err = done.communicate(timeout=60)
        assert done.returncode == 0, err
        assert json.loads(out)["resumed"]
        assert await everything(target, plain=plain) == before


async def _kill_a_copy(home, other_home, target, jobs, folder) -> None:
    """Start a copy and kill it when so many jobs are there."""
    process = _copy(home, other_home, folder)
    try:
        await wait_until(lambda: _has(target, jobs), timeout=60)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


async def _has(target, jobs) -> bool:
    standing = await target.transferable().standing()
    return standing.mark is not None and standing.totals[Section.JOBS] >= jobs


def _copy(home, other_home, folder, target_url=None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "haulier", "store", "copy", "env:OLD", "env:NEW", "--json"],
        cwd=folder,
        env=environment(folder, OLD=home.url, NEW=target_url or other_home.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("target_kind", SHARED)
async def test_what_an_unfinished_copy_brought_is_thrown_away(homes, target_kind, tmp_path):
    home, other_home = homes("sqlite-file", target_kind)
    async with home.client() as source, other_home.client() as target:
        await busy(source, home.clock)
        await source.insert(works(JOBS))
        await _kill_a_copy(home, other_home, target, 0.5 * JOBS, tmp_path)
        assert await thaw(End(target, "store://to")) is Stage.RECEIVING
        standing = await target.transferable().standing()
        assert standing.empty
        assert standing.mark is None
        assert await target.counts() == {}
        await target.insert([job := work()])
        assert [found.id for found in await Hand.claim(await Hand.enlist(target), 5)] == [job.id]


async def test_no_password_is_shown(homes, tmp_path):
    """Not by the commands, and not in the mark that the other store keeps."""
    home, other_home = homes("sqlite-file", "postgres")
    secret = other_home.url.replace("haulier@", "haulier:s3cret@")
    async with home.client() as source, other_home.client() as target:
        await source.insert(works(2))
        done = _copy(home, other_home, tmp_path, secret)
        out, err = done.communicate(timeout=60)
        assert done.returncode == 0, err
        assert "haulier:***@" in out
        texts = [out, err]
        texts.append((await source.transferable().standing()).mark.to_text())
        with pytest.raises(StoreFrozenError) as caught:
            await source.insert(works(1))
        texts.append(str(caught.value))
        assert not any("s3cret" in text for text in texts)
        assert (await target.transferable().standing()).totals[Section.JOBS] == 2


class TestPostgres:
    """Transactions of others that are open while a store is frozen."""

    ENQUEUE = "SELECT {}.enqueue('work', '{{}}')"

    @pytest.fixture
    async def store(self, tmp_path):
        with servers.or_skip():
            self.home = STORE_HOMES["postgres"](tmp_path)
        async with self.home.client() as opened:
            yield opened

    @pytest.fixture
    def caller(self, store):
        url = servers.server_url("postgres")
        with psycopg.connect(url) as connection:
            yield connection

    async def test_a_freeze_waits_for_jobs_that_are_just_being_inserted(self, store, caller):
        caller.execute(self.ENQUEUE.format("haulier"))
        freezing = asyncio.create_task(store.transferable().freeze(mark(Stage.FROZEN)))
        await wait_until(lambda: self._waits(caller))
        assert not freezing.done()
        caller.commit()
        standing = await freezing
        assert standing.totals[Section.JOBS] == 1
        with pytest.raises(psycopg.Error, match="is being copied to store://peer"):
            caller.execute(self.ENQUEUE.format("haulier"))

    async def test_a_transaction_that_sees_an_earlier_state_is_refused_too(self, store, caller):
        caller.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        caller.execute("SELECT count(*) FROM haulier.jobs")
        await store.transferable().freeze(mark(Stage.FROZEN))
        with pytest.raises(psycopg.Error, match="is being moved to another one"):
            caller.execute(self.ENQUEUE.format("haulier"))
        caller.rollback()
        await store.transferable().thaw()
        caller.execute("SELECT count(*) FROM haulier.jobs")
        caller.execute(self.ENQUEUE.format("haulier"))

    def _waits(self, caller) -> bool:
        found = caller.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
        return found[0] > 0


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_what_waits_in_an_inbox_is_copied_too(homes, kind):
    home, other_home = homes(kind, "sqlite-file")
    with redis.Redis.from_url(servers.server_url(kind)) as producer:
        for number in range(3):
            entry = json.dumps({"kind": "work", "payload": {"n": number}})
            producer.rpush(f"{home.prefix}inbox:default", entry)
    async with home.client() as source, other_home.client() as target:
        await copied(source, target)
        payloads = [job.payload for job in await Hand.claim(await Hand.enlist(target), 5)]
        assert payloads == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
