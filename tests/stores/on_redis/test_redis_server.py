"""Servers that restart, stall, fill up, or are not fit for jobs; and users with few rights."""

from __future__ import annotations

import asyncio

import pytest
import redis
from structlog.testing import capture_logs

import servers
from haulier.domain.job import JobState
from haulier.domain.moves import Move
from haulier.domain.retention import Keep, Retention
from haulier.domain.unique import Scope, Uniqueness
from haulier.exceptions import (
    ConfigurationError,
    StoreClosedError,
    StoreFullError,
    StoreUnavailableError,
)
from haulier.stores import open_store
from haulier.stores.redis import RedisStore
from support import Hand, filled_batch, move, wait_until, work, works

SECRET = "s3cret-word"


def admin(server: servers.Server) -> redis.Redis:
    return redis.Redis(port=server.port, decode_responses=True)


class TestServer:
    """Servers that restart, stall, fill up, or are not fit for jobs."""

    async def opened(self, server, **options) -> RedisStore:
        return await RedisStore(server.url, **options).__aenter__()

    @pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
    async def test_one_that_throws_keys_away_is_refused(self, server, policy):
        admin(server).config_set("maxmemory-policy", policy)
        with pytest.raises(ConfigurationError, match=f"maxmemory-policy {policy}"):
            await self.opened(server)

    async def test_one_without_append_only_file_is_warned_of_unless_that_is_meant(self, server):
        admin(server).config_set("appendonly", "no")
        for url, warnings in ((server.url, 1), (f"{server.url}?durability=none", 0)):
            with capture_logs() as lines:
                async with open_store(url):
                    pass
            assert len(lines) == warnings
            assert all("append-only" in line["event"] for line in lines)

    async def test_a_full_one_takes_no_more_jobs_but_those_it_has_are_worked_off(self, server):
        with capture_logs():
            async with await self.opened(server) as store:
                hand = await Hand.enlist(store)
                await store.insert(works(50))
                control = admin(server)
                control.config_set("maxmemory", "1mb")
                with pytest.raises(StoreFullError):
                    await store.insert([work()])
                running = await hand.claim(5)
                await store.cancel([running[0].id])
                await hand.exchange(*(move(job, Move.COMPLETE) for job in running))
                assert await hand.work_off() == 45
                nothing = Keep(count=0)
                rule = Retention(completed=nothing, cancelled=nothing)
                assert await store.prune({"work": rule}) == 50
                assert await store.counts() == {}
                control.config_set("maxmemory", "0")
                await store.insert([work()])

    async def test_scripts_that_the_server_has_lost_are_given_to_it_again(
        self, store, hand, client
    ):
        await store.insert(works(2))
        client.script_flush()
        job = await hand.claim_one()
        client.script_flush()
        assert hand.renew().alive
        client.script_flush()
        await hand.hand_in(job, Move.COMPLETE)
        assert (await store.get(job.id)).state is JobState.COMPLETED

    async def test_after_its_restart_nothing_acknowledged_is_lost_and_claims_go_on(self, server):
        admin(server).config_set("appendfsync", "always")
        async with await self.opened(server, deadline=2) as store:
            hand = await Hand.enlist(store)
            await store.insert(works(20))
            held = await hand.claim(5)
            heartbeat = store.heartbeat(hand.id)
            assert heartbeat.renew().alive
            server.kill()
            with pytest.raises(StoreUnavailableError):
                await store.insert([work()])
            with pytest.raises(StoreUnavailableError):
                heartbeat.renew()
            server.start()
            async with asyncio.timeout(5):
                reply = await hand.exchange(*(move(j, Move.COMPLETE) for j in held), slots=20)
            assert (len(reply.jobs), reply.lost, reply.alive) == (15, (), True)
            assert heartbeat.renew().alive
            heartbeat.close()
            assert store.losses == ()

    async def test_a_stalled_one_costs_a_caller_its_deadline_and_nobody_gets_another_ones_answer(
        self, server
    ):
        async with await self.opened(server, deadline=0.3) as store:
            jobs = works(5)
            await store.insert(jobs)
            server.pause()
            try:
                with pytest.raises(StoreUnavailableError, match="did not answer within"):
                    await store.get(jobs[0].id)
                with pytest.raises(StoreUnavailableError):
                    await store.insert([work()])
            finally:
                server.unpause()
            for job in jobs:
                assert (await store.get(job.id)).id == job.id

    async def test_a_cancelled_call_never_hands_its_answer_to_another(self, store):
        jobs = works(40)
        await store.insert(jobs)
        for turn in range(200):
            task = asyncio.create_task(store.get(jobs[turn % 40].id))
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            wanted = jobs[(turn + 1) % 40].id
            assert (await store.get(wanted)).id == wanted

    async def test_a_closed_one_says_so_and_can_be_opened_again(self, home):
        store = home.client()
        with pytest.raises(StoreClosedError):
            await store.get(work().id)
        for _ in range(2):
            async with store:
                await store.insert([work()])
            with pytest.raises(StoreClosedError):
                await store.counts()

    async def test_one_that_is_not_there_is_unavailable(self):
        store = RedisStore(f"redis://127.0.0.1:{servers.free_port()}/0")
        with pytest.raises(StoreUnavailableError, match="not reachable"):
            await store.__aenter__()

    async def test_a_unix_socket_will_do(self, tmp_path):
        with servers.or_skip():
            binary = servers.machine_redis()
        made = servers.RedisServer("redis", binary, unixsocket="s")
        try:
            made.start()
            async with open_store(f"unix://{made.folder}/s?db=3") as store:
                hand = await Hand.enlist(store)
                await store.insert(works(2))
                assert await hand.work_off() == 2
                assert hand.renew().alive
            assert redis.Redis(port=made.port, db=3).exists("haulier:history")
        finally:
            made.stop()

    async def test_a_cluster_wants_a_hash_tag_in_the_prefix(self):
        with servers.or_skip():
            binary = servers.machine_redis()
        # The default for the second port is beyond the last one for some of the first.
        settings = {"cluster-enabled": "yes", "cluster-port": str(servers.free_port())}
        made = servers.RedisServer("redis", binary, **settings)
        try:
            made.start()
            admin(made).execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await wait_until(lambda: admin(made).cluster("INFO")["cluster_state"] == "ok")
            with pytest.raises(ConfigurationError, match="hash tag"):
                await self.opened(made)
            async with open_store(f"{made.url}?prefix={{haulier}}:") as store:
                hand = await Hand.enlist(store)
                batch = await filled_batch(store, 5)
                assert await hand.work_off() == 5
                assert (await store.batch(batch)).settled
        finally:
            made.stop()

    async def test_what_one_pending_job_takes(self, store, client):
        """Stated in docs/stores.md; more than this would be news."""
        payload = b'{"account":"someone@example.org","text":"' + b"x" * 50 + b'"}'
        await store.insert([work(payload=payload) for _ in range(1000)])
        before = self.kept(client)
        for _ in range(9):
            await store.insert([work(payload=payload) for _ in range(1000)])
        assert 300 < (self.kept(client) - before) / 9000 < 900

    def kept(self, client) -> int:
        """Bytes of memory, without what is only on its way to the disk or to clients."""
        told = client.info("memory")
        buffers = ("mem_aof_buffer", "mem_clients_normal", "mem_clients_slaves")
        return told["used_memory"] - sum(told[buffer] for buffer in buffers)


class TestUsers:
    """A user that may do no more than the store needs."""

    def limited(self, server, *extra: str) -> str:
        control = admin(server)
        rules = [
            *("on", f">{SECRET}", "~haulier:*", "resetchannels", "&haulier:*", "-@all"),
            *("+@connection", "+evalsha", "+eval", "+script|load", "+subscribe", "+publish"),
            *("+@read", "+@write", "+time", "-@dangerous"),
            *extra,
        ]
        control.execute_command("ACL", "SETUSER", "worker", *rules)
        return f"redis://worker:{SECRET}@127.0.0.1:{server.port}/0"

    async def test_it_can_do_all_that_workers_and_producers_do(self, server):
        url = self.limited(server, "+info")
        with capture_logs() as lines:
            async with open_store(url) as store:
                hand = await Hand.enlist(store)
                told = asyncio.Event()
                with store.watch(told.set, ready=True):
                    batch = await filled_batch(store, 3)
                    await store.insert([work(unique=(Uniqueness("x", Scope.ACTIVE),))])
                    assert await hand.work_off() == 4
                    assert hand.renew().alive
                assert (await store.batch(batch)).settled
                assert len(await store.events()) > 5
                await store.delete(batch)
                await store.prune({"work": Retention(completed=Keep(count=0))})
                await store.sweep()
                await store.retire(hand.id)
        assert lines == []

    async def test_what_it_may_not_ask_is_said(self, server):
        with capture_logs() as lines:
            async with open_store(self.limited(server)) as store:
                await store.insert([work()])
        (line,) = lines
        assert "could not be checked" in line["event"]
        assert SECRET not in str(line)

    async def test_it_cannot_touch_what_is_not_the_stores(self, server):
        url = self.limited(server, "+info")
        with pytest.raises(ConfigurationError, match="does not let us in"):
            await RedisStore(f"{url}?prefix=other:").__aenter__()

    async def test_a_wrong_password_is_told_without_it(self, server):
        url = self.limited(server).replace(SECRET, "wrong-word")
        with pytest.raises(ConfigurationError, match=r"WRONGPASS|invalid") as caught:
            await RedisStore(url).__aenter__()
        assert "wrong-word" not in str(caught.value)
        assert "worker:***@" in str(caught.value)
        heartbeat = RedisStore(url).heartbeat(work().id)
        with pytest.raises(ConfigurationError) as caught:
            heartbeat.renew()
        assert "wrong-word" not in str(caught.value)
