"""Baggage at run: in the context, in log events, and on what a job enqueues."""

from __future__ import annotations

import json
from typing import Any

import structlog
from child_tasks import report_baggage
from structlog.testing import LogCapture

from counting import Counting
from haulier import App, Context, JobFilter, Middleware, RetryPolicy, baggage
from haulier.services.baggage import baggage_of, carried
from support import work


async def result_of(app: App, task: Any, **payload: Any) -> Any:
    async with app.working():
        return await app.result(await app.enqueue(task, payload), timeout=20)


async def test_coroutines_threads_and_processes_have_it(app):
    @app.task
    async def one(ctx: Context) -> Any:
        return [ctx.baggage, carried(), structlog.contextvars.get_contextvars()]

    @app.task
    def two(ctx: Context) -> Any:
        return [ctx.baggage, carried(), structlog.contextvars.get_contextvars()]

    three = app.task(executor="process")(report_baggage)
    values = {"request_id": "r-1", "tries": 2}
    with baggage(**values):
        for task in (one, two, three):
            found, text, logged = await result_of(app, task)
            assert (found, json.loads(text), logged) == (values, values, values)


async def test_what_a_job_enqueues_inherits_it_and_may_add_to_it(app):
    @app.task
    async def last(ctx: Context) -> Any:
        return ctx.baggage

    @app.task
    async def first() -> str:
        with baggage(step=1):
            return await app.enqueue(last)

    with baggage(request_id="r-1"):
        inherited = await result_of(app, first)
    async with app.working():
        assert await app.result(inherited, timeout=20) == {"request_id": "r-1", "step": 1}


async def test_a_job_without_any_has_none_of_the_program_around(app):
    @app.task
    async def task(ctx: Context) -> Any:
        return [ctx.baggage, carried()]

    job_id = await app.enqueue(task)
    with baggage(request_id="of the program"):
        async with app.working():
            assert await app.result(job_id, timeout=20) == [{}, None]


async def test_jobs_that_run_side_by_side_have_each_their_own(app):
    @app.task
    async def task(ctx: Context) -> Any:
        return [ctx.baggage.get("n"), baggage_of(carried()).get("n")]

    ids = []
    for n in range(20):
        with baggage(n=n):
            ids.append(await app.enqueue(task))
    async with app.working():
        for n, job_id in enumerate(ids):
            assert await app.result(job_id, timeout=20) == [n, n]


async def test_items_and_the_finish_callback_of_a_bulk_kind_inherit_it(app):
    app.add_runner(Counting())
    with baggage(request_id="r-1"):
        head = await app.enqueue("counting", {"count": 3})
    async with app.working():
        await app.wait(head, timeout=20, progress=False)
    found = (await app.store.find(JobFilter(batch_id=head))).jobs
    assert [job.value for job in found] == [{"request_id": "r-1"}] * 3
    finish = (await app.batch(head)).finish_job
    assert (await app.get(finish)).value == {"request_id": "r-1"}


async def test_log_events_have_it_beside_the_jobs_own_fields(app):
    captured = LogCapture()
    old = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, captured])
    try:

        class Telling(Middleware):
            async def after(self, attempt, ended):
                structlog.get_logger("hooks").info("over", of=attempt.baggage)

        app.middleware(Telling())

        @app.task(retry=RetryPolicy.never())
        async def task(ctx: Context) -> None:
            ctx.log.info("mine")
            structlog.get_logger("library").info("deep inside")

        job = work("task", payload=b"{}", baggage='{"request_id":"r-1","job":"not this"}')
        await app.store.insert([job])
        async with app.working():
            await app.wait(job.id, timeout=20, progress=False)
    finally:
        structlog.configure(processors=old)
    events = {event["event"]: event for event in captured.entries}
    assert events["mine"]["request_id"] == events["deep inside"]["request_id"] == "r-1"
    assert events["over"]["request_id"] == "r-1"
    assert events["mine"]["job"] == job.id
    assert "job" not in events["deep inside"]
