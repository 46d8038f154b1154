"""The WebSocket over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from live_streams import served
from websockets.exceptions import ConnectionClosed, InvalidStatus

from haulier.web.live import hub
from haulier.web.live.socket import BURST, MAX_MESSAGE
from support import wait_until


async def add_some(jobs, count):
    await jobs.enqueue_many("add", [{"a": 1, "b": number} for number in range(count)], {})


class TestSubscriptions:
    async def test_nothing_is_shown_until_it_is_asked_for(self, api, jobs):
        async with served(api) as server, server.socket() as talk:
            await add_some(jobs, 1)
            await talk.say(type="ping")
            assert (await talk.hear()).type == "pong"
            await talk.subscribe("jobs")
            assert (await talk.hear()).type == "snapshot"

    async def test_what_is_shown_is_what_streams_show(self, api, jobs, working):
        async with served(api) as server, server.stream() as reader, server.socket() as talk:
            start = await reader.next()
            said = await talk.subscribe(after=start.id)
            assert said.data["after"] == start.id
            async with working():
                await jobs.enqueue_batch("add", [{"a": 1, "b": 2}] * 3, {})
                shown = await reader.until(lambda each: each.type == "settle")
                assert await talk.until(lambda each: each.type == "settle") == shown

    async def test_topics_and_filters(self, api, jobs):
        async with served(api) as server, server.socket() as talk:
            said = await talk.subscribe("jobs", "stats", filter={"queue": "q", "types": ["insert"]})
            assert said.data == {
                "topics": ["jobs", "stats"],
                "filter": {"queue": "q", "types": ["insert"]},
                "after": None,
            }
            await talk.until(lambda each: each.type == "snapshot")
            await add_some(jobs, 1)
            job = await jobs.enqueue("add", {"a": 1, "b": 2}, {"queue": "q"})
            seen = await talk.until(lambda each: each.type == "stats")
            seen += await talk.until(lambda each: each.type == "insert") if len(seen) < 2 else []
        assert [each.data["job_id"] for each in seen if each.type == "insert"] == [job]

    async def test_a_change_of_topics_leaves_no_gap(self, api, jobs, store):
        async with served(api) as server, server.socket() as talk:
            await talk.subscribe("jobs")
            await talk.until(lambda each: each.type == "snapshot")
            seen = []
            for number in range(BURST - 2):
                await add_some(jobs, 20)
                topics = ["jobs", "items"] if number % 2 else ["jobs"]
                await talk.say(type="subscribe", topics=topics)
                seen += await talk.until(lambda each: each.type == "subscribed")
            last = await store.last_event()
            while not any(each.id == last for each in seen):
                seen.append(await talk.hear())
        inserted = [each.seq for each in seen if each.type == "insert"]
        assert inserted == [*range(1, 20 * (BURST - 2) + 1)]

    async def test_topics_are_taken_away(self, api, jobs):
        async with served(api) as server, server.socket() as talk:
            await talk.subscribe("jobs", "stats")
            await talk.until(lambda each: each.type == "snapshot")
            await talk.say(type="unsubscribe", topics=["stats", "workers"])
            left = await talk.until(lambda each: each.type == "unsubscribed")
            assert left[-1].data == {"topics": ["jobs"]}
            await add_some(jobs, 1)
            assert (await talk.hear()).type == "insert"
            await talk.say(type="unsubscribe")
            assert (await talk.hear()).data == {"topics": []}
            await add_some(jobs, 1)
            await talk.say(type="ping")
            assert (await talk.hear()).type == "pong"
            await talk.subscribe("jobs")
            assert (await talk.hear()).data["reason"] == "start"

    async def test_a_sign_of_life_says_how_far_it_has_come(self, api_with, jobs, store):
        async with served(api_with(heartbeat=0.1)) as server, server.socket() as talk:
            await talk.subscribe(filter={"types": ["delete"]})
            await add_some(jobs, 5)
            last = await store.last_event()
            beat = (await talk.until(lambda each: each.id == last))[-1]
        assert (beat.type, beat.data) == ("heartbeat", None)


class TestBadMessages:
    @pytest.mark.parametrize(
        ("message", "fields"),
        [
            ("{", []),
            ("", []),
            ("7", ["type"]),
            ("[]", ["type"]),
            ("{}", ["type"]),
            ({"type": "shout"}, ["type"]),
            ({"type": "subscribe", "topics": ["jobs", "nonsense"]}, ["topics.1"]),
            ({"type": "subscribe", "topics": "jobs"}, ["topics"]),
            ({"type": "subscribe", "after": "7"}, ["after"]),
            ({"type": "subscribe", "filter": {"batch": "7", "x": 1}}, ["filter.batch", "filter.x"]),
            ({"type": "unsubscribe", "filter": {}}, ["filter"]),
            ({"type": "ping", "secret-canary": 1}, ["secret-canary"]),
            ("[" * 10_000, []),
        ],
    )
    async def test_they_are_answered_and_the_socket_goes_on(self, api, message, fields):
        text = message if isinstance(message, str) else json.dumps(message)
        async with served(api) as server, server.socket() as talk:
            await talk.connection.send(text)
            told = await talk.hear()
            assert told.type == "error"
            assert told.data["detail"]
            assert [error["field"] for error in told.data["errors"]] == fields
            assert all(error["reason"] for error in told.data["errors"])
            await talk.say(type="ping")
            assert (await talk.hear()).type == "pong"

    async def test_a_binary_one_closes_it(self, api):
        async with served(api) as server, server.socket() as talk:
            await talk.connection.send(b"{}")
            assert await talk.closed() == (1003, "messages are text")

    @pytest.mark.parametrize("size", [MAX_MESSAGE + 1, 10_000_000])
    async def test_a_large_one_closes_it(self, api, size):
        async with served(api) as server, server.socket() as talk:
            with contextlib.suppress(ConnectionClosed):
                await talk.connection.send(" " * size)
            assert (await talk.closed())[0] == 1009
            await server.until_open(0)

    async def test_too_many_close_it(self, api):
        async with served(api) as server, server.socket() as talk:
            for _ in range(BURST + 2):
                await talk.say(type="ping")
            assert await talk.closed() == (1008, "too many messages")
            await server.until_open(0)


class TestWhoMay:
    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            (None, True),
            ("http://127.0.0.1:PORT", True),
            ("https://127.0.0.1:PORT", True),
            ("HTTP://127.0.0.1:PORT", True),
            ("null", False),
            ("", False),
            ("http://127.0.0.1", False),
            ("http://127.0.0.1:1", False),
            ("http://127.0.0.1:PORT.evil.example", False),
            ("http://127.0.0.1:PORT/", False),
            ("http://evil.example", False),
            ("http://evil.example?http://127.0.0.1:PORT", False),
            ("http://x127.0.0.1:PORT", False),
            ("http://localhost:PORT", False),
            ("file://", False),
        ],
    )
    async def test_pages_of_other_origins_may_not(self, api, caplog, origin, allowed):
        async with served(api) as server:
            headers = {} if origin is None else {"Origin": origin.replace("PORT", str(server.port))}
            if allowed:
                async with server.socket(additional_headers=headers) as talk:
                    await talk.say(type="ping")
                    assert (await talk.hear()).type == "pong"
                return
            with pytest.raises(InvalidStatus) as refused:
                async with server.socket(additional_headers=headers):
                    pass
            problem_of(refused.value.response, 403)
        assert [each.message for each in caplog.records if each.levelname == "ERROR"] == []

    async def test_another_host_name_is_refused(self, api):
        async with served(api) as server:
            with pytest.raises(InvalidStatus) as refused:
                async with server.socket(host="127.0.0.1", port=server.port, name="evil.example"):
                    pass
            problem_of(refused.value.response, 421)

    async def test_there_are_so_many_and_no_more(self, api_with):
        async with served(api_with(per_caller=1)) as server, server.socket() as talk:
            await talk.subscribe()
            with pytest.raises(InvalidStatus) as refused:
                async with server.socket():
                    pass
            assert problem_of(refused.value.response, 429)["type"].endswith(":rate-limit")
            assert refused.value.response.headers["retry-after"]

    async def test_access_that_has_ended_closes_it(self, api, monkeypatch):
        monkeypatch.setattr(hub, "RECHECK", 0.05)

        async def still_valid(identity):
            return False

        async with served(api) as server, server.socket() as talk:
            api.state.live.still_valid = still_valid
            assert await talk.closed() == (1008, "the access has ended")

    async def test_who_leaves_gives_the_seat_back(self, api, jobs):
        async with served(api) as server:
            async with server.socket() as talk:
                await talk.subscribe()
                await server.until_open(1)
            await server.until_open(0)
            async with server.socket() as talk:
                await server.until_open(1)
                talk.connection.transport.abort()
                await server.until_open(0)


async def test_who_does_not_read_is_told_that_events_are_missing(api_with, jobs, store):
    async with (
        served(api_with(ring=100)) as server,
        server.socket(max_queue=1, sock=await server.narrow()) as talk,
    ):
        await talk.say(type="subscribe")
        for _ in range(10):
            await add_some(jobs, 500)
        last = await store.last_event()
        seen = await talk.until(lambda each: each.id == last)
    snapshots = [each.data for each in seen if each.type == "snapshot"]
    assert [each["reason"] for each in snapshots][:2] == ["start", "slow"]


async def test_many_come_and_go_at_once(api_with, jobs):
    async with served(api_with(most=60)) as server:

        async def visit(number):
            async with server.socket() as talk:
                await talk.subscribe("jobs", filter={"kind": f"kind-{number % 7}"})
                await talk.until(lambda each: each.type == "snapshot")

        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(visit(number))
        await wait_until(lambda: api_viewers(server) == 0)


def api_viewers(server):
    return server.api.state.live.viewers


def problem_of(response, status):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.body)
    assert problem["status"] == status
    return problem
