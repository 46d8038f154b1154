"""Queues with weights: which of them a claim takes jobs from."""

from __future__ import annotations

from collections import Counter

import pytest

from haulier.domain.shares import moved_on, shares_of
from haulier.domain.worker import Demand, Portion
from haulier.ports import JobStore
from support import Hand, works

QUEUES = ("slow", "default", "urgent")


class Taker:
    """Claims by weight and keeps the times of its queues, as a worker does."""

    def __init__(self, hand: Hand, weights: tuple[int, ...]) -> None:
        self.hand = hand
        self.queues = QUEUES[: len(weights)]
        self.shares = shares_of(weights)

    async def take(self, slots: int, **rooms: int) -> list[str]:
        """The queues of what one claim took; `rooms` are kinds with less room than slots."""
        portions = [Portion(self.hand.kinds, slots)]
        if rooms:
            rest = tuple(kind for kind in self.hand.kinds if kind not in rooms)
            portions = [Portion(rest, slots)]
            portions += [Portion((kind,), room) for kind, room in rooms.items()]
        demand = Demand(self.queues, tuple(portions), slots, self.shares)
        reply = await self.hand.store.exchange(self.hand.id, [], [demand])
        taken = Counter(job.queue for job in reply.jobs)
        self.shares = moved_on(self.shares, [taken[queue] for queue in self.queues])
        self.jobs = reply.jobs
        return [job.queue for job in reply.jobs]


async def fill(store: JobStore, **jobs: int) -> None:
    for queue, count in jobs.items():
        await store.insert(works(count, queue=queue))


@pytest.fixture
async def hand(store):
    return await Hand.enlist(store, queues=QUEUES)


class TestShares:
    @pytest.mark.parametrize("slots", [1, 7, 50])
    async def test_full_queues_are_shared_as_they_weigh(self, store, hand, slots):
        await fill(store, slow=400, default=400, urgent=400)
        taker = Taker(hand, (1, 3, 8))
        taken: Counter[str] = Counter()
        while taken.total() < 240:
            taken.update(await taker.take(slots))
        parts = [taken[queue] / taken.total() * 12 for queue in QUEUES]
        assert parts == pytest.approx([1, 3, 8], abs=0.12)

    async def test_one_claim_is_shared_to_the_job(self, store, hand):
        await fill(store, slow=40, default=40)
        taker = Taker(hand, (1, 5))
        for _ in range(3):
            assert Counter(await taker.take(12)) == {"slow": 2, "default": 10}

    async def test_a_light_queue_never_starves(self, store, hand):
        await fill(store, slow=5, default=500)
        taker = Taker(hand, (1, 100))
        found = [queue for _ in range(202) for queue in await taker.take(1)]
        assert found.count("slow") == 2

    async def test_what_an_empty_queue_leaves_goes_to_the_others_as_they_weigh(self, store, hand):
        await fill(store, default=300, urgent=300)
        taker = Taker(hand, (6, 1, 3))
        taken = Counter([queue for _ in range(10) for queue in await taker.take(12)])
        assert taken == {"default": 30, "urgent": 90}

    async def test_it_is_left_within_one_claim(self, store, hand):
        await fill(store, slow=3, default=300)
        taker = Taker(hand, (9, 1))
        assert Counter(await taker.take(50)) == {"slow": 3, "default": 47}

    async def test_a_queue_that_was_empty_does_not_catch_up(self, store, hand):
        await fill(store, default=300)
        taker = Taker(hand, (1, 1))
        for _ in range(10):
            await taker.take(10)
        await fill(store, slow=100)
        assert Counter(await taker.take(10)) == {"slow": 5, "default": 5}

    async def test_within_a_queue_the_order_is_as_always(self, store, hand):
        late, soon = works(4, queue="slow"), works(2, queue="slow", priority=5)
        await store.insert([*late, *soon])
        await store.insert(works(4, "bulk", queue="slow"))
        await fill(store, default=5)
        taker = Taker(hand, (1, 1))
        await taker.take(10)
        mine = {job.id for job in taker.jobs if job.queue == "slow"}
        assert mine == {job.id for job in [*soon, *late[:3]]}

    async def test_kinds_with_less_room_get_no_more(self, store, hand):
        for queue in ("slow", "default"):
            await store.insert(works(5, "bulk", queue=queue))
            await store.insert(works(20, "work", queue=queue))
        taker = Taker(hand, (1, 1))
        await taker.take(10, bulk=2)
        kinds = Counter(job.kind for job in taker.jobs)
        assert kinds == {"bulk": 2, "work": 8}

    async def test_less_than_was_asked_for_is_all_there_is(self, store, hand):
        await fill(store, slow=2, default=3)
        taker = Taker(hand, (1, 7))
        assert Counter(await taker.take(9)) == {"slow": 2, "default": 3}
        assert await taker.take(9) == []

    async def test_a_paused_queue_is_like_an_empty_one(self, store, hand):
        await fill(store, slow=50, default=50, urgent=50)
        await store.configurable().configure({"queues.urgent.paused": True}, by="ops")
        taker = Taker(hand, (1, 3, 8))
        assert Counter(await taker.take(20)) == {"slow": 5, "default": 15}
