"""The stream of events: its numbers, its cursors, and what happens when they are too old."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from haulier.domain import event as ev
from haulier.domain.event import Event
from haulier.domain.moves import Move
from haulier.exceptions import JobStateError, ValidationError
from haulier.ports import JobStore
from support import Hand, filled_batch, items, move, wait_until, work, works


async def read_all(store: JobStore, *, limit: int = 1000, after: str | None = None) -> list[Event]:
    """All events from a cursor on, page by page."""
    seen: list[Event] = []
    while page := await store.events(after=after, limit=limit):
        assert len(page) <= limit
        seen += page
        after = page[-1].cursor
    return seen


def contiguous(events: list[Event], first: int = 1) -> bool:
    return [event.seq for event in events] == list(range(first, first + len(events)))


async def busy(store: JobStore, seed: int, turns: int = 15) -> None:
    """Something of everything."""
    dice = random.Random(seed)
    hand = await Hand.enlist(store)
    batch = await filled_batch(store, 3)
    for _ in range(turns):
        await store.insert(works(dice.randint(1, 3)))
        jobs = await hand.claim(dice.randint(1, 4))
        ends = [Move.COMPLETE, Move.FAIL, Move.GIVE_BACK, Move.CANCEL]
        await hand.exchange(*(move(job, dice.choice(ends)) for job in jobs))
        # An item may belong to a batch that another one is just cancelling.
        with contextlib.suppress(JobStateError):
            await store.requeue([job.id for job in jobs[:2]])
    await store.retire(hand.id)
    await store.cancel([batch])


class TestNumbers:
    """One after the other from 1, for every reader the same."""

    async def test_a_new_store_has_none(self, store):
        assert await store.events() == []
        last = await store.last_event()
        assert await store.events(after=last) == []
        await store.insert([work()])
        (event,) = await store.events(after=last)
        assert (event.seq, event.type) == (1, ev.INSERTED)
        assert await store.last_event() == event.cursor

    @pytest.mark.parametrize("limit", [1, 7, 1000])
    async def test_pages_of_any_size_hold_each_event_once(self, store, limit):
        await busy(store, 1)
        events = await read_all(store, limit=limit)
        assert len(events) > 50
        assert contiguous(events)
        assert events == await store.events()
        assert events[-1].cursor == await store.last_event()

    async def test_who_comes_back_with_a_cursor_misses_nothing(self, home, store, ttl):
        await busy(store, 2, turns=5)
        seen = await store.events(limit=10)
        await busy(store, 3, turns=5)
        if home.several:
            async with home.client(ttl=ttl) as other:
                seen += await read_all(other, after=seen[-1].cursor)
        else:
            seen += await read_all(store, after=seen[-1].cursor)
        assert contiguous(seen)
        assert seen == await store.events(limit=10_000)

    async def test_those_of_a_job_come_in_the_order_in_which_they_happened(self, store, hand):
        job = work()
        await store.insert([job])
        for how in (Move.RETRY, Move.GIVE_BACK, Move.SNOOZE, Move.FAIL):
            await hand.hand_in(await hand.claim_one(), how, delay=0)
        await store.requeue([job.id])
        await store.cancel([job.id])
        await store.delete(job.id)
        events = [event for event in await store.events() if event.job_id == job.id]
        assert [event.type for event in events] == [
            "insert",
            *("claim", "retry"),
            *("claim", "give_back"),
            *("claim", "snooze"),
            *("claim", "fail"),
            *("requeue", "drop", "delete"),
        ]
        leases = [event.lease for event in events]
        assert leases == sorted(leases)

    async def test_many_writers_leave_no_gap_and_no_double(self, store):
        await asyncio.gather(*(busy(store, seed, turns=8) for seed in range(6)))
        events = await read_all(store, limit=100)
        assert contiguous(events)
        for job_id in {event.job_id for event in events}:
            mine = [event for event in events if event.job_id == job_id]
            assert mine[0].type == ev.INSERTED
            assert [event.lease for event in mine] == sorted(event.lease for event in mine)

    async def test_two_clients_that_write_at_once_leave_no_gap_and_no_double(
        self, home, store, ttl
    ):
        if not home.several:
            pytest.skip("this store has a single client: it lives in that client's memory")
        async with home.client(ttl=ttl) as other:
            writing = asyncio.gather(
                *(busy((store, other)[seed % 2], seed, turns=8) for seed in range(6))
            )
            seen: list[Event] = []
            while not writing.done():
                after = seen[-1].cursor if seen else None
                seen += await other.events(after=after, limit=50)
            await writing
            seen += await read_all(other, after=seen[-1].cursor if seen else None)
            assert contiguous(seen)
            assert seen == await read_all(store)

    async def test_a_reader_never_sees_a_number_before_those_below_it(self, store):
        writing = asyncio.gather(*(busy(store, seed, turns=6) for seed in range(4)))
        last = 0
        while not writing.done():
            events = await store.events(limit=10_000)
            assert contiguous(events)
            assert len(events) >= last
            last = len(events)
        await writing

    async def test_the_numbers_go_on_after_the_store_was_closed(self, home, store, ttl):
        if not home.several:
            pytest.skip("this store is gone when its client closes")
        async with home.client(ttl=ttl) as one:
            await one.insert([work()])
        async with home.client(ttl=ttl) as two:
            await two.insert([work()])
            events = await two.events()
        assert contiguous(events)
        assert len({event.epoch for event in events}) == 1

    async def test_times_never_go_back(self, store, clock):
        for _ in range(5):
            await store.insert([work()])
            clock.advance(1)
        times = [event.at for event in await store.events()]
        assert times == sorted(times)
        assert times[-1] == clock.now() - 1_000_000


class TestCursors:
    """Where a reader stands."""

    @pytest.mark.parametrize("cursor", ["nonsense", "", ":", "a:b:c", "{epoch}:", "{epoch}:x"])
    async def test_what_is_no_cursor_is_refused(self, store, cursor):
        await store.insert([work()])
        (event,) = await store.events()
        with pytest.raises(ValidationError):
            await store.events(after=cursor.format(epoch=event.epoch))

    @pytest.mark.parametrize("number", ["-1", "9" * 40, " 1", "1.5", "\uff11"])
    async def test_odd_numbers_in_a_cursor_do_no_harm(self, store, number):
        await store.insert([work()])
        (event,) = await store.events()
        try:
            answer = await store.events(after=f"{event.epoch}:{number}")
        except ValidationError:
            return
        assert all(isinstance(event, Event) for event in answer)

    async def test_a_cursor_of_another_history_is_answered_by_a_reset_that_leads_on(self, store):
        await busy(store, 4, turns=3)
        (reset,) = await store.events(after="another-history:3")
        assert reset.type == ev.RESET
        await store.insert(works(3))
        after = await store.events(after=reset.cursor)
        assert [event.type for event in after[-3:]] == [ev.INSERTED] * 3
        assert ev.RESET not in {event.type for event in after}

    async def test_a_reset_is_no_event_of_the_stream(self, store):
        await store.insert([work()])
        before = await store.last_event()
        await store.events(after="another-history:3")
        assert await store.last_event() == before
        assert contiguous(await store.events())


class TestWatchEvents:
    """Whoever reads the stream is told when it goes on."""

    async def told(self, store, change) -> None:
        told: list[int] = []
        with store.watch(lambda: told.append(1), events=True):
            await change()
            await wait_until(lambda: told)

    async def test_each_thing_that_happens_wakes_them(self, store, hand):
        job = work()
        await self.told(store, lambda: store.insert([job]))
        await self.told(store, hand.claim_one)
        claimed = await store.get(job.id)
        await self.told(store, lambda: store.cancel([job.id]))
        await self.told(store, lambda: hand.hand_in(claimed, Move.FAIL))
        await self.told(store, lambda: store.requeue([job.id]))
        await self.told(store, lambda: store.cancel([job.id]))
        await self.told(store, lambda: store.delete(job.id))

    async def test_so_do_pause_and_resume(self, store):
        batch = await filled_batch(store, 1)
        await self.told(store, lambda: store.pause(batch))
        await self.told(store, lambda: store.resume(batch))

    async def test_reading_wakes_nobody(self, store):
        told: list[int] = []
        with store.watch(lambda: told.append(1), events=True):
            # What one call tells is told before the next one is answered.
            for _ in range(5):
                await store.events()
                await store.counts()
        assert told == []

    async def test_what_is_told_can_be_read(self, store):
        told = asyncio.Event()
        cursor = await store.last_event()
        with store.watch(told.set, events=True):
            batch = await filled_batch(store, 2)
            async with asyncio.timeout(10):
                await told.wait()
        events = await store.events(after=cursor)
        assert {event.job_id for event in events} == {batch, *(j.id for j in items(batch, 2))}

    async def test_what_another_client_does_wakes_them_too(self, home, store, ttl):
        if not home.several:
            pytest.skip("this store has a single client: it lives in that client's memory")
        async with home.client(ttl=ttl) as other:
            await self.told(store, lambda: other.insert([work()]))
            hand = await Hand.enlist(other)
            await self.told(store, hand.claim_one)
