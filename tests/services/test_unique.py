"""Unique and idempotent enqueue: single jobs, many, batches, bulk kinds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from haulier.domain.job import JobState, Role
from haulier.domain.moves import Move
from haulier.domain.unique import Uniqueness
from haulier.exceptions import (
    DuplicateJobError,
    IdempotencyConflictError,
    JobStateError,
    StoreUnavailableError,
    ValidationError,
)
from haulier.ports import CHUNK, JobFilter
from haulier.runners.base import BaseTaskRunner, register_runner
from haulier.services.jobs import JobManager
from haulier.services.options import Unique
from haulier.services.registry import define_task
from haulier.services.secrets import Secret
from support import Hand, TroubledStore, head, items, wait_until

REJECT = {"conflict": "reject"}


def add(n: int) -> int:
    return n


def login(user: str, password: Secret) -> None: ...


class Start(BaseModel):
    count: int


class Item(BaseModel):
    n: int


class Numbers(BaseTaskRunner[Start, Item]):
    """Counts."""

    task_type, start_model, item_model = "numbers", Start, Item

    def expand(self, ctx, start):
        return (Item(n=n) for n in range(start.count))

    def run_item(self, ctx, item):
        return item.n


@pytest.fixture(autouse=True)
def kinds(manager):
    for function in (add, login):
        manager.registry.add(define_task(function))
    manager.registry.add(define_task(add, kind="subtract"))
    register_runner(manager.registry, Numbers())


def numbers(count, first=0):
    return [{"n": n} for n in range(first, first + count)]


async def everything(manager):
    page = await manager.store.find(JobFilter(), limit=10 * CHUNK, oldest_first=True)
    return page.jobs


async def top(manager):
    return [job.id for job in await everything(manager) if job.role is not Role.ITEM]


class TestUnique:
    @pytest.mark.parametrize("unique", ["ada", Unique(by="ada"), Unique()])
    async def test_a_second_one_is_the_first(self, manager, unique):
        first = await manager.enqueue("add", {"n": 1}, {"unique": unique})
        assert await manager.enqueue("add", {"n": 1}, {"unique": unique}) == first
        assert (await manager.store.get(first)).unique
        # Names are each kind's own, and a job without one minds nobody.
        await manager.enqueue("subtract", {"n": 1}, {"unique": unique})
        await manager.enqueue("add", {"n": 1}, {})
        assert len(await everything(manager)) == 3

    async def test_without_a_name_the_payload_counts(self, manager):
        ids = [await manager.enqueue("add", {"n": n}, {"unique": Unique()}) for n in (1, 2, 1)]
        assert ids[0] == ids[2] != ids[1]

    async def test_secrets_do_not_count(self, manager):
        first, again = [
            await manager.enqueue("login", {"user": "ada", "password": word}, {"unique": Unique()})
            for word in ("one", "two")
        ]
        assert first == again

    async def test_it_may_be_an_error(self, manager):
        first = await manager.enqueue("add", {"n": 1}, {"unique": "ada"})
        with pytest.raises(DuplicateJobError) as caught:
            await manager.enqueue("add", {"n": 2}, {"unique": Unique(by="ada", **REJECT)})
        assert caught.value.job_id == first

    async def test_the_newer_one_may_take_its_place(self, manager):
        later = {"unique": Unique(by="ada", conflict="replace"), "delay": 5}
        ids = [await manager.enqueue("add", {"n": n}, later) for n in range(3)]
        states = [(await manager.store.get(job_id)).state for job_id in ids]
        assert states == [JobState.CANCELLED, JobState.CANCELLED, JobState.PENDING]

    async def test_a_running_one_does_not_give_way(self, manager):
        hand = await Hand.enlist(manager.store, kinds=("add",))
        first = await manager.enqueue("add", {"n": 1}, {"unique": "ada"})
        await hand.claim_one()
        with pytest.raises(DuplicateJobError):
            await manager.enqueue("add", {"n": 2}, {"unique": Unique(by="ada", conflict="replace")})
        assert (await manager.store.get(first)).state is JobState.RUNNING

    @pytest.mark.parametrize(
        ("unique", "held_while_running", "held_when_done"),
        [
            (Unique(by="a", scope="pending"), False, False),
            (Unique(by="a"), True, False),
            (Unique(by="a", scope="period", period=60), True, True),
        ],
    )
    async def test_a_name_is_held_as_long_as_was_asked(
        self, manager, unique, held_while_running, held_when_done
    ):
        hand = await Hand.enlist(manager.store, kinds=("add",))
        options = {"unique": unique}
        first = await manager.enqueue("add", {"n": 1}, options)
        job = await hand.claim_one()
        second = await manager.enqueue("add", {"n": 2}, {**options, "delay": 60})
        assert (second == first) is held_while_running
        if second != first:
            await manager.store.cancel([second])
        await hand.hand_in(job, Move.COMPLETE)
        assert (await manager.enqueue("add", {"n": 3}, options) == first) is held_when_done

    async def test_many_are_unique_each_by_its_payload(self, manager):
        before = await manager.enqueue("add", {"n": 3}, {"unique": Unique()})
        ids = await manager.enqueue_many("add", [*numbers(5), {"n": 1}], {"unique": Unique()})
        assert ids[3] == before
        assert ids[5] == ids[1]
        assert len(await everything(manager)) == 5
        with pytest.raises(ValidationError, match="is for one job"):
            await manager.enqueue_many("add", numbers(2), {"unique": "ada"})

    async def test_many_are_refused_together_with_one_that_must_not_be(self, manager):
        await manager.enqueue("add", {"n": 3}, {"unique": Unique()})
        with pytest.raises(DuplicateJobError):
            await manager.enqueue_many("add", numbers(5), {"unique": Unique(**REJECT)})
        assert len(await everything(manager)) == 1

    @pytest.mark.parametrize("unique", ["nightly", Unique()])
    async def test_a_second_batch_is_the_first(self, manager, unique):
        first = await manager.enqueue_batch("add", numbers(3), {"unique": unique})
        assert await manager.enqueue_batch("add", numbers(3), {"unique": unique}) == first
        assert (await manager.store.batch(first)).counts.total == 3
        assert await top(manager) == [first]

    async def test_items_are_never_added_to_a_batch_of_somebody_else(self, manager):
        """One that is still being filled holds the name, and keeps its items to itself."""
        name = Uniqueness("unique:add:nightly")
        theirs = head("add", unique=(name,))
        await manager.store.open_batch(theirs, items(theirs.id, 2, kind="add"), sealed=False)
        mine = await manager.enqueue_batch("add", numbers(7), {"unique": "nightly"})
        assert mine == theirs.id
        batch = await manager.store.batch(mine)
        assert (batch.counts.total, batch.sealed) == (2, False)

    async def test_a_batch_may_be_kept_out_by_a_single_job(self, manager):
        single = await manager.enqueue("add", {"n": 1}, {"unique": "nightly"})
        assert await manager.enqueue_batch("add", numbers(2), {"unique": "nightly"}) == single
        with pytest.raises(DuplicateJobError):
            await manager.enqueue_batch(
                "add", numbers(2), {"unique": Unique(by="nightly", **REJECT)}
            )
        assert await top(manager) == [single]

    async def test_a_batch_of_items_that_come_one_by_one_needs_a_name(self, manager):
        with pytest.raises(ValidationError, match="one by one"):
            await manager.enqueue_batch("add", iter(numbers(2)), {"unique": Unique()})
        first = await manager.enqueue_batch("add", iter(numbers(2)), {"unique": "nightly"})
        assert await manager.enqueue_batch("add", iter(numbers(2)), {"unique": "nightly"}) == first

    async def test_a_bulk_kind_is_unique_by_its_head(self, manager):
        first = await manager.enqueue("numbers", {"count": 2}, {"unique": Unique()})
        assert await manager.enqueue("numbers", {"count": 2}, {"unique": Unique()}) == first
        assert await manager.enqueue("numbers", {"count": 3}, {"unique": Unique()}) != first

    @pytest.mark.parametrize(
        ("unique", "field"),
        [
            (7, "unique"),
            ("", "unique.by"),
            (Unique(by="x" * 201), "unique.by"),
            (Unique(scope="ever"), "unique.scope"),
            (Unique(scope="period"), "unique.period"),
            (Unique(period=5), "unique.period"),
            (Unique(scope="period", period=-1), "unique.period"),
            (Unique(scope="period", period=float("nan")), "unique.period"),
            (Unique(conflict="match"), "unique.conflict"),
        ],
    )
    async def test_bad_ones_are_refused_by_field(self, manager, unique, field):
        with pytest.raises(ValidationError) as caught:
            await manager.enqueue("add", {"n": 1}, {"unique": unique})
        assert [problem.field for problem in caught.value.problems] == [field]


class TestIdempotencyKey:
    async def test_the_same_request_is_the_same_job_however_it_is_said(self, manager):
        said = [
            {"priority": "high", "unique": "ada"},
            {"priority": 10, "unique": Unique(by="ada", scope="active")},
            {"priority": "High", "unique": Unique(by="ada"), "queue": None, "delay": 0},
        ]
        ids = {
            await manager.enqueue("add", {"n": 1}, {**options, "idempotency_key": "k"})
            for options in said
        }
        assert len(ids) == 1

    @pytest.mark.parametrize(
        ("kind", "payload", "options"),
        [
            ("add", {"n": 2}, {}),
            ("subtract", {"n": 1}, {}),
            ("add", {"n": 1}, {"queue": "slow"}),
            ("add", {"n": 1}, {"delay": 5}),
            ("add", {"n": 1}, {"unique": "x"}),
        ],
    )
    async def test_another_request_is_refused(self, manager, kind, payload, options):
        key = {"idempotency_key": "k"}
        first = await manager.enqueue("add", {"n": 1}, key)
        with pytest.raises(IdempotencyConflictError) as caught:
            await manager.enqueue(kind, payload, {**options, **key})
        assert caught.value.job_id == first
        assert await top(manager) == [first]

    async def test_it_is_the_same_job_whatever_became_of_it(self, manager):
        hand = await Hand.enlist(manager.store, kinds=("add",))
        key = {"idempotency_key": "k"}
        first = await manager.enqueue("add", {"n": 1}, key)
        await hand.work_off(Move.FAIL)
        assert await manager.enqueue("add", {"n": 1}, key) == first
        assert (await manager.store.get(first)).state is JobState.FAILED
        await manager.store.delete(first)
        assert await manager.enqueue("add", {"n": 1}, key) != first

    async def test_many_have_no_common_key(self, manager):
        with pytest.raises(ValidationError, match="is for one job"):
            await manager.enqueue_many("add", numbers(2), {"idempotency_key": "k"})

    async def test_a_bulk_kind_takes_one(self, manager):
        key = {"idempotency_key": "k"}
        first = await manager.enqueue("numbers", {"count": 2}, {**key, "concurrency": 2})
        again = await manager.enqueue("numbers", {"count": 2}, {**key, "concurrency": 2})
        assert first == again
        with pytest.raises(IdempotencyConflictError):
            await manager.enqueue("numbers", {"count": 2}, {**key, "concurrency": 3})
        with pytest.raises(IdempotencyConflictError):
            await manager.enqueue("numbers", {"count": 2}, {**key, "max_failures": 0})

    async def test_a_batch_is_told_by_its_items(self, manager):
        key = {"idempotency_key": "k"}
        first = await manager.enqueue_batch("add", numbers(3), key)
        assert await manager.enqueue_batch("add", numbers(3), key) == first
        with pytest.raises(IdempotencyConflictError):
            await manager.enqueue_batch("add", numbers(4), key)
        assert (await manager.store.batch(first)).counts.total == 3

    async def test_a_batch_is_no_single_job(self, manager):
        manager.registry.add(define_task(_nothing, kind="nothing"))
        key = {"idempotency_key": "k"}
        await manager.enqueue("nothing", {}, key)
        with pytest.raises(IdempotencyConflictError):
            await manager.enqueue_batch("nothing", [], key)

    async def test_a_batch_takes_either_a_key_or_a_unique_name(self, manager):
        with pytest.raises(ValidationError, match="together with idempotency_key"):
            await manager.enqueue_batch("add", numbers(2), {"unique": "a", "idempotency_key": "k"})

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("verb", ["insert", "seal"])
    async def test_a_half_filled_batch_is_gone_on_with(self, manager, verb, after):
        troubled = TroubledStore(manager.store)
        unlucky = JobManager(troubled, manager.registry, manager.sealer)
        troubled.trouble(verb, times=1, after=after)
        count, key = 2 * CHUNK + 5, {"idempotency_key": "k"}
        with pytest.raises(StoreUnavailableError):
            await unlucky.enqueue_batch("add", numbers(count), key)
        [first] = await top(manager)
        half = await manager.store.batch(first)
        assert half.state is JobState.RUNNING
        assert half.sealed is (verb == "seal" and after)
        assert await manager.enqueue_batch("add", numbers(count), key) == first
        whole = await manager.store.batch(first)
        assert (whole.sealed, whole.counts.total) == (True, count)
        filled = [job.position for job in await everything(manager) if job.role is Role.ITEM]
        assert sorted(filled) == list(range(count))

    async def test_without_a_key_a_half_filled_batch_is_cancelled(self, manager):
        troubled = TroubledStore(manager.store)
        unlucky = JobManager(troubled, manager.registry, manager.sealer)
        troubled.trouble("insert", times=1)
        with pytest.raises(StoreUnavailableError) as caught:
            await unlucky.enqueue_batch("add", numbers(2 * CHUNK), {})
        assert "was cancelled" in caught.value.__notes__[0]
        [first] = await top(manager)
        assert (await manager.store.batch(first)).cancel_requested

    async def test_a_batch_that_a_bad_item_ended_gives_its_key_back(self, manager):
        key = {"idempotency_key": "k"}
        with pytest.raises(ValidationError) as caught:
            await manager.enqueue_batch("add", bad_at_last(), key)
        assert "was deleted" in caught.value.__notes__[0]
        assert await manager.store.counts() == {}
        batch = await manager.enqueue_batch("add", iter(numbers(CHUNK + 2)), key)
        assert (await manager.store.batch(batch)).counts.total == CHUNK + 2

    async def test_one_whose_items_run_keeps_it_and_the_error_says_what_to_do(self, manager):
        hand = await Hand.enlist(manager.store, queues=["sums", "default"], kinds=["add"])
        claimed = []

        class Claiming(TroubledStore):
            async def cancel(self, job_ids):
                if job_ids:
                    claimed.extend(await hand.claim(1))
                return await manager.store.cancel(job_ids)

        other = JobManager(Claiming(manager.store), manager.registry, manager.sealer)
        key = {"idempotency_key": "k"}
        with pytest.raises(ValidationError) as caught:
            await other.enqueue_batch("add", bad_at_last(), key)
        assert "delete it to use its idempotency key again" in caught.value.__notes__[0]
        with pytest.raises(JobStateError, match="cancelled"):
            await manager.enqueue_batch("add", iter(numbers(CHUNK + 2)), key)
        await hand.hand_in(claimed[0], Move.CANCEL)
        [first] = await top(manager)
        await manager.store.delete(first)
        assert await manager.enqueue_batch("add", iter(numbers(CHUNK + 2)), key) != first

    async def test_one_that_another_call_opened_is_not_deleted(self, manager):
        troubled = TroubledStore(manager.store)
        unlucky = JobManager(troubled, manager.registry, manager.sealer)
        troubled.trouble("insert", times=1)
        key = {"idempotency_key": "k"}
        with pytest.raises(StoreUnavailableError):
            await unlucky.enqueue_batch("add", iter(numbers(2 * CHUNK)), key)
        with pytest.raises(ValidationError) as caught:
            await manager.enqueue_batch("add", bad_at_last(), key)
        assert "delete it" in caught.value.__notes__[0]
        [first] = await top(manager)
        assert (await manager.store.batch(first)).cancel_requested

    async def test_a_batch_is_told_by_its_callback_too(self, manager):
        manager.registry.add(define_task(_nothing, kind="afterwards"))
        key = {"idempotency_key": "k"}
        await manager.enqueue_batch("add", numbers(3), key)
        with pytest.raises(IdempotencyConflictError):
            await manager.enqueue_batch("add", numbers(3), key, finish_kind="afterwards")

    async def test_two_producers_fill_one_batch_together(self, manager):
        count, key = 2 * CHUNK + 5, {"idempotency_key": "k"}
        ids = await asyncio.gather(
            *(manager.enqueue_batch("add", numbers(count), key) for _ in range(3))
        )
        assert len(set(ids)) == 1
        batch = await manager.store.batch(ids[0])
        assert (batch.sealed, batch.counts.total) == (True, count)

    async def test_one_that_was_stopped_while_it_filled_is_gone_on_with(self, manager):
        count, key = 3 * CHUNK, {"idempotency_key": "k"}
        filling = asyncio.create_task(manager.enqueue_batch("add", numbers(count), key))
        await wait_until(lambda: top(manager))
        filling.cancel()
        await asyncio.wait([filling])
        first = await manager.enqueue_batch("add", numbers(count), key)
        assert await top(manager) == [first]
        assert (await manager.store.batch(first)).counts.total == count


def bad_at_last() -> Iterator[dict[str, object]]:
    """Items that come one by one, the bad one after a whole chunk."""
    return iter([*numbers(CHUNK + 1), {"n": "x"}])


def _nothing() -> None: ...
