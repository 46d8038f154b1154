"""Events: one per transition, numbered without a gap, in the order in which things happened."""

from __future__ import annotations

import asyncio

import pytest

from conformance.rules import BY_ANYONE, BY_LOSS, BY_WORKER, STATES, Walker, sorted_moves
from haulier.domain import event as ev
from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.event import Event
from haulier.domain.job import Job, JobState, Role
from haulier.domain.moves import MAX_LOST, RULES, Move
from haulier.domain.unique import Conflict, Uniqueness
from haulier.domain.worker import Note
from haulier.exceptions import JobStateError, LeaseLostError
from haulier.ports import Fence, JobStore
from support import Hand, filled_batch, head, items, move, work, works

RECORDING = {how for how, rule in RULES.items() if rule.records}


class Reader:
    """Reads on from where it stopped."""

    def __init__(self, store: JobStore, cursor: str) -> None:
        self.store = store
        self.cursor = cursor

    @classmethod
    async def at_the_end(cls, store: JobStore) -> Reader:
        return cls(store, await store.last_event())

    async def news(self) -> list[Event]:
        events = await self.store.events(after=self.cursor)
        if events:
            self.cursor = events[-1].cursor
        return events

    async def types(self, job_id: str | None = None) -> list[str]:
        """What happened since the last look, to one job or to all."""
        return [e.type for e in await self.news() if job_id in (None, e.job_id)]


def tells(event: Event, job: Job) -> bool:
    """Whether an event describes a job as it is now."""
    fields = ("kind", "queue", "role", "batch_id", "attempt", "lease")
    return event.job_id == job.id and all(getattr(event, f) == getattr(job, f) for f in fields)


class TestMoves:
    """Every transition of the table appends one event of its name; a refused one appends none."""

    @pytest.mark.parametrize("role", [Role.SINGLE, Role.ITEM])
    @pytest.mark.parametrize("state", STATES)
    @pytest.mark.parametrize("how", sorted_moves(BY_WORKER | BY_LOSS | BY_ANYONE))
    async def test_a_move_that_is_applied_is_one_event_and_one_that_is_refused_none(
        self, store, clock, how, state, role
    ):
        losses = MAX_LOST - 1 if how is Move.LOSE_LAST else 0
        walker = await Walker.start(store, clock, role, losses)
        await walker.go(state)
        reader = await Reader.at_the_end(store)

        applied = await walker.attempt(how)

        events = await reader.news()
        job = await walker.job()
        if not applied:
            asked = how is Move.DROP and state is JobState.RUNNING
            assert [event.type for event in events] == [ev.CANCEL_REQUESTED] * asked
            return
        (event,) = events
        assert (event.type, event.at) == (how, clock.now())
        assert tells(event, job)
        assert event.error_type == (job.error.type if how in RECORDING else None)
        if how is Move.CLAIM or RULES[how].fenced:
            assert event.worker == walker.hand.id
        elif how not in BY_LOSS:
            assert event.worker is None

    @pytest.mark.parametrize("how", sorted_moves(BY_WORKER | BY_LOSS))
    async def test_a_move_that_yields_to_a_cancel_is_told_as_a_cancel(self, store, clock, how):
        losses = MAX_LOST - 1 if how is Move.LOSE_LAST else 0
        walker = await Walker.start(store, clock, Role.SINGLE, losses)
        await store.cancel([walker.claimed.id])
        reader = await Reader.at_the_end(store)
        await walker.attempt(how)
        assert await reader.types() == [Move.CANCEL if RULES[how].yields_to_cancel else how]

    async def test_the_life_of_a_batch(self, store, hand):
        reader = await Reader.at_the_end(store)
        top = head()
        await store.insert([top], policy=BatchPolicy(finish=FinishCallback(kind="work")))
        held = await hand.claim_one()
        await store.insert(items(top.id, 1), fence=Fence(top.id, held.lease))
        await hand.hand_in(held, Move.HAND_OVER)
        waiting = await store.get(top.id)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        callback = (await store.batch(top.id)).finish_job
        await store.retry_failed(top.id)
        await store.cancel([top.id])
        events = await reader.news()
        of_head = [event for event in events if event.job_id == top.id]
        assert [event.type for event in of_head if event.type != ev.CANCEL_REQUESTED] == [
            ev.INSERTED,
            Move.CLAIM,
            Move.HAND_OVER,
            Move.SETTLE,
            Move.REOPEN,
            Move.ABANDON,
        ]
        assert {event.role for event in of_head} == {Role.HEAD}
        assert tells(of_head[2], waiting)
        assert [event.type for event in events if event.job_id == items(top.id, 1)[0].id] == [
            ev.INSERTED,
            Move.CLAIM,
            Move.FAIL,
            Move.REQUEUE,
            Move.DROP,
        ]
        assert [event.type for event in events if event.job_id == callback] == [ev.INSERTED]

    async def test_a_head_that_gives_up(self, store, hand):
        batch = await filled_batch(store, 3, max_failures=0)
        reader = await Reader.at_the_end(store)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        events = await reader.news()
        assert [event.type for event in events if event.job_id == batch] == [Move.GIVE_UP]
        assert [event.type for event in events if event.job_id != batch] == [
            Move.CLAIM,
            Move.FAIL,
            Move.DROP,
            Move.DROP,
        ]

    async def test_a_batch_that_its_producer_fills(self, store):
        reader = await Reader.at_the_end(store)
        batch = await filled_batch(store, 2)
        events = await reader.news()
        assert [event.job_id for event in events] == [batch, *(j.id for j in items(batch, 2))]
        assert {event.type for event in events} == {ev.INSERTED}
        for event in events:
            assert tells(event, await store.get(event.job_id))

    async def test_items_of_a_batch_end_before_it_does(self, store, hand):
        batch = await filled_batch(store, 5)
        jobs = await hand.claim(5)
        reader = await Reader.at_the_end(store)
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
        events = await reader.news()
        assert [event.type for event in events] == [Move.COMPLETE] * 5 + [Move.SETTLE]
        assert events[-1].job_id == batch

    async def test_what_gives_way_is_dropped_before_the_new_one_comes(self, store):
        first = work(unique=(Uniqueness("x"),))
        await store.insert([first])
        reader = await Reader.at_the_end(store)
        second = work(unique=(Uniqueness("x", conflict=Conflict.REPLACE),))
        await store.insert([second])
        assert [(event.type, event.job_id) for event in await reader.news()] == [
            (Move.DROP, first.id),
            (ev.INSERTED, second.id),
        ]


class TestOtherEvents:
    """What happens to jobs beside their moves."""

    async def test_a_new_job(self, store, clock):
        reader = await Reader.at_the_end(store)
        job = work("a", queue="night")
        await store.insert([job])
        (event,) = await reader.news()
        assert (event.type, event.at, event.worker) == (ev.INSERTED, clock.now(), None)
        assert tells(event, await store.get(job.id))

    async def test_a_repeated_insert_and_one_left_out_are_none(self, store):
        job = work(unique=(Uniqueness("x"),))
        await store.insert([job])
        reader = await Reader.at_the_end(store)
        await store.insert([job, work(unique=(Uniqueness("x"),))])
        assert await reader.news() == []

    async def test_what_was_refused_leaves_none(self, store, hand):
        await store.insert([work(unique=(Uniqueness("x"),))])
        job = await hand.claim_one()
        batch = await filled_batch(store, 1)
        reader = await Reader.at_the_end(store)
        stray = items(work().id, 1)
        calls = [
            store.insert([work(), *stray]),
            store.insert([work(), work(unique=(Uniqueness("x", conflict=Conflict.REJECT),))]),
            store.insert([work(), *items(batch, 1, first=9)]),
            store.insert([work()], fence=Fence(job.id, job.lease + 1)),
            store.delete(job.id),
            store.delete(batch),
        ]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, Exception), answer
        assert await reader.news() == []
        with pytest.raises(LeaseLostError):
            await store.insert([work()], fence=Fence(job.id, 99))
        assert await reader.news() == []

    async def test_a_running_job_that_is_asked_to_stop_is_told_of_once(self, store, hand, clock):
        await store.insert([work()])
        job = await hand.claim_one()
        reader = await Reader.at_the_end(store)
        for _ in range(3):
            await store.cancel([job.id])
        (event,) = await reader.news()
        assert (event.type, event.at) == (ev.CANCEL_REQUESTED, clock.now())
        assert tells(event, job)

    async def test_pending_and_finished_jobs_are_not_asked(self, store, hand):
        pending = work("later")
        await store.insert([pending, work()])
        job = await hand.claim_one()
        await hand.hand_in(job, Move.COMPLETE)
        reader = await Reader.at_the_end(store)
        for _ in range(2):
            await store.cancel([pending.id, job.id])
        assert await reader.types() == [Move.DROP]

    async def test_the_running_items_of_a_cancelled_batch_are_asked(self, store, hand):
        batch = await filled_batch(store, 3)
        job = await hand.claim_one()
        reader = await Reader.at_the_end(store)
        for _ in range(2):
            await store.cancel([batch])
        events = [event for event in await reader.news() if event.job_id != batch]
        assert sorted((event.type, event.job_id == job.id) for event in events) == [
            (ev.CANCEL_REQUESTED, True),
            (Move.DROP, False),
            (Move.DROP, False),
        ]

    async def test_a_cancel_that_was_heard_is_told_of_the_first_time(self, store, hand, clock):
        await store.insert([work()])
        job = await hand.claim_one()
        await store.cancel([job.id])
        reader = await Reader.at_the_end(store)
        await store.note([Note(job.id, job.lease + 1, heard=True)])
        assert await reader.news() == []
        assert not (await store.get(job.id)).cancel_heard
        clock.advance(1)
        for _ in range(2):
            await store.note([Note(job.id, job.lease, heard=True)])
        (event,) = await reader.news()
        assert (event.type, event.at) == (ev.CANCEL_HEARD, clock.now())
        assert tells(event, job)
        seen = await store.get(job.id)
        assert (seen.cancel_requested, seen.cancel_heard) == (True, True)

    async def test_a_requeue_forgets_that_a_cancel_was_heard(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        await store.cancel([job.id])
        await store.note([Note(job.id, job.lease, heard=True)])
        await hand.hand_in(job, Move.CANCEL)
        await store.requeue([job.id])
        assert not (await hand.claim_one()).cancel_heard

    async def test_progress_is_no_event(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        reader = await Reader.at_the_end(store)
        await store.note([Note(job.id, job.lease, 50, "half"), Note(job.id, job.lease, 60)])
        assert await reader.news() == []

    async def test_pause_and_resume_are_told_of_when_they_change_something(self, store):
        batch = await filled_batch(store, 2)
        reader = await Reader.at_the_end(store)
        await store.resume(batch)
        for verb in (store.pause, store.pause, store.resume, store.resume):
            await verb(batch)
        events = await reader.news()
        assert [event.type for event in events] == [ev.PAUSED, ev.RESUMED]
        top = await store.get(batch)
        assert all(tells(event, top) for event in events)

    async def test_a_deleted_job(self, store, hand):
        await store.insert([work()])
        job = await hand.claim_one()
        await hand.hand_in(job, Move.COMPLETE)
        before = await store.get(job.id)
        reader = await Reader.at_the_end(store)
        await store.delete(job.id)
        (event,) = await reader.news()
        assert event.type == ev.DELETED
        assert tells(event, before)

    async def test_a_deleted_batch(self, store, hand):
        batch = await filled_batch(store, 3)
        await hand.work_off()
        reader = await Reader.at_the_end(store)
        await store.delete(batch)
        events = await reader.news()
        assert {event.type for event in events} == {ev.DELETED}
        assert [event.job_id for event in events].count(batch) == 1

    async def test_two_refused_verbs(self, store, hand):
        batch = await filled_batch(store, 1)
        await hand.work_off()
        reader = await Reader.at_the_end(store)
        with pytest.raises(JobStateError):
            await store.pause(batch)
        await store.cancel([batch])
        assert await store.retry_failed(batch) == 0
        assert await reader.news() == []

    async def test_many_moves_of_one_exchange(self, store):
        await store.insert(works(30))
        hand = await Hand.enlist(store)
        jobs = await hand.claim(20)
        reader = await Reader.at_the_end(store)
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs), slots=10)
        types = await reader.types()
        assert sorted(types) == [Move.CLAIM] * 10 + [Move.COMPLETE] * 20
