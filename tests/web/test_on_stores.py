"""What the API promises of streams and keys, on every store; and what a break leaves."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import uvicorn

from haulier.ports import JobFilter, pages
from support import Hand, wait_until

UNKNOWN = "01890000-0000-7000-8000-000000000000"
NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture
async def store(home):
    async with home.client(real_time=True) as store:
        yield store


@pytest.fixture
def options(options):
    """A busy machine takes longer over a thousand keys than a caller should wait for one job."""
    return dataclasses.replace(options, deadline=30.0)


def adds(numbers):
    return "".join(
        json.dumps({"kind": "add", "payload": {"a": number, "b": 0}}) + "\n" for number in numbers
    ).encode()


async def payloads(jobs):
    return Counter([json.loads(job.payload)["a"] async for job in pages(jobs.store, JobFilter())])


def once(numbers):
    return Counter(dict.fromkeys(numbers, 1))


async def test_a_repeated_stream_doubles_nothing(client, check, jobs):
    headers = NDJSON | {"Idempotency-Key": "k"}
    for count, new in ((300, 300), (700, 400), (700, 0)):
        content = adds(range(count))
        answer = await client.post("/api/v1/jobs/stream", content=content, headers=headers)
        assert answer.json() == {"taken": count, "new": new, "skipped": 0, "errors": []}
    other = adds([*range(500), -1])
    problem = check.problem(
        await client.post("/api/v1/jobs/stream", content=other, headers=headers), 409
    )
    assert (problem["taken"], problem["errors"][0]["line"]) == (500, 501)
    assert await payloads(jobs) == once(range(700))


async def test_many_are_there_once_or_not_at_all(client, check, jobs):
    body = {"jobs": [{"kind": "add", "payload": {"a": n, "b": 0}} for n in range(1000)]}
    headers = {"Idempotency-Key": "k"}
    first = await client.post("/api/v1/jobs/many", json=body, headers=headers)
    again = await client.post("/api/v1/jobs/many", json=body, headers=headers)
    assert (first.status_code, again.json()) == (201, first.json())
    body["jobs"][999]["payload"]["a"] = -1
    check.problem(await client.post("/api/v1/jobs/many", json=body, headers=headers), 409)
    body["jobs"][999]["after"] = ["0199b2d2-6c6e-7cc1-b8a4-6f2f3c1d8a10"]
    check.refused(await client.post("/api/v1/jobs/many", json=body))
    assert await payloads(jobs) == once(range(1000))


async def test_items_are_streamed_exported_and_not_doubled(client, check, jobs, working):
    body = {"kind": "only_even", "on_finish": "tell_end"}
    headers = {"Idempotency-Key": "k"}
    batch_id = (await client.post("/api/v1/batches", json=body, headers=headers)).json()["id"]
    again = (await client.post("/api/v1/batches", json=body, headers=headers)).json()["id"]
    assert again == batch_id
    lines = "".join(f'{{"number": {2 * number}}}\n' for number in range(450)).encode()
    for new in (450, 0):
        answer = await client.post(
            f"/api/v1/batches/{batch_id}/items", content=lines, headers=NDJSON | headers
        )
        assert answer.json()["new"] == new
    async with working():
        await client.post(f"/api/v1/batches/{batch_id}/seal")
        await jobs.wait(batch_id, timeout=30)
    whole = (await client.get(f"/api/v1/batches/{batch_id}/export")).text.splitlines()
    rows = [json.loads(line) for line in whole]
    assert [row["result"] for row in rows] == [2 * number for number in range(450)]
    query = {"cursor": rows[200]["cursor"]}
    rest = await client.get(f"/api/v1/batches/{batch_id}/export", params=query)
    assert rest.text.splitlines() == whole[201:]
    [listed] = (await client.get("/api/v1/batches")).json()["batches"]
    assert (listed["id"], listed["counts"]["completed"]) == (batch_id, 450)


async def test_a_batch_that_its_own_task_fills_takes_no_items(client, check, jobs, store):
    payload = {"proxies": [{"host": "127.0.0.1", "port": 9}], "check_url": "http://127.0.0.1:9/"}
    batch_id = await jobs.enqueue("proxy_diagnostics", payload, {})
    path = f"/api/v1/batches/{batch_id}/items"
    check.problem(await client.post(path, content=b"{}", headers=NDJSON), 409)
    hand = await Hand.enlist(store, kinds=["proxy_diagnostics"])
    assert (await hand.claim_one()).id == batch_id
    check.problem(await client.post(path, content=b"{}", headers=NDJSON), 409)
    assert sum((await store.counts()).values()) == 1


async def test_an_unknown_place_in_the_list_of_batches_is_no_fault(client):
    for query in ({"cursor": UNKNOWN}, {"within": UNKNOWN}):
        answer = await client.get("/api/v1/batches", params=query)
        assert answer.json() == {"batches": [], "next": None}


@asynccontextmanager
async def served(api):
    config = uvicorn.Config(api, log_config=None, access_log=False, proxy_headers=False, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            await wait_until(lambda: server.started)
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True


async def test_a_broken_connection_leaves_a_beginning_and_a_repeat_the_rest(client, api, jobs):
    numbers = range(5000)
    content = adds(numbers)
    head = (
        "POST /api/v1/jobs/stream HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: "
        f"application/x-ndjson\r\nidempotency-key: k\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    async with served(api) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + content[: len(content) // 2])
        await writer.drain()
        await wait_until(jobs.store.counts)
        writer.transport.abort()
    there = await payloads(jobs)
    assert there == once(range(len(there)))
    assert 0 < len(there) <= 2600
    headers = NDJSON | {"Idempotency-Key": "k"}
    answer = await client.post("/api/v1/jobs/stream", content=content, headers=headers)
    assert answer.json()["new"] == len(numbers) - len(there)
    assert await payloads(jobs) == once(numbers)
