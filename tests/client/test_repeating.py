"""What the clients do when an answer is an error, late, lost, or none."""

from __future__ import annotations

import asyncio
import socket

import pytest

from haulier import exceptions
from haulier.client import AsyncClient, Client, Server
from haulier.client.faults import BY_NAME, URN
from haulier.exceptions import (
    AuthenticationError,
    ConfigurationError,
    DuplicateJobError,
    IdempotencyConflictError,
    JobNotFoundError,
    JobTimeoutError,
    RateLimitError,
    ResourceNotAvailableError,
    StoreFrozenError,
    StoreUnavailableError,
    ValidationError,
)
from haulier.web.problems import PROBLEMS

AWAY = {"type": f"{URN}store-unavailable", "title": "The store cannot be reached", "status": 503}


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
async def test_each_problem_is_the_error_it_was(connect, server, kind):
    row = PROBLEMS[kind]
    errors = [{"field": "payload.a", "reason": "is missing", "line": 3}]
    body = {"type": f"{URN}{row.name}", "title": row.title, "status": row.status}
    client = connect(server.url, retries=0)
    server.faults.say(row.status, {**body, "detail": "so", "job_id": "j", "errors": errors})
    with pytest.raises(kind) as caught:
        await client.job("j")
    assert type(caught.value) is kind
    if isinstance(caught.value, ValidationError):
        assert caught.value.problems == (exceptions.Problem("payload.a", "is missing", 3),)
    if isinstance(caught.value, DuplicateJobError):
        assert caught.value.job_id == "j"


def test_no_name_of_a_problem_is_unknown_to_the_server():
    assert {row.name for row in PROBLEMS.values()} == BY_NAME.keys()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, ConfigurationError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, ConfigurationError),
        (413, ValidationError),
        (429, RateLimitError),
        (500, ResourceNotAvailableError),
        (502, StoreUnavailableError),
    ],
)
async def test_what_stands_in_between_answers_too(connect, server, status, kind):
    server.faults.say(status, location="http://elsewhere.example/")
    with pytest.raises(kind):
        await connect(server.url, retries=0).health()
    assert len(server.faults.seen) == 1


async def test_no_haulier_server(connect, server):
    server.faults.say(200, ["nothing", "of", "ours"])
    with pytest.raises(ConfigurationError, match="no haulier server"):
        await connect(server.url).job("j")


async def test_refused_input_names_its_fields(client):
    with pytest.raises(ValidationError) as caught:
        await client.enqueue("add", {"a": "many"}, delay=-1)
    assert {problem.field for problem in caught.value.problems} == {"delay"}
    with pytest.raises(ValidationError) as caught:
        await client.enqueue("add", {"a": "many"})
    assert {problem.field for problem in caught.value.problems} == {"payload.a", "payload.b"}
    assert any(note.startswith("request ") for note in caught.value.__notes__)
    with pytest.raises(exceptions.InvalidTaskTypeError):
        await client.enqueue("nonsense")
    with pytest.raises(ValidationError, match="not JSON"):
        await client.enqueue("add", {"a": object()})
    with pytest.raises(ValidationError, match="no such start"):
        await client.start("nonsense", task_id=1)
    with pytest.raises(ResourceNotAvailableError):
        await client.start("warmup", task_id=1)
    for name in ("", ".", ".."):
        with pytest.raises(ValidationError):
            await client.job(name)
    with pytest.raises(JobNotFoundError):
        await client.job("queues?x=1#y")
    with pytest.raises(ConfigurationError):
        await client.job("../queues")


async def test_a_busy_server_is_asked_again_and_not_for_ever(connect, server):
    client = connect(server.url, retries=2)
    for _ in range(2):
        server.faults.say(503, AWAY, retry_after="0")
    assert (await client.enqueue("add", {"a": 1, "b": 2})).id
    keys = {seen["idempotency-key"] for seen in server.faults.seen}
    assert len(server.faults.seen) == 3
    assert len(keys) == 1
    server.faults.seen.clear()
    for _ in range(3):
        server.faults.say(503, AWAY, retry_after="0")
    with pytest.raises(StoreUnavailableError):
        await client.queues()
    assert len(server.faults.seen) == 3


async def test_a_limit_is_waited_for_but_not_for_long(connect, server):
    client = connect(server.url, patience=1)
    server.faults.say(429, retry_after="0")
    assert (await client.health()).version == "9.9"
    server.faults.say(429, retry_after="2")
    with pytest.raises(RateLimitError) as caught:
        await client.health()
    assert caught.value.retry_after == 2
    frozen = {"type": f"{URN}store-frozen", "title": "The store is being moved", "status": 503}
    server.faults.say(503, frozen, retry_after="30")
    with pytest.raises(StoreFrozenError):
        await client.health()


async def test_what_may_have_been_done_is_not_done_twice(client, server):
    server.faults.say(503, AWAY, retry_after="0")
    with pytest.raises(StoreUnavailableError):
        await client.run_schedule("nightly")
    assert len(server.faults.seen) == 1


async def test_a_lost_answer_enqueues_once(connect, server):
    client = connect(server.lossy_url)
    server.wire.losing = 1
    started = await client.enqueue("add", {"a": 1, "b": 2})
    assert server.wire.lost == 1
    assert len(server.faults.seen) == 2
    assert [job.id for job in await client.jobs()] == [started.id]


async def test_lines_whose_answer_was_lost_are_taken_once(connect, server):
    client = connect(server.lossy_url)
    server.wire.losing = 1
    taken = await client.stream_jobs([{"kind": "add", "payload": {"a": 1, "b": 2}}] * 3)
    assert server.wire.lost == 1
    assert (taken.taken, taken.new) == (3, 0)
    assert len(await client.jobs()) == 3
    server.wire.losing = 1
    with pytest.raises(StoreUnavailableError):
        await client.stream_jobs(iter([{"kind": "add", "payload": {"a": 1, "b": 2}}]))


async def test_what_a_lost_answer_deleted_is_gone(connect, server):
    client = connect(server.lossy_url)
    started = await client.enqueue("add", {"a": 1, "b": 2})
    await client.stop(started.id)
    server.wire.losing = 1
    assert await client.delete(started.id) is None
    assert server.wire.lost == 1
    with pytest.raises(JobNotFoundError):
        await client.delete(started.id)


async def test_a_key_of_ones_own_finds_the_same_job(client):
    first = await client.enqueue("add", {"a": 1, "b": 2}, idempotency_key="k")
    assert await client.enqueue("add", {"a": 1, "b": 2}, idempotency_key="k") == first
    with pytest.raises(IdempotencyConflictError) as caught:
        await client.enqueue("add", {"a": 1, "b": 3}, idempotency_key="k")
    assert caught.value.job_id == first.id
    with pytest.raises(DuplicateJobError):
        for _ in range(2):
            unique = {"by": "once", "conflict": "reject"}
            await client.enqueue("add", {"a": 1, "b": 2}, unique=unique)


async def test_a_broken_stream_of_events_goes_on_where_it_was(connect, server):
    client = connect(server.lossy_url)
    made = [(await client.enqueue("add", {"a": n, "b": 0})).id for n in range(3)]
    first = (await client.history())[0]
    server.faults.say(503, AWAY, retry_after="0")
    server.wire.losing = 1
    events = await client.events(after=first.cursor, first=2)
    assert [event.data["job_id"] for event in events] == made[1:]
    last_ids = [seen.get("last-event-id") for seen in server.faults.seen]
    assert last_ids[-1] == first.cursor


async def test_nobody_listens(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(StoreUnavailableError, match=url):
        await connect(url, retries=1).health()


async def test_a_wait_ends_with_its_time(client):
    started = await client.enqueue("add", {"a": 1, "b": 2})
    with pytest.raises(JobTimeoutError, match="not done within"):
        await client.wait(started.id, timeout=0.1)


async def test_tokens(client, connect, server):
    assert (await client.me()).credential == "local"
    made = await client.create_token("viewer", "ada", expires="1h")
    assert made.token not in repr(made)
    assert [token.id for token in await client.tokens()] == [made.id]
    viewer = connect(server.url, token=made.token)
    assert (await viewer.me()).name == "ada"
    assert await viewer.jobs() == []
    with pytest.raises(AuthenticationError):
        await viewer.enqueue("add", {"a": 1, "b": 2})
    assert await client.revoke(made.id) is None
    assert await client.sessions() == ()
    bad = connect(server.url, token=f"{made.token[:-1]}_")
    with pytest.raises(AuthenticationError) as caught:
        await bad.jobs()
    assert made.token[:-1] not in str(caught.value)

    async def told():
        return {entry.action for entry in await client.audit()}

    assert {"token.create", "token.revoke"} <= await told()


async def test_the_server_and_the_token_come_from_the_environment(connect, server, monkeypatch):
    monkeypatch.setenv("HAULIER_SERVER", f"{server.url}/")
    monkeypatch.setenv("HAULIER_TOKEN", "hlr_secret")
    # What proxies the environment names is not for the token.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    client = connect("")
    with pytest.raises(AuthenticationError):
        await client.jobs()
    assert server.faults.seen[-1]["authorization"] == "Bearer hlr_secret"
    for shown in (repr(client.client), repr(client.client.server), str(vars(client.client))):
        assert "hlr_secret" not in shown


@pytest.mark.parametrize(
    "options",
    [
        {"url": "ftp://host"},
        {"url": "host:80"},
        {"url": "http://ada:secret@host"},
        {"url": "http://host/?x=1"},
        {"url": "http://host", "token": "a\nb"},
    ],
)
def test_addresses_and_tokens_that_are_none(options):
    with pytest.raises(ConfigurationError) as caught:
        Server(**options)
    assert "secret" not in str(caught.value)


async def test_both_are_context_managers(server):
    with Client(server.url) as client:
        assert (await asyncio.to_thread(client.health)).version == "9.9"
    async with AsyncClient(server.url) as client:
        assert (await client.health()).version == "9.9"
