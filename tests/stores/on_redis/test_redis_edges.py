"""Cases at the edges: odd entries, full memory, more jobs out of the line than a claim sees."""

from __future__ import annotations

import json

import pytest
import redis
from structlog.testing import capture_logs

from haulier.domain.line import Said
from haulier.domain.moves import Move
from haulier.domain.step import Step
from haulier.domain.worker import Note
from haulier.exceptions import ConfigurationError, JobStateError, StoreFullError
from haulier.services.ids import new_id
from haulier.stores.redis import RedisStore
from haulier.stores.redis.inbox import RefusedError, read
from haulier.stores.redis.packing import pack_jobs
from haulier.stores.redis.scripts import SCHEMA
from support import Hand, filled_batch, move, wait_until, work, works

HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (f'"payload":{{}},"delay":{HUGE}', "delay: is not a number"),
        ('"payload":{"x":1e999}', "payload: holds a number that is too large"),
        (f'"payload":{{}},"retry":{{"delay":{HUGE},"cap":{HUGE}}}', "retry: delay must be"),
        ('"payload":{},"retry":{"function":"f"}', "retry: a retry policy with a function"),
    ],
)
def test_an_entry_that_no_store_could_keep_is_refused(fields, reason):
    with pytest.raises(RefusedError, match=reason):
        read(f'{{"kind":"work",{fields}}}'.encode(), "default", new_id)


@pytest.mark.parametrize(
    "fields",
    [
        '"run_at":"0001-01-01T00:00:00+23:59"',
        '"run_at":"9999-12-31T23:59:59-23:59"',
        '"retry":{"retry_on":["\\ud800"]}',
        '"key":"\\u0000"',
    ],
)
async def test_a_strange_one_is_a_job_nevertheless(store, hand, fields):
    job = read(f'{{"kind":"work","payload":{{}},{fields}}}'.encode(), "default", new_id)
    assert pack_jobs([job])
    await store.insert([job])
    assert (await store.get(job.id)).run_at >= 0


async def test_one_bad_entry_does_not_stop_an_inbox(store, hand, home, client):
    inbox = f"{home.prefix}inbox:default"
    client.rpush(inbox, f'{{"kind":"work","payload":{{}},"delay":{HUGE}}}')
    client.rpush(inbox, '{"kind":"work","payload":{}}')
    await hand.exchange(slots=1)
    await wait_until(lambda: hand.claim(1))
    (kept,) = client.lrange(f"{home.prefix}rejected", 0, -1)
    assert json.loads(kept)["reason"].startswith("delay")


async def test_a_look_at_the_store_counts_inboxes_that_nobody_listens_to(store, home, client):
    client.rpush(f"{home.prefix}inbox:tpyo", "x", "y")
    try:
        (found,) = [each for each in await store.check() if each.name == "inboxes"]
        assert found.what.startswith("2 entries wait")
    finally:
        client.delete(f"{home.prefix}inbox:tpyo")


class TestFullMemory:
    """What lets jobs end, or go, works even then: new workers, too."""

    async def test_a_worker_that_starts_anew_works_jobs_off(self, server):
        with capture_logs():
            async with RedisStore(server.url) as store:
                await store.insert(works(20))
                batch = await filled_batch(store, 3, sealed=False)
                redis.Redis(port=server.port).config_set("maxmemory", "1mb")
                with pytest.raises(StoreFullError):
                    await store.insert([work()])
                await store.pause(batch)
                await store.resume(batch)
                await store.seal(batch)
                hand = await Hand.enlist(store)
                assert await hand.work_off() == 23
                assert (await store.batch(batch)).settled

    async def test_what_running_jobs_have_done_and_said_is_kept(self, server):
        with capture_logs():
            async with RedisStore(server.url) as store:
                await store.insert(works(2))
                hand = await Hand.enlist(store)
                job, other = await hand.claim(2)
                redis.Redis(port=server.port).config_set("maxmemory", "1mb")
                assert await store.keep([Step(job.id, job.lease, "upload", b"1")]) == []
                await store.note([Note(other.id, other.lease, 50, lines=(Said(1, "said"),))])
                assert [step.name for step in await store.steps(job.id)] == ["upload"]
                assert [line.text for line in await store.lines(other.id)] == ["said"]

    async def test_a_loss_of_history_is_dealt_with(self, server):
        with capture_logs():
            async with RedisStore(server.url) as store:
                hand = await Hand.enlist(store)
                await store.insert(works(20))
                control = redis.Redis(port=server.port)
                control.hset("haulier:history", "last", 10)
                control.delete("haulier:events")
                control.config_set("maxmemory", "1mb")
                assert not (await hand.exchange()).alive
                assert len(store.losses) == 1
                other = await Hand.enlist(store)
                assert len(await other.claim(9)) == 9


class TestForm:
    """Of the data: a store of an earlier one is brought up to it, and one of a later refused."""

    @pytest.mark.parametrize("form", range(1, SCHEMA))
    async def test_an_earlier_form_is_brought_up_and_its_jobs_go_on(self, home, client, form):
        async with home.client() as store:
            await store.insert(works(1))
        client.hset(f"{home.prefix}history", "schema", form)
        async with home.client() as store:
            job = await (await Hand.enlist(store)).claim_one()
            assert await store.keep([Step(job.id, job.lease, "one", b"1")]) == []
        assert client.hget(f"{home.prefix}history", "schema") == str(SCHEMA)

    async def test_a_later_form_is_refused(self, home, client):
        async with home.client():
            client.hset(f"{home.prefix}history", "schema", 99)
        with pytest.raises(ConfigurationError, match="upgrade haulier"):
            async with home.client():
                pass


class TestOutOfTheLine:
    """However many jobs cannot start now, those that can are found."""

    async def lose_twice(self, store, clock, count: int) -> None:
        """Let all that is ready lose its worker twice: from then on it is to be run alone."""
        for _ in range(2):
            clock.advance(60)
            hand = await Hand.enlist(store)
            assert len(await hand.claim(count)) == count
            await store.retire(hand.id)

    async def found(self, hand: Hand) -> list[str]:
        """What a worker is given that comes again at once whenever it is told to."""
        while True:
            reply = await hand.exchange(slots=1)
            if reply.jobs or reply.due_in != 0:
                return [job.id for job in reply.jobs]

    async def test_a_loner_behind_many_of_a_paused_batch_is_run(self, store, clock):
        batch = await filled_batch(store, 250)
        await self.lose_twice(store, clock, 250)
        await store.pause(batch)
        await store.insert([job := work("bulk")])
        await self.lose_twice(store, clock, 1)
        clock.advance(60)
        hand = await Hand.enlist(store)
        assert await self.found(hand) == [job.id]
        await hand.hand_in(await store.get(job.id), Move.COMPLETE)
        # The rest is looked through to its end, once, not for ever.
        assert await self.found(hand) == []
        await store.resume(batch)
        assert len(await self.found(hand)) == 1

    async def test_a_job_behind_a_batch_that_is_just_being_paused_is_claimed(self, store, hand):
        batch = await filled_batch(store, 1200)
        await store.insert([job := work()])
        # Whoever paused it died before it took the items out of the line.
        await store._write("switch", batch, 1)
        assert await self.found(hand) == [job.id]


async def test_failed_items_of_no_such_class_are_looked_through_in_stretches(store, hand):
    batch = await filled_batch(store, 2100)
    last = None
    while jobs := await hand.claim(700):
        last = jobs[-1]
        moves = [move(job, Move.FAIL) for job in jobs]
        if len(jobs) < 700 or last.position == 2099:
            error = moves[-1].error
            moves[-1] = moves[-1]._replace(error=type(error)(type="Rare", message="", attempt=1))
        await hand.exchange(*moves)
    assert (await store.batch(batch)).settled
    assert await store.retry_failed(batch, error_type="Never") == 0
    assert (await store.batch(batch)).settled
    assert await store.retry_failed(batch, error_type="Rare") == 1
    assert (await hand.claim_one()).id == last.id
    with pytest.raises(JobStateError):
        await store.delete(batch)
