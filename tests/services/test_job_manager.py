"""Enqueue, look, wait and operate, over a real store and without a worker."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import threading
from collections.abc import Iterator
from uuid import UUID

import pytest
from pydantic import BaseModel

from haulier.domain.ids import text_id
from haulier.domain.job import JobState, Priority, Role
from haulier.domain.moves import Move
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import (
    InvalidTaskTypeError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    ValidationError,
)
from haulier.ports import CHUNK, JobFilter
from haulier.runners.base import BaseTaskRunner, register_runner
from haulier.services.ids import new_id
from haulier.services.jobs import CHECKED_FIRST
from haulier.services.registry import define_task
from haulier.stores.sqlite.clock import SystemClock
from support import Hand, items, move, wait_until

CHOSEN = "01234567-89ab-7def-8123-456789abcdef"


def add(n: int) -> int:
    return n


def afterwards(batch_id: str, state: str, counts: dict[str, int]) -> None: ...


class HeldClock(SystemClock):
    """Keeps whoever asks for the time, until it may go on."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

    def now(self) -> int:
        self.asked.set()
        self.go_on.wait(10)
        return super().now()


class Start(BaseModel):
    count: int


class Item(BaseModel):
    n: int


class Numbers(BaseTaskRunner[Start, Item]):
    """Counts."""

    task_type = "numbers"
    start_model = Start
    item_model = Item
    queue = "counting"

    def expand(self, ctx, start):
        return (Item(n=n) for n in range(start.count))

    def run_item(self, ctx, item):
        return item.n


@pytest.fixture(autouse=True)
def kinds(manager):
    manager.registry.add(define_task(add, queue="sums", priority=3))
    manager.registry.add(define_task(afterwards, queue="later"))
    register_runner(manager.registry, Numbers())


def numbers(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


class TestEnqueue:
    async def test_what_is_left_out_comes_from_the_definition(self, manager):
        job = await manager.store.get(await manager.enqueue("add", {"n": 1}, {}))
        assert (job.kind, job.queue, job.priority, job.role) == ("add", "sums", 3, Role.SINGLE)
        assert (job.payload, job.retry, job.key) == (b'{"n":1}', None, None)
        assert job.run_at == job.created_at

    async def test_options_go_onto_the_job(self, manager):
        when = dt.datetime(2099, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))
        policy = RetryPolicy(max_attempts=9)
        job_id = await manager.enqueue(
            "add",
            {"n": 1},
            {
                "queue": "night.shift",
                "priority": Priority.URGENT,
                "run_at": when,
                "key": "account-7",
                "retry": policy,
                "job_id": CHOSEN,
            },
        )
        job = await manager.store.get(CHOSEN)
        assert job_id == CHOSEN
        assert (job.queue, job.priority, job.key, job.retry) == (
            "night.shift",
            100,
            "account-7",
            policy,
        )
        assert job.run_at == round(when.timestamp() * 1_000_000)

    async def test_a_delay_counts_from_when_the_store_received_the_job(self, manager):
        job = await manager.store.get(await manager.enqueue("add", {"n": 1}, {"delay": 90.5}))
        assert job.run_at - job.created_at == 90_500_000

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("delay", -1),
            ("delay", -0.001),
            ("delay", math.nan),
            ("delay", math.inf),
            ("delay", 1e12),
            ("delay", "soon"),
            ("priority", 10_001),
            ("priority", -10_001),
            ("priority", "highest"),
            ("priority", 1.5),
            ("priority", math.nan),
            ("run_at", dt.datetime(2099, 1, 1)),  # noqa: DTZ001 - that is the point
            ("run_at", "tomorrow"),
            ("queue", "a b"),
            ("queue", "x" * 201),
            ("queue", "a\nb"),
            ("queue", 7),
            ("key", ""),
            ("key", 7),
            ("key", "x" * 201),
            ("key", "\ud800"),
            ("retry", {"max_attempts": 3}),
            ("job_id", "not-a-uuid"),
            ("job_id", 7),
            ("prioritty", 1),
        ],
    )
    async def test_bad_options_are_refused_by_name_and_nothing_is_left(self, manager, field, value):
        for call in (
            lambda: manager.enqueue("add", {"n": 1}, {field: value}),
            lambda: manager.enqueue_many("add", numbers(2), {field: value}),
            lambda: manager.enqueue_batch("add", numbers(2), {field: value}),
        ):
            with pytest.raises(ValidationError) as caught:
                await call()
            assert field in {problem.field for problem in caught.value.problems}
        assert await manager.store.counts() == {}

    async def test_delay_and_run_at_together_are_refused(self, manager):
        when = dt.datetime(2099, 1, 1, tzinfo=dt.UTC)
        with pytest.raises(ValidationError, match="together with delay"):
            await manager.enqueue("add", {"n": 1}, {"delay": 5, "run_at": when})

    async def test_every_bad_option_is_named_at_once(self, manager):
        with pytest.raises(ValidationError) as caught:
            await manager.enqueue("add", {"n": 1}, {"delay": -1, "priority": 10**9, "queue": "a b"})
        assert [problem.field for problem in caught.value.problems] == [
            "queue",
            "priority",
            "delay",
        ]

    async def test_options_that_are_none_are_left_out(self, manager):
        nothing = dict.fromkeys(("queue", "priority", "delay", "run_at", "key", "retry", "job_id"))
        job = await manager.store.get(await manager.enqueue("add", {"n": 1}, nothing))
        assert (job.queue, job.priority) == ("sums", 3)

    async def test_an_unknown_kind_and_a_bad_payload_are_refused(self, manager):
        with pytest.raises(InvalidTaskTypeError):
            await manager.enqueue("ad", {"n": 1}, {})
        with pytest.raises(ValidationError):
            await manager.enqueue("add", {"n": "one"}, {})
        assert await manager.store.counts() == {}

    @pytest.mark.parametrize(
        "spelling", [CHOSEN, CHOSEN.upper(), CHOSEN.replace("-", ""), UUID(CHOSEN)]
    )
    async def test_a_repeated_id_is_one_job_however_it_is_written(self, manager, spelling):
        first = await manager.enqueue("add", {"n": 1}, {"job_id": CHOSEN})
        again = await manager.enqueue("add", {"n": 2}, {"job_id": spelling})
        assert first == again == CHOSEN
        assert (await manager.store.get(CHOSEN)).payload == b'{"n":1}'
        assert sum((await manager.store.counts()).values()) == 1


class TestEnqueueMany:
    async def test_jobs_come_in_order_over_several_chunks(self, manager):
        count = 2 * CHUNK + 5
        ids = await manager.enqueue_many("add", numbers(count), {"key": "k"})
        assert len(set(ids)) == count
        where = JobFilter(kind="add")
        page = await manager.store.find(where, limit=count, oldest_first=True)
        assert [job.id for job in page.jobs] == ids
        assert page.jobs[-1].payload == b'{"n":%d}' % (count - 1)

    async def test_none_is_inserted_when_one_of_a_sequence_is_bad(self, manager):
        given = numbers(CHUNK + 2)
        given[CHUNK + 1] = {"n": "x"}
        with pytest.raises(ValidationError) as caught:
            await manager.enqueue_many("add", given, {})
        assert [problem.field for problem in caught.value.problems] == [f"items[{CHUNK + 1}].n"]
        assert await manager.store.counts() == {}

    async def test_nothing_is_a_valid_number_of_jobs(self, manager):
        assert await manager.enqueue_many("add", [], {}) == []

    async def test_one_id_cannot_be_given_to_many(self, manager):
        with pytest.raises(ValidationError, match="for one job"):
            await manager.enqueue_many("add", numbers(2), {"job_id": CHOSEN})

    async def test_an_item_that_is_no_object_is_named_by_its_place(self, manager):
        with pytest.raises(ValidationError, match=r"items\[1\]"):
            await manager.enqueue_many("add", [{"n": 1}, "two"], {})


class TestBulkKinds:
    async def test_a_bulk_kind_makes_a_head_whose_callback_runs_on_its_queue(self, manager):
        store = manager.store
        job_id = await manager.enqueue("numbers", {"count": 2}, {"queue": "elsewhere"})
        head = await store.get(job_id)
        assert (head.role, head.queue) == (Role.HEAD, "elsewhere")
        assert await self.callback_queue(store, "elsewhere") == "elsewhere"

    async def test_by_default_head_and_callback_are_on_the_queue_of_their_runner(self, manager):
        await manager.enqueue("numbers", {"count": 2}, {})
        assert await self.callback_queue(manager.store, "counting") == "counting"

    async def test_many_heads_each_have_their_callback(self, manager):
        await manager.enqueue_many("numbers", [{"count": 1}, {"count": 2}], {})
        assert await self.callback_queue(manager.store, "counting") == "counting"

    async def callback_queue(self, store, queue) -> str:
        hand = await Hand.enlist(store, queues=[queue], kinds=["numbers"])
        for held in await hand.claim(5):
            await hand.hand_in(held, Move.HAND_OVER)
        callbacks = (await store.find(JobFilter(kind="numbers.finish"))).jobs
        heads = (await store.find(JobFilter(kind="numbers"))).jobs
        assert len(callbacks) == len(heads)
        return callbacks[0].queue

    async def test_expanded_items_follow_their_head(self, manager):
        head = await manager.store.get(
            await manager.enqueue("numbers", {"count": 2}, {"priority": 8, "key": "k"})
        )
        definition = manager.registry.get("numbers")
        made = manager.expanded_items(definition, head, enumerate([{"n": 5}, Item(n=6)]))
        again = manager.expanded_items(definition, head, enumerate([{"n": 5}, Item(n=6)]))
        assert [job.id for job in made] == [job.id for job in again]
        assert [(job.kind, job.queue, job.priority, job.key) for job in made] == [
            ("numbers.item", "counting", 8, "k")
        ] * 2
        assert [(job.batch_id, job.position) for job in made] == [(head.id, 0), (head.id, 1)]


class TestEnqueueBatch:
    @pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
    @pytest.mark.parametrize("lazy", [False, True])
    async def test_every_item_is_in_once_and_the_batch_is_sealed(self, manager, count, lazy):
        given = iter(numbers(count)) if lazy else numbers(count)
        batch = await manager.store.batch(await manager.enqueue_batch("add", given, {}))
        assert (batch.counts.total, batch.sealed) == (count, True)
        assert batch.state is (JobState.RUNNING if count else JobState.COMPLETED)
        assert (batch.kind, batch.queue) == ("add", "sums")

    async def test_a_repeated_batch_is_the_same_batch(self, manager):
        given = numbers(CHUNK + 2)
        for spelling in (CHOSEN, CHOSEN.upper(), CHOSEN.replace("-", "")):
            options = {"job_id": spelling}
            assert await manager.enqueue_batch("add", given, options) == CHOSEN
        assert (await manager.store.batch(CHOSEN)).counts.total == CHUNK + 2
        assert sum((await manager.store.counts()).values()) == CHUNK + 3

    @pytest.mark.parametrize("count", [CHUNK - 3, CHUNK + 2])
    async def test_a_batch_that_is_repeated_with_more_items_is_refused_and_left_alone(
        self, manager, count
    ):
        await manager.enqueue_batch("add", numbers(count), {"job_id": CHOSEN})
        before = await manager.store.batch(CHOSEN)
        with pytest.raises(JobStateError, match="sealed"):
            await manager.enqueue_batch("add", numbers(2 * CHUNK), {"job_id": CHOSEN})
        assert await manager.store.batch(CHOSEN) == before

    async def test_a_batch_whose_producer_died_is_filled_by_repeating_it(self, manager):
        given = numbers(2 * CHUNK + 2)

        class DiedError(BaseException):
            pass

        def dying() -> Iterator[dict[str, int]]:
            yield from given[: CHUNK + 5]
            raise DiedError

        with pytest.raises(DiedError):
            await manager.enqueue_batch("add", dying(), {"job_id": CHOSEN})
        half = await manager.store.batch(CHOSEN)
        assert (half.sealed, half.counts.total) == (False, CHUNK)
        await manager.enqueue_batch("add", given, {"job_id": CHOSEN})
        whole = await manager.store.batch(CHOSEN)
        assert (whole.sealed, whole.counts.total) == (True, 2 * CHUNK + 2)

    async def test_none_is_inserted_when_one_of_a_sequence_is_bad(self, manager):
        given = numbers(CHUNK + 2)
        given[-1] = {"m": 1}
        with pytest.raises(ValidationError, match=rf"items\[{CHUNK + 1}\]"):
            await manager.enqueue_batch("add", given, {})
        assert await manager.store.counts() == {}

    async def test_a_bad_item_of_a_lazy_input_cancels_the_batch(self, manager):
        def lazy() -> Iterator[dict[str, object]]:
            yield from numbers(CHUNK + 5)
            yield {"n": "x"}

        with pytest.raises(ValidationError, match=rf"items\[{CHUNK + 5}\]") as caught:
            await manager.enqueue_batch("add", lazy(), {"job_id": CHOSEN})
        assert "cancelled" in " ".join(caught.value.__notes__)
        batch = await manager.store.batch(CHOSEN)
        assert (batch.state, batch.counts.cancelled) == (JobState.CANCELLED, CHUNK)

    async def test_a_bad_item_in_the_first_chunk_of_a_lazy_input_leaves_nothing(self, manager):
        with pytest.raises(ValidationError):
            await manager.enqueue_batch("add", iter([{"n": 1}, {"n": "x"}]), {})
        assert await manager.store.counts() == {}

    async def test_an_input_that_breaks_cancels_the_batch(self, manager):
        def breaking() -> Iterator[dict[str, int]]:
            yield from numbers(CHUNK)
            raise OSError("the file is gone")

        with pytest.raises(OSError, match="gone"):
            await manager.enqueue_batch("add", breaking(), {"job_id": CHOSEN})
        assert (await manager.store.batch(CHOSEN)).state is JobState.CANCELLED

    async def test_a_producer_that_is_cancelled_leaves_no_half_batch(self, manager):
        filling = asyncio.ensure_future(
            manager.enqueue_batch("add", iter(numbers(20 * CHUNK)), {"job_id": CHOSEN})
        )
        await wait_until(lambda: _total(manager, CHOSEN))
        filling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await filling
        batch = await manager.store.batch(CHOSEN)
        assert batch.state is JobState.CANCELLED
        assert batch.counts.cancelled == batch.counts.total < 20 * CHUNK

    # Only there a thread goes on with what nobody waits for any more; and the clock is asked in it.
    @pytest.mark.parametrize("home_kind", ["sqlite-file", "sqlite-memory"], indirect=True)
    async def test_nor_does_one_that_is_cancelled_while_its_first_items_are_written(
        self, manager, monkeypatch
    ):
        clock = HeldClock()
        monkeypatch.setattr(manager.store, "_clock", clock)
        filling = asyncio.ensure_future(
            manager.enqueue_batch("add", iter(numbers(2 * CHUNK)), {"job_id": CHOSEN})
        )
        await asyncio.to_thread(clock.asked.wait, 10)
        filling.cancel()
        # Time enough to look for the batch before it is there.
        await asyncio.wait([filling], timeout=0.2)
        clock.go_on.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await filling
        assert "was cancelled" in caught.value.__notes__[0]
        batch = await manager.store.batch(CHOSEN)
        assert (batch.state, batch.counts.cancelled) == (JobState.CANCELLED, CHUNK)

    async def test_a_long_sequence_is_checked_as_it_is_taken(self, manager):
        given = numbers(CHECKED_FIRST + 1)
        given[-1] = {"n": "x"}
        with pytest.raises(ValidationError):
            await manager.enqueue_batch("add", given, {"job_id": CHOSEN})
        assert (await manager.store.batch(CHOSEN)).state is JobState.CANCELLED

    async def test_the_callback_runs_on_the_queue_of_its_own_kind(self, manager):
        store = manager.store
        batch = await manager.enqueue_batch("add", [], {}, finish_kind="afterwards")
        job = await store.get((await store.batch(batch)).finish_job)
        assert (job.kind, job.queue) == ("afterwards", "later")

    async def test_an_unknown_callback_is_refused_before_anything(self, manager):
        with pytest.raises(InvalidTaskTypeError):
            await manager.enqueue_batch("add", numbers(1), {}, finish_kind="nothing")
        assert await manager.store.counts() == {}

    async def test_items_of_a_bulk_kind_are_batches_within_it(self, manager):
        batch = await manager.enqueue_batch("numbers", [{"count": 1}, {"count": 2}], {})
        assert len(await manager.store.batches(within=batch)) == 2


class TestWait:
    async def test_it_returns_the_job_when_it_is_done(self, manager):
        hand = await Hand.enlist(manager.store, queues=["sums"], kinds=["add"])
        job_id = await manager.enqueue("add", {"n": 1}, {})
        waiting = asyncio.ensure_future(manager.wait(job_id, timeout=20))
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        assert (await waiting).state is JobState.FAILED
        assert (await manager.wait(job_id)).state is JobState.FAILED

    async def test_a_job_that_takes_too_long_is_left_alone(self, manager):
        job_id = await manager.enqueue("add", {"n": 1}, {})
        with pytest.raises(JobTimeoutError, match=r"0\.05 s"):
            await manager.wait(job_id, timeout=0.05)
        assert (await manager.store.get(job_id)).state is JobState.PENDING

    async def test_an_unknown_job_is_not_waited_for(self, manager):
        with pytest.raises(JobNotFoundError):
            await manager.wait(CHOSEN, timeout=5)

    async def test_a_batch_is_waited_for_with_its_callback(self, manager):
        store = manager.store
        hand = await Hand.enlist(store, queues=["sums", "later"], kinds=["add", "afterwards"])
        batch = await manager.enqueue_batch("add", numbers(2), {}, finish_kind="afterwards")
        seen = []
        waiting = asyncio.ensure_future(
            manager.wait(batch, timeout=20, on_change=lambda job, b: seen.append((job.state, b)))
        )
        for job in await hand.claim(2):
            await hand.hand_in(job, Move.COMPLETE)
        await wait_until(lambda: seen and seen[-1][0] is JobState.COMPLETED)
        assert not waiting.done()
        await hand.hand_in(await hand.claim_one(), Move.COMPLETE)
        assert (await waiting).value["completed"] == 2
        assert seen[0][1].id == batch

    async def test_a_batch_whose_callback_was_removed_is_done(self, manager):
        store = manager.store
        hand = await Hand.enlist(store, queues=["sums", "later"], kinds=["add", "afterwards"])
        batch = await manager.enqueue_batch("add", numbers(1), {}, finish_kind="afterwards")
        for _ in range(2):
            await hand.hand_in(await hand.claim_one(), Move.COMPLETE)
        await store.delete((await store.batch(batch)).finish_job)
        assert (await manager.wait(batch, timeout=20)).state is JobState.COMPLETED


class TestOperate:
    async def test_cancel_tells_the_state(self, manager):
        job_id = await manager.enqueue("add", {"n": 1}, {})
        assert await manager.cancel(job_id) is JobState.CANCELLED
        for absent in (CHOSEN, "no-id"):
            with pytest.raises(JobNotFoundError):
                await manager.cancel(absent)

    async def test_retry_is_for_what_ended_badly(self, manager):
        hand = await Hand.enlist(manager.store, queues=["sums"], kinds=["add"])
        ids = await manager.enqueue_many("add", numbers(2), {})
        failed, done = await hand.claim(2)
        await hand.exchange(move(failed, Move.FAIL), move(done, Move.COMPLETE))
        assert await manager.retry(failed.id) is JobState.PENDING
        with pytest.raises(JobStateError, match="completed"):
            await manager.retry(done.id)
        with pytest.raises(JobNotFoundError):
            await manager.retry(new_id())
        assert {failed.id, done.id} == set(ids)

    def test_ids_are_written_in_one_way(self):
        assert text_id(UUID(CHOSEN).bytes) == CHOSEN
        assert items(CHOSEN, 1)[0].id == items(CHOSEN.upper(), 1)[0].id


async def _total(manager, batch_id: str) -> int:
    try:
        return (await manager.store.batch(batch_id)).counts.total
    except JobNotFoundError:
        return 0
