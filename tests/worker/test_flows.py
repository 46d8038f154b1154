"""Flows at run: what a job is told of those that it has waited for."""

from __future__ import annotations

from typing import Any

import pytest
from child_tasks import report_parents

from haulier import After, App, Context, JobState, Otherwise, RetryPolicy
from haulier.testing import run_until_idle

ONCE = RetryPolicy.never()


async def test_coroutines_threads_and_processes_are_told_of_their_parents(app: App) -> None:
    @app.task
    async def number(n: int) -> int:
        return n

    @app.task
    async def one(ctx: Context) -> Any:
        return [[each.state, each.value, each.ended] for each in await ctx.parents()]

    @app.task
    def two(ctx: Context) -> Any:
        return report_parents(ctx)

    three = app.task(executor="process")(report_parents)
    flow = app.flow()
    numbers = flow.add_many(number, [{"n": n} for n in (3, 1, 2)])
    ends = [flow.add(task, after=numbers) for task in (one, two, three)]
    await flow.start()
    async with app.working():
        for end in ends:
            told = await app.result(end.id, timeout=30)
            assert told == [["completed", n, True] for n in (3, 1, 2)]


async def test_a_job_that_runs_all_the_same_is_told_what_went_wrong(app: App) -> None:
    @app.task(retry=ONCE)
    async def broken() -> None:
        raise LookupError("nothing there")

    @app.task
    async def cleanup(ctx: Context) -> Any:
        (parent,) = await ctx.parents()
        assert parent.error is not None
        return [parent.state, parent.value, parent.error.type, parent.error.message]

    first = await app.enqueue(broken)
    second = await app.enqueue(cleanup, after=After(first, Otherwise.RUN))
    async with app.working():
        told = await app.result(second, timeout=20)
    assert told == ["failed", None, "LookupError", "nothing there"]


async def test_a_retry_of_the_parent_brings_the_flow_to_its_end(app: App) -> None:
    tries = 0

    @app.task(retry=ONCE)
    async def flaky() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise LookupError("not yet")
        return "there"

    @app.task
    async def then(ctx: Context) -> Any:
        return [each.value for each in await ctx.parents()]

    flow = app.flow()
    first, second, third = flow.chain((flaky, {}), (then, {}), (then, {}))
    await flow.start()
    async with app.working():
        assert (await app.wait(third.id, timeout=20)).state is JobState.CANCELLED
        await app.retry(first.id)
        assert await app.result(third.id, timeout=20) == [["there"]]
    assert (await app.get(second.id)).state is JobState.COMPLETED


@pytest.mark.parametrize("ends_well", [True, False])
async def test_a_batch_is_waited_for(app: App, ends_well: bool) -> None:
    @app.task(retry=ONCE)
    async def item(n: int) -> int:
        if not ends_well:
            raise LookupError("nothing there")
        return n

    @app.task
    async def report(ctx: Context) -> Any:
        (parent,) = await ctx.parents()
        return [parent.state, parent.value and parent.value["completed"]]

    batch = await app.enqueue_batch(item, [{"n": n} for n in range(5)], max_failures=0)
    job = await app.enqueue(report, after=After(batch, Otherwise.RUN))
    async with app.working():
        told = await app.result(job, timeout=20)
    assert told == (["completed", 5] if ends_well else ["failed", None])


async def test_users_own_tests_run_flows_too(app: App) -> None:
    @app.task
    async def number(n: int) -> int:
        return n

    @app.task
    async def total(ctx: Context) -> int:
        return sum(each.value for each in await ctx.parents())

    flow = app.flow()
    end = flow.add(total, after=flow.add_many(number, [{"n": n} for n in range(4)]))
    await flow.start()
    await run_until_idle(app)
    assert await app.result(end.id) == 6
