"""Server-sent events over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time

import pytest
from live_streams import STREAM, served

from haulier.domain.access import Access, Identity
from haulier.exceptions import StoreUnavailableError
from haulier.web.live import hub
from support import wait_until


async def add_some(jobs, count):
    await jobs.enqueue_many("add", [{"a": 1, "b": number} for number in range(count)], {})


class TestWhatIsShown:
    async def test_it_begins_with_how_everything_stands(self, api, jobs, store):
        await add_some(jobs, 3)
        async with served(api) as server, server.stream() as reader:
            first = await reader.next()
        assert (first.type, first.id) == ("snapshot", await store.last_event())
        assert first.data["reason"] == "start"
        assert first.data["cursor"] == first.id
        assert first.data["stats"]["jobs"]["pending"] == 3
        assert reader.retry == hub.RETRY

    async def test_events_are_those_of_the_pages(self, api, jobs, working):
        async with served(api) as server, server.stream() as reader, working():
            start = await reader.next()
            await add_some(jobs, 2)
            seen = await reader.until(lambda each: each.type == "complete" and each.seq == 6)
            page = (await server.client.get("/api/v1/events", params={"after": start.id})).json()
        assert [each.data for each in seen] == page["events"]
        assert [(each.type, each.id) for each in seen] == [
            (event["type"], event["cursor"]) for event in page["events"]
        ]

    async def test_the_address_of_the_pages_gives_a_stream_to_who_takes_one(self, api, jobs):
        await add_some(jobs, 1)
        async with served(api) as server:
            for accepted in ("text/event-stream", "text/html, Text/Event-Stream;q=0.9"):
                headers = {"accept": accepted, "accept-encoding": "gzip"}
                get = server.client.stream("GET", "/api/v1/events", headers=headers)
                async with get as answer:
                    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
                    assert answer.headers["cache-control"] == "no-store"
                    assert answer.headers["x-accel-buffering"] == "no"
                    assert "content-encoding" not in answer.headers
                    assert "content-length" not in answer.headers
                    assert answer.headers["x-request-id"]
            for accepted in ("*/*", "application/json"):
                answer = await server.client.get("/api/v1/events", headers={"accept": accepted})
                assert len(answer.json()["events"]) == 1

    @pytest.mark.parametrize(
        ("topics", "shown"),
        [
            ((), {"insert single", "insert head", "insert item", "pause head", "schedule_set",
                  "configured"}),
            (("jobs",), {"insert single", "insert head", "pause head"}),
            (("items",), {"insert item"}),
            (("batches",), {"insert head", "pause head", "batch"}),
            (("schedules", "settings"), {"schedule_set", "configured"}),
            (("stats",), {"stats"}),
            (("queues",), {"queues"}),
            (("workers",), {"workers"}),
        ],
    )  # fmt: skip
    async def test_topics(self, api, jobs, working, topics, shown):
        async with served(api) as server, server.stream(topics=",".join(topics)) as reader:
            assert (await reader.next()).type == "snapshot"
            async with working():
                await make_all(server.client, jobs)
                found = {named(each) for each in await seen_all(reader, shown)}
        assert found & {*EVERYTHING} == shown

    @pytest.mark.parametrize(
        ("params", "shown"),
        [
            ({"batch": "BATCH"}, {"insert head", "insert item", "pause head"}),
            ({"batch": "BATCH", "topics": "items"}, {"insert item"}),
            ({"batch": "BATCH", "topics": "batches"}, {"insert head", "pause head"}),
            ({"job": "SINGLE"}, {"insert single"}),
            ({"kind": "add"}, {"insert single", "insert head", "insert item", "pause head",
                               "schedule_set"}),
            ({"kind": "add", "queue": "default"}, {"insert single", "schedule_set"}),
            ({"queue": "other", "types": "pause,insert"}, {"insert head", "insert item",
                                                           "pause head"}),
            ({"types": "configured"}, {"configured"}),
        ],
    )  # fmt: skip
    async def test_filters(self, api, jobs, store, params, shown):
        begin = await store.last_event()
        async with served(api) as server:
            ids = await make_all(server.client, jobs)
            params = {name: ids.get(value, value) for name, value in params.items()}
            async with server.stream(after=begin, **params) as reader:
                found = {named(each) for each in await seen_all(reader, shown)}
        assert found & {*EVERYTHING} == shown

    async def test_samples_tell_what_has_changed(self, api, jobs, working):
        topics = "stats,queues,workers,batches"
        async with served(api) as server, server.stream(topics=topics) as reader:
            first = (await reader.next()).data
            assert first["queues"] == {"changed": [], "removed": [], "paused": []}
            assert first["workers"] == {"changed": [], "removed": []}
            assert first["batches"] == []
            batch = await jobs.enqueue_batch("add", [{"a": 1, "b": 2}] * 4, {})
            async with working():
                seen = await reader.until(
                    lambda each: each.type == "batch" and each.data["state"] == "completed"
                )
            seen += await reader.until(lambda each: each.type == "workers")
        assert seen[-1].data["changed"] == []
        [gone] = seen[-1].data["removed"]
        [came] = next(each for each in seen if each.type == "workers").data["changed"]
        assert came["id"] == gone
        told = [each.data for each in seen if each.type == "batch"][-1]
        assert told["id"] == batch
        assert told["counts"]["completed"] == told["counts"]["total"] == 4
        assert told["progress"] == 100
        [line] = [each for each in seen if each.type == "queues"][-1].data["changed"]
        assert (line["queue"], line["kind"], line["completed"]) == ("default", "add", 5)
        rates = [each.data["rates"] for each in seen if each.type == "stats"]
        assert any(rate["completed"] > 0 for rate in rates)
        assert [each for each in seen if each.type == "stats"][-1].data["items"]["completed"] == 4

    async def test_a_snapshot_has_what_was_asked_for(self, api, jobs, working):
        await add_some(jobs, 1)
        batch = await jobs.enqueue_batch("add", [{"a": 1, "b": 2}], {})
        async with served(api) as server, working():
            async with server.stream(topics="queues,workers,batches") as reader:
                full = (await reader.next()).data
            async with server.stream(job=batch, topics="batches") as reader:
                one = (await reader.next()).data
        assert [line["kind"] for line in full["queues"]["changed"]] == ["add"]
        assert [row["slots"] > 0 for row in full["workers"]["changed"]] == [True]
        assert [each["id"] for each in full["batches"]] == [batch]
        assert one["batches"] == full["batches"] or one["batches"][0]["id"] == batch
        assert (one["queues"], one["workers"]) == (None, None)


class TestGoingOn:
    async def test_over_many_reconnects_there_is_no_gap_and_no_repetition(
        self, api, jobs, store, working
    ):
        seed = random.randrange(2**32)
        print("seed", seed)
        dice = random.Random(seed)
        seen, last = [], await store.last_event()

        async def produce():
            for _ in range(15):
                await add_some(jobs, dice.randrange(1, 30))

        async with served(api) as server, working():
            producing = asyncio.create_task(produce())
            while not producing.done() or await store.last_event() != last:
                async with server.stream(last_id=last) as reader:
                    for _ in range(dice.randrange(1, 60)):
                        seen.append(await reader.next())
                        last = reader.last_id
                        if last == await store.last_event():
                            break
        assert [each.seq for each in seen] == [
            event.seq for event in await store.events(limit=10**6)
        ]

    async def test_the_last_id_comes_before_the_cursor_in_the_address(self, api, jobs, store):
        begin = await store.last_event()
        await add_some(jobs, 3)
        first, second, _ = await store.events()
        async with served(api) as server:
            async with server.stream(last_id=second.cursor, after=begin) as reader:
                assert (await reader.next()).seq == 3
            async with server.stream(after=first.cursor) as reader:
                assert (await reader.next()).seq == 2

    async def test_samples_are_told_after_what_was_missed(self, api, jobs, store):
        begin = await store.last_event()
        await add_some(jobs, 2)
        async with served(api) as server, server.stream(after=begin, topics="jobs,stats") as reader:
            seen = [await reader.next() for _ in range(3)]
        assert [each.type for each in seen] == ["insert", "insert", "snapshot"]
        assert seen[-1].data["reason"] == "resume"
        assert seen[-1].id == seen[-2].id

    async def test_a_long_absence_is_read_page_by_page(self, api, jobs, store):
        begin = await store.last_event()
        await add_some(jobs, 1700)
        async with served(api) as server, server.stream(after=begin) as reader:
            await add_some(jobs, 3)
            seen = [(await reader.next()).seq for _ in range(1703)]
        assert seen == [*range(1, 1704)]

    async def test_a_cursor_of_another_history_leads_to_a_snapshot(self, api, jobs):
        async with served(api) as server, server.stream(last_id="elsewhere:5") as reader:
            told = await reader.next()
            assert (told.type, told.data["reason"]) == ("snapshot", "expired")
            await add_some(jobs, 1)
            assert (await reader.next()).type == "insert"

    async def test_a_sign_of_life_says_how_far_the_stream_has_come(self, api_with, jobs, store):
        api = api_with(heartbeat=0.1)
        async with served(api) as server, server.stream(types="delete") as reader:
            await reader.next()
            reading = asyncio.create_task(reader.next())
            await add_some(jobs, 5)
            last = await store.last_event()
            await wait_until(lambda: reader.last_id == last)
            assert reader.comments
            assert not reading.done()
            reading.cancel()

    async def test_a_store_that_is_away_for_a_while_is_waited_for(
        self, api_with, jobs, store, monkeypatch
    ):
        events = store.events

        async def away(**_):
            raise StoreUnavailableError("away")

        async with served(api_with(heartbeat=0.1)) as server, server.stream() as reader:
            start = await reader.next()
            monkeypatch.setattr(store, "events", away)
            async with server.stream(after=start.id) as other:
                waiting = asyncio.create_task(other.next())
                await add_some(jobs, 2)
                await wait_until(lambda: other.comments)
                monkeypatch.setattr(store, "events", events)
                assert (await waiting).seq == 1
            assert [(await reader.next()).seq, (await reader.next()).seq] == [1, 2]


class TestSlowReaders:
    async def test_who_does_not_read_gets_a_snapshot_and_goes_on_from_it(
        self, api_with, jobs, store
    ):
        api = api_with(ring=100)
        async with served(api) as server, server.stalled() as sock, server.stream() as healthy:
            await server.until_open(2)
            await healthy.next()
            for _ in range(10):
                await add_some(jobs, 500)
                await healthy.until(lambda each: each.type == "snapshot" or each.seq % 500 == 0)
            last = await store.last_event()
            received, lines = b"", []
            async with asyncio.timeout(20):
                while not any(last in line for line in lines):
                    received += await asyncio.get_running_loop().sock_recv(sock, 1 << 20)
                    lines = received.decode(errors="ignore").splitlines()
        ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
        data = [json.loads(line.removeprefix("data: ")) for line in lines if is_whole(line)]
        snapshots = [each for each in data if each.get("reason") == "slow"]
        assert snapshots
        assert snapshots[-1]["stats"]["jobs"]["pending"] == 5000
        assert ids[-1] == last

    async def test_one_that_reads_nothing_at_all_loses_its_seat_and_its_connection(
        self, api, jobs, monkeypatch
    ):
        monkeypatch.setattr("haulier.web.live.seats.STALL", 0.3)
        monkeypatch.setattr("haulier.cli.echo.UNREAD", 0.3)
        async with served(api) as server, server.stalled():
            await server.until_open(1)
            for _ in range(10):
                await add_some(jobs, 500)
            await server.until_open(0)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                await wait_until(lambda: not server.server.server_state.connections)


def is_whole(line):
    return line.startswith("data: ") and line.endswith("}")


class TestLimits:
    async def test_there_are_so_many_streams_and_no_more(self, api_with, check):
        async with served(api_with(most=2, per_caller=5)) as server:
            async with server.stream(), server.stream() as reader:
                await reader.next()
                answer = await server.client.get(STREAM)
                check.problem(answer, 429)
                assert int(answer.headers["retry-after"]) > 0
            await server.until_open(0)
            async with server.stream() as reader:
                await reader.next()

    async def test_one_caller_has_a_part_of_them(self, api_with, check):
        async with served(api_with(most=5, per_caller=1)) as server, server.stream() as reader:
            await reader.next()
            problem = check.problem(await server.client.get(STREAM), 429)
            assert "local" in problem["detail"]

    @pytest.mark.parametrize(
        ("params", "field"),
        [
            ({"after": "7"}, "after"),
            ({"after": "a:b"}, "after"),
            ({"topics": "jobs,nonsense"}, "topics.1"),
            ({"batch": "7"}, "batch"),
            ({"types": ",".join("x" * 60)}, "types"),
            ({"kind": "x" * 201}, "kind"),
            ({"limit": "7"}, "limit"),
        ],
    )
    async def test_bad_parameters_are_refused(self, client, check, params, field):
        assert check.refused(await client.get(STREAM, params=params)) == [(field, None)]

    async def test_a_bad_last_id_is_refused(self, client, check):
        answer = await client.get(STREAM, headers={"last-event-id": "x"})
        assert check.refused(answer) == [("last-event-id", None)]


class TestScopes:
    @pytest.fixture
    def scope(self, monkeypatch):
        """Whoever asks is somebody for whom only jobs of one kind or queue exist."""

        def restrict(**scope):
            monkeypatch.setattr(
                "haulier.web.guard.LOCAL",
                Identity("ann", Access.VIEWER, **{k: frozenset({v}) for k, v in scope.items()}),
            )

        return restrict

    @pytest.mark.parametrize("scope_of", [{"kinds": "linger"}, {"queues": "other"}])
    async def test_what_lies_outside_is_not_there(self, api, jobs, store, scope, scope_of):
        begin = await store.last_event()
        theirs = await jobs.enqueue_batch("linger", [{}], {"queue": "other"})
        ours = await jobs.enqueue_batch("add", [{"a": 1, "b": 2}], {})
        await store.configurable().configure({"queues.x.paused": True}, by="bob")
        scope(**scope_of)
        async with served(api) as server:
            async with server.stream(after=begin, topics="jobs,items,batches,settings") as reader:
                seen = await reader.until(lambda each: each.type == "snapshot")
            async with server.stream(after=begin, batch=ours) as reader:
                await jobs.enqueue("add", {"a": 1, "b": 2}, {})
                job = await jobs.enqueue("linger", {}, {"queue": "other"})
                assert reader.last_id is None
            async with server.stream(last_id=seen[-1].id) as reader, server.socket() as talk:
                assert (await reader.next()).data["job_id"] == job
                await talk.subscribe(after=seen[-1].id)
                assert (await talk.hear()).data["job_id"] == job
        assert {each.data["batch_id"] or each.data["job_id"] for each in seen[:-1]} == {theirs}
        assert len(seen) == 3
        assert [each["id"] for each in seen[-1].data["batches"]] == [theirs]
        assert seen[-1].data["stats"] is None

    async def test_counters_of_the_whole_store_are_refused(self, api, scope, check):
        scope(kinds="linger")
        async with served(api) as server, server.socket() as talk:
            answer = await server.client.get(STREAM, params={"topics": "jobs,stats,workers"})
            assert "stats, workers" in check.problem(answer, 403)["detail"]
            await talk.say(type="subscribe", topics=["queues"])
            refused = await talk.hear()
            assert (refused.type, refused.data["errors"]) == ("error", [])
            assert "queues" in refused.data["detail"]


class TestOneForAll:
    async def test_the_store_is_asked_once_for_many_viewers(self, api, jobs, store, monkeypatch):
        asked = {"events": 0, "counts": 0}

        def counting(name):
            ask = getattr(store, name)

            async def counted(**options):
                asked[name] += 1
                return await ask(**options)

            monkeypatch.setattr(store, name, counted)

        for name in asked:
            counting(name)
        async with served(api) as server, contextlib.AsyncExitStack() as stack:
            readers = [
                await stack.enter_async_context(server.stream(topics="jobs,stats"))
                for _ in range(20)
            ]
            for reader in readers:
                await reader.next()
            asked.update(events=0, counts=0)
            began = time.monotonic()
            await add_some(jobs, 1)
            for reader in readers:
                await reader.until(lambda each: each.type == "insert")
                await reader.until(lambda each: each.type == "stats")
            # Once a second, and for what was enqueued.
            elapsed = time.monotonic() - began
            assert 0 < asked["events"] <= elapsed + 5
            assert 0 < asked["counts"] <= elapsed + 2
            await stack.aclose()
            await server.until_open(0)
            asked.update(events=0, counts=0)
            await add_some(jobs, 1)
            later = time.monotonic() + 1.2
            await wait_until(lambda: time.monotonic() > later)
        assert asked == {"events": 0, "counts": 0}


class TestEnds:
    async def test_access_that_has_ended_ends_streams_also_stalled_ones(
        self, api, jobs, monkeypatch
    ):
        monkeypatch.setattr(hub, "RECHECK", 0.05)
        allowed, asked = True, []

        async def still_valid(identity):
            asked.append(identity.name)
            return allowed

        api.state.live.still_valid = still_valid
        async with served(api) as server, server.stream() as reader, server.stalled():
            await server.until_open(2)
            for _ in range(10):
                await add_some(jobs, 500)
            await wait_until(lambda: len(asked) > 3)
            await reader.next()
            assert api.state.live.viewers == 2
            allowed = False
            await reader.ended()
            assert reader.comments[-1] == "the access has ended"
            await server.until_open(0)

    @pytest.mark.parametrize("away", ["fails", "is silent"])
    async def test_who_cannot_be_asked_about_is_not_trusted(self, api, monkeypatch, away):
        monkeypatch.setattr(hub, "RECHECK", 0.05)

        async def failing(identity):
            if away == "fails":
                raise OSError("the records are away")
            await asyncio.Event().wait()

        api.state.live.still_valid = failing
        async with served(api) as server, server.stream() as reader:
            await reader.ended()
            assert reader.comments[-1] == "the access has ended"

    async def test_a_server_stops_with_streams_open(self, api, jobs, caplog):
        async with asyncio.timeout(20), contextlib.AsyncExitStack() as stack:
            async with served(api) as server:
                quiet = {"types": "delete"}
                readers = [
                    await stack.enter_async_context(server.stream(**quiet)) for _ in range(5)
                ]
                talk = await stack.enter_async_context(server.socket())
                await talk.subscribe(filter={"types": ["delete"]})
                for _ in range(3):
                    await stack.enter_async_context(server.stalled())
                await server.until_open(9)
                for _ in range(10):
                    await add_some(jobs, 500)
                began = time.monotonic()
                server.server.should_exit = True
                for reader in readers:
                    await reader.ended()
                    assert reader.comments[-1] == "the server stops"
                assert await talk.closed() == (1012, "the server stops")
            assert time.monotonic() - began < 4
        assert [each.message for each in caplog.records if each.levelname == "ERROR"] == []

    async def test_while_it_stops_no_new_ones_are_taken(self, api, check):
        async with served(api) as server:
            await api.state.live.close()
            answer = await server.client.get(STREAM)
            check.problem(answer, 503)
            assert answer.headers["retry-after"]

    async def test_a_viewer_who_leaves_gives_its_seat_back(self, api):
        async with served(api) as server:
            async with server.stream() as reader:
                await reader.next()
            await server.until_open(0)


EVERYTHING = (
    *("insert single", "insert head", "insert item", "pause head", "schedule_set", "configured"),
    *("batch", "stats", "queues", "workers"),
)


async def make_all(client, jobs):
    """Something for each topic; ids of what was made."""
    batch = await jobs.enqueue_batch("add", [{"a": 1, "b": 2}], {"queue": "other"})
    await jobs.store.pause(batch)
    single = await jobs.enqueue("add", {"a": 1, "b": 2}, {})
    body = {"kind": "add", "payload": {"a": 1, "b": 1}, "every": 3600}
    assert (await client.put("/api/v1/schedules/hourly", json=body)).is_success
    assert (await client.post("/api/v1/queues/other/pause")).is_success
    return {"BATCH": batch, "SINGLE": single}


def named(message):
    role = message.data.get("role") if message.type in ("insert", "pause") else None
    return f"{message.type} {role}" if role else message.type


async def seen_all(reader, shown):
    missing = set(shown)
    found = []
    while missing:
        found.append(await reader.next())
        missing.discard(named(found[-1]))
    return found
