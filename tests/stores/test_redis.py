"""What only a Redis store has: its server, its keys, inboxes, channels, and what a failover loses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

import servers
from haulier.domain.ids import uuid7
from haulier.domain.job import MICROSECOND, JobState, OnLost
from haulier.domain.moves import Move
from haulier.domain.retention import Keep, Retention
from haulier.domain.unique import Scope, Uniqueness
from haulier.exceptions import (
    ConfigurationError,
    StoreClosedError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from haulier.ports import JobFilter
from haulier.stores import open_store
from haulier.stores.redis import RedisStore
from haulier.stores.redis.address import Address
from haulier.stores.redis.keys import KEYS, family_of
from redis_keys import Keyspace, check
from support import TTL, Hand, RedisPrefix, filled_batch, move, wait_until, work, works

SECRET = "s3cret-word"
BOTH = ["redis", "valkey"]


@pytest.fixture(params=BOTH)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> RedisPrefix:
    with servers.or_skip():
        return RedisPrefix(request.param, tmp_path)


@pytest.fixture
def client(home: RedisPrefix) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(home.server, decode_responses=True) as opened:
        yield opened


@pytest.fixture(params=BOTH)
def server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """One for the test alone."""
    with servers.or_skip(), servers.private(request.param) as started:
        yield started


def admin(server: servers.Server) -> redis.Redis:
    return redis.Redis(port=server.port, decode_responses=True)


class TestInbox:
    """Producers of any language push JSON; workers move it into the queue."""

    def push(self, client, home, *entries, queue="default") -> None:
        texts = [e if isinstance(e, str | bytes) else json.dumps(e) for e in entries]
        client.rpush(f"{home.prefix}inbox:{queue}", *texts)

    def rejected(self, client, home) -> list[dict]:
        return [json.loads(text) for text in client.lrange(f"{home.prefix}rejected", 0, -1)]

    async def claimed(self, hand, count=1):
        jobs = []

        async def enough() -> bool:
            jobs.extend(await hand.claim(9))
            return len(jobs) >= count

        await wait_until(enough)
        return jobs

    async def test_what_is_pushed_is_claimed_as_a_job(self, store, hand, home, client, clock):
        job_id = uuid7(1_700_000_000_000, bytes(10))
        entry = {
            "kind": "work",
            "payload": {"name": "Zoë"},
            "id": job_id,
            "priority": 3,
            "key": "account-7",
            "version": 2,
            "on_lost": "fail",
            "retry": {"max_attempts": 9},
        }
        self.push(client, home, entry)
        (job,) = await self.claimed(hand)
        assert (job.id, job.kind, job.queue, job.priority) == (job_id, "work", "default", 3)
        assert json.loads(job.payload) == {"name": "Zoë"}
        assert (job.key, job.version, job.on_lost) == ("account-7", 2, OnLost.FAIL)
        assert job.retry.max_attempts == 9
        assert client.exists(f"{home.prefix}inbox:default") == 0

    async def test_one_without_an_id_gets_one(self, store, hand, home, client):
        self.push(client, home, *[{"kind": "work", "payload": {}}] * 2)
        jobs = await self.claimed(hand, 2)
        assert len({job.id for job in jobs}) == 2

    async def test_a_repeated_id_is_harmless(self, store, hand, home, client):
        entry = {"kind": "work", "payload": {}, "id": uuid7(1_700_000_000_000, bytes(10))}
        self.push(client, home, entry, entry)
        (job,) = await self.claimed(hand)
        await hand.hand_in(job, Move.COMPLETE)
        self.push(client, home, entry)
        await hand.exchange(slots=5)
        await wait_until(lambda: not client.exists(f"{home.prefix}inbox:default"))
        assert await hand.claim(5) == []
        assert (await store.get(job.id)).state is JobState.COMPLETED
        assert self.rejected(client, home) == []

    async def test_delay_and_run_at_are_kept(self, store, hand, home, client, clock):
        self.push(
            client,
            home,
            {"kind": "work", "payload": {"n": 1}, "delay": 30.5},
            {"kind": "work", "payload": {"n": 2}, "run_at": "2099-01-01T00:00:00+01:00"},
        )
        await hand.exchange(slots=1)
        await wait_until(lambda: client.zcard(f"{home.prefix}top") == 2)
        first, second = (await store.find(JobFilter(), oldest_first=True)).jobs
        assert first.run_at == clock.now() + 30_500_000
        assert second.run_at == 4_070_905_200 * MICROSECOND

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            ("no json", "is not JSON"),
            ("[1]", "is not an object"),
            ('{"kind":"work","payload":{"x":NaN}}', "is not JSON"),
            (b"\xff\xfe", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ({"kind": "work"}, "needs a kind and a payload"),
            ({"kind": "a b", "payload": {}}, "kind: is not a dotted name"),
            ({"kind": "work", "payload": []}, "payload: is not an object"),
            ({"kind": "work", "payload": {"x": "y" * 300_000}}, "payload: is 300,"),
            ({"kind": "work", "payload": {}, "batch_id": "x"}, "unknown fields: batch_id"),
            ({"kind": "work", "payload": {}, "priority": "high"}, "priority: is not a whole"),
            ({"kind": "work", "payload": {}, "priority": True}, "priority: is not a whole"),
            ({"kind": "work", "payload": {}, "delay": -1}, "delay: is not a number of seconds"),
            ({"kind": "work", "payload": {}, "run_at": "2030-01-01T00:00:00"}, "run_at: is not"),
            ({"kind": "work", "payload": {}, "run_at": 5}, "run_at: is not"),
            (
                {"kind": "work", "payload": {}, "delay": 1, "run_at": "2030-01-01T00:00:00Z"},
                "delay and run_at",
            ),
            ({"kind": "work", "payload": {}, "id": "x"}, "id: is not a UUID"),
            ({"kind": "work", "payload": {}, "id": 7}, "id: is not a UUID"),
            ({"kind": "work", "payload": {}, "key": ""}, "key: is not a text"),
            ({"kind": "work", "payload": {}, "on_lost": "x"}, "on_lost: is neither"),
            ({"kind": "work", "payload": {}, "retry": {"max_attempts": 0}}, "retry: "),
            ({"kind": "work", "payload": {}, "retry": 3}, "retry: "),
        ],
    )
    async def test_what_is_no_job_is_kept_aside_with_its_reason(
        self, store, hand, home, client, clock, entry, reason
    ):
        self.push(client, home, entry, {"kind": "work", "payload": {}})
        (job,) = await self.claimed(hand)
        assert job.kind == "work"
        (kept,) = self.rejected(client, home)
        assert kept["reason"].startswith(reason)
        assert (kept["queue"], kept["at"]) == ("default", clock.now())
        assert len(kept["entry"]) <= 2000

    async def test_payloads_nested_too_deeply_are_refused(self, store, hand, home, client):
        for depth in (32, 33):
            payload: object = {}
            for _ in range(depth - 1):
                payload = {"x": payload}
            self.push(client, home, {"kind": "work", "payload": payload})
        (job,) = await self.claimed(hand)
        assert job.payload.count(b"{") == 32
        (kept,) = self.rejected(client, home)
        assert "nested" in kept["reason"]

    async def test_the_refused_are_logged_without_what_is_in_them(self, store, hand, home, client):
        with capture_logs() as lines:
            self.push(client, home, {"kind": "work", "secret": SECRET})
            await hand.exchange(slots=1)
            await wait_until(lambda: self.rejected(client, home))
            await wait_until(lambda: lines)
        assert SECRET not in str(lines)
        assert {line["event"] for line in lines} == {"entries of an inbox were refused"}

    async def test_only_the_latest_thousand_are_kept_aside(self, store, hand, home, client):
        self.push(client, home, *["x"] * 1200)
        await hand.exchange(slots=1)
        await wait_until(lambda: not client.exists(f"{home.prefix}inbox:default"))
        assert client.llen(f"{home.prefix}rejected") == 1000

    async def test_inboxes_of_other_queues_and_prefixes_are_left_alone(
        self, store, hand, home, client
    ):
        other = f"x{home.prefix}inbox:default"
        client.rpush(other, '{"kind":"work","payload":{}}')
        self.push(client, home, {"kind": "work", "payload": {}}, queue="night")
        try:
            assert await hand.claim(9) == []
            assert client.llen(other) == 1
            assert client.llen(f"{home.prefix}inbox:night") == 1
        finally:
            client.delete(other)

    async def test_many_workers_that_look_at_once_move_each_entry_once(
        self, store, home, client, ttl
    ):
        self.push(client, home, *({"kind": "work", "payload": {"n": n}} for n in range(500)))
        async with home.client(ttl=ttl) as other:
            hands = [await Hand.enlist(each) for each in (store, other, store)]
            seen: list[int] = []

            async def take(hand: Hand) -> None:
                while len(seen) < 500:
                    jobs = await hand.claim(20)
                    seen.extend(json.loads(job.payload)["n"] for job in jobs)

            await asyncio.wait_for(asyncio.gather(*map(take, hands)), 30)
        assert sorted(seen) == list(range(500))

    async def test_an_idle_worker_notices_within_about_a_second(self, store, hand, home, client):
        """Without any exchange meanwhile: what it watches looks into the inboxes of its queues."""
        await hand.exchange(slots=1)
        woken = asyncio.Event()
        with store.watch(woken.set, ready=True):
            self.push(client, home, {"kind": "work", "payload": {}})
            async with asyncio.timeout(3):
                await woken.wait()
        assert len(await hand.claim(1)) == 1


class TestWatching:
    """What a person sees with redis-cli."""

    def cli(self, home: RedisPrefix, *command: str) -> str:
        tool = shutil.which("redis-cli")
        if tool is None:
            pytest.skip("redis-cli is not installed")
        run = subprocess.run(
            [tool, "-u", home.server, *command], capture_output=True, text=True, check=True
        )
        return run.stdout

    async def test_health_keys_are_there_while_their_worker_lives(self, store, home, client, ttl):
        hand = await Hand.enlist(store)
        pattern = f"{home.prefix}worker:health:*"
        key = f"{home.prefix}worker:health:{hand.id}"
        assert self.cli(home, "KEYS", pattern).split() == [key]
        assert self.cli(home, "GET", key).strip() == "here:1"
        client.pexpire(key, 1000)
        assert hand.renew().alive
        assert ttl - 2 < client.pttl(key) / 1000 <= ttl
        await store.retire(hand.id)
        assert self.cli(home, "KEYS", pattern).split() == []

    async def test_the_health_key_of_a_worker_that_does_not_renew_expires(self, home, client):
        async with home.client(ttl=0.2) as short:
            hand = await Hand.enlist(short)
            key = f"{home.prefix}worker:health:{hand.id}"
            assert client.exists(key)
            await wait_until(lambda: not client.exists(key))

    async def test_changes_are_published_as_json(self, store, hand, home, client, clock):
        with client.pubsub() as heard:
            heard.subscribe(f"{home.prefix}events")
            await store.insert(works(3))
            await hand.work_off()
            await store.insert([work(queue="night")])
            told = []

            def all_told() -> bool:
                message = heard.get_message(ignore_subscribe_messages=True)
                if message:
                    told.append(json.loads(message["data"]))
                return len(told) == 4

            await wait_until(all_told)
        assert {message["at"] for message in told} == {clock.now()}
        inserted, claimed, completed, single = (m["events"][0] for m in told)
        assert inserted == {
            "type": "insert",
            "n": 3,
            "queue": "default",
            "kind": "work",
            "role": "single",
            "last": 3,
        }
        assert (claimed["type"], claimed["n"], claimed["worker"]) == ("claim", 3, hand.id)
        assert (completed["type"], completed["last"]) == ("complete", 9)
        assert (single["n"], single["queue"]) == (1, "night")
        assert (await store.get(single["job"])).queue == "night"

    async def test_a_lost_listener_is_opened_again_and_what_it_missed_is_told(
        self, store, home, client, ttl
    ):
        async with home.client(ttl=ttl) as other:
            told: list[int] = []
            with store.watch(lambda: told.append(1), ready=True, events=True):
                await other.insert([work()])
                await wait_until(lambda: told)
                channel = f"{home.prefix}events"
                await wait_until(lambda: client.pubsub_numsub(channel)[0][1] == 1)
                with capture_logs():
                    client.client_kill_filter(_type="pubsub")
                    told.clear()
                    await other.insert([work()])
                    await wait_until(lambda: told)
                    await wait_until(lambda: client.pubsub_numsub(channel)[0][1] == 1)
                    told.clear()
                    await other.insert([work()])
                    await wait_until(lambda: told)


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

    async def test_scripts_that_the_server_has_lost_are_given_to_it_again(self, store, hand, client):
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
        made = servers.RedisServer("redis", binary, **{"cluster-enabled": "yes"})
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
        before = client.info("memory")["used_memory"]
        for _ in range(9):
            await store.insert([work(payload=payload) for _ in range(1000)])
        each = (client.info("memory")["used_memory"] - before) / 9000
        assert 300 < each < 900


class TestUsers:
    """A user that may do no more than the store needs."""

    def limited(self, server, *extra: str) -> str:
        control = admin(server)
        rules = [
            *("on", f">{SECRET}", "~haulier:*", "&haulier:*", "-@all"),
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
        with pytest.raises(ConfigurationError, match="WRONGPASS|invalid") as caught:
            await RedisStore(url).__aenter__()
        assert "wrong-word" not in str(caught.value)
        assert "worker:***@" in str(caught.value)
        heartbeat = RedisStore(url).heartbeat(work().id)
        with pytest.raises(ConfigurationError) as caught:
            heartbeat.renew()
        assert "wrong-word" not in str(caught.value)


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


class TestAddress:
    """URLs, and what they must not show."""

    @pytest.mark.parametrize(
        ("url", "arguments"),
        [
            ("redis://h", {"host": "h", "port": 6379, "db": 0}),
            ("redis://h:7/3", {"host": "h", "port": 7, "db": 3}),
            ("redis://[::1]:7?db=2", {"host": "::1", "port": 7, "db": 2}),
            ("redis://u:p%40w@h/", {"username": "u", "password": "p@w", "host": "h"}),
            ("redis://:pw@h", {"username": None, "password": "pw"}),
            ("rediss://h?ssl_ca_certs=/ca.pem", {"host": "h", "ssl_ca_certs": "/ca.pem"}),
            ("unix:///run/r.sock?db=1", {"path": "/run/r.sock", "db": 1}),
            ("redis+unix://u:pw@/run/r.sock", {"path": "/run/r.sock", "password": "pw"}),
            ("redis+sentinel://a,b:7/main/2", {"db": 2}),
        ],
    )
    def test_it_names_a_place(self, url, arguments):
        address = Address.of(url)
        assert {name: address.arguments[name] for name in arguments} == arguments
        assert "pw" not in address.text.replace("p%40w", "pw")
        assert "pw" not in repr(address)

    def test_sentinels_and_options(self):
        address = Address.of("redis+sentinel://a,b:7/main?prefix=x:&durability=none&connections=4")
        assert (address.sentinels, address.service) == ((("a", 26379), ("b", 7)), "main")
        assert (address.prefix, address.durability, address.connections) == ("x:", "none", 4)

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("redis://h/x", "database is a number"),
            ("redis://h:port", "port|Port"),
            ("redis://h?what=1", "unknown options what"),
            ("redis://h?durability=some", "durability is one of"),
            ("redis://h?connections=1", "connections is a number"),
            ("redis://h?prefix=", "needs exactly one value"),
            ("redis+sentinel://h", "ends with its service"),
            ("redis+cluster://h", "hash tag"),
            (f"redis://u:{SECRET}@h/x", "database is a number"),
        ],
    )
    def test_what_is_none_is_refused(self, url, reason):
        with pytest.raises(ConfigurationError, match=reason) as caught:
            open_store(url)
        assert SECRET not in str(caught.value)


class TestKeyMap:
    """The documented keys."""

    def test_every_family_is_in_the_documentation(self):
        text = Path("docs/stores.md").read_text("utf-8")
        for family in KEYS:
            assert f"`{family.pattern}`" in text, family.pattern

    def test_strange_keys_belong_to_none(self):
        assert family_of("job:x") is None
        assert family_of("what") is None
        assert family_of("ready:a%3Ab:work").type == "zset"

    async def test_names_with_colons_keep_to_their_own_lines(self, store, hand):
        await store.insert([work("b:c", queue="a"), work("c", queue="a:b"), work("50%3A", queue="a")])
        told = {(queue, kind) for queue, kind, _, _ in await store.counts()}
        assert told == {("a", "b:c"), ("a:b", "c"), ("a", "50%3A")}
        other = await Hand.enlist(store, queues=["a"], kinds=["b:c"])
        assert (await other.claim_one()).kind == "b:c"
        assert await other.claim(5) == []


def test_a_missing_driver_is_named(monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("haulier.stores.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'haulier\[redis\]'"):
        open_store("redis://h")


def test_the_time_of_life_is_what_the_store_was_given():
    assert RedisStore("redis://h").ttl == TTL
