"""A store copied into another one: all of it, once, and the work goes on there."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from conformance.schedules import FULL, scheduled, tick_all
from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.configuration import Configuration
from haulier.domain.event import RESET
from haulier.domain.flow import After, Otherwise
from haulier.domain.job import MICROSECOND, Job, JobState, NewJob, OnLost, Priority
from haulier.domain.limits import Breaker, Circuit, Limit, Rate
from haulier.domain.line import KEPT_LINES, Said
from haulier.domain.moves import Move
from haulier.domain.retry import RetryPolicy
from haulier.domain.schedule import Cron, Interval, Missed, Overlap, by_hand
from haulier.domain.step import Step
from haulier.domain.transfer import Mark, Section, Stage, Tally
from haulier.domain.unique import Conflict, Scope, Uniqueness
from haulier.domain.worker import Note
from haulier.exceptions import (
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    StoreCorruptError,
    StoreFrozenError,
)
from haulier.ports import Fence, JobFilter, JobStore, pages
from haulier.services.transfer import End, copy, thaw
from support import Hand, filled_batch, head, items, move, wait_until, work, works

HOUR = 3600.0


async def copied(source: JobStore, target: JobStore, **options: Any):
    return await copy(End(source, "store://from"), End(target, "store://to"), **options)


async def busy(store: JobStore, clock) -> None:
    """Leave a bit of everything in a store, and no worker."""
    hand = await Hand.enlist(store)
    await _names(store, hand)
    await _single_jobs(store, hand, clock)
    await _flows(store, hand)
    await _batches(store, hand)
    await _loner(store, clock)
    await _schedules(store, clock)
    await _limits(store)
    await _configuration(store, clock)
    await store.retire(hand.id)


async def _limits(store: JobStore) -> None:
    """Limits of each sort, one that was deleted, and keys that have used them up."""
    limits = store.limits()
    breaker = Breaker(least=1, pause=HOUR)
    for limit in (
        Limit(name="c", kind="tight", concurrency=1, per_key=True),
        Limit(name="r", kind="tight", rate=Rate(1, 60.0), per_key=True),
        Limit(name="s", kind="tight", rate=Rate(100, 60.0, burst=50)),
        Limit(name="b", kind="tight", breaker=breaker, per_key=True),
    ):
        await limits.put(limit, by="somebody ü", declared=limit.name == "c")
    await limits.put(Limit(name="gone", rate=Rate(1)), by="code", declared=True)
    await limits.drop("gone", by="somebody")
    tight = await Hand.enlist(store, kinds=("tight",))
    await store.insert([work("tight", key=key) for key in "aabbü"])
    done, failed, _ = await tight.claim(9)
    await tight.exchange(move(done, Move.COMPLETE), move(failed, Move.FAIL))
    await store.retire(tight.id)


async def _names(store: JobStore, hand: Hand) -> None:
    for scope, period in ((Scope.PENDING, 0), (Scope.ACTIVE, 0), (Scope.PERIOD, 9 * HOUR)):
        unique = Uniqueness(
            f"ü {scope}", scope, Conflict.MATCH, round(period * MICROSECOND), b"\0d"
        )
        await store.insert([work(unique=(unique,))])
    outlived = Uniqueness("gone", Scope.PERIOD, period=round(HOUR * MICROSECOND))
    await store.insert([work("brief", unique=(outlived,))])
    brief = await Hand.enlist(store, kinds=("brief",))
    await brief.work_off(Move.FAIL)
    await store.retire(brief.id)


async def _single_jobs(store: JobStore, hand: Hand, clock) -> None:
    retry = RetryPolicy(max_attempts=7, give_up_on=("Boom",))
    told, failed, retried, cancelled, gone = works(
        5, priority=50, retry=retry, key="ada", baggage='{"a":1}'
    )
    await store.insert([told, failed, retried, cancelled, gone])
    for job in await hand.claim(5):
        if job.id == told.id:
            await store.note([Note(job.id, job.lease, progress=40, message="half ☕")])
        if job.id in (told.id, retried.id):
            lines = tuple(Said(n, f"line {n} ☕", ago=MICROSECOND - n) for n in range(1, 4))
            await store.note([Note(job.id, job.lease, lines=lines)])
            results = {
                "upload ü": b'{"id":7}',
                "none": b"null",
                "long": b'"' + b"x" * 70_000 + b'"',
            }
            await store.keep([Step(job.id, job.lease, name, r) for name, r in results.items()])
        how = {failed.id: Move.FAIL, retried.id: Move.RETRY, cancelled.id: Move.CANCEL}
        delay = 5 if job.id == retried.id else None
        await hand.hand_in(job, how.get(job.id, Move.COMPLETE), delay=delay)
    await store.delete(gone.id)
    clock.advance(1)
    await store.insert(works(3, priority=Priority.LOW, on_lost=OnLost.FAIL))
    await store.insert([work(version=3, queue="other", payload='{"ä":[1,null]}'.encode())])
    await store.insert(works(2, delay=60 * MICROSECOND, priority=2))


async def _flows(store: JobStore, hand: Hand) -> None:
    """Jobs that wait, that have waited, and that were cancelled with their parents."""
    done, failed, held = works(3, priority=90)
    await store.insert([done, failed, held])
    jobs = {job.id: job for job in await hand.claim(3)}
    later = work(delay=90 * MICROSECOND, priority=3)
    run = Otherwise.RUN
    children = [
        work(after=(After(later.id), After(done.id, run))),
        work(after=(After(failed.id), After(done.id))),
        work("after", after=(After(failed.id, run),)),
        head(after=(After(later.id, run),)),
    ]
    await store.insert([*children, later])
    await store.insert([work(after=(After(children[1].id), After(held.id)))])
    ends = {failed.id: Move.FAIL, held.id: Move.GIVE_BACK}
    for job in jobs.values():
        await hand.hand_in(job, ends.get(job.id, Move.COMPLETE))
    await store.cancel([held.id])


async def _batches(store: JobStore, hand: Hand) -> None:
    finish = FinishCallback(kind="after", queue="other")
    done = await filled_batch(store, 3, finish=finish)
    bulk = await Hand.enlist(store, kinds=("bulk",))
    await hand.work_off()
    assert (await store.batch(done)).settled
    mixed = await filled_batch(store, 4)
    first, *_ = jobs = await hand.claim(3)
    await hand.exchange(move(first, Move.FAIL), *(move(job, Move.COMPLETE) for job in jobs[1:]))
    await filled_batch(store, 3, sealed=False, batch_size=2)
    await filled_batch(store, 5, concurrency=2, finish=finish)
    paused = await filled_batch(store, 4)
    await store.pause(paused)
    await store.cancel([mixed])
    assert (await store.batch(mixed)).settled
    await _cut_short(store)
    top = head(unique=(Uniqueness("batch"),))
    await store.insert([top], policy=BatchPolicy(concurrency=3, max_failures=9))
    held = await bulk.claim_one()
    await store.insert(items(top.id, 4), fence=Fence(top.id, held.lease))
    await bulk.hand_in(held, Move.HAND_OVER)
    await store.retire(bulk.id)


async def _cut_short(store: JobStore) -> None:
    top = head()
    policy = BatchPolicy(max_failures=0)
    await store.open_batch(top, items(top.id, 3, kind="brief"), policy=policy, sealed=True)
    brief = await Hand.enlist(store, kinds=("brief",))
    await brief.hand_in(await brief.claim_one(), Move.FAIL)
    assert (await store.get(top.id)).state is JobState.FAILED
    await store.retire(brief.id)


async def _loner(store: JobStore, clock) -> None:
    """A job that two workers were lost with."""
    suspect = work("suspect")
    await store.insert([suspect])
    for _ in range(2):
        loser = await Hand.enlist(store, kinds=("suspect",))
        clock.advance(2)
        await loser.claim_one()
        await store.retire(loser.id)


async def _schedules(store: JobStore, clock) -> None:
    """One that is paused, and one with ticks of every kind."""
    await scheduled(store, "paused", template=FULL, next=None, cadence=Cron("0 3 * * 1"))
    hourly = {"cadence": Interval(HOUR, clock.now()), "next": clock.now() + MICROSECOND}
    made = await scheduled(store, "hourly", missed=Missed.all(2), overlap=Overlap.SKIP, **hourly)
    await store.schedules().fire([by_hand(made, clock.now())])
    clock.advance(1)
    await tick_all(store)
    clock.advance(3 * HOUR)
    await tick_all(store)


async def _configuration(store: JobStore, clock) -> None:
    """Settings of several versions, one of which is gone, and a paused queue."""
    values = {"queues.still.paused": True, "log.level": "debug", "queues.a.weight": 7}
    await store.configurable().configure(values, by="Zoë")
    clock.advance(1)
    rule = {"retention.work.failed": {"age": 5.5, "count": 2}}
    await store.configurable().configure(rule, unset=["log.level"], by="ops")


async def everything(store: JobStore, *, plain: Sequence[NewJob] = ()) -> dict[str, Any]:
    """All that the port tells of a store.

    Of `plain` jobs, which have left nothing beside themselves, only every fiftieth is asked for it:
    five questions to each of thousands would take longer than all else.
    """
    passed_over = {job.id for n, job in enumerate(plain) if n % 50}
    jobs = [job async for job in pages(store, JobFilter())]
    events, cursor = [], None
    while page := await store.events(after=cursor, limit=50):
        events += page
        cursor = page[-1].cursor
    asked = [job.id for job in jobs if job.id not in passed_over]
    return {
        "jobs": jobs,
        "errors": {job_id: await store.errors(job_id) for job_id in asked},
        "steps": {job_id: await store.steps(job_id) for job_id in asked},
        "lines": {job_id: await store.lines(job_id) for job_id in asked},
        "parents": {job_id: await store.parents(job_id) for job_id in asked},
        "children": {job_id: (await store.children(job_id)).jobs for job_id in asked},
        "batches": await store.batches(limit=500),
        "limits": await store.limits().list(),
        "counts": await store.counts(),
        "configuration": await store.configurable().configuration(),
        "alterations": await store.configurable().history(1000),
        "events": events,
        "last event": await store.last_event(),
        "schedules": (found := await store.schedules().find()),
        "ticks": {each.name: await store.schedules().ticks(each.name) for each in found},
    }


async def claims(store: JobStore, clock) -> list[Job]:
    """The jobs in the order in which a worker gets them, also those that come due."""
    hand = await Hand.enlist(store, queues=("default", "other"), kinds=KINDS)
    found = []
    for _ in range(100):
        jobs = await hand.claim(1)
        if not jobs:
            clock.advance(10)
            jobs = await hand.claim(1)
        found += jobs
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
    await store.retire(hand.id)
    return found


KINDS = ("work", "bulk", "after", "brief", "suspect")


class TestCopy:
    """What is there in the end."""

    async def test_everything_is_the_same_in_the_other_store(self, store, other, clock):
        await busy(store, clock)
        before = await everything(store)
        assert {job.state for job in before["jobs"]} == set(JobState)
        done = await copied(store, other)
        assert await everything(other) == before
        assert done.tallies[Section.JOBS].count == len(before["jobs"])
        assert sum(done.states.values()) == len(before["jobs"])
        assert not done.resumed

    async def test_every_record_is_the_same(self, store, other, clock):
        await busy(store, clock)
        await copied(store, other)
        for section in Section:
            ours = await store.transferable().read(section)
            theirs = await other.transferable().read(section)
            assert ours.records
            assert set(theirs.records) == set(ours.records)
            assert Tally().plus(theirs.records) == Tally().plus(ours.records)

    async def test_the_work_goes_on_in_the_same_order_and_leases_rise_on(
        self, home, other_home, store, other, clock
    ):
        await busy(store, clock)
        last = {job.id: job.lease async for job in pages(store, JobFilter())}
        await copied(store, other, keep_source=True)
        began = clock.now()
        here = await claims(store, clock)
        _turn_to(other_home.clock, began)
        there = await claims(other, other_home.clock)
        assert [job.id for job in there] == [job.id for job in here]
        assert [job.lease for job in there] == [job.lease for job in here]
        assert all(job.lease > last.get(job.id, 0) for job in there)
        assert {job.kind for job in there} == {"work", "bulk", "after", "suspect"}
        assert await other.counts() == await store.counts()

    async def test_limits_hold_on_in_the_new_store(self, home, other_home, store, other, clock):
        await busy(store, clock)
        began = clock.now()
        await copied(store, other)
        _turn_to(other_home.clock, began)
        hand = await Hand.enlist(other, kinds=("tight",))
        assert await hand.claim(9) == []
        assert not await other.limits().put(Limit(name="gone", rate=Rate(1)), by="x", declared=True)
        states = await other.limits().keys("b")
        assert [state.circuit for state in states if state.ready_at] == [Circuit.OPEN]
        other_home.clock.advance(70)
        hand = await Hand.enlist(other, kinds=("tight",))
        assert len(await hand.claim(9)) == 2
        assert await hand.claim(9) == []

    async def test_new_jobs_come_after_the_old_ones(self, store, other, clock):
        jobs = works(3)
        await store.insert(jobs)
        hand = await Hand.enlist(store)
        await hand.work_off()
        await store.retire(hand.id)
        last = (await store.get(jobs[-1].id)).seq
        await store.delete(jobs[-1].id)
        await copied(store, other)
        await other.insert([added := work()])
        assert (await other.get(added.id)).seq == last + 1

    async def test_names_are_held_as_before(self, store, other, clock):
        await busy(store, clock)
        holders = {}
        await copied(store, other)
        for name in ("ü pending", "ü active", "ü period", "gone", "batch"):
            asking = work(unique=(Uniqueness(name),))
            reply = await other.insert([asking])
            holders[name] = reply.instead.get(asking.id)
        assert None not in {holders["ü period"], holders["gone"], holders["batch"]}
        assert (await other.get(holders["batch"])).kind == "bulk"
        with pytest.raises(StoreFrozenError):
            await store.insert([work(unique=(Uniqueness("gone"),))])

    async def test_cursors_of_events_lead_on_in_the_new_store(self, store, other, clock):
        await busy(store, clock)
        cursor = await store.last_event()
        await copied(store, other)
        await other.insert([job := work()])
        (event,) = await other.events(after=cursor)
        assert (event.type, event.job_id) == ("insert", job.id)

    async def test_a_batch_settles_and_calls_back_once_in_the_new_store(
        self, store, other, other_home, clock
    ):
        batch = await filled_batch(store, 3, finish=FinishCallback(kind="after"))
        hand = await Hand.enlist(store)
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        await store.retire(hand.id)
        await copied(store, other)
        hand = await Hand.enlist(other)
        assert await hand.work_off() == 2
        found = await other.batch(batch)
        assert (found.state, found.settled) == (JobState.COMPLETED, True)
        assert (await other.get(found.finish_job)).kind == "after"
        assert await other.retry_failed(batch) == 1

    async def test_an_empty_store_is_copied_too(self, store, other):
        done = await copied(store, other)
        assert {tally.count for tally in done.tallies.values()} == {0}
        with pytest.raises(StoreFrozenError, match="was moved to store://to"):
            await store.insert([work()])
        assert (await other.insert([work()])).new == 1

    async def test_more_than_a_page_of_each_section(self, store, other):
        plain = works(1203)
        await store.insert(plain)
        for number in range(3):
            await store.insert([work(unique=(Uniqueness(f"n{number}"),))])
        await store.insert([work(payload=b'"' + b"x" * 3_000_000 + b'"') for _ in range(4)])
        before = await everything(store, plain=plain)
        done = await copied(store, other)
        assert done.tallies[Section.JOBS].count == 1210
        assert await everything(other, plain=plain) == before

    async def test_long_steps_and_many_lines_make_pages_of_their_own(self, store, other, hand):
        await store.insert(works(12))
        for job in await hand.claim(12):
            long = b'"' + b"x" * 200_000 + b'"'
            await store.keep([Step(job.id, job.lease, f"{n}", long) for n in range(8)])
            lines = tuple(Said(n, "y" * 2000) for n in range(KEPT_LINES))
            await store.note([Note(job.id, job.lease, lines=lines)])
            await hand.hand_in(job, Move.COMPLETE)
        await store.retire(hand.id)
        before = await everything(store)
        page = await store.transferable().read(Section.JOBS)
        assert 1 < len(page.records) < 5
        await copied(store, other)
        assert await everything(other) == before


def _turn_to(clock, instant: int) -> None:
    clock.advance((instant - clock.now()) / MICROSECOND)


async def _drains(store: JobStore) -> bool:
    mark = (await store.transferable().standing()).mark
    return mark is not None and mark.stage is Stage.DRAINING


class _CutError(Exception):
    """The copier died here."""


class _Cutter:
    """Lets a copier make so many calls of the verbs of copies; the last one gets no answer."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def around(self, store: JobStore) -> Any:
        return _Around(store, self._answer)

    async def _answer(self, call: Any, *arguments: Any, **options: Any) -> Any:
        answer = await call(*arguments, **options)
        self.left -= 1
        if self.left <= 0:
            raise _CutError
        return answer


class _Around:
    """A store whose verbs for copies go through a function."""

    def __init__(self, store: JobStore, through: Any) -> None:
        self._store = store
        self._through = through

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._store, verb)

    def transferable(self) -> Any:
        return _Verbs(self._store.transferable(), self._through)


class _Verbs:
    def __init__(self, data: Any, through: Any) -> None:
        self._data = data
        self._through = through

    def __getattr__(self, verb: str) -> Any:
        return functools.partial(self._through, getattr(self._data, verb))


class _WithoutWorkers(_Around):
    """A store whose workers have not enlisted yet when somebody looks."""

    def __init__(self, store: JobStore) -> None:
        super().__init__(store, _plainly)

    async def workers(self) -> list[Any]:
        return []


async def _plainly(call: Any, *arguments: Any, **options: Any) -> Any:
    return await call(*arguments, **options)


async def _forge(call: Any, *arguments: Any, **options: Any) -> Any:
    """One digit of one job goes wrong on its way."""
    if call.__name__ == "advance" and arguments[0].section is Section.JOBS:
        was, now, (job, *others) = arguments
        arguments = was, now, (job._replace(payload=b'{"n":2}'), *others)
    return await call(*arguments, **options)


async def _begun(source: JobStore, target: JobStore) -> None:
    """A copy that is broken off when something was inserted."""

    async def cut(call: Any, *arguments: Any, **options: Any) -> Any:
        answer = await call(*arguments, **options)
        if call.__name__ == "advance":
            raise _CutError
        return answer

    with pytest.raises(_CutError):
        await copied(source, _Around(target, cut))


class TestFrozen:
    """What a store refuses while it is copied, and after that."""

    @pytest.fixture
    async def frozen(self, store):
        """A store that is being copied, with a job, a batch and a worker."""
        (job,) = works(1)
        batch = await filled_batch(store, 2)
        await store.insert([job])
        hand = await Hand.enlist(store)
        await store.transferable().freeze(mark(Stage.FROZEN))
        return job, batch, hand

    async def test_it_gives_no_jobs(self, store, frozen):
        _, _, hand = frozen
        reply = await hand.exchange(slots=5)
        assert (reply.jobs, reply.alive) == ((), True)
        assert hand.renew().alive

    async def test_nothing_of_it_can_be_changed(self, store, frozen):
        job, batch, hand = frozen
        before = await everything(store)
        for call in (
            store.insert([work()]),
            store.open_batch(head(), [], sealed=True),
            store.seal(batch),
            store.cancel([job.id]),
            store.requeue([job.id]),
            store.pause(batch),
            store.resume(batch),
            store.retry_failed(batch),
            store.delete(job.id),
            Hand.enlist(store),
        ):
            with pytest.raises(StoreFrozenError, match="is being copied to store://peer"):
                await call
        assert await store.sweep() == 0
        assert await store.retire(hand.id) == 0
        assert await everything(store) == before

    async def test_a_draining_one_takes_jobs_and_finishes_what_runs(self, store):
        await store.insert(works(2))
        hand = await Hand.enlist(store)
        job = await hand.claim_one()
        standing = await store.transferable().freeze(mark(Stage.DRAINING))
        assert (standing.running, standing.idle) == (1, False)
        await store.insert([work()])
        reply = await hand.exchange(move(job, Move.COMPLETE), slots=5)
        assert (reply.jobs, reply.lost) == ((), ())
        assert (await store.transferable().standing()).idle

    async def test_one_with_running_jobs_is_not_frozen(self, store):
        await store.insert([work()])
        hand = await Hand.enlist(store)
        await hand.claim_one()
        standing = await store.transferable().freeze(mark(Stage.FROZEN))
        assert (standing.mark, standing.running) == (None, 1)

    async def test_one_that_was_moved_serves_no_worker(self, store, other):
        await store.insert([work()])
        hand = await Hand.enlist(store)
        with pytest.raises(JobStateError, match="1 live worker"):
            await copied(store, other)
        await copied(store, other, wait=1)
        with pytest.raises(StoreFrozenError, match="was moved to store://to"):
            await hand.claim()
        with pytest.raises(StoreFrozenError, match="was moved to store://to"):
            await Hand.enlist(store)

    async def test_the_target_serves_nobody_before_all_is_there(self, store, other):
        await other.transferable().receive(mark(Stage.RECEIVING))
        for call in (other.insert([work()]), Hand.enlist(other)):
            with pytest.raises(StoreFrozenError, match="is being filled from store://peer"):
                await call


def mark(stage: Stage, **fields: Any) -> Mark:
    section = Section.JOBS if stage is Stage.RECEIVING else None
    return Mark(
        **{"stage": stage, "token": "t", "peer": "store://peer", "source": "e", "section": section}
        | fields
    )


class TestDrain:
    """Workers finish first."""

    async def test_running_jobs_are_waited_for(self, store, other):
        await store.insert(works(2))
        hand = await Hand.enlist(store)
        job = await hand.claim_one()
        with pytest.raises(JobTimeoutError, match="1 job"):
            await copied(store, other, wait=0.1)
        assert len(await hand.claim()) == 1
        copying = asyncio.create_task(copied(store, other, wait=10))
        await wait_until(lambda: _drains(store))
        assert not (await hand.claim(5))
        await store.retire(hand.id)
        await copying
        assert (await other.get(job.id)).lost == 1

    async def test_what_they_still_do_and_say_meanwhile_is_copied(self, store, other):
        await store.insert(works(1))
        hand = await Hand.enlist(store)
        job = await hand.claim_one()
        copying = asyncio.create_task(copied(store, other, wait=10))
        await wait_until(lambda: _drains(store))
        assert await store.keep([Step(job.id, job.lease, "last", b"1")]) == []
        await store.note([Note(job.id, job.lease, lines=(Said(1, "goodbye"),))])
        await hand.hand_in(job, Move.COMPLETE)
        await store.retire(hand.id)
        await copying
        assert [step.name for step in await other.steps(job.id)] == ["last"]
        assert [line.text for line in await other.lines(job.id)] == ["goodbye"]
        late = Step(job.id, job.lease, "late", b"1")
        assert await store.keep([late]) == [late]

    async def test_what_is_refused_after_the_wait_lets_workers_have_jobs_again(self, store, other):
        await store.insert(works(2))

        async def taken(call: Any, *arguments: Any, **options: Any) -> Any:
            if call.__name__ == "receive":
                await other.insert([work()])
            return await call(*arguments, **options)

        with pytest.raises(JobStateError, match="is not empty"):
            await copied(store, _Around(other, taken), wait=1)
        hand = await Hand.enlist(store)
        assert await hand.work_off() == 2

    async def test_a_job_that_comes_to_run_in_the_last_moment_is_a_refusal(self, store, other):
        await store.insert(works(2))
        late = await Hand.enlist(store)

        async def claimed(call: Any, *arguments: Any, **options: Any) -> Any:
            if call.__name__ == "receive":
                assert await late.claim()
            return await call(*arguments, **options)

        with pytest.raises(JobStateError, match="was used again just now"):
            await copied(_WithoutWorkers(store), _Around(other, claimed))
        assert (await other.transferable().standing()).mark is None
        assert (await store.transferable().standing()).mark is None

    async def test_without_a_wait_running_jobs_are_a_refusal(self, store, other):
        await store.insert(works(2))
        hand = await Hand.enlist(store)
        await hand.claim_one()
        with pytest.raises(JobStateError, match="1 live worker and 1 running job"):
            await copied(store, other)
        assert len(await hand.claim()) == 1


class TestBrokenOff:
    """A copy that ends half-way is gone on with, and by nobody else."""

    async def test_it_goes_on_wherever_it_was(self, store, other, clock):
        await busy(store, clock)
        before = await everything(store)
        for calls in itertools.count(1):
            cutter = _Cutter(calls)
            with contextlib.suppress(_CutError):
                done = await copied(cutter.around(store), cutter.around(other))
                break
        assert calls > 10
        assert done.resumed
        assert await everything(other) == before

    async def test_a_step_that_is_repeated_is_done_once(self, store, other):
        await store.insert(works(3))
        data, there = store.transferable(), other.transferable()
        was = mark(Stage.RECEIVING, section=Section.JOBS)
        await there.receive(was)
        page = await data.read(Section.JOBS)
        now = replace(was, section=Section.NAMES)
        for _ in range(2):
            await there.advance(was, now, page.records)
        assert (await there.standing()).totals[Section.JOBS] == 3
        with pytest.raises(JobStateError, match="another run"):
            await there.advance(was, replace(now, cursor="1"), page.records)

    async def test_the_other_way_round_is_refused(self, store, other):
        await store.insert(works(3))
        await _begun(store, other)
        with pytest.raises(JobStateError, match="holds an unfinished copy of store://from"):
            await copied(other, store)

    async def test_another_target_is_refused(self, store, other, third):
        await store.insert(works(3))
        await _begun(store, other)
        with pytest.raises(JobStateError, match="is being copied to store://to"):
            await copied(store, third)
        with pytest.raises(JobStateError, match="holds an unfinished copy of store://from"):
            await copied(third, other)

    async def test_one_that_was_given_up_is_begun_anew(self, store, other):
        await store.insert(works(3))
        await _begun(store, other)
        source = End(store, "store://from")
        assert await thaw(source) is Stage.FROZEN
        await store.insert(works(2))
        assert await thaw(End(other, "store://to")) is Stage.RECEIVING
        assert (await other.transferable().standing()).empty
        await copied(store, other)
        assert (await other.transferable().standing()).totals[Section.JOBS] == 5

    async def test_said_again_when_it_is_done_nothing_happens(self, store, other):
        await store.insert(works(3))
        await copied(store, other)
        await other.insert(works(1))
        assert (await copied(store, other)).resumed
        assert (await other.transferable().standing()).totals[Section.JOBS] == 4

    async def test_a_difference_is_found_and_the_target_stays_shut(self, store, other):
        await store.insert(works(3))
        with pytest.raises(StoreCorruptError, match="is not what store://from holds"):
            await copied(store, _Around(other, _forge))
        with pytest.raises(StoreFrozenError):
            await other.insert([work()])

    async def test_of_one_that_was_given_up_no_configuration_stays(self, store, other):
        await store.configurable().configure({"queues.default.paused": True}, by="ops")
        was = mark(Stage.RECEIVING, section=Section.CONFIGURATION)
        there = other.transferable()
        await there.receive(was)
        page = await store.transferable().read(Section.CONFIGURATION)
        await there.advance(was, replace(was, section=Section.EVENTS), page.records)
        assert (await there.standing()).totals[Section.CONFIGURATION] == 1
        assert await thaw(End(other, "store://to")) is Stage.RECEIVING
        assert (await there.standing()).empty
        assert await other.configurable().configuration() == Configuration()
        assert await other.configurable().history() == []
        await other.insert([work()])
        assert len(await (await Hand.enlist(other)).claim(9)) == 1


class TestFit:
    """Which stores can be copied into which."""

    async def test_a_store_is_copied_into_an_empty_one(self, store, other):
        await other.insert([work()])
        with pytest.raises(JobStateError, match="is not empty"):
            await copied(store, other)
        assert (await store.insert([work()])).new == 1

    async def test_not_into_itself(self, store):
        with pytest.raises(JobStateError, match="are the same store"):
            await copied(store, store)

    async def test_one_that_was_moved_is_not_copied_again(self, store, other, third):
        await copied(store, other)
        with pytest.raises(JobStateError, match="was moved to store://to"):
            await copied(store, third)
        with pytest.raises(JobStateError, match="is being moved to store://to itself, or was"):
            await copied(third, store)

    async def test_one_that_received_is_copied_on(self, store, other, third, clock):
        await busy(store, clock)
        before = await everything(store)
        await copied(store, other)
        await copied(other, third)
        assert await everything(third) == before

    async def test_what_was_paused_stays_paused(self, store, other):
        await store.configurable().configure({"queues.default.paused": True}, by="ops")
        await store.insert([work(), work(queue="other")])
        await copied(store, other)
        hand = await Hand.enlist(other, queues=("default", "other"))
        reply = await hand.exchange(slots=9)
        assert ([job.queue for job in reply.jobs], reply.version) == (["other"], 1)
        await other.configurable().configure({}, unset=["queues.default.paused"], by="ops")
        assert [job.queue for job in await hand.claim(9)] == ["default"]


class TestThaw:
    """The source opens again."""

    async def test_a_kept_source_goes_on_with_a_history_of_its_own(self, store, other):
        await store.insert([job := work()])
        cursor = await store.last_event()
        done = await copied(store, other, keep_source=True)
        assert done.kept
        assert (await store.insert([work()])).new == 1
        assert [event.type for event in await store.events(after=cursor)] == [RESET]
        assert (await other.get(job.id)).state is JobState.PENDING

    async def test_one_that_was_moved_only_by_force(self, store, other):
        await copied(store, other)
        source = End(store, "store://from")
        with pytest.raises(JobStateError, match="each job may run in both"):
            await thaw(source)
        assert await thaw(source, force=True) is Stage.MOVED
        assert (await store.insert([work()])).new == 1

    async def test_one_that_is_open_stays_so(self, store, other):
        assert await thaw(End(store, "store://from")) is None
        await copied(store, other)
        assert await thaw(End(other, "store://to")) is None
        with pytest.raises(JobNotFoundError):
            await other.get(work().id)
