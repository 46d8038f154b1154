"""What a person sees with redis-cli, and who else is woken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess

import pytest
from structlog.testing import capture_logs

from support import Hand, RedisPrefix, wait_until, work, works


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


async def test_a_listener_that_missed_its_cancel_is_ended_all_the_same(store, monkeypatch):
    connecting = asyncio.Event()

    async def connect():
        connecting.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    monkeypatch.setattr(store._history.pool, "connect", connect)
    with store.watch(lambda: None, ready=True):
        await connecting.wait()
        async with asyncio.timeout(5):
            await store._listener.close()
