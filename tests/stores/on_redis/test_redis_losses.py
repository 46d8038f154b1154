"""Acknowledged writes that a crash or a failover loses."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

import servers
from haulier.domain.job import JobState
from haulier.domain.moves import Move
from haulier.exceptions import (
    StoreError,
    StoreUnavailableError,
)
from haulier.ports import JobFilter
from haulier.stores.redis import RedisStore
from redis_keys import Keyspace, check
from support import Hand, move, wait_until, work, works


def admin(server: servers.Server) -> redis.Redis:
    return redis.Redis(port=server.port, decode_responses=True)


class TestLostHistory:
    """Acknowledged writes that a crash or a failover loses are noticed, and do no further harm."""

    @contextlib.contextmanager
    def thrown_back(self, server: servers.Server) -> Iterator[Path]:
        """Within the block the server goes on; after it, it is as it was before."""
        control = admin(server)
        control.config_set("appendfsync", "always")
        kept = server.folder.parent / f"{server.folder.name}-kept"
        server.kill()
        shutil.copytree(server.folder / "appendonlydir", kept)
        server.start()
        try:
            yield kept
            server.kill()
            shutil.rmtree(server.folder / "appendonlydir")
            shutil.copytree(kept, server.folder / "appendonlydir")
            server.start()
        finally:
            shutil.rmtree(kept)

    async def test_it_is_reported_and_readers_and_leases_begin_anew(self, server):
        async with RedisStore(server.url) as store:
            hand = await Hand.enlist(store)
            before = works(6)
            await store.insert(before)
            held = await hand.claim(2)
            cursor = await store.last_event()
            with capture_logs() as lines:
                with self.thrown_back(server):
                    with contextlib.suppress(StoreError):
                        await store.counts()
                    lost = works(3)
                    await store.insert(lost)
                    await hand.hand_in(held[0], Move.COMPLETE)
                    (zombie,) = await hand.claim(1)
                reply = await wait_until(lambda: self.served(hand, slots=9))
            # Inserts, a completion and a claim: five events.
            assert [loss.events for loss in store.losses] == [5]
            (line,) = [each for each in lines if each["log_level"] == "error"]
            assert line["events_lost"] == 5
            assert not reply.alive
            (reset,) = await store.events(after=cursor)
            assert reset.type == "reset"

            assert await store.sweep() == 2
            jobs = {job.id: job for job in await self.rest(store)}
            assert jobs.keys() == {job.id for job in before}
            assert {job.state for job in jobs.values()} == {JobState.PENDING}
            assert {job.lost for job in jobs.values()} == {0}

            other = await Hand.enlist(store)
            again = {job.id: job for job in await other.claim(9)}
            assert again.keys() == jobs.keys()
            # The number it was claimed by in what is lost does not come again.
            assert again[zombie.id].lease > zombie.lease + 1000
            for old in (*held, zombie):
                assert not await hand.hand_in(old, Move.COMPLETE)
            assert await other.exchange(*(move(job, Move.COMPLETE) for job in again.values()))
            states = {job.state for job in await self.rest(store)}
            assert states == {JobState.COMPLETED}
            with admin(server) as control:
                check(Keyspace(control, "haulier:"))

    async def served(self, hand, **options):
        try:
            return await hand.exchange(**options)
        except StoreUnavailableError:
            return None

    async def rest(self, store):
        return (await store.find(JobFilter(), limit=100)).jobs

    async def test_it_is_noticed_although_others_have_written_since(self, server):
        async with RedisStore(server.url) as store:
            await store.insert(works(2))
            with capture_logs():
                with self.thrown_back(server):
                    with contextlib.suppress(StoreError):
                        await store.counts()
                    await store.insert(works(2))
                async with RedisStore(server.url) as stranger:
                    await stranger.insert(works(30))
                    assert stranger.losses == ()
                await wait_until(lambda: self.counted(store))
            assert [loss.events for loss in store.losses] == [None]

    async def counted(self, store):
        with contextlib.suppress(StoreUnavailableError):
            await store.counts()
            return True

    async def test_of_several_that_notice_it_one_begins_the_new_history(self, server):
        async with RedisStore(server.url) as one, RedisStore(server.url) as two:
            with capture_logs():
                with self.thrown_back(server):
                    for store in (one, two):
                        with contextlib.suppress(StoreError):
                            await store.counts()
                        await store.insert(works(2))
                    await one.insert(works(1))
                for store in (one, two):
                    await wait_until(lambda store=store: self.counted(store))
                    await store.insert([work()])
            assert [loss.events for loss in one.losses] == [5]
            assert [loss.events for loss in two.losses] == [None]
            assert (await one.last_event()) == (await two.last_event())

    async def test_of_two_that_hold_a_job_by_one_number_only_the_later_finishes_it(self, server):
        """One claimed it in what is lost, the other before the loss was noticed."""
        async with RedisStore(server.url) as old, RedisStore(server.url) as other:
            hand = await Hand.enlist(old)
            young = await Hand.enlist(other)
            await other.insert([work(), work()])
            with capture_logs():
                with self.thrown_back(server):
                    await wait_until(lambda: self.counted(old))
                    zombies = await hand.claim(2)
                await wait_until(lambda: self.counted(other))
                claims = await young.claim(2)
                assert [each.lease for each in zombies] == [each.lease for each in claims]
                await wait_until(lambda: self.counted(old))
                moves = move(zombies[0], Move.COMPLETE), move(zombies[1], Move.FAIL)
                assert len((await hand.exchange(*moves)).lost) == 2
                assert await young.hand_in(claims[0], Move.COMPLETE)
                assert await other.sweep() == 1
            states = {job.id: job.state for job in await self.rest(old)}
            assert states == {
                claims[0].id: JobState.COMPLETED,
                claims[1].id: JobState.PENDING,
            }
            with admin(server) as control:
                check(Keyspace(control, "haulier:"))

    async def test_so_is_a_store_that_was_emptied(self, server):
        async with RedisStore(server.url) as store:
            await store.insert(works(3))
            with capture_logs():
                admin(server).flushall()
                await store.insert(works(2))
            assert [loss.events for loss in store.losses] == [3]
            assert (await store.last_event()).endswith(":2")

    async def test_a_new_store_has_lost_nothing(self, store):
        await store.insert(works(3))
        assert store.losses == ()


class Sentinel(servers.Server):
    """Watches one primary, and makes its replica the primary when it is gone."""

    def __init__(self, binary: Path, primary: servers.Server) -> None:
        super().__init__("sentinel")
        self._binary = binary
        self.url = f"redis+sentinel://127.0.0.1:{self.port}/main/0"
        self.config = self.folder / "sentinel.conf"
        self.config.write_text(
            f"port {self.port}\n"
            "bind 127.0.0.1\n"
            f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds main 300\n"
            "sentinel failover-timeout main 2000\n"
        )

    def _command(self) -> list[str]:
        return [str(self._binary), str(self.config), "--sentinel"]

    def _answers(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=2) as control:
            try:
                return bool(control.ping())
            except redis.RedisError:
                return False


class TestFailover:
    """Sentinel puts a replica in the place of a primary that is gone."""

    @pytest.fixture
    def primary(self) -> Iterator[servers.Server]:
        with servers.or_skip(), servers.private("redis") as started:
            # It would wait five seconds for further replicas.
            admin(started).config_set("repl-diskless-sync-delay", "0")
            yield started

    @pytest.fixture
    def replica(self, primary: servers.Server) -> Iterator[servers.Server]:
        made = servers.RedisServer("redis", servers.machine_redis())
        try:
            made.start()
            admin(made).replicaof("127.0.0.1", str(primary.port))
            yield made
        finally:
            made.stop()

    @pytest.fixture
    def sentinel(self, primary, replica) -> Iterator[Sentinel]:
        made = Sentinel(servers.machine_redis(), primary)
        try:
            made.start()
            yield made
        finally:
            made.stop()

    def knows_replica(self, sentinel: Sentinel) -> bool:
        with redis.Redis(port=sentinel.port, decode_responses=True) as control:
            found = control.execute_command("SENTINEL", "REPLICAS", "main")
        return any("slave" in str(each) and "s_down" not in str(each) for each in found)

    async def test_a_replica_is_no_store(self, primary, replica):
        async with RedisStore(primary.url):
            pass
        await wait_until(lambda: admin(replica).exists("haulier:history"))
        with pytest.raises(StoreUnavailableError, match="replica"):
            await RedisStore(replica.url).__aenter__()

    async def test_work_goes_on_with_the_new_primary(self, primary, replica, sentinel):
        await wait_until(lambda: self.knows_replica(sentinel))
        with capture_logs():
            async with RedisStore(sentinel.url, deadline=2) as store:
                hand = await Hand.enlist(store)
                heartbeat = store.heartbeat(hand.id)
                await store.insert(works(30))
                held = await hand.claim(10)
                assert heartbeat.renew().alive
                # What is not confirmed by the replica may be lost; here nothing is to be.
                assert admin(primary).execute_command("WAIT", 1, 10_000) == 1
                primary.kill()

                async def done() -> bool:
                    with contextlib.suppress(StoreUnavailableError):
                        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in held))
                        assert reply.lost == ()
                        return True
                    return False

                await wait_until(done, timeout=30)
                assert await hand.work_off() == 20
                with pytest.raises(StoreUnavailableError):
                    # Its own connection led to the old one.
                    heartbeat.renew()
                assert heartbeat.renew().alive
                heartbeat.close()
                counts = await store.counts()
                assert {state: n for (*_, state), n in counts.items()} == {JobState.COMPLETED: 30}
                assert store.losses == ()

    async def test_what_the_replica_had_not_received_is_reported(self, primary, replica, sentinel):
        await wait_until(lambda: self.knows_replica(sentinel))
        with capture_logs():
            async with RedisStore(sentinel.url, deadline=2) as store:
                await store.insert(works(5))
                assert admin(primary).execute_command("WAIT", 1, 10_000) == 1
                # The primary drops what it writes for a replica that does not take it, and the
                # replica's own part of the connection is cut.
                control = admin(primary)
                control.config_set("client-output-buffer-limit", "replica 1 1 1")
                control.config_set("repl-backlog-size", "16kb")
                replica.pause()
                try:
                    big = b'{"x":"' + b"y" * 200_000 + b'"}'
                    while control.info("replication")["connected_slaves"]:
                        await store.insert(works(5, payload=big))
                    await store.insert(works(3))
                    lost = await store.last_event()
                    primary.kill()
                finally:
                    replica.unpause()
                await wait_until(lambda: self.counted(store), timeout=30)
                (loss,) = store.losses
                counts = await store.counts()
                left = sum(counts.values())
                assert loss.events >= 3
                assert loss.events == int(lost.partition(":")[2]) - left

    async def counted(self, store: RedisStore) -> bool:
        with contextlib.suppress(StoreUnavailableError):
            await store.counts()
            return True
        return False
