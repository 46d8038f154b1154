"""Limits on PostgreSQL: with weights of queues, and what is left of lanes at rest."""

from __future__ import annotations

from collections import Counter

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
        admin.execute(f"UPDATE {schema}.lanes SET turn = 0 WHERE queue > ''")
        await store.sweep()
        keys = admin.execute(f"SELECT key FROM {schema}.lanes WHERE queue > ''").fetchall()
        assert keys == [("runs",)]
        await hand.hand_in(jobs["runs"], Move.COMPLETE)
        assert (await hand.claim_one()).key == "runs"
