"""Lanes and what they are closed by, in all that may happen to their jobs."""

from __future__ import annotations

import contextlib
import random
from collections import Counter

import pytest

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import Job, JobState
from haulier.domain.limits import Breaker, Limit, Rate
from haulier.domain.moves import Move
from haulier.exceptions import JobStateError
from haulier.ports import JobFilter
from redis_keys import Keyspace, check
from support import Hand, head, items, move, work

ENDS = [Move.COMPLETE] * 5 + [Move.FAIL, Move.CANCEL, Move.RETRY, Move.SNOOZE, Move.GIVE_BACK]
PUT_BACK = {Move.RETRY, Move.SNOOZE, Move.GIVE_BACK}
KINDS = ("work", "play")
LIMITS = [
    Limit(name="all", concurrency=6),
    Limit(name="key", concurrency=2, per_key=True),
    Limit(name="kind", concurrency=1, per_key=True, kind="work"),
    Limit(name="often", rate=Rate(3, 1.0, burst=2), per_key=True),
    Limit(name="fast", rate=Rate(20, 1.0, burst=5), kind="play"),
    Limit(name="broken", breaker=Breaker(least=3, window=20.0, pause=3.0), per_key=True),
]


class History:
    """What one seed does to a store."""

    def __init__(self, store, clock, seed: int) -> None:
        self.store, self.clock, self.dice = store, clock, random.Random(seed)
        self.hands: list[Hand] = []
        self.held: dict[str, tuple[Hand, Job]] = {}
        self.batches: list[str] = []
        self.limits: dict[str, Limit] = {}

    async def step(self) -> None:
        dice = self.dice
        acts = [self.claim] * 8 + [self.end] * 8 + [self.insert, self.fill, self.put, self.drop]
        acts += [self.cancel, self.pause, self.resume, self.lose, self.retry]
        await dice.choice(acts)()
        self.clock.advance(dice.choice([0, 0, 0.1, 0.5, 2]))

    async def claim(self) -> None:
        while len(self.hands) < 3:
            self.hands.append(await Hand.enlist(self.store, kinds=(*KINDS, "bulk")))
        hand = self.dice.choice(self.hands)
        for job in await hand.claim(self.dice.randint(1, 6)):
            assert job.kind != "bulk"
            self.held[job.id] = hand, job
        running = Counter(
            name
            for name, limit in self.limits.items()
            for _, job in self.held.values()
            if limit.concurrency and not limit.per_key and limit.concerns(job.queue, job.kind)
        )
        for state in await self.store.limits().list():
            assert state.running == running[state.limit.name]

    async def end(self) -> None:
        if not self.held:
            return
        chosen = self.dice.sample(list(self.held), min(len(self.held), self.dice.randint(1, 3)))
        for job_id in chosen:
            hand, job = self.held.pop(job_id)
            how = self.dice.choice(ENDS)
            delay = self.dice.choice([0, 0, 1.5]) if how in PUT_BACK else None
            slots = self.dice.choice([0, 2])
            reply = await hand.exchange(move(job, how, delay=delay), slots=slots)
            for claimed in reply.jobs:
                self.held[claimed.id] = hand, claimed

    def new(self, **fields) -> dict:
        dice = self.dice
        return {
            "key": dice.choice(["a", "b", "c:d", None]),
            "priority": dice.choice([0, 0, 0, 5, -5]),
            **fields,
        }

    async def insert(self) -> None:
        delay = self.dice.choice([0, 0, 1_000_000])
        await self.store.insert(
            [work(self.dice.choice(KINDS), **self.new(delay=delay)) for _ in range(5)]
        )

    async def fill(self) -> None:
        if len(self.batches) == 4:
            return
        top = head()
        each = [job._replace(**self.new(kind=self.dice.choice(KINDS))) for job in items(top.id, 12)]
        policy = BatchPolicy(
            concurrency=self.dice.choice([None, 1, 3]), batch_size=self.dice.choice([None, 2])
        )
        await self.store.open_batch(top, each, policy=policy, sealed=True)
        self.batches.append(top.id)

    async def put(self) -> None:
        limit = self.dice.choice(LIMITS)
        self.limits[limit.name] = limit
        await self.store.limits().put(limit, by="test")

    async def drop(self) -> None:
        name = self.dice.choice(LIMITS).name
        assert await self.store.limits().drop(name, by="test") == (name in self.limits)
        self.limits.pop(name, None)

    async def cancel(self) -> None:
        page = await self.store.find(JobFilter(states=frozenset({JobState.PENDING})), limit=20)
        if page.jobs:
            await self.store.cancel([self.dice.choice(page.jobs).id])

    async def pause(self) -> None:
        await self.on_batch(self.store.pause)

    async def resume(self) -> None:
        await self.on_batch(self.store.resume)

    async def retry(self) -> None:
        await self.on_batch(self.store.retry_failed)

    async def on_batch(self, do) -> None:
        if self.batches:
            with contextlib.suppress(JobStateError):
                await do(self.dice.choice(self.batches))

    async def lose(self) -> None:
        if self.hands and self.dice.random() < 0.3:
            hand = self.hands.pop(self.dice.randrange(len(self.hands)))
            await self.store.retire(hand.id)
            self.held = {key: pair for key, pair in self.held.items() if pair[0] is not hand}

    async def finish(self) -> None:
        """Everything comes to an end, whatever there was."""
        for batch in self.batches:
            with contextlib.suppress(JobStateError):
                await self.store.resume(batch)
        for hand, job in self.held.values():
            await hand.hand_in(job, Move.COMPLETE)
        for hand in self.hands:
            await self.store.retire(hand.id)
        hand = await Hand.enlist(self.store, kinds=(*KINDS, "bulk"))
        for _ in range(2000):
            reply = await hand.exchange(slots=5)
            if reply.jobs:
                await hand.exchange(*(move(job, Move.COMPLETE) for job in reply.jobs))
            elif reply.due_in is None:
                break
            else:
                self.clock.advance(reply.due_in / 1_000_000)
        counts = await self.store.counts()
        left = {line: n for line, n in counts.items() if line[-1] is JobState.PENDING and n}
        assert left == {}, left


@pytest.fixture
def ttl() -> float:
    return 86_400.0


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_no_lane_is_left_closed_and_none_is_lost(
    store, home, client, clock, seed
):
    history = History(store, clock, seed)
    for number in range(250):
        await history.step()
        if number % 5 == 0:
            check(Keyspace(client, home.prefix))
    await history.finish()
    await store.sweep()
    check(Keyspace(client, home.prefix))


async def test_a_lane_whose_key_has_no_room_makes_way_for_others_of_its_batch(store, hand):
    await store.limits().put(Limit(name="key", concurrency=1, per_key=True), by="test")
    top = head()
    each = [job._replace(key=key) for job, key in zip(items(top.id, 3), "xab", strict=True)]
    await store.open_batch(top, each, policy=BatchPolicy(concurrency=1), sealed=True)
    first = await hand.claim_one()
    assert await hand.claim(9) == []
    await store.insert([work(key="a")])
    outside = await hand.claim_one()
    reply = await hand.exchange(move(first, Move.COMPLETE), slots=9)
    assert [job.key for job in (first, outside, *reply.jobs)] == ["x", "a", "b"]
