"""Webhooks told: from an event in the store to a receiver that verifies what comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from haulier.app import App
from haulier.domain.job import JobState
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import (
    AuthenticationError,
    StoreUnavailableError,
    ValidationError,
    WebhookNotFoundError,
)
from haulier.ports import JobFilter
from haulier.records import open_records
from haulier.records.webhooks import WebhookRecords
from haulier.services.outbound import Guard
from haulier.services.webhooks import Webhooks
from haulier.webhooks import verify
from haulier.worker.telling import Teller
from receiver import Receiver, receiving
from support import wait_until

QUICK = RetryPolicy(max_attempts=4, delay=0.01, cap=0.02)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
def app(app) -> App:
    @app.task(retry=RetryPolicy.never())
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task(retry=RetryPolicy.never())
    async def fail(secret_text: str) -> None:
        raise ValueError(secret_text)

    return app


@pytest.fixture
async def book() -> AsyncIterator[WebhookRecords]:
    async with open_records("sqlite://") as records:
        yield WebhookRecords(records)


@pytest.fixture
def hooks(app, book) -> Webhooks:
    return Webhooks(app.store, app.jobs.sealer, book, Guard(["127.0.0.1"]), retry=QUICK)


@asynccontextmanager
async def telling(hooks: Webhooks, *, turn: float = 15.0) -> AsyncIterator[Teller]:
    teller = Teller(hooks, look=0.05, turn=turn)
    async with asyncio.TaskGroup() as group:
        group.create_task(teller.run())
        try:
            yield teller
        finally:
            teller.stop()


async def settled(hooks: Webhooks, webhook_id: str, count: int) -> list:
    async def look():
        jobs = (await hooks.deliveries(webhook_id)).jobs
        ended = [job for job in jobs if job.state.value in {"completed", "failed", "cancelled"}]
        return ended if len(ended) >= count else None

    return await wait_until(look)


async def test_what_happens_arrives_signed(app, hooks, receiver):
    webhook, secret = await hooks.create({"url": receiver.url}, by="ann")
    async with telling(hooks), app.working():
        good = await app.enqueue("add", {"a": 1, "b": 2})
        bad = await app.enqueue("fail", {"secret_text": "k4nary-error"})
        await settled(hooks, webhook.id, 2)
    told = {body["data"]["id"]: body for body in receiver.bodies()}
    assert {id_: body["type"] for id_, body in told.items()} == {
        good: "job.completed",
        bad: "job.failed",
    }
    assert told[bad]["data"]["error_type"] == "ValueError"
    ids = set()
    for headers, body in receiver.messages:
        ids.add(verify(secret, headers, body))
        assert b"k4nary" not in body
        with pytest.raises(AuthenticationError):
            verify(secret, headers, body + b" ")
        other, _ = await hooks.create({"url": receiver.url}, by="ann")
    assert len(ids) == 2
    assert (await hooks.book.get(webhook.id)).succeeded_at is not None
    jobs = (await hooks.deliveries(webhook.id)).jobs
    assert [job.value["status"] for job in jobs] == [204, 204]
    assert "k4nary" not in repr(jobs)
    assert other.after != webhook.after


async def test_filters_and_what_was_before(app, hooks, receiver):
    async with app.working():
        await app.wait(await app.enqueue("add", {"a": 1, "b": 2}), progress=False)
        late, _ = await hooks.create(
            {"url": receiver.url, "types": ["*"], "kind": "add", "queue": "default"}, by="ann"
        )
        batch, _ = await hooks.create({"url": receiver.url, "types": ["batch.*"]}, by="ann")
        async with telling(hooks):
            head = await app.enqueue_batch("add", [{"a": n, "b": n} for n in range(3)])
            await app.wait(head, progress=False)
            await app.wait(await app.enqueue("add", {"a": 5, "b": 5}), progress=False)
            await settled(hooks, batch.id, 2)
            await settled(hooks, late.id, 12)
    told = [body for body in receiver.bodies() if body["data"]["id"] == head]
    assert [body["type"] for body in told if body["type"] == "batch.completed"]
    items = [body for body in receiver.bodies() if body["type"].startswith("item.")]
    assert sorted({body["type"] for body in items}) == [
        "item.completed",
        "item.enqueued",
        "item.started",
    ]
    assert len(items) == 9
    assert all(body["data"]["batch_id"] == head for body in items)


async def test_a_failure_is_tried_again_with_the_same_id_and_body(app, hooks, receiver):
    receiver.answers = ["500 No", "302 Elsewhere\r\nLocation: http://127.0.0.1:1/", "429 Slow"]
    webhook, secret = await hooks.create({"url": receiver.url}, by="ann")
    async with telling(hooks), app.working():
        await app.enqueue("add", {"a": 1, "b": 2})
        (job,) = await settled(hooks, webhook.id, 1)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 4)
    assert len(receiver.messages) == 4
    assert len({body for _, body in receiver.messages}) == 1
    assert len({verify(secret, headers, body) for headers, body in receiver.messages}) == 1
    kept = await app.store.errors(job.id)
    assert [error.message for error in kept] == [
        f"the receiver answered with status {status}" for status in (429, 302, 500)
    ]
    now = await hooks.book.get(webhook.id)
    assert (now.failures, now.failing_since, now.error, now.disabled) == (0, None, None, None)


async def test_who_never_answers_is_disabled_with_the_reason(app, book, receiver):
    hooks = Webhooks(
        app.store, app.jobs.sealer, book, Guard(["127.0.0.1"]), retry=QUICK, give_up_after=0.0
    )
    receiver.usual = "503 Away"
    webhook, _ = await hooks.create({"url": receiver.url}, by="ann")
    async with telling(hooks), app.working():
        await app.enqueue("add", {"a": 1, "b": 2})
        await settled(hooks, webhook.id, 1)
        now = await book.get(webhook.id)
        assert now.disabled == "nothing arrived for 0 days: the receiver answered with status 503"
        assert now.failures == 1
        receiver.usual = "200 OK"
        enabled = await hooks.change(webhook.id, {"enabled": True})
        assert (enabled.disabled, enabled.failures) == (None, 0)
        second = await app.enqueue("add", {"a": 3, "b": 3})
        await settled(hooks, webhook.id, 2)
    assert [body["data"]["id"] for body in receiver.bodies()][-1] == second
    assert len(receiver.messages) == 2


async def test_a_receiver_that_is_gone_is_not_asked_again(app, hooks, receiver):
    receiver.usual = "410 Gone"
    webhook, _ = await hooks.create({"url": receiver.url}, by="ann")
    async with telling(hooks), app.working():
        await app.enqueue("add", {"a": 1, "b": 2})
        (job,) = await settled(hooks, webhook.id, 1)
    assert (job.state, job.attempt, len(receiver.messages)) == (JobState.FAILED, 1, 1)
    assert "410" in (await hooks.book.get(webhook.id)).disabled


async def test_a_test_message_arrives_also_when_it_is_disabled(hooks, receiver):
    webhook, secret = await hooks.create({"url": receiver.url, "enabled": False}, by="ann")
    async with telling(hooks):
        job_id = await hooks.test(webhook.id)
        (job,) = await settled(hooks, webhook.id, 1)
    assert job.id == job_id
    headers, body = receiver.messages[0]
    assert verify(secret, headers, body) == f"msg_{job_id}"
    assert json.loads(body)["type"] == "webhook.test"


async def test_for_a_day_an_old_secret_is_as_good_as_the_new_one(hooks, receiver, monkeypatch):
    webhook, first = await hooks.create({"url": receiver.url}, by="ann")
    second = await hooks.rotate(webhook.id)
    async with telling(hooks):
        await hooks.test(webhook.id)
        await settled(hooks, webhook.id, 1)
        monkeypatch.setattr("haulier.services.webhooks.ROTATION", -1.0)
        third = await hooks.rotate(webhook.id)
        await hooks.test(webhook.id)
        await settled(hooks, webhook.id, 2)
    assert len({first, second, third}) == 3
    (headers, body), (later, after) = receiver.messages
    assert verify(first, headers, body) == verify(second, headers, body)
    assert verify(third, later, after)
    for old in (first, second):
        with pytest.raises(AuthenticationError):
            verify(old, later, after)


async def test_where_it_may_not_go_nothing_is_sent(app, book, receiver):
    """Allowed when it was made, forbidden by the settings of who sends."""
    made, _ = await Webhooks(app.store, app.jobs.sealer, book, Guard(["127.0.0.1"])).create(
        {"url": receiver.url}, by="ann"
    )
    strict = Webhooks(app.store, app.jobs.sealer, book, Guard(), retry=QUICK)
    async with telling(strict), app.working():
        await app.enqueue("add", {"a": 1, "b": 2})
        (job,) = await settled(strict, made.id, 1)
    assert job.state is JobState.FAILED
    assert "not allowed here" in job.error.message
    assert receiver.messages == []


async def test_who_dies_between_the_jobs_and_the_cursor_doubles_nothing(
    app, hooks, book, receiver, monkeypatch
):
    webhook, _ = await hooks.create({"url": receiver.url}, by="ann")

    async def died(*_):
        raise StoreUnavailableError("died here")

    with monkeypatch.context() as patch, contextlib.suppress(StoreUnavailableError):
        patch.setattr(book, "move_on", died)
        async with app.working():
            jobs = [await app.enqueue("add", {"a": n, "b": n}) for n in range(5)]
            async with telling(hooks):
                await settled(hooks, webhook.id, 5)
    assert (await book.get(webhook.id)).after == webhook.after
    async with telling(hooks), app.working():
        jobs.append(await app.enqueue("add", {"a": 9, "b": 9}))
        await settled(hooks, webhook.id, 6)
    assert sorted(body["data"]["id"] for body in receiver.bodies()) == sorted(jobs)


async def test_two_servers_take_turns_and_send_nothing_twice(app, book, receiver):
    guard = Guard(["127.0.0.1"])
    both = [Webhooks(app.store, app.jobs.sealer, book, guard, retry=QUICK) for _ in range(2)]
    webhook, _ = await both[0].create({"url": receiver.url}, by="ann")
    async with app.working(), telling(both[1], turn=0.3):
        async with telling(both[0], turn=0.3):
            for n in range(10):
                await app.enqueue("add", {"a": n, "b": n})
            await settled(both[0], webhook.id, 10)
        for n in range(10):
            await app.enqueue("add", {"a": n, "b": n})
        await settled(both[0], webhook.id, 20)
    ids = [headers["webhook-id"] for headers, _ in receiver.messages]
    assert len(ids) == len(set(ids)) == 20


async def test_one_that_does_not_have_the_turn_waits_until_it_is_over(book):
    assert await book.take_turn("a", 60)
    assert not await book.take_turn("b", 60)
    assert await book.take_turn("a", 0.0)
    await wait_until(lambda: book.take_turn("b", 60))
    await book.end_turn("a")
    assert not await book.take_turn("c", 60)
    await book.end_turn("b")
    assert await book.take_turn("c", 60)


async def test_deliveries_tell_nobody_of_themselves(app, hooks, receiver):
    webhook, _ = await hooks.create({"url": receiver.url, "types": ["*"]}, by="ann")
    async with telling(hooks), app.working():
        await app.enqueue("add", {"a": 1, "b": 2})
        await settled(hooks, webhook.id, 3)
        await wait_until(lambda: _caught_up(hooks, webhook.id))
    assert {body["data"]["kind"] for body in receiver.bodies()} == {"add"}
    assert len((await hooks.deliveries(webhook.id)).jobs) == 3


async def _caught_up(hooks, webhook_id):
    return (await hooks.book.get(webhook_id)).after == await hooks.jobs.store.last_event()


async def test_one_that_is_removed_is_told_nothing_more(app, hooks, receiver):
    receiver.usual = "500 No"
    hooks = Webhooks(app.store, app.jobs.sealer, hooks.book, Guard(["127.0.0.1"]))
    webhook, _ = await hooks.create({"url": receiver.url}, by="ann")
    async with telling(hooks), app.working():
        await app.enqueue("add", {"a": 1, "b": 2})
        await wait_until(lambda: receiver.messages)
        await hooks.remove(webhook.id)
        where = JobFilter(kind="haulier.webhook")

        async def cancelled():
            (job,) = (await app.store.find(where)).jobs
            return job.state is JobState.CANCELLED

        await wait_until(cancelled)
    for call in (hooks.test, hooks.deliveries, hooks.remove, hooks.book.sealed_secret):
        with pytest.raises(WebhookNotFoundError):
            await call(webhook.id)
    with pytest.raises(WebhookNotFoundError):
        await hooks.change(webhook.id, {})


async def test_what_the_store_keeps_no_longer_is_told_to_be_missing(app, hooks, book, receiver):
    webhook, _ = await hooks.create({"url": receiver.url, "types": ["job.failed"]}, by="ann")
    other, _ = await hooks.create({"url": receiver.url, "types": ["job.failed"]}, by="ann")
    await app.enqueue("add", {"a": 1, "b": 2})
    await book.move_on({webhook.id: "another-history:7"})
    async with telling(hooks):
        await settled(hooks, webhook.id, 1)
        await wait_until(lambda: _caught_up(hooks, webhook.id))
    assert [body["type"] for body in receiver.bodies()] == ["events.reset"]
    assert (await hooks.deliveries(other.id)).jobs == ()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, {"url"}),
        ({"url": "http://10.0.0.1/"}, {"url"}),
        ({"url": "https://u:p@example.com/"}, {"url"}),
        ({"url": "ftp://example.com/", "types": ["job.exploded"]}, {"url", "types"}),
        ({"url": "https://example.com/", "kind": "x" * 201}, {"kind"}),
        ({"url": "https://example.com/", "types": ["*"] * 51}, {"types"}),
        ({"url": "https://example.com/", "batch_id": "7"}, {"batch_id"}),
    ],
)
async def test_bad_ones_are_refused_with_the_field_and_none_is_kept(hooks, fields, named):
    with pytest.raises(ValidationError) as refused:
        await hooks.create(fields, by="ann")
    assert {problem.field for problem in refused.value.problems} == named
    assert await hooks.book.all() == []


async def test_the_secret_is_sealed_for_its_webhook(hooks):
    first, secret = await hooks.create({"url": "https://example.com/"}, by="ann")
    second, _ = await hooks.create({"url": "https://example.com/"}, by="ann")
    sealed = await hooks.book.sealed_secret(first.id)
    assert secret.removeprefix("whsec_") not in sealed
    await hooks.book.change(second.id, {"secret": sealed})
    with pytest.raises(AuthenticationError):
        hooks._sealer.open_text(await hooks.book.sealed_secret(second.id), f"webhook/{second.id}")
