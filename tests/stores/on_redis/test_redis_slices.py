"""Long work goes to the server in slices, between which it serves others."""

from __future__ import annotations

import pytest

from haulier.domain.job import JobState
from haulier.domain.moves import Move
from haulier.services.jobs import JobManager
from haulier.services.options import Options
from haulier.services.registry import Registry, define_task
from haulier.services.secrets import Sealer
from haulier.stores.redis.scripts import CONSTANTS
from support import Hand, filled_batch, wait_until

TOLD = CONSTANTS["TOLD_AT_ONCE"]
MANY = 2 * TOLD + 50


async def add(n: int) -> int:
    return n


@pytest.fixture
def at_once(home, client):
    """The most jobs that one script has done so to; it writes them as one event each time."""

    def most(event: str) -> int:
        found = client.xrange(f"{home.prefix}events")
        return max((int(row["n"]) for _, row in found if row["type"] == event))

    return most


async def running_batch(store, hand: Hand, count: int, pending: int = 0) -> str:
    batch = await filled_batch(store, count + pending)
    taken = 0
    while taken < count:
        taken += len(await hand.claim(min(500, count - taken)))
    return batch


async def requested(store, batch: str) -> int:
    return sum(event.type == "cancel_requested" for event in await all_events(store))


async def all_events(store):
    found, cursor = [], None
    while page := await store.events(after=cursor):
        found += page
        cursor = page[-1].cursor
    return found


class TestCancel:
    async def test_running_items_are_told_slice_by_slice_and_each_once(
        self, store, hand, at_once, home, client
    ):
        batch = await running_batch(store, hand, MANY, pending=30)
        assert (await store.cancel([batch]))[batch] is JobState.RUNNING
        assert at_once("cancel_requested") == TOLD
        assert await requested(store, batch) == MANY
        assert client.scard(f"{home.prefix}cancels:{hand.id}") == MANY
        counts = (await store.batch(batch)).counts
        assert (counts.running, counts.cancelled) == (MANY, 30)
        assert not client.smembers(f"{home.prefix}draining")

    async def test_a_cancel_that_was_cut_off_is_told_to_the_rest_by_the_next_sweep(
        self, store, hand, monkeypatch
    ):
        batch = await running_batch(store, hand, MANY, pending=30)
        with monkeypatch.context() as cut:
            cut.setattr(store, "_drain", none)
            await store.cancel([batch])
        assert await requested(store, batch) == TOLD
        assert (await store.batch(batch)).counts.pending == 30
        await store.sweep()
        assert await requested(store, batch) == MANY
        assert (await store.batch(batch)).counts.pending == 0

    async def test_what_is_claimed_while_it_goes_on_is_told_in_the_end(
        self, store, hand, monkeypatch
    ):
        batch = await running_batch(store, hand, MANY, pending=2 * TOLD)
        with monkeypatch.context() as cut:
            cut.setattr(store, "_drain", none)
            await store.cancel([batch])
            late = await hand.claim(2 * TOLD)
        assert late
        await store.sweep()
        assert await requested(store, batch) == MANY + len(late)

    async def test_one_that_went_before_it_was_told_is_cancelled_or_done(
        self, store, hand, monkeypatch
    ):
        batch = await filled_batch(store, MANY)
        jobs = []
        while more := await hand.claim(500):
            jobs += more
        with monkeypatch.context() as cut:
            cut.setattr(store, "_drain", none)
            await store.cancel([batch])
        # The last ones have not been told yet.
        assert await hand.hand_in(jobs[-1], Move.RETRY)
        assert await hand.hand_in(jobs[-2], Move.COMPLETE)
        await store.sweep()
        states = [(await store.get(job.id)).state for job in jobs[-2:]]
        assert states == [JobState.COMPLETED, JobState.CANCELLED]
        assert await requested(store, batch) == MANY - 2

    async def test_a_batch_that_is_cut_short_tells_all_that_run(self, store, hand):
        batch = await filled_batch(store, MANY, max_failures=0)
        jobs = []
        while more := await hand.claim(500):
            jobs += more
        assert await hand.hand_in(jobs[0], Move.FAIL)

        async def told() -> bool:
            return await requested(store, batch) == MANY - 1

        await wait_until(told)


async def none(batch: str) -> int:
    return 0


class TestInsert:
    @pytest.fixture
    def manager(self, store) -> JobManager:
        registry = Registry()
        registry.add(define_task(add))
        return JobManager(store, registry, Sealer(lambda: bytes(32)))

    async def test_a_batch_is_filled_slice_by_slice(self, store, manager, at_once):
        batch = await manager.enqueue_batch("add", ({"n": n} for n in range(1001)), Options())
        assert (await store.batch(batch)).counts.total == 1001
        assert at_once("insert") == store.chunk < 500

    async def test_jobs_are_inserted_slice_by_slice(self, store, manager, at_once):
        ids = await manager.enqueue_many("add", ({"n": n} for n in range(1001)), Options())
        assert len(set(ids)) == 1001
        assert at_once("insert") == store.chunk


async def test_the_jobs_of_a_lost_worker_are_released_slice_by_slice(store, hand, at_once):
    await running_batch(store, hand, 500)
    assert await store.retire(hand.id) == 500
    assert at_once("lose") == CONSTANTS["LOST_AT_ONCE"]
