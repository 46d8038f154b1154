"""What a look at a store's health says."""

from __future__ import annotations

from conformance.schedules import scheduled
from haulier.domain.finding import Level
from haulier.domain.schedule import Interval
from haulier.domain.transfer import Mark, Stage
from support import Hand, filled_batch, work, works

EVERYWHERE = {
    "connection", "rights", "version", "schema", "durability", "clock", "counters", "queues",
    "configuration", "oldest ready job", "workers", "batches", "copy", "read", "commit", "bloat",
    "indexes", "open batches", "schedules",
}  # fmt: skip


async def findings(store):
    return {each.name: each for each in await store.check()}


class TestCheck:
    """A look finds what there is, and changes nothing."""

    async def test_an_empty_store(self, store):
        found = await findings(store)
        if "in the memory" in found["connection"].what:
            assert found.keys() >= EVERYWHERE - {"rights"}
        else:
            assert found.keys() >= EVERYWHERE
        assert found["queues"].what == "0 pending, 0 running"
        assert found["oldest ready job"].what == "none waits"
        assert found["counters"].what == "0 jobs, as counted"
        assert found["workers"].level is Level.OK
        for name in ("version", "schema", "indexes", "counters", "copy", "clock"):
            assert found[name].level is Level.OK, found[name]

    async def test_every_finding_that_is_not_ok_has_advice(self, store):
        await store.insert([work(queue="nobody")])
        for each in await store.check():
            assert bool(each.advice) == (each.level is not Level.OK), each

    async def test_what_waits_and_who_works(self, store, hand, clock):
        await filled_batch(store, 3, sealed=False)
        await store.insert([*works(2, queue="other"), work(delay=3600 * 1_000_000)])
        await hand.claim(1)
        clock.advance(5)
        found = await findings(store)
        assert found["queues"].what == "5 pending (3 in default, 2 in other), 2 running"
        assert found["counters"].what == "7 jobs, as counted"
        assert (found["workers"].level, found["workers"].what) == (
            Level.WARNING,
            "1 live with 100 slots",
        )
        assert "other" in found["workers"].advice
        assert found["oldest ready job"].what == "waits for 0:00:05"
        clock.advance(3600)
        assert (await findings(store))["oldest ready job"].level is Level.WARNING

    async def test_a_schedule_that_nobody_ticks(self, store, clock):
        assert (await findings(store))["schedules"].what == "none ticks"
        await scheduled(store, "hourly", cadence=Interval(3600, clock.now()))
        assert (await findings(store))["schedules"].what == "the next tick is in 0:00:01"
        clock.advance(31)
        found = (await findings(store))["schedules"]
        assert (found.level, found.what) == (Level.OK, "hourly is 0:00:30 late")
        clock.advance(60)
        found = (await findings(store))["schedules"]
        assert (found.level, found.what) == (Level.WARNING, "hourly is 0:01:30 late")

    async def test_what_is_set(self, store):
        assert (await findings(store))["configuration"].what == "version 0, 0 set"
        values = {"queues.slow.paused": True, "log.level": "debug"}
        await store.configurable().configure(values, by="ops")
        found = (await findings(store))["configuration"]
        assert (found.level, found.what) == (Level.OK, "version 1, 2 set, paused: slow")

    async def test_a_store_that_is_being_copied(self, store):
        mark = Mark(stage=Stage.FROZEN, token="t", peer="store://peer", source="e")
        await store.transferable().freeze(mark)
        found = (await findings(store))["copy"]
        assert (found.level, found.what) == (Level.WARNING, "frozen, with store://peer")
        assert "haulier store thaw" in found.advice

    async def test_it_changes_nothing(self, store, hand):
        await store.insert(works(3))
        await hand.claim(1)
        before = await store.last_event(), await store.counts()
        await store.check()
        assert (await store.last_event(), await store.counts()) == before
        assert len(await hand.claim(5)) == 2
        assert await Hand.enlist(store)
