"""Batches that are filled as their items come: opened, added to, sealed; on every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from haulier import App, JobFilter, JobState, JobStateError, ValidationError
from haulier.services.ids import new_id
from haulier.testing import run_until_idle
from support import wait_until


@pytest.fixture
async def app(store, tmp_path) -> App:
    app = App(store, secret_key_file=tmp_path / "secret.key")

    @app.task
    async def take(n: int) -> int:
        return n

    @app.task
    async def give(n: int) -> int:
        return n

    return app


def numbers(count: int, first: int = 0) -> Iterator[dict[str, Any]]:
    return ({"n": n} for n in range(first, first + count))


async def coming(count: int, first: int = 0) -> AsyncIterator[dict[str, Any]]:
    for item in numbers(count, first):
        await asyncio.sleep(0)
        yield item


class BrokenError(Exception):
    pass


class TestFill:
    @pytest.mark.parametrize("source", [numbers, coming, lambda n: list(numbers(n))])
    async def test_items_of_any_iterable_are_added_in_their_order(self, app, source):
        count = app.store.chunk + 70
        async with app.open_batch("take") as batch:
            assert await batch.add(source(count)) == count
            assert await batch.add(numbers(2, first=count)) == 2
            assert (batch.added, batch.position, batch.found) == (count + 2, count + 2, 0)
        found = await app.batch(batch.id)
        assert (found.sealed, found.counts.total) == (True, count + 2)
        where = JobFilter(batch_id=batch.id)
        first = (await app.store.find(where, limit=5, oldest_first=True)).jobs
        assert [(job.position, job.payload) for job in first] == [
            (n, b'{"n":%d}' % n) for n in range(5)
        ]
        (last,) = (await app.store.find(where, limit=1)).jobs
        assert last.position == count + 1

    async def test_what_was_added_is_there_before_the_block_ends_and_runs(self, app):
        async with app.open_batch("take") as batch:
            await batch.add(numbers(3))
            await run_until_idle(app)
            found = await app.batch(batch.id)
            assert (found.counts.completed, found.sealed, found.state) == (
                3,
                False,
                JobState.RUNNING,
            )
        assert (await app.batch(batch.id)).state is JobState.COMPLETED

    async def test_items_that_come_slowly_do_not_wait_for_a_full_chunk(self, app, monkeypatch):
        monkeypatch.setattr("haulier.services.ahead.LINGER", 0.02)
        monkeypatch.setattr("haulier.services.filling.LINGER", 0.02)
        enough = asyncio.Event()

        async def slowly() -> AsyncIterator[dict[str, Any]]:
            n = 0
            while not enough.is_set():
                await asyncio.sleep(0.01)
                yield {"n": n}
                n += 1

        async def some_are_there() -> bool:
            return (await app.batch(batch.id)).counts.total > 0

        async with app.open_batch("take") as batch:
            adding = asyncio.create_task(batch.add(slowly()))
            await wait_until(some_are_there)
            enough.set()
            assert await adding < app.store.chunk

    async def test_an_empty_batch_is_sealed_and_calls_back(self, app):
        async with app.open_batch("take", on_finish="give", concurrency=3) as batch:
            assert (await app.batch(batch.id)).concurrency == 3
        assert (await app.batch(batch.id)).finish_job is not None


class TestLeave:
    async def test_an_exception_cancels_it(self, app):
        with pytest.raises(BrokenError) as caught:
            async with app.open_batch("take") as batch:
                await batch.add(numbers(3))
                raise BrokenError
        found = await app.batch(batch.id)
        assert (found.state, found.counts.cancelled) == (JobState.CANCELLED, 3)
        assert caught.value.__notes__ == [
            f"the batch {batch.id} was cancelled before it was filled"
        ]

    async def test_a_cancelled_producer_cancels_it_too(self, app):
        opened = asyncio.Event()

        async def produce() -> None:
            async with app.open_batch("take", job_id=name) as batch:
                await batch.add(numbers(3))
                opened.set()
                await asyncio.Event().wait()

        name = new_id()
        producer = asyncio.create_task(produce())
        await opened.wait()
        producer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await producer
        assert (await app.batch(name)).state is JobState.CANCELLED

    async def test_kept_open_it_can_be_sealed_by_hand(self, app):
        with pytest.raises(BrokenError):
            async with app.open_batch("take", keep_open=True) as batch:
                await batch.add(numbers(3))
                raise BrokenError
        found = await app.batch(batch.id)
        assert (found.state, found.sealed, found.open) == (JobState.RUNNING, False, True)
        await app.batches.seal(batch.id)
        await run_until_idle(app)
        found = await app.batch(batch.id)
        assert (found.state, found.counts.completed, found.open) == (JobState.COMPLETED, 3, False)

    async def test_a_bad_item_is_named_by_its_place(self, app):
        with pytest.raises(ValidationError) as caught:
            async with app.open_batch("take") as batch:
                await batch.add([{"n": 1}, {"n": "x"}])
        assert caught.value.problems[0].field == "items[1].n"
        assert (await app.batch(batch.id)).state is JobState.CANCELLED


class TestGoOn:
    async def interrupted(self, app: App, count: int, **how: Any) -> str:
        with pytest.raises(BrokenError):
            async with app.open_batch("take", keep_open=True) as batch:
                await batch.add(numbers(count), **how)
                raise BrokenError
        return batch.id

    async def test_a_producer_that_begins_again_doubles_nothing(self, app):
        name = await self.interrupted(app, 5)
        await run_until_idle(app)
        async with app.open_batch("take", job_id=name) as batch:
            assert batch.found == 5
            assert await batch.add(coming(8)) == 3
        await run_until_idle(app)
        assert (await app.batch(name)).counts.completed == 8

    async def test_or_skips_what_is_there(self, app):
        name = await self.interrupted(app, 5)
        async with app.open_batch("take", job_id=name) as batch:
            batch.skip(batch.found)
            assert await batch.add(numbers(3, first=5)) == 3
        assert (await app.batch(name)).counts.total == 8
        with pytest.raises(ValidationError):
            batch.skip(-1)

    async def test_tokens_know_items_that_come_in_another_order(self, app):
        name = await self.interrupted(app, 5, token=lambda item: f"account {item['n']}")
        backwards = [{"n": n} for n in reversed(range(8))]
        async with app.open_batch("take", job_id=name) as batch:
            assert await batch.add(backwards, token=lambda item: f"account {item['n']}") == 3
        assert (await app.batch(name)).counts.total == 8

    @pytest.mark.parametrize("token", ["", "x" * 201, 7])
    async def test_a_bad_token_is_refused(self, app, token):
        with pytest.raises(ValidationError) as caught:
            async with app.open_batch("take") as batch:
                await batch.add(numbers(1), token=lambda _: token)
        assert caught.value.problems[0].field == "items[0].token"

    async def test_to_fill_it_once_more_after_it_was_sealed_changes_nothing(self, app):
        async with app.open_batch("take") as batch:
            await batch.add(numbers(4))
        await run_until_idle(app)
        async with app.open_batch("take", job_id=batch.id) as again:
            assert await again.add(numbers(4)) == 0
        with pytest.raises(JobStateError):
            async with app.open_batch("take", job_id=batch.id) as again:
                await again.add(numbers(5))
        assert (await app.batch(batch.id)).state is JobState.COMPLETED

    async def test_one_that_was_cancelled_takes_no_more(self, app):
        name = await self.interrupted(app, 2)
        await app.cancel(name)
        with pytest.raises(JobStateError):
            async with app.open_batch("take", job_id=name) as batch:
                await batch.add(numbers(3))

    async def test_the_id_of_something_else_is_refused(self, app):
        single = await app.enqueue("take", {"n": 1})
        name = await self.interrupted(app, 1)
        for kind, job_id in (("take", single), ("give", name)):
            with pytest.raises(ValidationError) as caught:
                async with app.open_batch(kind, job_id=job_id):
                    pytest.fail("it was opened")
            assert caught.value.problems[0].field == "job_id"

    async def test_options_that_do_not_fit_are_refused(self, app):
        for name in ("unique", "idempotency_key"):
            with pytest.raises(ValidationError) as caught:
                app.open_batch("take", **{name: "x"})
            assert caught.value.problems[0].field == name


class TestAlter:
    async def test_limits_of_a_batch_are_changed(self, app):
        async with app.open_batch("take", concurrency=2) as batch:
            await batch.add(numbers(3))
            found = await app.batches.alter(batch.id, by="ann", concurrency=None, max_failures=1)
        assert (found.concurrency, found.max_failures) == (None, 1)

    @pytest.mark.parametrize(
        ("given", "field"),
        [
            ({}, "limits"),
            ({"concurrency": 0}, "concurrency"),
            ({"max_failures": -1}, "max_failures"),
            ({"batch_size": True}, "batch_size"),
            ({"speed": 3}, "speed"),
            ({"concurrency": 3, "by": "x" * 201}, "by"),
        ],
    )
    async def test_bad_limits_are_refused(self, app, given, field):
        with pytest.raises(ValidationError) as caught:
            await app.batches.alter(new_id(), **given)
        assert caught.value.problems[0].field == field
