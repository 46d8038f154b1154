"""Jobs that wait for other jobs: started when these end, cancelled or brought back with them."""

from __future__ import annotations

import pytest

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.flow import MOST_PARENTS, PARENT_FAILED, After, Otherwise
from haulier.domain.job import MICROSECOND, Job, JobState, NewJob, Role
from haulier.domain.moves import MAX_LOST, RULES, Move
from haulier.domain.retention import Keep, Retention
from haulier.domain.unique import Conflict, Uniqueness
from haulier.exceptions import JobNotFoundError, ValidationError
from haulier.ports import Fence, JobFilter, JobStore, pages
from haulier.services.ids import new_id
from support import Hand, StoreTime, filled_batch, head, items, move, wait_until, work, works

RUN = Otherwise.RUN
ENDING = [how for how in Move if RULES[how].target.final]


def after(*parents: str | NewJob, otherwise: Otherwise = Otherwise.CANCEL) -> tuple[After, ...]:
    return tuple(After(each if isinstance(each, str) else each.id, otherwise) for each in parents)


async def states(store: JobStore, *jobs: NewJob) -> list[JobState]:
    return [(await store.get(job.id)).state for job in jobs]


async def ids(store: JobStore, hand: Hand) -> set[str]:
    """What a worker gets now."""
    return {job.id for job in await hand.claim(100)}


async def claimed(hand: Hand, job: NewJob) -> Job:
    (found,) = [each for each in await hand.claim(1) if each.id == job.id]
    return found


async def settled_children(store: JobStore, parent: NewJob, count: int, state: JobState) -> None:
    """Wait until so many children of a job are in a state: more than a slice takes a while."""

    async def all_there() -> bool:
        found = [
            job async for job in pages(store, JobFilter(states=frozenset({state}), kind="child"))
        ]
        return len(found) == count

    await wait_until(all_there, 60)


class TestWaiting:
    """Jobs that wait, and jobs that need not wait any longer."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    async def test_a_job_starts_when_the_one_it_waits_for_has_completed(self, store, hand):
        first = work()
        second = work(after=after(first))
        await store.insert([first, second])
        job = await claimed(hand, first)
        waiting = await store.get(second.id)
        assert (waiting.state, waiting.waiting, waiting.parked) == (JobState.PENDING, True, False)
        assert await hand.claim(9) == []
        reply = await hand.exchange(move(job, Move.COMPLETE), slots=9)
        assert [each.id for each in reply.jobs] == [second.id]
        assert not reply.jobs[0].waiting
        assert not (await store.get(second.id)).waiting

    async def test_it_waits_for_all_of_several(self, store, hand):
        parents = works(3)
        child = work(after=after(*parents))
        await store.insert([child, *parents])
        jobs = await hand.claim(9)
        assert {job.id for job in jobs} == {parent.id for parent in parents}
        for job in jobs[:2]:
            assert (await hand.exchange(move(job, Move.COMPLETE), slots=9)).jobs == ()
        reply = await hand.exchange(move(jobs[2], Move.COMPLETE), slots=9)
        assert [each.id for each in reply.jobs] == [child.id]

    async def test_parents_that_complete_together_start_it_once(self, store, hand):
        parents = works(5)
        child = work(after=after(*parents))
        await store.insert([*parents, child])
        jobs = await hand.claim(9)
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs), slots=9)
        assert [each.id for each in reply.jobs] == [child.id]
        assert await hand.claim(9) == []

    async def test_many_wait_for_one(self, store, hand):
        first = work()
        rest = works(50, after=after(first))
        await store.insert([first, *rest])
        await hand.hand_in(await claimed(hand, first), Move.COMPLETE)
        assert await ids(store, hand) == {job.id for job in rest}

    async def test_a_chain_runs_in_its_order(self, store, hand):
        chain = works(6)
        chain = [
            job._replace(after=after(*chain[n - 1 : n])) if n else job
            for n, job in enumerate(chain)
        ]
        await store.insert(list(reversed(chain)))
        order = []
        while jobs := await hand.claim(9):
            order += [job.id for job in jobs]
            await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
        assert order == [job.id for job in chain]

    async def test_the_same_with_several_exchanges_under_way(self, store, hand):
        top, bottom = work(), work()
        middle = works(20, after=after(top))
        bottom = bottom._replace(after=after(*middle))
        await store.insert([top, *middle, bottom])
        other = await Hand.enlist(store)
        await hand.hand_in(await claimed(hand, top), Move.COMPLETE)
        mine, theirs = await hand.claim(10), await other.claim(10)
        assert len(mine) == len(theirs) == 10
        await other.exchange(*(move(job, Move.COMPLETE) for job in theirs))
        reply = await hand.exchange(*(move(job, Move.COMPLETE) for job in mine), slots=1)
        assert [job.id for job in reply.jobs] == [bottom.id]

    @pytest.mark.parametrize("role", [Role.SINGLE, Role.ITEM])
    async def test_a_parent_that_completed_long_ago_counts(self, store, hand, role):
        if role is Role.ITEM:
            await filled_batch(store, 1)
        else:
            await store.insert([work()])
        job = await hand.claim_one()
        await hand.hand_in(job, Move.COMPLETE)
        child = work(after=after(job.id))
        await store.insert([child])
        assert await ids(store, hand) == {child.id}

    async def test_a_parent_that_is_running_is_waited_for(self, store, hand):
        await store.insert([first := work()])
        job = await claimed(hand, first)
        await store.insert([child := work(after=after(first))])
        assert await hand.claim(9) == []
        await hand.hand_in(job, Move.COMPLETE)
        assert await ids(store, hand) == {child.id}

    @pytest.mark.parametrize("how", [Move.RETRY, Move.SNOOZE, Move.GIVE_BACK])
    async def test_a_parent_that_is_put_back_is_waited_for(self, store, hand, how):
        first = work()
        await store.insert([first, work(after=after(first))])
        job = await claimed(hand, first)
        reply = await hand.exchange(move(job, how, delay=0), slots=9)
        assert [each.id for each in reply.jobs] == [first.id]

    async def test_its_own_time_counts_from_its_insert(self, store, hand, clock):
        first = work()
        soon = work(after=after(first), delay=5 * MICROSECOND)
        late = work(after=after(first), delay=60 * MICROSECOND)
        await store.insert([first, soon, late])
        job = await claimed(hand, first)
        clock.advance(10)
        await hand.hand_in(job, Move.COMPLETE)
        assert await ids(store, hand) == {soon.id}
        assert not (await store.get(late.id)).waiting
        clock.advance(50)
        assert await ids(store, hand) == {late.id}

    async def test_waiting_wins_no_place_in_the_line(self, store, hand, clock):
        await store.insert([first := work()])
        child, plain = work(after=after(first)), work()
        await store.insert([child])
        job = await claimed(hand, first)
        clock.advance(1)
        await store.insert([plain])
        clock.advance(1)
        await hand.hand_in(job, Move.COMPLETE)
        assert [each.id for each in await hand.claim(9)] == [plain.id, child.id]

    async def test_priority_counts_once_it_waits_no_longer(self, store, hand):
        first = work()
        low, high = work(after=after(first), priority=-5), work(after=after(first), priority=5)
        await store.insert([first, low, high])
        await hand.hand_in(await claimed(hand, first), Move.COMPLETE)
        assert [each.id for each in await hand.claim(9)] == [high.id, low.id]

    async def test_others_hear_of_a_job_that_waits_no_longer(self, home, store, hand, ttl):
        first = work()
        await store.insert([first, work(after=after(first))])
        job = await claimed(hand, first)
        heard: list[bool] = []
        with store.watch(lambda: heard.append(True), ready=True):
            await hand.hand_in(job, Move.COMPLETE)
            await wait_until(lambda: heard)

    async def test_a_repeated_insert_changes_nothing(self, store, hand):
        first = work()
        child = work(after=after(first))
        assert (await store.insert([first, child])).new == 2
        assert (await store.insert([first, child])).new == 0
        await hand.hand_in(await claimed(hand, first), Move.COMPLETE)
        assert (await store.insert([first, child])).new == 0
        assert await ids(store, hand) == {child.id}
        assert (await store.insert([child])).new == 0
        assert not (await store.get(child.id)).waiting

    async def test_who_is_inserted_instead_of_a_parent_is_waited_for(self, store, hand):
        name = (Uniqueness("one", conflict=Conflict.SKIP),)
        await store.insert([holder := work(unique=name)])
        given = work(unique=name)
        child = work(after=after(given))
        inserted = await store.insert([given, child])
        assert inserted.instead == {given.id: holder.id}
        assert [each.job_id for each in await store.parents(child.id)] == [holder.id]
        assert await ids(store, hand) == {holder.id}

    async def test_a_bulk_job_waits_before_it_makes_its_items(self, store, hand):
        first, top = work(), head()
        await store.insert([first, top._replace(after=after(first))])
        job = await claimed(hand, first)
        assert (await store.get(top.id)).waiting
        reply = await hand.exchange(move(job, Move.COMPLETE), slots=9)
        assert [each.id for each in reply.jobs] == [top.id]

    async def test_a_batch_is_waited_for_until_its_last_item_is_done(self, store, hand):
        batch = await filled_batch(store, 2)
        await store.insert([child := work(after=after(batch))])
        one, two = await hand.claim(9)
        await hand.hand_in(one, Move.COMPLETE)
        assert await hand.claim(9) == []
        reply = await hand.exchange(move(two, Move.COMPLETE), slots=9)
        assert [each.id for each in reply.jobs] == [child.id]
        (parent,) = await store.parents(child.id)
        assert parent.value["completed"] == 2

    async def test_a_batch_that_failed_is_waited_for_until_its_items_have_stopped(
        self, store, hand
    ):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        await store.insert(items(top.id, 1))
        await store.insert([child := work(after=after(top, otherwise=RUN))])
        item = await hand.claim_one()
        await hand.hand_in(held, Move.FAIL)
        assert (await store.get(top.id)).state is JobState.FAILED
        assert await hand.claim(9) == []
        reply = await hand.exchange(move(item, Move.CANCEL), slots=9)
        assert [each.id for each in reply.jobs] == [child.id]

    async def test_jobs_that_never_wait_are_as_ever(self, store, hand):
        await store.insert([plain := work()])
        assert await store.parents(plain.id) == []
        assert (await store.children(plain.id)).jobs == ()
        assert not (await store.get(plain.id)).waiting


class TestRefused:
    """What could never run is refused, and nothing of it is inserted."""

    async def refused(self, store: JobStore, jobs: list[NewJob], reason: str) -> None:
        with pytest.raises(ValidationError) as refusal:
            await store.insert(jobs)
        (problem,) = refusal.value.problems
        assert problem.field.endswith("after")
        assert reason in problem.reason
        assert (await store.find(JobFilter(), limit=9)).jobs == ()

    async def test_a_parent_that_is_not_there(self, store):
        missing = new_id()
        await self.refused(store, [work(), work(after=after(missing))], missing)

    async def test_a_job_that_waits_for_itself(self, store):
        job = work()
        await self.refused(store, [job._replace(after=after(job))], "itself")

    async def test_a_circle_is_named(self, store):
        one, two, three = works(3)
        one, two = one._replace(after=after(three)), two._replace(after=after(one))
        three = three._replace(after=after(two))
        path = f"{one.id} waits for {three.id} waits for {two.id} waits for {one.id}"
        await self.refused(store, [work(), one, two, three], path)

    async def test_a_parent_that_is_named_twice(self, store):
        first = work()
        await self.refused(store, [first, work(after=after(first, first))], first.id)

    async def test_items_of_a_batch(self, store):
        top, first = head(), work()
        (item,) = items(top.id, 1)
        await self.refused(store, [top, first, item._replace(after=after(first))], "item")

    async def test_more_parents_than_one_transaction_can_tell(self, store):
        parents = [new_id() for _ in range(MOST_PARENTS + 1)]
        await self.refused(store, [work(after=after(*parents))], "10,001")


class TestFailing:
    """Parents that do not complete."""

    async def parent(self, store: JobStore, clock: StoreTime, how: Move) -> str:
        """A job that waits to be ended by this move, and how to do it."""
        if how in (Move.SETTLE, Move.ABANDON, Move.GIVE_UP):
            return await filled_batch(store, 1, max_failures=0)
        await store.insert([job := work()])
        if how is Move.LOSE_LAST:
            for _ in range(MAX_LOST - 1):
                doomed = await Hand.enlist(store)
                await doomed.claim_one()
                await store.retire(doomed.id)
                clock.advance(100)
        return job.id

    async def end(self, store: JobStore, parent: str, how: Move) -> None:
        hand = await Hand.enlist(store)
        if how is Move.DROP:
            await store.cancel([parent])
            return
        job = await hand.claim_one()
        if how is Move.LOSE_LAST:
            await store.retire(hand.id)
            return
        if how is Move.ABANDON:
            await store.cancel([parent])
        by_item = {Move.SETTLE: Move.COMPLETE, Move.ABANDON: Move.CANCEL, Move.GIVE_UP: Move.FAIL}
        assert await hand.hand_in(job, by_item.get(how, how))

    @pytest.mark.parametrize("otherwise", list(Otherwise))
    @pytest.mark.parametrize("how", ENDING)
    async def test_every_move_that_ends_a_job_does_what_its_children_ask_for(
        self, store, clock, how, otherwise
    ):
        parent = await self.parent(store, clock, how)
        child = work("child", after=after(parent, otherwise=otherwise))
        await store.insert([child])
        await self.end(store, parent, how)
        ended = await store.get(parent)
        assert ended.state is RULES[how].target
        job = await store.get(child.id)
        hand = await Hand.enlist(store, kinds=["child"])
        (told,) = await store.parents(child.id)
        assert (told.job_id, told.state, told.ended) == (parent, ended.state, True)
        if ended.state is JobState.COMPLETED or otherwise is RUN:
            assert await ids(store, hand) == {child.id}
            assert told.result == (ended.result if ended.state is JobState.COMPLETED else None)
            return
        assert (job.state, job.waiting) == (JobState.CANCELLED, False)
        assert job.finished_at is not None
        assert job.error.type == PARENT_FAILED
        assert f"parent {parent} {ended.state}" in job.error.message
        if ended.error is not None:
            assert f"{ended.error.type}: {ended.error.message}" in job.error.message
            assert (told.error.type, told.error.message) == (ended.error.type, ended.error.message)
        assert await hand.claim(9) == []

    async def test_the_event_names_the_reason(self, store, hand):
        first = work()
        child = work(after=after(first))
        await store.insert([first, child])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        (event,) = [e for e in await store.events() if e.job_id == child.id and e.type == "drop"]
        assert event.error_type == PARENT_FAILED

    async def test_it_is_cancelled_before_its_other_parents_have_ended(self, store, hand):
        one, two = works(2)
        child = work(after=after(one, two))
        await store.insert([one, two, child])
        first, second = await hand.claim(9)
        await hand.hand_in(first, Move.FAIL)
        assert await states(store, child) == [JobState.CANCELLED]
        await hand.hand_in(second, Move.COMPLETE)
        assert await states(store, child) == [JobState.CANCELLED]

    async def test_one_that_runs_all_the_same_waits_for_the_others(self, store, hand):
        one, two = works(2)
        child = work(after=(*after(one, otherwise=RUN), *after(two)))
        await store.insert([one, two, child])
        first, second = sorted(await hand.claim(9), key=lambda job: job.id != one.id)
        await hand.hand_in(first, Move.FAIL)
        assert await hand.claim(9) == []
        await hand.hand_in(second, Move.COMPLETE)
        assert await ids(store, hand) == {child.id}

    async def test_the_cancel_goes_down_the_whole_flow(self, store, hand):
        first = work()
        chain = works(120)
        chain = [
            job._replace(after=after(chain[n - 1] if n else first)) for n, job in enumerate(chain)
        ]
        cleanup = work(after=after(chain[-1], otherwise=RUN))
        await store.insert([first, *chain, cleanup])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)

        async def all_cancelled() -> bool:
            return set(await states(store, *chain)) == {JobState.CANCELLED}

        await wait_until(all_cancelled)
        last = await store.get(chain[-1].id)
        assert f"parent {chain[-2].id} cancelled" in last.error.message
        await wait_until(lambda: ids(store, hand))

    async def test_a_parent_that_failed_long_ago_counts(self, store, hand):
        await store.insert([first := work()])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        child, cleanup = work(after=after(first)), work(after=after(first, otherwise=RUN))
        await store.insert([child, cleanup])
        assert await states(store, child) == [JobState.CANCELLED]
        assert await ids(store, hand) == {cleanup.id}

    async def test_a_waiting_job_can_be_cancelled(self, store, hand):
        first = work()
        child = work(after=after(first))
        grandchild = work(after=after(child))
        await store.insert([first, child, grandchild])
        assert await store.cancel([child.id]) == {child.id: JobState.CANCELLED}
        assert await states(store, child, grandchild) == [JobState.CANCELLED] * 2
        assert (await store.get(child.id)).error is None
        await hand.hand_in(await claimed(hand, first), Move.COMPLETE)
        assert await hand.claim(9) == []

    async def test_names_of_a_cancelled_child_are_free(self, store, hand):
        first = work()
        name = (Uniqueness("child", conflict=Conflict.REJECT),)
        child = work(after=after(first), unique=name)
        await store.insert([first, child])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        await store.insert([work(unique=name)])

    async def test_a_cancelled_bulk_job_calls_back(self, store, hand):
        first, top = work(), head()
        policy = BatchPolicy(finish=FinishCallback(kind="work", queue="default"))
        await store.insert([first])
        await store.insert([top._replace(after=after(first))], policy=policy)
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        assert await states(store, top) == [JobState.CANCELLED]
        callback = await wait_until(lambda: hand.claim(1))
        assert (await store.batch(top.id)).finish_job == callback[0].id


class TestManyChildren:
    """More than one transaction may take."""

    COUNT = 2500

    async def fan_out(self, store: JobStore, **fields: object) -> NewJob:
        await store.insert([first := work()])
        jobs = works(self.COUNT, "child", after=after(first, **fields))
        for begin in range(0, self.COUNT, store.chunk):
            await store.insert(jobs[begin : begin + store.chunk])
        return first

    async def test_all_of_them_start(self, store, hand):
        first = await self.fan_out(store)
        children = await Hand.enlist(store, kinds=["child"])
        await hand.hand_in(await claimed(hand, first), Move.COMPLETE)
        done = 0

        async def all_done() -> bool:
            nonlocal done
            done += await children.work_off()
            return done == self.COUNT

        await wait_until(all_done, 60)

    async def test_all_of_them_are_cancelled_and_come_back(self, store, hand):
        first = await self.fan_out(store)
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        await settled_children(store, first, self.COUNT, JobState.CANCELLED)
        await store.requeue([first.id])
        await settled_children(store, first, self.COUNT, JobState.PENDING)
        children = await Hand.enlist(store, kinds=["child"])
        assert await children.claim(9) == []

    async def test_who_dies_in_between_is_succeeded_by_a_sweep(self, home, store, hand, ttl):
        if not home.several:
            pytest.skip("this store has a single client: it lives in that client's memory")
        first = await self.fan_out(store, otherwise=RUN)
        job = await claimed(hand, first)
        async with home.client(ttl=ttl) as dying:
            await dying.exchange(hand.id, [move(job, Move.FAIL)], [])
        await store.sweep()
        children = await Hand.enlist(store, kinds=["child"])
        assert await children.work_off() == self.COUNT


class TestRequeued:
    """A parent that gets another chance brings back those that were cancelled because of it."""

    async def test_a_requeued_parent_brings_its_children_back(self, store, hand):
        first = work()
        child = work(after=after(first))
        grandchild = work(after=after(child))
        await store.insert([first, child, grandchild])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        assert await states(store, child, grandchild) == [JobState.CANCELLED] * 2
        await store.requeue([first.id])
        for job in (child, grandchild):
            back = await store.get(job.id)
            assert (back.state, back.waiting, back.finished_at) == (JobState.PENDING, True, None)
        assert not (await store.parents(child.id))[0].ended
        assert await hand.work_off() == 3
        assert await states(store, first, child, grandchild) == [JobState.COMPLETED] * 3

    async def test_it_may_fail_again(self, store, hand):
        first = work()
        child = work(after=after(first))
        await store.insert([first, child])
        for _ in range(3):
            await hand.hand_in(await claimed(hand, first), Move.FAIL)
            assert await states(store, child) == [JobState.CANCELLED]
            await store.requeue([first.id])
            assert (await store.get(child.id)).waiting
        await hand.hand_in(await claimed(hand, first), Move.COMPLETE)
        assert await ids(store, hand) == {child.id}

    async def test_who_was_cancelled_for_another_reason_stays_cancelled(self, store, hand):
        first = work()
        child = work(after=after(first))
        await store.insert([first, child])
        await store.cancel([child.id])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        await store.requeue([first.id])
        assert await states(store, child) == [JobState.CANCELLED]

    @pytest.mark.parametrize("back", ["with its parent", "by itself"])
    async def test_who_came_back_and_is_then_cancelled_stays_cancelled(self, store, hand, back):
        first, other = works(2)
        child = work(after=after(first, other))
        await store.insert([first, other, child])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        await store.requeue([first.id if back == "with its parent" else child.id])
        found = await store.get(child.id)
        assert (found.waiting, found.error) == (True, None)
        await store.cancel([child.id])
        if back == "with its parent":
            await hand.exchange(*(move(job, Move.FAIL) for job in await hand.claim(9)))
        await store.requeue([first.id])
        assert await states(store, child) == [JobState.CANCELLED]
        assert await ids(store, hand) >= {first.id}

    async def test_a_child_may_wait_for_an_item_that_its_head_makes_anew(self, store, hand):
        top = head()
        await store.insert([top])
        held = await hand.claim_one()
        (item,) = items(top.id, 1)
        await store.insert([item], fence=Fence(top.id, held.lease))
        await store.insert([child := work("child", after=after(item))])
        await store.cancel([top.id])
        await hand.hand_in(held, Move.CANCEL)
        assert await states(store, item, child) == [JobState.CANCELLED] * 2
        await store.requeue([top.id])
        again = await hand.claim_one()
        await store.insert([item], fence=Fence(top.id, again.lease))
        await store.requeue([child.id])
        assert (await store.get(child.id)).waiting
        await hand.hand_in(again, Move.HAND_OVER)
        assert await hand.work_off() == 1
        children = await Hand.enlist(store, kinds=["child"])
        assert await ids(store, children) == {child.id}

    async def test_who_ran_all_the_same_stays_as_it_is(self, store, hand):
        first = work()
        child = work(after=after(first, otherwise=RUN))
        await store.insert([first, child])
        assert await hand.work_off(Move.FAIL) == 2
        await store.requeue([first.id])
        assert await hand.work_off() == 1
        assert await states(store, first, child) == [JobState.COMPLETED, JobState.FAILED]

    async def test_it_comes_back_when_the_last_of_those_that_failed_does(self, store, hand):
        one, two = works(2)
        child = work(after=after(one, two))
        await store.insert([one, two, child])
        await hand.exchange(*(move(job, Move.FAIL) for job in await hand.claim(9)))
        await store.requeue([one.id])
        assert await states(store, child) == [JobState.CANCELLED]
        await hand.hand_in(await claimed(hand, one), Move.COMPLETE)
        await store.requeue([two.id])
        assert (await store.get(child.id)).waiting
        await hand.hand_in(await claimed(hand, two), Move.COMPLETE)
        assert await ids(store, hand) == {child.id}

    async def test_a_child_that_is_requeued_itself_waits_for_those_that_have_not_ended(
        self, store, hand
    ):
        one, two = works(2)
        child = work(after=after(one, two))
        await store.insert([one, two, child])
        first, second = await hand.claim(9)
        await hand.hand_in(first, Move.FAIL)
        assert await store.requeue([child.id]) == {child.id: JobState.PENDING}
        assert (await store.get(child.id)).waiting
        await hand.hand_in(second, Move.COMPLETE)
        assert await ids(store, hand) == {child.id}

    async def test_a_child_that_is_requeued_itself_runs_once_all_have_ended(self, store, hand):
        first = work()
        child = work(after=after(first))
        await store.insert([first, child])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        await store.requeue([child.id])
        assert await ids(store, hand) == {child.id}

    async def test_who_comes_back_waits_for_all_that_come_back(self, store, hand):
        one = work()
        two = work(after=after(one))
        three = work(after=(*after(one), *after(two, otherwise=RUN)))
        await store.insert([one, two, three])
        await hand.hand_in(await claimed(hand, one), Move.FAIL)
        await store.requeue([one.id])
        for job in (one, two, three):
            await hand.hand_in(await claimed(hand, job), Move.COMPLETE)

    async def test_requeued_together_the_child_waits_again(self, store, hand):
        first = work()
        child = work(after=after(first, otherwise=RUN))
        await store.insert([first, child])
        assert await hand.work_off(Move.FAIL) == 2
        await store.requeue([first.id, child.id])
        job = await claimed(hand, first)
        assert (await store.get(child.id)).waiting
        reply = await hand.exchange(move(job, Move.COMPLETE), slots=9)
        assert [each.id for each in reply.jobs] == [child.id]
        assert (await store.parents(child.id))[0].value == {"ok": True}

    async def test_a_batch_whose_items_are_tried_again_brings_them_back(self, store, hand):
        batch = await filled_batch(store, 2, max_failures=0)
        await store.insert([child := work("child", after=after(batch))])
        one, two = await hand.claim(9)
        await hand.exchange(move(one, Move.FAIL), move(two, Move.FAIL))
        assert await states(store, child) == [JobState.CANCELLED]
        assert await store.retry_failed(batch) == 2
        assert (await store.get(child.id)).waiting
        await hand.work_off()
        children = await Hand.enlist(store, kinds=["child"])
        assert await ids(store, children) == {child.id}

    async def test_an_item_that_is_tried_again_brings_them_back(self, store, hand):
        batch = await filled_batch(store, 2)
        one, two = await hand.claim(9)
        await store.insert([child := work("child", after=after(one.id))])
        await hand.exchange(move(one, Move.FAIL), move(two, Move.COMPLETE))
        assert await states(store, child) == [JobState.CANCELLED]
        assert await store.retry_failed(batch) == 1
        assert (await store.get(child.id)).waiting

    async def test_a_bulk_job_comes_back(self, store, hand):
        first, top = work(), head()
        await store.insert([first, top._replace(after=after(first))])
        await hand.hand_in(await claimed(hand, first), Move.FAIL)
        assert await states(store, top) == [JobState.CANCELLED]
        await store.requeue([first.id])
        assert (await store.get(top.id)).waiting
        await hand.hand_in(await claimed(hand, first), Move.COMPLETE)
        held = await claimed(hand, NewJob(top.id, "bulk", b"{}"))
        await store.insert(items(top.id, 1))
        await hand.hand_in(held, Move.HAND_OVER)
        assert await hand.work_off() == 1
        assert await states(store, top) == [JobState.COMPLETED]


class TestParents:
    """What a job is told of those that it has waited for."""

    async def test_results_in_the_order_in_which_they_were_named(self, store, hand):
        parents = works(3)
        child = work(after=after(*reversed(parents)))
        await store.insert([*parents, child])
        jobs = await hand.claim(9)
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs))
        told = await store.parents(child.id)
        assert [each.job_id for each in told] == [job.id for job in reversed(parents)]
        assert [each.value for each in told] == [{"ok": True}] * 3
        assert all(each.ended and each.error is None for each in told)

    async def test_those_that_have_not_ended_are_told_as_they_are(self, store, hand):
        one, two = works(2)
        child = work(after=(*after(one), *after(two, otherwise=RUN)))
        await store.insert([one, two, child])
        await hand.claim_one()
        first, second = await store.parents(child.id)
        assert (first.state, first.ended, first.otherwise) == (
            JobState.RUNNING,
            False,
            Otherwise.CANCEL,
        )
        assert (second.state, second.ended, second.otherwise) == (JobState.PENDING, False, RUN)

    async def test_children_are_told_page_by_page(self, store, hand):
        first = work()
        rest = works(5, after=after(first))
        await store.insert([first, *rest])
        page = await store.children(first.id, limit=3)
        assert [job.id for job in page.jobs] == [job.id for job in rest[:3]]
        assert all(job.waiting and job.payload == b"null" for job in page.jobs)
        page = await store.children(first.id, limit=3, cursor=page.next)
        assert ([job.id for job in page.jobs], page.next) == ([job.id for job in rest[3:]], None)

    async def test_of_a_job_that_is_not_there(self, store):
        with pytest.raises(JobNotFoundError):
            await store.parents(new_id())
        with pytest.raises(JobNotFoundError):
            await store.children(new_id())

    @pytest.mark.parametrize("rule", [Retention(completed=Keep(count=0)), Retention(result_ttl=0)])
    async def test_retention_leaves_results_to_the_children(self, store, hand, clock, rule):
        first, slow = works(2)
        child = work("child", after=after(first, slow))
        await store.insert([first, slow, child])
        jobs = await hand.claim(9)
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs if job.id == first.id))
        clock.advance(1)
        await store.prune({"work": rule})
        told, _ = await store.parents(child.id)
        assert (told.state, told.ended, told.value) == (JobState.COMPLETED, True, {"ok": True})
        await hand.exchange(*(move(job, Move.COMPLETE) for job in jobs if job.id == slow.id))
        children = await Hand.enlist(store, kinds=["child"])
        assert await ids(store, children) == {child.id}
        told, _ = await store.parents(child.id)
        assert told.value == {"ok": True}

    @pytest.mark.parametrize("otherwise", list(Otherwise))
    async def test_a_parent_that_is_deleted_before_it_is_done_counts_as_cancelled(
        self, store, hand, otherwise
    ):
        first = work()
        child = work(after=after(first, otherwise=otherwise))
        await store.insert([first, child])
        await store.delete(first.id)
        (told,) = await store.parents(child.id)
        assert (told.state, told.ended, told.error.type) == (
            JobState.CANCELLED,
            True,
            "JobDeleted",
        )
        job = await store.get(child.id)
        if otherwise is RUN:
            assert await ids(store, hand) == {child.id}
        else:
            assert job.error.message.startswith(f"parent {first.id} cancelled: JobDeleted: ")

    async def test_a_waiting_job_can_be_deleted(self, store, hand):
        first = work()
        child = work(after=after(first))
        await store.insert([first, child])
        await store.delete(child.id)
        assert (await store.children(first.id)).jobs == ()
        await hand.hand_in(await claimed(hand, first), Move.COMPLETE)
        assert await hand.claim(9) == []

    async def test_a_batch_that_is_deleted_counts_too(self, store, hand):
        batch = await filled_batch(store, 1)
        await hand.work_off()
        await store.insert([slow := work()])
        await store.insert([child := work(after=after(batch, slow))])
        await store.delete(batch)
        told, _ = await store.parents(child.id)
        assert (told.state, told.ended) == (JobState.COMPLETED, True)
