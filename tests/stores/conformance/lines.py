"""Log lines of jobs: the last ones are kept with the job."""

from __future__ import annotations

import pytest

from haulier.domain.job import MICROSECOND, Job
from haulier.domain.line import KEPT_LINES, Line, Said
from haulier.domain.moves import Move
from haulier.domain.retention import Keep, Retention
from haulier.domain.worker import Note
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobStore
from haulier.services.ids import new_id
from support import Hand, filled_batch, head, items, move, work, works


def said(job: Job, *texts: str, first: int = 1) -> Note:
    lines = tuple(Said(number, text) for number, text in enumerate(texts, start=first))
    return Note(job.id, job.lease, lines=lines)


async def texts(store: JobStore, job_id: str) -> list[str]:
    return [line.text for line in await store.lines(job_id)]


async def claimed(store: JobStore, hand: Hand) -> Job:
    await store.insert([work()])
    return await hand.claim_one()


class TestLines:
    """What a running job says, in the order in which it said it."""

    async def test_lines_come_back_in_their_order_with_when_they_were_said(
        self, store, hand, clock
    ):
        job = await claimed(store, hand)
        assert await store.lines(job.id) == []
        later = Said(2, "ü ☕ '\"%:{}\n\tend", ago=round(0.25 * MICROSECOND))
        await store.note([Note(job.id, job.lease, lines=(Said(1, "", ago=MICROSECOND), later))])
        await store.note([said(job, "third", first=3)])
        now = clock.now()
        assert await store.lines(job.id) == [
            Line(job.lease, 1, now - MICROSECOND, ""),
            Line(job.lease, 2, now - MICROSECOND // 4, "ü ☕ '\"%:{}\n\tend"),
            Line(job.lease, 3, now, "third"),
        ]

    async def test_they_leave_progress_alone_and_go_along_with_it(self, store, hand):
        job = await claimed(store, hand)
        await store.note([Note(job.id, job.lease, 40, "half")])
        await store.note([said(job, "one")])
        now = await store.get(job.id)
        assert (now.progress, now.message) == (40, "half")
        lines = (Said(2, "two"),)
        await store.note([Note(job.id, job.lease, 50, "more", heard=True, lines=lines)])
        assert (await store.get(job.id)).progress == 50
        assert await texts(store, job.id) == ["one", "two"]

    async def test_what_is_said_again_is_kept_once(self, store, hand, clock):
        job = await claimed(store, hand)
        await store.note([said(job, "one", "two")])
        before = await store.lines(job.id)
        clock.advance(1)
        await store.note([said(job, "one", "two", "three")])
        found = await store.lines(job.id)
        assert found[:2] == before
        assert [line.text for line in found] == ["one", "two", "three"]

    async def test_lines_that_overtook_others_stand_behind_them(self, store, hand):
        job = await claimed(store, hand)
        await store.note([said(job, "ten", first=10)])
        await store.note([said(job, "nine", first=9)])
        assert await texts(store, job.id) == ["nine", "ten"]

    async def test_the_last_ones_are_kept(self, store, hand):
        job = await claimed(store, hand)
        many = [f"line {number}" for number in range(1, 2 * KEPT_LINES)]
        await store.note([said(job, *many[: KEPT_LINES + 50])])
        assert await texts(store, job.id) == many[50 : KEPT_LINES + 50]
        await store.note([said(job, *many[KEPT_LINES + 50 :], first=KEPT_LINES + 51)])
        assert await texts(store, job.id) == many[-KEPT_LINES:]

    async def test_those_of_later_claims_take_the_place_of_earlier_ones(self, store, hand):
        job = await claimed(store, hand)
        await store.note([said(job, *(f"old {n}" for n in range(KEPT_LINES)))])
        await hand.hand_in(job, Move.RETRY, delay=0)
        again = await hand.claim_one()
        await store.note([said(again, "new")])
        found = await store.lines(job.id)
        assert len(found) == KEPT_LINES
        assert (found[0].text, found[0].lease) == ("old 1", job.lease)
        assert (found[-1].text, found[-1].lease) == ("new", again.lease)

    async def test_an_old_lease_says_nothing(self, store, hand):
        job = await claimed(store, hand)
        await hand.hand_in(job, Move.RETRY, delay=0)
        await store.note([said(job, "between")])
        again = await hand.claim_one()
        await store.note([said(job, "late"), said(again, "own")])
        await hand.hand_in(again, Move.COMPLETE)
        await store.note([said(again, "after the end")])
        assert await texts(store, job.id) == ["own"]

    async def test_each_job_has_its_own(self, store, hand):
        await store.insert(works(5))
        jobs = await hand.claim(5)
        await store.note([said(job, f"of {job.id}") for job in jobs])
        for job in jobs:
            assert await texts(store, job.id) == [f"of {job.id}"]
        for unknown in (new_id(), "no id"):
            with pytest.raises(JobNotFoundError):
                await store.lines(unknown)


class TestLinesStay:
    """They stay with the job until it goes."""

    @pytest.mark.parametrize("how", [Move.COMPLETE, Move.FAIL, Move.CANCEL])
    async def test_they_can_be_read_when_it_has_ended_and_after_a_requeue(self, store, hand, how):
        job = await claimed(store, hand)
        await store.note([said(job, "said")])
        await hand.hand_in(job, how)
        assert await texts(store, job.id) == ["said"]
        await store.requeue([job.id])
        assert await texts(store, job.id) == ["said"]

    async def test_they_go_with_a_job_that_is_deleted_or_kept_no_longer(self, store, hand):
        given = works(2)
        await store.insert(given)
        first, second = await hand.claim(2)
        await store.note([said(first, "said"), said(second, "said")])
        await hand.exchange(move(first, Move.COMPLETE), move(second, Move.COMPLETE))
        await store.delete(first.id)
        with pytest.raises(JobNotFoundError):
            await store.lines(first.id)
        assert await store.prune({"work": Retention(completed=Keep(count=0))}) == 1
        await store.insert(given)
        assert [await store.lines(each.id) for each in given] == [[], []]

    async def test_those_of_items_go_with_their_batch(self, store, hand):
        batch = await filled_batch(store, 3)
        for job in await hand.claim(3):
            await store.note([said(job, "said")])
            await hand.exchange(move(job, Move.COMPLETE))
        await store.delete(batch)
        again = items(batch, 3)
        await store.open_batch(head(id=batch), again, sealed=True)
        assert [await store.lines(each.id) for each in again] == [[], [], []]
