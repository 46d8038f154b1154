"""PostgreSQL: many plain jobs come by COPY, and nobody can tell."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import JobState, NewJob, OnLost, Role
from haulier.domain.moves import Move
from haulier.domain.retry import RetryPolicy
from haulier.domain.transfer import Mark, Stage
from haulier.domain.unique import Uniqueness
from haulier.exceptions import JobStateError, LeaseLostError, StoreError, StoreFrozenError
from haulier.ports import Fence, JobFilter
from haulier.services.ids import new_id
from haulier.stores.postgres import PostgresStore, bulk
from haulier.stores.postgres.connection import Place
from haulier.testing import FakeClock
from support import Hand, adds_up, filled_batch, head, items, work, works

MANY = bulk.FEWEST


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What became of each COPY: whether it inserted all."""
    answers: list[bool] = []
    insert = bulk.insert

    async def noted(*arguments: Any) -> bool:
        answers.append(await insert(*arguments))
        return answers[-1]

    monkeypatch.setattr(bulk, "insert", noted)
    return answers


def pending(**counts: int) -> dict[tuple[str, str, Role, JobState], int]:
    return {("default", kind, Role.SINGLE, JobState.PENDING): n for kind, n in counts.items()}


class TestSame:
    """Both ways lead to the same rows, events and counters."""

    TABLES = ("jobs_live", "journal", "batches", "batch_deltas")

    def contents(self, admin: psycopg.Connection, store: PostgresStore) -> list[Any]:
        schema = store._place.schema
        return [
            admin.execute(f"SELECT t::text FROM {schema}.{table} t ORDER BY 1").fetchall()
            for table in self.TABLES
        ]

    async def fill(self, store: PostgresStore, tops: list[NewJob], jobs: list[NewJob]) -> None:
        policies = [BatchPolicy(), BatchPolicy(concurrency=3), BatchPolicy(batch_size=2)]
        for top, policy in zip(tops, policies, strict=True):
            await store.insert([top], policy=policy)
        await store.pause(tops[0].id)
        # As after a retry that makes the items anew.
        await store._pool.run(
            lambda db: db.execute("UPDATE batches SET leases = 7 WHERE id = $1", tops[1].id)
        )
        assert (await store.insert(jobs)).new == len(jobs)

    def random_jobs(self, dice: random.Random, tops: list[NewJob], now: int) -> list[NewJob]:
        jobs = []
        for number in range(MANY):
            top = dice.choice([None, *tops])
            jobs.append(
                work(
                    dice.choice(["work", "other.kind"]),
                    queue=dice.choice(["default", "night"]),
                    payload=b"{}" * dice.choice([1, 1, 1, 3000]),
                    version=dice.choice([1, 2**31 - 1]),
                    priority=dice.choice([0, 0, -10_000, 10_000]),
                    run_at=dice.choice([None, now - 5, now + 10**9]),
                    delay=dice.choice([0, 10**6]),
                    key=dice.choice([None, "k", "Zoë \N{GRINNING FACE}\n\t\\N"]),
                    retry=dice.choice([None, RetryPolicy(max_attempts=4)]),
                    on_lost=dice.choice(list(OnLost)),
                    role=Role.ITEM if top else Role.SINGLE,
                    batch_id=top and top.id,
                    position=number if top else None,
                )
            )
        return jobs

    @pytest.mark.parametrize("seed", range(3))
    async def test_rows_events_and_counters(self, url, admin, monkeypatch, came, seed):
        clock = FakeClock()
        tops = [head() for _ in range(3)]
        jobs = self.random_jobs(random.Random(seed), tops, clock.now())
        found = []
        for fewest, way in ((bulk.FEWEST, [True]), (len(jobs) + 1, [])):
            monkeypatch.setattr(bulk, "FEWEST", fewest)
            came.clear()
            async with PostgresStore(Place.from_url(url), clock=clock) as store:
                await self.fill(store, tops, jobs)
                assert came == way
                found.append(self.contents(admin, store))
                admin.execute(f"DROP SCHEMA {store._place.schema} CASCADE")
        by_copy, by_call = (self.comparable(each) for each in found)
        assert by_copy == by_call

    def comparable(self, tables: list[Any]) -> list[Any]:
        """Without the ballast, whose ids are random."""
        live, *others = tables
        return [[row for row in live if not row[0].startswith("(-")], *others]

    async def test_they_are_worked_off(self, store, came):
        hand = await Hand.enlist(store)
        batch = await filled_batch(store, MANY)
        await store.insert(works(MANY))
        assert came == [True, True]
        assert await hand.work_off() == 2 * MANY
        assert (await store.batch(batch)).settled
        assert adds_up(await store.batch(batch))
        events = await store.events(limit=10_000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))

    async def test_they_keep_their_order(self, store, came):
        jobs = works(MANY)
        await store.insert(jobs)
        assert came == [True]
        page = await store.find(JobFilter(), limit=MANY, oldest_first=True)
        assert [job.id for job in page.jobs] == [job.id for job in jobs]


class TestThereAlready:
    """COPY cannot pass over an id: then all go the other way."""

    async def test_some_of_them(self, store, came):
        jobs = works(MANY + 3)
        await store.insert([jobs[0], jobs[-1]])
        assert (await store.insert(jobs)).new == MANY + 1
        assert (await store.insert(jobs)).new == 0
        assert came == [False, False]
        assert await store.counts() == pending(work=MANY + 3)

    async def test_one_that_is_done(self, store, came):
        hand = await Hand.enlist(store)
        jobs = works(MANY)
        await store.insert(jobs[7:8])
        await hand.hand_in(await hand.claim_one(), Move.COMPLETE)
        done = await store.get(jobs[7].id)
        assert (await store.insert(jobs)).new == MANY - 1
        assert came == [False]
        assert await store.get(jobs[7].id) == done
        assert sum((await store.counts()).values()) == MANY

    async def test_one_twice_in_a_call(self, store, came):
        jobs = works(MANY)
        assert (await store.insert([*jobs, jobs[3]])).new == MANY
        assert came == [False]
        assert await store.counts() == pending(work=MANY)

    async def test_the_items_of_a_batch_that_was_filled(self, store, came):
        top = head()
        many = items(top.id, MANY)
        for new in (MANY, 0):
            await store.insert([top])
            assert (await store.insert(many)).new == new
            # Repeating is harmless also once no new ones are taken.
            await store.seal(top.id)
        assert came == [True, False]
        assert (await store.batch(top.id)).counts.total == MANY

    async def test_producers_of_the_same_jobs_at_once_make_each_once(self, store):
        jobs = works(MANY)
        mixed = [random.Random(seed).sample(jobs, MANY) for seed in range(6)]
        answers = await asyncio.gather(*(store.insert(each) for each in mixed))
        assert sum(answer.new for answer in answers) == MANY
        assert await store.counts() == pending(work=MANY)


class TestRefused:
    """A call that fails leaves nothing, and the store goes on."""

    @pytest.fixture(autouse=True)
    async def nothing_stays(self, store: PostgresStore) -> AsyncIterator[None]:
        yield
        assert await store.counts() == {}
        jobs = works(MANY)
        assert (await store.insert(jobs)).new == MANY
        assert await store.counts() == pending(work=MANY)

    @pytest.mark.parametrize(
        "fields",
        [
            {"key": "zero \0 byte"},
            {"key": "half a character \ud800"},
            {"kind": "a\0b"},
            {"version": 2**31},
            {"priority": -(2**40)},
            {"run_at": 2**70},
            {"id": "no-id-at-all"},
            {"id": "0" * 31 + " "},
        ],
        ids=str,
    )
    async def test_a_value_that_cannot_be_stored(self, store, fields):
        jobs = works(MANY)
        jobs.insert(MANY // 2, work(**fields))
        for _ in range(3):
            with pytest.raises(StoreError):
                await store.insert(jobs)

    async def test_two_ids_whose_lengths_make_up_for_each_other(self, store):
        with pytest.raises(StoreError):
            await store.insert([work(id="0" * 30), *works(MANY), work(id="0" * 34)])

    async def test_items_of_no_batch(self, store):
        with pytest.raises(JobStateError, match="no batch"):
            await store.insert([*works(MANY), *items(new_id(), 1)])

    async def test_under_a_lease_that_is_lost(self, store):
        with pytest.raises(LeaseLostError):
            await store.insert(works(MANY), fence=Fence(new_id(), 1))


async def test_a_sealed_batch_takes_no_more(store, came):
    batch = await filled_batch(store, 1)
    with pytest.raises(JobStateError, match="sealed"):
        await store.insert(items(batch, MANY, first=1))
    assert (await store.batch(batch)).counts.total == 1
    assert came == []


async def test_a_frozen_store_takes_none(store):
    mark = Mark(stage=Stage.FROZEN, token="t", peer="store://peer", source="e")
    await store.transferable().freeze(mark)
    with pytest.raises(StoreFrozenError):
        await store.insert(works(MANY))
    assert await store.counts() == {}


async def test_under_the_lease_of_a_head(store, came):
    hand = await Hand.enlist(store)
    top = head()
    await store.insert([top])
    claimed = await hand.claim_one()
    fence = Fence(top.id, claimed.lease)
    assert (await store.insert(items(top.id, MANY), fence=fence)).new == MANY
    assert came == [True]
    assert (await store.batch(top.id)).counts.pending == MANY


@pytest.mark.parametrize(
    "special", [head(), work(unique=(Uniqueness("one"),))], ids=["a head", "a unique name"]
)
async def test_what_is_not_plain_takes_the_other_way(store, came, special):
    special = special._replace(id=new_id())
    assert (await store.insert([*works(MANY), special])).new == MANY + 1
    assert came == []


async def test_few_take_the_other_way(store, came):
    assert (await store.insert(works(MANY - 1))).new == MANY - 1
    assert came == []


async def test_behind_a_pooler(url, came):
    async with PostgresStore.from_url(f"{url}&pooler=transaction") as store:
        jobs = works(MANY + 1)
        await store.insert(jobs[:MANY])
        assert (await store.insert(jobs)).new == 1
        batch = await filled_batch(store, MANY)
        assert came == [True, False, True]
        assert (await store.batch(batch)).counts.total == MANY


async def test_in_the_transaction_of_a_caller(store, server, came):
    connection = await Place.from_url(server).connect("test", 5)
    try:
        for end, there in (("ROLLBACK", 0), ("COMMIT", MANY)):
            # Begun in a way that the driver does not know of.
            await connection.execute("BEGIN")
            await store.insert(works(MANY), connection=connection)
            await connection.execute(end)
            assert sum((await store.counts()).values()) == there
    finally:
        await connection.close()
    assert came == []


async def test_a_worker_needs_no_further_right(url, store, admin, came):
    schema, role = store._place.schema, f"r_{secrets.token_hex(4)}"
    admin.execute(f"CREATE ROLE {role} LOGIN")
    admin.execute("REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC")
    try:
        for what in (
            f"USAGE ON SCHEMA {schema}",
            f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema}",
            f"USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA {schema}",
        ):
            admin.execute(f"GRANT {what} TO {role}")
        async with PostgresStore.from_url(url.replace("haulier@", f"{role}@")) as limited:
            assert (await limited.insert(works(MANY))).new == MANY
    finally:
        admin.execute("GRANT TEMPORARY ON DATABASE postgres TO PUBLIC")
        admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert came == [True]
