"""Inboxes: JSON that producers of any language push, and what becomes of it."""

from __future__ import annotations

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from haulier.domain.ids import uuid7
from haulier.domain.job import MICROSECOND, JobState, OnLost
from haulier.domain.moves import Move
from haulier.ports import JobFilter
from support import Hand, wait_until

SECRET = "s3cret-word"


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
            "baggage": {"request_id": "ü", "n": 2},
        }
        self.push(client, home, entry)
        (job,) = await self.claimed(hand)
        assert (job.id, job.kind, job.queue, job.priority) == (job_id, "work", "default", 3)
        assert json.loads(job.payload) == {"name": "Zoë"}
        assert (job.key, job.version, job.on_lost) == ("account-7", 2, OnLost.FAIL)
        assert job.retry.max_attempts == 9
        assert json.loads(job.baggage) == {"request_id": "ü", "n": 2}
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
            ({"kind": "work", "payload": {}, "baggage": []}, "baggage: is not an object"),
            ({"kind": "work", "payload": {}, "baggage": {"a": []}}, "baggage.a: must be a text"),
            ({"kind": "work", "payload": {}, "baggage": {"a": "x" * 2100}}, "baggage: is 2,108"),
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
