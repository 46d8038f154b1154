"""Schedules: each tick happens once, whoever sees to it, and its job says which one it is of."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from haulier.domain import event as ev
from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.ids import derived_id
from haulier.domain.job import MICROSECOND, JobState, OnLost, Role
from haulier.domain.moves import Move
from haulier.domain.retry import RetryPolicy
from haulier.domain.schedule import (
    Cron,
    Interval,
    Missed,
    Overlap,
    Planned,
    Schedule,
    Template,
    by_hand,
    plan,
)
from haulier.domain.tick import KEPT_TICKS, Tick, TickState
from haulier.exceptions import ScheduleNotFoundError
from haulier.ports import JobFilter, JobStore
from haulier.services.ids import new_id
from support import Hand, filled_batch

FULL = Template(
    kind="bulk",
    payload='{"ä":[1,null,"☕ \\u0000"]}'.encode(),
    version=3,
    queue="other",
    priority=7,
    key="ada",
    retry=RetryPolicy(max_attempts=7, give_up_on=("Boom",)),
    role=Role.HEAD,
    on_lost=OnLost.FAIL,
    policy=BatchPolicy(
        finish=FinishCallback(kind="after", queue="last"),
        concurrency=2,
        batch_size=3,
        max_failures=0,
    ),
)


async def scheduled(store: JobStore, name: str = "each", **fields: Any) -> Schedule:
    """A schedule of every second that was just made."""
    now = (await store.schedules().due(0)).now
    given: dict[str, Any] = {
        "name": name,
        "id": new_id(),
        "template": Template(kind="work", payload=b'{"n":1}'),
        "cadence": Interval(1.0, now),
        "next": now + MICROSECOND,
        "changed_by": "ada",
    }
    assert await store.schedules().put(Schedule(**given | fields), ev.SCHEDULE_SET)
    return await store.schedules().get(name)


async def tick_all(store: JobStore) -> list[Tick]:
    """What a worker does when it is time."""
    due = await store.schedules().due()
    firings = [firing for each in due.schedules if (firing := plan(each, due.now))]
    fired = await store.schedules().fire(firings)
    return [tick for ticks in fired for tick in ticks or ()]


async def states(store: JobStore, name: str = "each") -> list[TickState]:
    return [tick.state for tick in await store.schedules().ticks(name)]


class TestKeptSchedules:
    """What is put comes back, changes are by revision."""

    async def test_all_of_it_comes_back(self, store, clock):
        given = Schedule(
            name="a.full-1",
            id=new_id(),
            template=FULL,
            cadence=Cron("0 3 * * mon", "Europe/Berlin"),
            missed=Missed.all(5),
            overlap=Overlap.CANCEL,
            declared="digest",
            next=clock.now() + 5,
            changed_by="ada ☕",
        )
        assert await store.schedules().put(given, ev.SCHEDULE_SET)
        kept = replace(given, revision=1, changed_at=clock.now())
        assert await store.schedules().get("a.full-1") == kept
        assert await store.schedules().find() == [kept]

    async def test_a_change_is_by_the_revision_that_was_read(self, store, clock):
        first = await scheduled(store)
        assert not await store.schedules().put(replace(first, revision=0), ev.SCHEDULE_SET)
        clock.advance(1)
        changed = replace(
            first, cadence=Interval(60, 7), next=None, changed_by="bob", overlap=Overlap.SKIP
        )
        changed = replace(changed, template=replace(first.template, kind="bulk", queue="other"))
        assert await store.schedules().put(changed, ev.SCHEDULE_PAUSED)
        assert not await store.schedules().put(changed, ev.SCHEDULE_SET)
        wanted = replace(changed, revision=2, changed_at=clock.now())
        assert await store.schedules().get("each") == wanted

    async def test_they_are_read_page_by_page_in_the_order_of_their_names(self, store):
        names = sorted(["B", "a", "a-b", "a.b", "b", "Z9", "_x", "zz"])
        for name in reversed(names):
            await scheduled(store, name)
        assert [each.name for each in await store.schedules().find()] == names
        first = await store.schedules().find(limit=3)
        rest = await store.schedules().find(after=first[-1].name, limit=9)
        assert [each.name for each in [*first, *rest]] == names

    async def test_of_one_that_is_not_there(self, store):
        with pytest.raises(ScheduleNotFoundError):
            await store.schedules().get("nobody")
        with pytest.raises(ScheduleNotFoundError):
            await store.schedules().delete("nobody", by="eve")
        assert await store.schedules().ticks("nobody") == []
        assert await store.schedules().tick_of(new_id()) is None

    async def test_changes_are_events(self, store):
        before = await store.last_event()
        first = await scheduled(store)
        await store.schedules().put(replace(first, next=None, changed_by="bob"), ev.SCHEDULE_PAUSED)
        await store.schedules().delete("each", by="eve")
        events = await store.events(after=before)
        assert [event.type for event in events] == [
            *(ev.SCHEDULE_SET, ev.SCHEDULE_PAUSED, ev.SCHEDULE_DELETED)
        ]
        assert [event.by for event in events] == ["ada", "bob", "eve"]
        assert {(event.error_type, event.setting) for event in events} == {(None, None)}
        whose = {(event.job_id, event.kind, event.queue, event.role) for event in events}
        assert whose == {(first.id, "work", "default", Role.SINGLE)}
        assert sum((await store.counts()).values()) == 0

    async def test_one_that_is_deleted_takes_its_ticks_along_and_leaves_the_jobs(
        self, store, clock
    ):
        await scheduled(store)
        clock.advance(1)
        (tick,) = await tick_all(store)
        await store.schedules().delete("each", by="eve")
        assert await store.schedules().find() == []
        assert (await store.schedules().due()).wait is None
        assert await store.schedules().ticks("each") == []
        assert await store.schedules().tick_of(tick.job) is None
        assert (await store.get(tick.job)).state is JobState.PENDING
        again = await scheduled(store)
        assert again.last_job is None
        assert await store.schedules().ticks("each") == []

    async def test_workers_are_woken_by_a_new_one(self, store):
        woken = asyncio.Event()
        with store.watch(woken.set, ready=True):
            woken.clear()
            await scheduled(store)
            async with asyncio.timeout(5):
                await woken.wait()


class TestDue:
    async def test_nothing_is_due_of_nothing(self, store, clock):
        due = await store.schedules().due()
        assert (due.now, due.schedules, due.wait) == (clock.now(), (), None)

    async def test_what_is_due_and_how_long_it_is_to_the_next(self, store, clock):
        now = clock.now()
        for name, after in (("late", 3), ("soon", 1), ("next", 9), ("last", 20)):
            await scheduled(store, name, next=now + after * MICROSECOND)
        await scheduled(store, "paused", next=None)
        due = await store.schedules().due()
        assert (due.schedules, due.wait) == ((), MICROSECOND)
        clock.advance(3)
        due = await store.schedules().due()
        assert [each.name for each in due.schedules] == ["soon", "late"]
        assert due.wait == 6 * MICROSECOND
        assert [each.name for each in (await store.schedules().due(1)).schedules] == ["soon"]
        clock.advance(30)
        due = await store.schedules().due()
        assert (len(due.schedules), due.wait) == (4, None)


class TestTicks:
    """A tick has one row and one job."""

    async def test_its_job_is_enqueued_and_says_so(self, store, clock):
        first = await scheduled(store)
        assert await tick_all(store) == []
        clock.advance(1.5)
        (tick,) = await tick_all(store)
        job_id = derived_id(first.id, f"tick/{first.next}")
        assert tick == Tick("each", first.next, clock.now(), TickState.FIRED, job_id)
        job = await store.get(job_id)
        assert (job.state, job.kind, job.payload) == (JobState.PENDING, "work", b'{"n":1}')
        assert await store.schedules().ticks("each") == [tick]
        assert await store.schedules().tick_of(job_id) == tick
        after = await store.schedules().get("each")
        assert (after.next, after.last_job) == (first.next + MICROSECOND, job_id)
        assert after.revision > first.revision
        assert (after.changed_by, after.changed_at) == (first.changed_by, first.changed_at)
        assert await tick_all(store) == []
        hand = await Hand.enlist(store)
        assert (await hand.claim_one()).id == job_id

    async def test_its_job_is_a_job_like_any_other(self, store, clock):
        await scheduled(store, template=FULL)
        before = await store.last_event()
        clock.advance(1)
        (tick,) = await tick_all(store)
        job = await store.get(tick.job)
        wanted = FULL.job(job.id)
        for name in ("kind", "payload", "version", "queue", "priority", "key", "retry", "role"):
            assert getattr(job, name) == getattr(wanted, name), name
        assert job.on_lost is OnLost.FAIL
        assert job.run_at == clock.now()
        batch = await store.batch(job.id)
        assert (batch.concurrency, batch.batch_size, batch.max_failures) == (2, 3, 0)
        assert [event.type for event in await store.events(after=before)] == [ev.INSERTED]
        assert (await store.counts())["other", "bulk", Role.HEAD, JobState.PENDING] == 1

    async def test_of_several_who_see_to_it_one_does(self, store, clock):
        await scheduled(store)
        clock.advance(1)
        due = await store.schedules().due()
        firing = plan(due.schedules[0], due.now)
        fired = await asyncio.gather(*(store.schedules().fire([firing]) for _ in range(8)))
        assert sum(ticks is not None for (ticks,) in fired) == 1
        assert len((await store.find(JobFilter())).jobs) == 1

    async def test_one_that_was_changed_meanwhile_does_not_tick(self, store, clock):
        one, two = await scheduled(store, "one"), await scheduled(store, "two")
        clock.advance(1)
        due = await store.schedules().due()
        firings = [plan(each, due.now) for each in due.schedules]
        await store.schedules().put(replace(one, next=None), ev.SCHEDULE_PAUSED)
        fired = dict(
            zip(
                [firing.name for firing in firings],
                await store.schedules().fire(firings),
                strict=True,
            )
        )
        assert fired["one"] is None
        assert len(fired["two"]) == 1
        assert (await store.schedules().get("one")).next is None
        assert await store.schedules().ticks("one") == []
        await store.schedules().delete("two", by="eve")
        assert await store.schedules().fire([plan(replace(two, revision=2), due.now)]) == [None]

    async def test_a_tick_that_is_recorded_is_not_done_again(self, store, clock):
        first = await scheduled(store)
        clock.advance(1)
        (tick,) = await tick_all(store)
        after = await store.schedules().get("each")
        # Somebody has set it back.
        await store.schedules().put(replace(after, next=first.next), ev.SCHEDULE_SET)
        await store.delete(tick.job)
        assert await tick_all(store) == []
        assert await store.schedules().ticks("each") == [tick]
        assert (await store.find(JobFilter())).jobs == ()
        assert (await store.schedules().get("each")).next == first.next + MICROSECOND

    async def test_many_at_once(self, store, clock):
        for n in range(120):
            await scheduled(store, f"s{n:03}", cadence=Interval(1.0 + n % 3, clock.now()))
        clock.advance(1)
        assert len(await tick_all(store)) == 100
        assert len(await tick_all(store)) == 20
        assert len((await store.find(JobFilter(), limit=500)).jobs) == 120
        assert (await store.schedules().due()).wait == MICROSECOND

    async def test_missed_ones_share_a_row(self, store, clock):
        first = await scheduled(store, missed=Missed.all(2))
        clock.advance(5.5)
        ticks = await tick_all(store)
        last = first.next + 4 * MICROSECOND
        assert [(t.tick, t.state, t.since) for t in ticks] == [
            (last - 2 * MICROSECOND, TickState.MISSED, first.next),
            (last - MICROSECOND, TickState.FIRED, None),
            (last, TickState.FIRED, None),
        ]
        assert await store.schedules().ticks("each") == ticks[::-1]
        assert await store.schedules().ticks("each", before=last, limit=1) == [ticks[1]]
        assert ticks[0].job is None
        assert len((await store.find(JobFilter())).jobs) == 2

    async def test_the_latest_are_kept_and_those_of_jobs_that_are_not_done(self, store, clock):
        await scheduled(store)
        hand = await Hand.enlist(store)
        clock.advance(1)
        (old,) = await tick_all(store)
        held = await hand.claim_one()
        for _ in range(KEPT_TICKS + 5):
            clock.advance(1)
            assert len(await tick_all(store)) == 1
            await hand.work_off()
        ticks = await store.schedules().ticks("each", limit=1000)
        assert len(ticks) == KEPT_TICKS + 1
        assert ticks[-1] == old
        assert await store.schedules().tick_of(held.id) == old
        await hand.hand_in(held, Move.COMPLETE)
        clock.advance(1)
        await tick_all(store)
        assert len(await store.schedules().ticks("each", limit=1000)) == KEPT_TICKS


class TestOverlap:
    """What a tick does while the job of the one before is not done."""

    @pytest.mark.parametrize("begun", [False, True])
    async def test_allowed(self, store, clock, begun):
        await scheduled(store)
        await self._two(store, clock, begun=begun)
        assert await states(store) == [TickState.FIRED, TickState.FIRED]
        assert len((await store.find(JobFilter())).jobs) == 2

    @pytest.mark.parametrize("begun", [False, True])
    async def test_skipped_until_the_job_is_done(self, store, clock, begun):
        await scheduled(store, overlap=Overlap.SKIP)
        hand, first, second = await self._two(store, clock, begun=begun)
        assert (second.state, second.job) == (TickState.OVERLAP, None)
        assert len((await store.find(JobFilter())).jobs) == 1
        assert (await store.schedules().get("each")).last_job == first.job
        clock.advance(1)
        assert [tick.state for tick in await tick_all(store)] == [TickState.OVERLAP]
        held = await store.get(first.job) if begun else await hand.claim_one()
        await hand.hand_in(held, Move.FAIL)
        clock.advance(1)
        assert [tick.state for tick in await tick_all(store)] == [TickState.FIRED]

    async def test_cancels_a_pending_one(self, store, clock):
        await scheduled(store, overlap=Overlap.CANCEL)
        _, first, second = await self._two(store, clock, begun=False)
        assert (await store.get(first.job)).state is JobState.CANCELLED
        assert (await store.get(second.job)).state is JobState.PENDING

    async def test_asks_a_running_one_to_stop(self, store, clock):
        await scheduled(store, overlap=Overlap.CANCEL)
        hand, first, second = await self._two(store, clock, begun=True)
        running = await store.get(first.job)
        assert (running.state, running.cancel_requested) == (JobState.RUNNING, True)
        assert (await hand.exchange()).cancels == (first.job,)
        assert (await store.get(second.job)).state is JobState.PENDING
        assert await hand.hand_in(running, Move.CANCEL)

    async def test_cancels_a_batch_with_its_items(self, store, clock):
        batch = await filled_batch(store, 3)
        first = await scheduled(store, overlap=Overlap.CANCEL)
        clock.advance(1)
        firing = plan(first, clock.now())
        # As if the batch were what the schedule itself had begun.
        planned = Planned(firing.ticks[0].tick, firing.ticks[0].job._replace(id=batch))
        await store.schedules().fire([replace(firing, ticks=(planned,))])
        clock.advance(1)
        assert [tick.state for tick in await tick_all(store)] == [TickState.FIRED]
        after = await store.batch(batch)
        assert (after.state, after.counts.cancelled) == (JobState.CANCELLED, 3)

    async def test_within_the_ticks_of_one_firing(self, store, clock):
        for overlap in (Overlap.SKIP, Overlap.CANCEL):
            await scheduled(store, overlap.value, overlap=overlap, missed=Missed.all(3))
        clock.advance(3)
        await tick_all(store)
        assert await states(store, "skip") == [
            *(TickState.OVERLAP, TickState.OVERLAP, TickState.FIRED)
        ]
        cancelled = await store.schedules().ticks("cancel")
        found = [(await store.get(tick.job)).state for tick in cancelled]
        assert found == [JobState.PENDING, JobState.CANCELLED, JobState.CANCELLED]

    async def test_a_job_that_was_deleted_overlaps_nothing(self, store, clock):
        await scheduled(store, overlap=Overlap.SKIP)
        clock.advance(1)
        (first,) = await tick_all(store)
        await store.delete(first.job)
        clock.advance(1)
        assert [tick.state for tick in await tick_all(store)] == [TickState.FIRED]

    async def test_by_hand(self, store, clock):
        first = await scheduled(store, overlap=Overlap.SKIP)
        clock.advance(0.25)
        ((tick,),) = await store.schedules().fire([by_hand(first, clock.now())])
        assert (tick.tick, tick.state) == (clock.now(), TickState.MANUAL)
        after = await store.schedules().get("each")
        assert (after.next, after.last_job) == (first.next, tick.job)
        clock.advance(0.5)
        ((tick,),) = await store.schedules().fire([by_hand(after, clock.now())])
        assert (tick.state, tick.job) == (TickState.OVERLAP, None)
        paused = replace(await store.schedules().get("each"), next=None, overlap=Overlap.ALLOW)
        await store.schedules().put(paused, ev.SCHEDULE_PAUSED)
        paused = await store.schedules().get("each")
        clock.advance(0.5)
        ((tick,),) = await store.schedules().fire([by_hand(paused, clock.now())])
        assert tick.state is TickState.MANUAL
        assert (await store.schedules().get("each")).next is None

    @staticmethod
    async def _two(store: JobStore, clock: Any, *, begun: bool) -> tuple[Hand, Tick, Tick]:
        """Two ticks, the job of the first one claimed or not before the second."""
        hand = await Hand.enlist(store)
        clock.advance(1)
        (first,) = await tick_all(store)
        if begun:
            await hand.claim_one()
        clock.advance(1)
        (second,) = await tick_all(store)
        return hand, first, second
