"""Limits on PostgreSQL: with weights of queues, and what is left of lanes at rest."""

from __future__ import annotations

from collections import Counter

from haulier.domain.job import Job
from haulier.domain.limits import Limit
from haulier.domain.moves import Move
from haulier.domain.shares import shares_of
from haulier.domain.worker import Demand, Portion
from support import Hand, move, work, works


class TestWeights:
    async def test_queues_are_taken_from_by_weight_and_keys_in_turn(self, store):
        await store.limits().put(Limit(name="key", concurrency=2, per_key=True), by="test")
        await store.limits().put(Limit(name="all", concurrency=30), by="test")
        hand = await Hand.enlist(store, queues=("a", "b"), kinds=("work",))
        for queue in "ab":
            await store.insert([work(queue=queue, key=f"{queue}{n % 40}") for n in range(120)])
        demand = Demand(("a", "b"), (Portion(("work",), 16),), 16, shares_of([3, 1]))
        reply = await store.exchange(hand.id, [], [demand])
        for _ in range(3):
            assert Counter(job.queue for job in reply.jobs) == {"a": 12, "b": 4}
            assert max(Counter(job.key for job in reply.jobs).values()) == 1
            ends = [move(job, Move.COMPLETE) for job in reply.jobs]
            reply = await store.exchange(hand.id, ends, [demand])


class TestRest:
    async def test_a_sweep_removes_lanes_at_rest_and_no_others(self, store, admin, url):
        await store.limits().put(Limit(name="key", concurrency=1, per_key=True), by="test")
        hand = await Hand.enlist(store)
        await store.insert([*works(1, key="done"), *works(2, key="runs"), *works(1, key="later")])
        jobs = {job.key: job for job in await hand.claim(9)}
        await hand.hand_in(jobs["done"], Move.COMPLETE)
        await hand.hand_in(jobs["later"], Move.RETRY, delay=3600)
        assert await hand.claim(9) == []
        schema = url.rpartition("=")[2]
        admin.execute(f"UPDATE {schema}.lanes SET turn = 0, since = 0 WHERE queue > ''")
        await store.sweep()
        keys = admin.execute(f"SELECT key FROM {schema}.lanes WHERE queue > ''").fetchall()
        assert keys == [("runs",)]
        await hand.hand_in(jobs["runs"], Move.COMPLETE)
        assert (await hand.claim_one()).key == "runs"


class TestClosed:
    """Lanes that a claim met full, when runs of their keys end."""

    @staticmethod
    async def full(store, keys, kinds=("work",)) -> tuple[Hand, list[Job]]:
        """A worker that runs one job of each key; their lanes are closed, with three more jobs."""
        await store.limits().put(Limit(name="key", concurrency=1, per_key=True), by="test")
        hand = await Hand.enlist(store, kinds=kinds)
        for kind in kinds:
            await store.insert([work(kind, key=key) for _ in range(4) for key in keys])
        jobs = await hand.claim(20)
        assert sorted(job.key for job in jobs) == sorted(keys)
        assert await hand.claim(20) == []
        return hand, jobs

    async def test_what_starts_with_the_end_of_another_leaves_its_lane_closed(
        self, store, admin, url
    ):
        hand, jobs = await self.full(store, ("a", "b", "c"))
        lanes = f"{url.rpartition('=')[2]}.lanes WHERE queue > ''"
        closed = admin.execute(f"SELECT since, why, place FROM {lanes} ORDER BY key").fetchall()
        assert {row[1:] for row in closed} == {(1, None)}
        for _ in range(3):
            reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs), slots=20)
            jobs = reply.jobs
            assert sorted(job.key for job in jobs) == ["a", "b", "c"]
            seen = admin.execute(f"SELECT since, why, place FROM {lanes} ORDER BY key").fetchall()
            assert seen == closed
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs), slots=20)
        assert admin.execute(f"SELECT DISTINCT why, place FROM {lanes}").fetchall() == [
            (None, None)
        ]
        await store.insert(works(1, key="b"))
        assert (await hand.claim_one()).key == "b"

    async def test_what_the_claim_has_no_slot_for_is_open_to_others(self, store):
        hand, jobs = await self.full(store, ("a", "b", "c", "d"))
        other = await Hand.enlist(store)
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs), slots=1)
        first = [job.key for job in reply.jobs]
        assert len(first) == 1
        assert sorted(first + [job.key for job in await other.claim(20)]) == ["a", "b", "c", "d"]
        assert await other.claim(20) == []

    async def test_what_the_claim_does_not_ask_for_is_open_to_others(self, store):
        hand, jobs = await self.full(store, ("a", "b"), ("work", "rest"))
        demand = Demand(hand.queues, (Portion(("none",), 20),), 20)
        reply = await store.exchange(hand.id, [move(j, Move.COMPLETE) for j in jobs], [demand])
        assert reply.jobs == ()
        assert sorted(job.key for job in await hand.claim(20)) == ["a", "b"]

    async def test_what_another_transaction_holds_opens_later(self, store, admin, url):
        hand, jobs = await self.full(store, ("a",), ("work", "rest"))
        other = "rest" if jobs[0].kind == "work" else "work"
        schema = url.rpartition("=")[2]
        with admin.transaction():
            held = f"SELECT id FROM {schema}.lanes WHERE key = 'a' AND kind = '{other}' FOR UPDATE"
            assert len(admin.execute(held).fetchall()) == 1
            reply = await hand.exchange(move(jobs[0], Move.COMPLETE), slots=20)
            assert reply.jobs == ()
        assert (await hand.claim_one()).key == "a"
        assert await hand.claim(20) == []
