"""Live streams over each kind of store: numbers, wake-ups and counters come about differently."""

from __future__ import annotations

import pytest
from live_streams import served


@pytest.fixture
async def store(home):
    async with home.client(real_time=True) as store:
        yield store


async def test_nothing_is_missed_and_the_last_counts_are_told(api, jobs, store, working):
    begin = last = await store.last_event()
    seen = []
    topics = "batches,queues"
    async with served(api) as server, server.stream(topics=topics) as watching, working():
        await watching.next()
        batch = await jobs.enqueue_batch("add", [{"a": 1, "b": 2}] * 40, {})
        await jobs.enqueue_many("add", [{"a": 1, "b": 2}] * 40, {})
        while not any(each.type == "settle" for each in seen):
            async with server.stream(last_id=last) as reader:
                for _ in range(17):
                    seen.append(await reader.next())
                    last = reader.last_id
                    if seen[-1].type == "settle":
                        break
        told = await watching.until(all_done)
        if not any(lines_done(each) for each in told):
            told += await watching.until(lines_done)
    assert [each.data["id"] for each in told if each.type == "batch"][-1] == batch
    stored = [event.seq for event in await store.events(after=begin)]
    assert [each.seq for each in seen] == stored[: len(seen)]


def all_done(message):
    return message.type == "batch" and message.data["counts"]["completed"] == 40


def lines_done(message):
    return message.type == "queues" and any(
        line["completed"] == 81 for line in message.data["changed"]
    )
