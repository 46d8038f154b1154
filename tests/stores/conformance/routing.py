"""Jobs that no live worker would take, told from counters and the rows of workers."""

from __future__ import annotations

from haulier.domain.job import JobState
from haulier.domain.routing import Unroutable, lines_of
from haulier.ports import JobStore
from support import Hand, filled_batch, work, works


async def told(store: JobStore) -> dict[tuple[str, str], tuple[int, Unroutable | None]]:
    lines = lines_of(await store.counts(), await store.workers())
    return {(line.queue, line.kind): (line.pending, line.unroutable) for line in lines}


class TestRouting:
    async def test_kinds_that_no_live_worker_knows_wait_and_are_told(self, store: JobStore) -> None:
        strange = work("strange")
        await store.insert([strange, work("strange"), *works(3), work(queue="far")])
        batch = await filled_batch(store, 2)
        assert {why for _, why in (await told(store)).values()} == {None}
        hand = await Hand.enlist(store, kinds=("work",))
        assert await told(store) == {
            ("default", "strange"): (2, Unroutable.KIND),
            ("default", "work"): (5, None),
            ("default", "bulk"): (0, None),
            ("far", "work"): (1, Unroutable.QUEUE),
        }
        assert {job.kind for job in await hand.claim(9)} == {"work"}
        assert (await store.get(strange.id)).state is JobState.PENDING
        assert (await store.batch(batch)).counts.running == 2

    async def test_a_worker_that_comes_or_goes_changes_it(self, store: JobStore) -> None:
        await store.insert([work("strange")])
        await Hand.enlist(store, kinds=("work",))
        line = ("default", "strange")
        assert (await told(store))[line] == (1, Unroutable.KIND)
        other = await Hand.enlist(store, kinds=("strange", "work"))
        assert (await told(store))[line] == (1, None)
        await store.retire(other.id)
        assert (await told(store))[line] == (1, Unroutable.KIND)
