"""Jobs line by line: what is taken, what is told, and what a repeated stream leaves as it is."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import tracemalloc

import pytest

from haulier.domain.retention import Keep, Retention
from haulier.exceptions import RateLimitError
from haulier.ports import JobFilter
from haulier.web import streams
from haulier.web.streams import Streams

STREAM = "/api/v1/jobs/stream"
NDJSON = {"content-type": "application/x-ndjson"}
FIRST = "0199b2d2-6c6e-7cc1-b8a4-6f2f3c1d8a10"


def add_line(number, **options):
    return json.dumps({"kind": "add", "payload": {"a": number, "b": 0}, **options})


def body_of(*lines):
    return "\n".join(lines).encode()


def adds(*numbers, **options):
    return body_of(*(add_line(number, **options) for number in numbers))


async def send(client, content, *, key=None, **query):
    headers = NDJSON | ({"Idempotency-Key": key} if key else {})
    return await client.post(STREAM, content=content, headers=headers, params=query)


async def payloads(jobs):
    page = await jobs.store.find(JobFilter(), limit=500, oldest_first=True)
    return [json.loads(job.payload).get("a") for job in page.jobs]


def taken(answer, count, *, new=None, skipped=0):
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["taken"], told["skipped"]) == (count, skipped)
    assert told["new"] == (count if new is None else new)
    return [(error["field"], error["line"]) for error in told["errors"]]


async def test_lines_become_jobs_in_their_order(client, jobs):
    assert taken(await send(client, adds(*range(120))), 120) == []
    assert await payloads(jobs) == list(range(120))


async def test_options_of_each_line_reach_its_job(client, jobs):
    content = body_of(
        add_line(1, id=FIRST, key="ada", priority="high"),
        add_line(2, key="grace", priority="high"),
        add_line(3, queue="slow", after=[FIRST]),
        add_line(4, unique="four"),
    )
    taken(await send(client, content), 4)
    page = await jobs.store.find(JobFilter(), oldest_first=True)
    assert [(job.key, job.priority, job.queue) for job in page.jobs] == [
        ("ada", 10, "default"),
        ("grace", 10, "default"),
        (None, 0, "slow"),
        (None, 0, "default"),
    ]
    assert [job.waiting for job in page.jobs] == [False, False, True, False]
    assert [job.unique for job in page.jobs] == [False, False, False, True]
    assert page.jobs[0].id == FIRST


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
async def test_how_the_body_is_cut_into_pieces_does_not_matter(client, jobs, size):
    content = b"\xef\xbb\xbf" + adds(1) + b"\r\n\n   \n" + adds(2, 3) + b"\n"

    async def pieces():
        for begin in range(0, len(content), size):
            yield content[begin : begin + size]

    taken(await send(client, pieces()), 3)
    assert await payloads(jobs) == [1, 2, 3]


async def test_an_empty_stream_takes_nothing(client):
    taken(await send(client, b""), 0)
    taken(await send(client, b"\n\n"), 0)


def nested(levels):
    return [nested(levels - 1)] if levels else 1


FAULTS = [
    pytest.param("{", "", id="no JSON"),
    pytest.param("[1]", "", id="no object"),
    pytest.param('{"kind": "add", "payload": {"a": NaN, "b": 1}}', "", id="NaN"),
    pytest.param('"\\ud800"', "", id="half a character"),
    pytest.param('{"kind": "add", "payload": {"a": 1, "b": "x"}}', "payload.b", id="payload"),
    pytest.param('{"kind": "add", "payload": 5}', "payload", id="payload is no object"),
    pytest.param('{"kind": "add"}', "payload.a", id="no payload"),
    pytest.param('{"kind": "nothing_such", "payload": {}}', "kind", id="kind"),
    pytest.param('{"kind": 7, "payload": {}}', "kind", id="kind is no text"),
    pytest.param('{"payload": {}}', "kind", id="no kind"),
    pytest.param('{"kind": "media_uniq", "payload": {}}', "kind", id="has a start"),
    pytest.param(add_line(1, surprise=1), "surprise", id="unknown field"),
    pytest.param(add_line(1, key=""), "key", id="key"),
    pytest.param(add_line(1, key=5), "key", id="key is no text"),
    pytest.param(add_line(1, id="x"), "id", id="id"),
    pytest.param(add_line(1, delay=-1), "delay", id="delay"),
    pytest.param(add_line(1, priority="soon"), "priority", id="priority"),
    pytest.param(add_line(1, concurrency=1), "concurrency", id="limit of a batch"),
    pytest.param(add_line(1, idempotency_key="k"), "idempotency_key", id="key of the stream"),
    pytest.param(
        json.dumps({"kind": "tell", "payload": {"value": nested(40)}}), "payload", id="deep"
    ),
    pytest.param(
        json.dumps({"kind": "tell", "payload": {"value": "x" * 300_000}}), "payload", id="large"
    ),
    pytest.param(add_line(1, after=[FIRST]), None, id="waits for none that is there"),
]


@pytest.mark.parametrize(("line", "field"), FAULTS)
async def test_a_line_at_fault_ends_the_stream_behind_those_before(
    client, check, jobs, line, field
):
    content = body_of(add_line(1), "", add_line(2), line, add_line(3), "}{")
    problem = check.problem(await send(client, content), 422)
    assert problem["taken"] == 2
    assert {error["line"] for error in problem["errors"]} == {4}
    assert field is None or field in {error["field"] for error in problem["errors"]}
    assert await payloads(jobs) == [1, 2]


@pytest.mark.parametrize(("line", "field"), FAULTS)
async def test_a_line_at_fault_is_left_out_on_demand(client, jobs, line, field):
    content = body_of(add_line(1), line, add_line(2), line)
    faults = taken(await send(client, content, on_bad="skip"), 2, skipped=2)
    assert {number for _, number in faults} == {2, 4}
    assert field is None or field in {name for name, _ in faults}
    assert await payloads(jobs) == [1, 2]


async def test_not_all_faults_are_told(client):
    answer = await send(client, b"{\n" * 250, on_bad="skip")
    assert len(taken(answer, 0, skipped=250)) == 100


async def test_input_is_not_echoed(client):
    canary = "hunter2-canary"
    for line in (
        f'{{"kind": "login", "payload": {{"user": 5, "password": ["{canary}"]}}}}',
        f'{{"kind": "add", "payload": {{"a": "{canary}", "b": 1}}}}',
        f'{{"kind": "add", "key": {{"x": "{canary}"}}}}',
        f'{{"kind": "add" {canary}',
        canary,
    ):
        for query in ({}, {"on_bad": "skip"}):
            answer = await send(client, line.encode(), **query)
            assert canary not in answer.text


async def test_a_duplicate_is_at_fault_and_no_other_line(client, check, jobs):
    unique = {"by": "one", "conflict": "reject"}
    lines = [add_line(n) for n in range(9)]
    lines[5] = add_line(5, unique=unique)
    held = (await client.post("/api/v1/jobs", json=json.loads(lines[5]))).json()["id"]
    problem = check.problem(await send(client, body_of(*lines)), 409)
    assert (problem["taken"], problem["job_id"]) == (5, held)
    assert [error["line"] for error in problem["errors"]] == [6]
    assert await payloads(jobs) == [5, 0, 1, 2, 3, 4]
    faults = taken(await send(client, body_of(*lines), on_bad="skip"), 8, skipped=1)
    assert faults == [("", 6)]


async def test_a_key_doubles_nothing_whatever_became_of_the_jobs(client, jobs):
    numbers = range(400)
    taken(await send(client, adds(*numbers[:250]), key="k"), 250)
    page = await jobs.store.find(JobFilter(), limit=200)
    for job in page.jobs:
        await jobs.cancel(job.id)
    await jobs.store.prune({"add": Retention(cancelled=Keep(count=0))})
    assert len(await payloads(jobs)) == 50
    taken(await send(client, adds(*numbers), key="k"), 400, new=150)
    assert len(await payloads(jobs)) == 200
    taken(await send(client, adds(*numbers), key="other"), 400)


async def test_another_line_under_the_same_key_is_a_conflict(client, check, jobs):
    taken(await send(client, adds(1, 2, 3), key="k"), 3)
    problem = check.problem(await send(client, adds(1, 9, 3), key="k"), 409)
    assert (problem["taken"], problem["errors"][0]["line"]) == (1, 2)
    assert problem["type"].endswith(":idempotency-conflict")
    # An empty line is a line: those behind it have other numbers.
    check.problem(await send(client, body_of("", *adds(1, 2).decode().split("\n")), key="k"), 409)
    alone = {"kind": "add", "payload": {"a": 7, "b": 0}}
    headers = {"Idempotency-Key": "k"}
    check.problem(await client.post("/api/v1/jobs", json=alone, headers=headers), 409)
    assert await payloads(jobs) == [1, 2, 3]


async def test_secrets_do_not_count_as_a_change(client):
    def login(password):
        return json.dumps(
            {"kind": "login", "payload": {"user": "u", "password": password}}
        ).encode()

    taken(await send(client, login("one"), key="k"), 1)
    taken(await send(client, login("two"), key="k"), 1, new=0)


async def test_gzip_is_understood_also_in_several_members(client, jobs):
    packed = gzip.compress(adds(1, 2) + b"\n") + gzip.compress(adds(3))
    headers = NDJSON | {"content-encoding": "gzip"}

    async def one_by_one():
        for begin in range(len(packed)):
            yield packed[begin : begin + 1]

    for content in (packed, one_by_one()):
        taken(await client.post(STREAM, content=content, headers=headers), 3)
    assert await payloads(jobs) == [1, 2, 3, 1, 2, 3]


async def test_what_is_no_gzip_is_refused(client, check, jobs):
    headers = NDJSON | {"content-encoding": "gzip"}
    whole = gzip.compress(adds(1, 2, 3))
    for content in (b"plain", whole[:-9], whole + b"more", adds(1)):
        check.problem(await client.post(STREAM, content=content, headers=headers), 400)
    assert set(await payloads(jobs)) <= {1, 2, 3}
    for encoding in ("br", "gzip, gzip", "deflate"):
        headers = NDJSON | {"content-encoding": encoding}
        check.problem(await client.post(STREAM, content=whole, headers=headers), 415)


async def test_a_bomb_is_stopped_when_it_has_grown(options, ask_with, check):
    bomb = gzip.compress(b"\n" * 50_000_000)
    async with ask_with(dataclasses.replace(options, max_lines=1_000_000)) as client:
        headers = NDJSON | {"content-encoding": "gzip"}
        problem = check.problem(await client.post(STREAM, content=bomb, headers=headers), 413)
        assert "1,000,000" in problem["detail"]


async def test_a_stream_over_its_limit_tells_what_was_taken(options, ask_with, check, jobs):
    async def pieces():
        for number in range(400):
            yield adds(number) + b"\n"

    async with ask_with(dataclasses.replace(options, max_lines=10_000)) as client:
        declared = await send(client, b" " * 10_001)
        check.problem(declared, 413)
        problem = check.problem(await send(client, pieces()), 413)
        assert problem["taken"] == len(await payloads(jobs))


async def test_streams_may_be_larger_than_other_bodies(options, ask_with):
    async with ask_with(dataclasses.replace(options, max_body=100)) as client:
        taken(await send(client, adds(*range(50))), 50)


async def test_a_line_that_does_not_end_is_refused(client, check, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST_LINE", 1000)
    long = adds(1) + b"\n" + b" " * 1001

    async def pieces():
        for _ in range(20):
            yield b"x" * 100

    for content in (long, long + b"\n", pieces()):
        assert "longer than" in check.problem(await send(client, content), 413)["detail"]


async def test_silence_is_not_waited_for_for_ever(client, check, monkeypatch, jobs):
    monkeypatch.setattr(streams, "SILENCE", 0.05)

    async def stalls():
        yield adds(1) + b"\n"
        await asyncio.Event().wait()

    check.problem(await send(client, stalls()), 408)


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", ""])
async def test_bodies_of_another_type_are_refused(client, check, media_type):
    answer = await client.post(STREAM, content=adds(1), headers={"content-type": media_type})
    check.problem(answer, 415)


async def test_a_plain_body_may_not_be_compressed(client, check):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    packed = gzip.compress(adds(1))
    answer = await client.post("/api/v1/jobs", content=packed, headers=headers)
    check.problem(answer, 415)
    assert answer.headers["accept-encoding"] == "identity"


async def test_a_caller_has_only_so_many_streams(options, ask_with, check):
    first_is_in, go_on = asyncio.Event(), asyncio.Event()

    async def slowly():
        yield adds(1) + b"\n"
        first_is_in.set()
        await go_on.wait()
        yield adds(2)

    async with ask_with(dataclasses.replace(options, max_streams=1)) as client:
        under_way = asyncio.create_task(send(client, slowly()))
        await first_is_in.wait()
        refused = await send(client, adds(3))
        check.problem(refused, 429)
        assert refused.headers["retry-after"]
        go_on.set()
        taken(await under_way, 2)
        taken(await send(client, adds(3)), 1)
        # Also those that ended badly are over.
        for _ in range(3):
            check.problem(await send(client, b"{"), 422)
        taken(await send(client, adds(4)), 1)


async def test_streams_are_counted_for_each_caller():
    counted = Streams(1)
    with (
        counted.one("ada"),
        counted.one("grace"),
        pytest.raises(RateLimitError, match="at most 1"),
        counted.one("ada"),
    ):
        pass
    with counted.one("ada"):
        pass


async def test_a_connection_that_breaks_leaves_what_was_taken(jobs, api):
    """Nobody is left to answer to: the jobs of whole lines may be there, no half one is."""
    messages = [
        {"type": "http.request", "body": adds(1) + b"\n" + adds(2)[:20], "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return messages.pop(0)

    sent = []

    async def send_message(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": STREAM,
        "raw_path": STREAM.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/x-ndjson"),
            (b"transfer-encoding", b"chunked"),
        ],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
    }
    await api(scope, receive, send_message)
    assert await payloads(jobs) in ([], [1])
    assert sent[0]["status"] == 400


async def test_memory_stays_flat_however_large_the_payloads_are(client, monkeypatch, jobs):
    """The largest payloads that are allowed: 60 MB of them pass through a few at a time."""
    most = 0
    insert = jobs.store.insert

    async def watched(batch, **options):
        nonlocal most
        most = max(most, sum(len(job.payload) for job in batch))
        return await insert(batch, **options)

    monkeypatch.setattr(jobs.store, "insert", watched)
    line = json.dumps({"kind": "tell", "payload": {"value": "x" * 250_000}}).encode() + b"\n"

    async def pieces():
        for _ in range(240):
            yield line

    tracemalloc.start()
    try:
        taken(await send(client, pieces()), 240)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 6 << 20
    assert peak < 40 << 20
