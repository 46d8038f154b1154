"""Bulk kinds in a real worker: limits, and batches that are cut short while they are filled."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from pydantic import BaseModel

from haulier import BaseTaskRunner, BatchFinished, JobState, PermanentError
from haulier.domain.job import NewJob, Role
from haulier.services.ids import new_id
from support import wait_until


class Start(BaseModel):
    items: int


class Item(BaseModel):
    number: int


class Spoilt(BaseTaskRunner[Start, Item]):
    """Its items fail, and it goes on expanding only when one has."""

    task_type, start_model, item_model = "spoilt", Start, Item

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self.failed = threading.Event()
        self.finished: list[BatchFinished] = []
        self.expansions = 0

    def expand(self, ctx: Any, start: Start):
        self.expansions += 1
        for number in range(start.items):
            if number == self.chunk:
                assert self.failed.wait(10)
            yield Item(number=number)

    async def run_item(self, ctx: Any, item: Item) -> None:
        raise PermanentError("no good")

    async def finish(self, ctx: Any, start: Start, finished: BatchFinished) -> None:
        self.finished.append(finished)


async def test_a_batch_that_is_cut_short_while_it_is_filled_fails_once_and_calls_back(app):
    chunk = app.store.chunk
    spoilt = Spoilt(chunk)
    app.add_runner(spoilt)
    head = await app.enqueue("spoilt", {"items": 3 * chunk}, max_failures=3)
    async with app.working():
        async with asyncio.timeout(20):
            async for event in app.events():
                if event.type == "fail" and event.batch_id == head:
                    counts = (await app.batch(head)).counts
                    if counts.failed > 3:
                        spoilt.failed.set()
                        break
        job = await app.wait(head, timeout=20)
    assert (job.state, job.error.type) == (JobState.FAILED, "PermanentError")
    assert "too many of its items failed" in job.error.message
    assert (spoilt.expansions, job.attempt) == (1, 1)
    batch = await app.batch(head)
    assert batch.settled
    assert batch.counts.failed > 3
    assert batch.counts.cancelled > 0
    assert batch.counts.total == chunk
    (finished,) = spoilt.finished
    assert (finished.state, finished.counts["total"]) == (JobState.FAILED, chunk)


async def test_no_more_items_run_at_once_than_the_batch_may(app):
    running, most = 0, 0

    @app.task
    async def busy(n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running -= 1

    batch = await app.enqueue_batch(busy, ({"n": n} for n in range(60)), concurrency=3)
    async with app.working():
        await app.wait(batch, timeout=20)
    assert most == 3


async def test_a_job_that_was_enqueued_as_another_role_than_its_kinds_fails_at_once(app):
    spoilt = Spoilt(app.store.chunk)
    app.add_runner(spoilt)

    @app.task
    async def plain() -> None: ...

    headed = NewJob(id=new_id(), kind="plain", payload=b"{}", role=Role.HEAD)
    headless = NewJob(id=new_id(), kind="spoilt", payload=b'{"items": 0}')
    await app.jobs.store.insert([headed, headless])
    async with app.working():
        for job_id in (headed.id, headless.id):
            job = await app.wait(job_id, timeout=20)
            assert (job.state, job.error.type) == (JobState.FAILED, "PermanentError")
        await wait_until(lambda: settled(app, headed.id))
    assert spoilt.expansions == 0


async def settled(app, batch: str) -> bool:
    return (await app.batch(batch)).settled
