"""What operators change while everything runs, and queues that are paused by it."""

from __future__ import annotations

import asyncio

import pytest

from haulier.domain.configuration import KEPT_CHANGES, Alteration, Configuration, Setting, paused
from haulier.domain.event import CONFIGURED
from haulier.domain.job import MICROSECOND, JobState, Role
from haulier.domain.moves import Move
from haulier.domain.worker import Demand, Portion
from haulier.exceptions import JobStateError, ValidationError
from haulier.ports import JobStore
from support import Hand, StoreHome, filled_batch, head, items, move, wait_until, work, works

SLOW = paused("slow")
LEVEL = "log.level"


async def pause(store: JobStore, *queues: str) -> Configuration:
    return await store.configurable().configure(dict.fromkeys(map(paused, queues), True), by="ops")


async def resume(store: JobStore, *queues: str) -> Configuration:
    return await store.configurable().configure({}, unset=map(paused, queues), by="ops")


class TestConfigure:
    """Settings are changed together or not at all, and everybody can see by whom and when."""

    async def test_at_first_nothing_is_set(self, store, hand):
        assert await store.configurable().configuration() == Configuration()
        assert await store.configurable().history() == []
        assert (await hand.exchange(slots=1)).version == 0
        assert hand.renew().version == 0

    async def test_what_was_set_is_there_with_who_and_when(self, store, clock):
        values = {SLOW: True, LEVEL: "debug", "retention.work.failed": {"age": 60.5, "count": 3}}
        told = await store.configurable().configure(values, by="Zoë")
        at = clock.now()
        assert told.version == 1
        assert told.settings == {
            name: Setting(value, 1, "Zoë", at) for name, value in values.items()
        }
        clock.advance(5)
        changed = {LEVEL: "error", "retention.work.result_ttl": None}
        told = await store.configurable().configure(changed, unset=[SLOW], by="Bob")
        assert told == await store.configurable().configuration()
        assert told.version == 2
        assert SLOW not in told.settings
        assert told.settings["retention.work.failed"].version == 1
        assert told.settings[LEVEL] == Setting("error", 2, "Bob", at + 5 * MICROSECOND)
        assert told.settings["retention.work.result_ttl"].value is None

    async def test_the_history_says_what_was_before_the_latest_first(self, store, clock):
        await store.configurable().configure({SLOW: True, LEVEL: "debug"}, by="Ann")
        at = clock.now()
        clock.advance(1)
        await store.configurable().configure({LEVEL: "info"}, unset=[SLOW], by="Bob")
        later = at + MICROSECOND
        assert await store.configurable().history() == [
            Alteration(2, later, "Bob", LEVEL, '"debug"', '"info"'),
            Alteration(2, later, "Bob", SLOW, "true", None),
            Alteration(1, at, "Ann", LEVEL, None, '"debug"'),
            Alteration(1, at, "Ann", SLOW, None, "true"),
        ]
        assert [each.name for each in await store.configurable().history(1)] == [LEVEL]

    async def test_only_the_last_changes_are_kept(self, store):
        for n in range(KEPT_CHANGES // 50 + 2):
            values = {f"queues.q{q}.weight": n + 1 for q in range(50)}
            await store.configurable().configure(values, by="ops")
        found = await store.configurable().history(1000)
        assert len(found) == KEPT_CHANGES
        assert {each.version for each in found} == {3, 4, 5, 6}

    async def test_what_changes_nothing_makes_no_version_and_no_event(self, store):
        await pause(store, "slow")
        before = await store.last_event()
        for told in (await pause(store, "slow"), await resume(store, "other")):
            assert told.version == 1
        assert (await store.configurable().configure({paused("x"): False}, by="ops")).version == 1
        assert (await store.configurable().configure({}, by="ops")).version == 1
        assert await store.last_event() == before
        assert len(await store.configurable().history()) == 1

    async def test_two_do_not_overwrite_each_other_unknowingly(self, store):
        first = await store.configurable().configure({LEVEL: "debug"}, by="Ann", expected=0)
        with pytest.raises(JobStateError, match="version 1 by now, not 0"):
            await store.configurable().configure({LEVEL: "error"}, by="Bob", expected=0)
        assert await store.configurable().configuration() == first
        again = await store.configurable().configure({LEVEL: "error"}, by="Bob", expected=1)
        assert (again.version, again.log_level) == (2, "error")

    async def test_of_many_at_once_one_wins(self, store):
        async def change(n: int) -> bool:
            try:
                await store.configurable().configure(
                    {LEVEL: "debug", f"queues.q{n}.weight": n}, by=f"no. {n}", expected=0
                )
            except JobStateError:
                return False
            return True

        won = await asyncio.gather(*map(change, range(1, 9)))
        assert sum(won) == 1
        told = await store.configurable().configuration()
        assert (told.version, list(told.weights)) == (1, [f"q{won.index(True) + 1}"])

    async def test_many_changes_at_once_all_count(self, store):
        await asyncio.gather(
            *(
                store.configurable().configure({f"queues.q{n}.weight": n}, by="ops")
                for n in range(1, 9)
            )
        )
        told = await store.configurable().configuration()
        assert told.version == 8
        assert told.weights == {f"q{n}": n for n in range(1, 9)}

    async def test_all_are_refused_for_one_that_is_wrong(self, store):
        wrong = {SLOW: True, "queues.fast.weight": 0, LEVEL: "loud"}
        with pytest.raises(ValidationError) as refused:
            await store.configurable().configure(wrong, by="ops")
        assert [(p.field, p.reason) for p in refused.value.problems] == [
            ("queues.fast.weight", "is a whole number from 1 to 1000"),
            (LEVEL, "is one of debug, info, warning, error"),
        ]
        assert await store.configurable().configuration() == Configuration()

    async def test_each_change_is_an_event(self, store):
        before = await store.last_event()
        await store.configurable().configure({SLOW: True, LEVEL: "debug"}, by="Zoë")
        await store.insert([work()])
        await resume(store, "slow")
        found = await store.events(after=before)
        assert [(e.type, e.setting, e.by) for e in found if e.type == CONFIGURED] == [
            (CONFIGURED, SLOW, "Zoë"),
            (CONFIGURED, LEVEL, "Zoë"),
            (CONFIGURED, SLOW, "ops"),
        ]
        assert [e.seq for e in found] == list(range(found[0].seq, found[0].seq + 4))
        assert (found[0].job_id, found[0].kind, found[0].queue) == ("", "", "")
        assert found[2].setting is None
        # They count no jobs.
        counted = {key: n for key, n in (await store.counts()).items() if n}
        assert counted == {("default", "work", Role.SINGLE, JobState.PENDING): 1}

    async def test_workers_are_told_the_version(self, store, hand):
        await pause(store, "slow")
        assert (await hand.exchange(slots=1)).version == 1
        await store.insert(works(2))
        assert (await hand.exchange(slots=1)).version == 1
        await resume(store, "slow")
        assert (await hand.exchange()).version == 2
        assert hand.renew().version == 2

    async def test_workers_are_woken(self, store):
        woken = asyncio.Event()
        with store.watch(woken.set, ready=True):
            for change in (pause, resume):
                woken.clear()
                await change(store, "slow")
                await asyncio.wait_for(woken.wait(), 5)

    async def test_other_clients_see_it(self, store, home: StoreHome):
        if not home.several:
            pytest.skip("the store has one client only")
        await pause(store, "slow")
        async with home.client() as other:
            assert (await other.configurable().configuration()).paused == {"slow"}
            woken = asyncio.Event()
            with store.watch(woken.set, ready=True):
                await resume(other, "slow")
                await asyncio.wait_for(woken.wait(), 5)
        assert not (await store.configurable().configuration()).paused


class TestPausedQueues:
    """Nothing of a paused queue starts, whoever asks; all else goes on."""

    @pytest.fixture
    def ttl(self) -> float:
        return 86_400.0

    @pytest.fixture
    async def hand(self, store):
        return await Hand.enlist(store, queues=("default", "slow"))

    async def test_no_worker_gets_anything_of_it(self, store, hand):
        mine = await Hand.enlist(store, queues=("slow",))
        slow, fast = works(3, queue="slow"), works(2)
        await store.insert([*slow, *fast])
        await pause(store, "slow")
        await store.insert(works(2, queue="slow"))
        assert await mine.claim(9) == []
        assert {job.id for job in await hand.claim(9)} == {job.id for job in fast}
        assert await hand.claim(9) == []
        await resume(store, "slow")
        assert [job.id for job in await mine.claim(3)] == [job.id for job in slow]

    async def test_running_jobs_go_on_and_what_they_become_waits(self, store, hand):
        await store.insert(works(3, queue="slow"))
        done, retried, given_back = await hand.claim(3)
        await pause(store, "slow")
        assert await hand.hand_in(done, Move.COMPLETE)
        assert await hand.hand_in(retried, Move.RETRY, delay=0)
        assert await hand.hand_in(given_back, Move.GIVE_BACK)
        assert await hand.claim(9) == []
        await resume(store, "slow")
        assert {job.id for job in await hand.claim(9)} == {retried.id, given_back.id}

    async def test_handing_in_and_asking_at_once(self, store, hand):
        await store.insert([work(queue="slow"), work(queue="slow"), work()])
        job = await hand.claim_one()
        assert job.queue == "slow"
        await pause(store, "slow")
        reply = await hand.exchange(move(job, Move.COMPLETE), slots=5)
        assert not reply.lost
        assert [job.queue for job in reply.jobs] == ["default"]

    async def test_items_and_heads_wait_as_well(self, store, hand):
        top = head(queue="slow")
        await store.open_batch(top, _in("slow", items(top.id, 3)), sealed=True)
        await store.insert([head(queue="slow")])
        await pause(store, "slow")
        assert await hand.claim(9) == []
        assert (await store.batch(top.id)).counts.pending == 3
        await resume(store, "slow")
        assert len(await hand.claim(9)) == 4

    async def test_limited_batches_wait_and_go_on(self, store, hand):
        batch = await filled_batch(store, 6, concurrency=2)
        await pause(store, "default")
        assert await hand.claim(9) == []
        await resume(store, "default")
        assert await hand.work_off() == 6
        assert (await store.batch(batch)).state is JobState.COMPLETED

    async def test_jobs_that_run_alone_wait_as_well(self, store, hand, clock):
        await store.insert([work(queue="slow")])
        for _ in range(2):
            doomed = await Hand.enlist(store, queues=("slow",))
            await doomed.claim_one()
            await store.retire(doomed.id)
            clock.advance(60)
        await pause(store, "slow")
        fast = work()
        await store.insert([fast])
        assert [job.id for job in await hand.claim(9)] == [fast.id]
        await hand.hand_in(await store.get(fast.id), Move.COMPLETE)
        assert await hand.claim(9) == []
        await resume(store, "slow")
        assert [job.queue for job in await hand.claim(9)] == ["slow"]

    async def test_what_becomes_due_meanwhile_waits(self, store, hand, clock):
        late, early = (work(queue="slow", delay=n * MICROSECOND) for n in (20, 10))
        await store.insert([late, early])
        await pause(store, "slow")
        clock.advance(30)
        assert await hand.claim(9) == []
        await resume(store, "slow")
        assert [job.id for job in await hand.claim(9)] == [early.id, late.id]

    async def test_nobody_comes_again_and_again_for_what_waits(self, store, hand, clock):
        """With nothing due, a worker sleeps until it is woken."""
        await store.insert([*works(200, queue="slow"), work(queue="slow", delay=MICROSECOND)])
        await pause(store, "slow")
        clock.advance(2)
        for _ in range(2):
            reply = await hand.exchange(slots=50)
            assert (reply.jobs, reply.due_in) == ((), None)

    async def test_it_costs_the_same_however_many_wait(self, store, hand):
        """It touches none of them: one event, and they are as they were."""
        jobs = works(3000, queue="slow")
        await store.insert(jobs)
        before = await store.last_event()
        await pause(store, "slow")
        assert len(await store.events(after=before)) == 1
        (pending,) = (await store.counts()).values()
        assert pending == 3000
        await resume(store, "slow")
        assert [job.id for job in await hand.claim(5)] == [job.id for job in jobs[:5]]

    async def test_several_demands_at_once(self, store, hand):
        await store.insert([work("one", queue="slow"), work("two", queue="slow"), work("two")])
        await pause(store, "slow")
        demands = [
            Demand(("default", "slow"), (Portion((kind,), 5),), 5) for kind in ("one", "two")
        ]
        reply = await store.exchange(hand.id, [], demands)
        assert [(job.kind, job.queue) for job in reply.jobs] == [("two", "default")]

    async def test_from_the_answer_on_nothing_starts(self, store):
        """Also nothing that was under way while the queue was being paused."""
        await store.insert(works(3000, queue="slow"))
        hands = [await Hand.enlist(store, queues=("slow",)) for _ in range(4)]
        ended = False

        async def take(hand: Hand) -> None:
            while not ended:
                await hand.claim(3)
                await asyncio.sleep(0)

        async def running() -> int:
            counts = await store.counts()
            return counts.get(("slow", "work", Role.SINGLE, JobState.RUNNING), 0)

        async with asyncio.TaskGroup() as group:
            takers = [group.create_task(take(hand)) for hand in hands]
            await wait_until(lambda: _above(running, 30))
            await pause(store, "slow")
            then = await running()
            for _ in range(5):
                await hands[0].exchange(slots=3)
            assert await running() == then
            ended = True
            await asyncio.gather(*takers)
        assert await running() == then < 3000


async def _above(running, number: int) -> bool:
    return await running() > number


def _in(queue: str, jobs):
    return [job._replace(queue=queue) for job in jobs]
