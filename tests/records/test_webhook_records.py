"""Webhooks in each kind of records."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from haulier.domain.webhook import Webhook
from haulier.exceptions import WebhookNotFoundError
from haulier.records import open_records
from haulier.records.webhooks import WebhookRecords
from haulier.services.ids import new_id
from support import wait_until


def webhook(**settings):
    values = {
        "id": new_id(),
        "url": "https://example.com/ü?a=b",
        "types": ("job.*", "batch.failed"),
        "kind": "mail",
        "queue": None,
        "batch_id": None,
        "description": "für alle",
        "created_at": 1_700_000_000_000_001,
        "created_by": "ann",
        "after": "e:1",
    }
    return Webhook(**{**values, **settings})


@pytest.fixture
def book(records):
    return WebhookRecords(records)


async def test_they_are_given_back_as_they_were_kept(book):
    first, second = webhook(), webhook(created_at=5)
    await book.add(first, "sealed-1")
    await book.add(second, "sealed-2")
    assert await book.all() == [second, first]
    assert await book.get(first.id) == first
    assert await book.sealed_secret(first.id) == "sealed-1"
    await book.remove(first.id)
    assert await book.all() == [second]


async def test_only_what_is_named_changes(book):
    one = webhook()
    await book.add(one, "sealed")
    changed = await book.change(one.id, {"types": ("*",), "kind": None, "secret": "other"})
    assert changed == dataclasses.replace(one, types=("*",), kind=None)
    assert await book.sealed_secret(one.id) == "other"
    assert await book.change(one.id, {}) == changed
    await book.move_on({one.id: "e:9", new_id(): "e:9"})
    assert (await book.get(one.id)).after == "e:9"


async def test_failures_are_counted_since_the_first_until_a_success(book):
    one = webhook()
    await book.add(one, "sealed")
    first = await book.failed(one.id, "x" * 1000)
    second = await book.failed(one.id, "the last one")
    assert (first.failures, second.failures) == (1, 2)
    assert first.failing_since == second.failing_since <= second.failed_at
    assert second.error == "the last one"
    await book.disable(one.id, "why")
    await book.disable(one.id, "another reason")
    assert (await book.get(one.id)).disabled == "why"
    await book.succeeded(one.id)
    now = await book.get(one.id)
    assert (now.failures, now.failing_since, now.error) == (0, None, None)
    assert now.succeeded_at is not None


UNKNOWN = "01890000-0000-7000-8000-000000000000"


@pytest.mark.parametrize("id_", [UNKNOWN, "", "7", "a\x00b", "é", "x" * 1000])
async def test_an_id_that_none_has_is_not_found(book, id_):
    for call in (book.get, book.sealed_secret, book.remove):
        with pytest.raises(WebhookNotFoundError):
            await call(id_)
    for change in ({"kind": "a"}, {}):
        with pytest.raises(WebhookNotFoundError):
            await book.change(id_, change)
    if len(id_) == 36:
        with pytest.raises(WebhookNotFoundError):
            await book.failed(id_, "why")
        await book.succeeded(id_)


async def test_of_many_that_ask_for_the_turn_one_gets_it(shared_url):
    async with open_records(shared_url) as one, open_records(shared_url) as two:
        books = [WebhookRecords(one), WebhookRecords(two)] * 4
        got = await asyncio.gather(
            *(book.take_turn(f"{n}", 60) for n, book in enumerate(books)),
        )
        assert got.count(True) == 1
        owner = str(got.index(True))
        assert await books[0].take_turn(owner, 0.01)
        await wait_until(lambda: books[1].take_turn("other", 60))
        assert not await books[0].take_turn(owner, 60)
