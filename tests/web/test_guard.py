"""Who is answered at all, how much is taken, and that nothing is told that should not be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path

import apsw
import httpx
import pytest
from starlette.responses import Response
from structlog.testing import capture_logs

from haulier.exceptions import (
    ConfigurationError,
    RateLimitError,
    StoreCorruptError,
    StoreFrozenError,
    StoreFullError,
    StoreUnavailableError,
)
from haulier.services.jobs import JobManager
from haulier.services.secrets import Sealer
from haulier.stores.sqlite import SqliteStore
from haulier.web.app import WebOptions, create_app
from haulier.web.authority import Authority
from haulier.web.diary import Diary
from haulier.web.guard import Guard
from haulier.web.problems import MAX_ERRORS

JSON = {"content-type": "application/json"}


def guarded(app):
    """An application that is not ours behind a guard that asks nobody."""
    here = Path("nowhere")
    options = WebOptions(media_root=here, output_root=here, version="9", max_body=10, no_token=True)
    return Guard(app, options=options, authority=Authority(None), diary=Diary(None))


UNKNOWN = "/api/v1/jobs/01890000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8470", "127.0.0.1", "127.0.0.1:1", "127.8.0.1:9", "[::1]", "[::1]:80"],
)
async def test_loopback_hosts_are_answered(client, host):
    assert (await client.get("/api/v1/health", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8470",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "0.0.0.0",
        "192.168.0.1",
        "[::]",
        "::1",
        "localhost:",
        "localhost:8470\u00b2",
        "",
    ],
)
async def test_other_hosts_are_misdirected(client, check, host):
    for path in ("/api/v1/health", "/echo", "/api/v1/openapi.json", "/nothing"):
        answer = await client.get(path, headers={"host": host.encode("latin-1")})
        check.problem(answer, 421)


async def test_two_hosts_are_misdirected(client, check):
    headers = [("host", "localhost"), ("host", "evil.example")]
    check.problem(await client.get("/api/v1/health", headers=headers), 421)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:81", "http://localhost", "", "127.0.0.1"],
)
async def test_pages_of_other_origins_change_nothing(client, check, jobs, origin):
    job_id = await jobs.enqueue("add", {"a": 1, "b": 2}, {})
    headers = {"origin": origin}
    for method, path in (("POST", "/stop"), ("POST", "/retry"), ("DELETE", "")):
        answer = await client.request(method, f"/api/v1/jobs/{job_id}{path}", headers=headers)
        check.problem(answer, 403)
    assert (await client.get(f"/api/v1/jobs/{job_id}", headers=headers)).status_code == 200
    assert (await jobs.store.get(job_id)).state == "pending"


async def test_a_page_of_our_own_may_change_things(client, jobs):
    job_id = await jobs.enqueue("add", {"a": 1, "b": 2}, {})
    headers = {"origin": "http://LOCALHOST:8470", "host": "localhost:8470"}
    answer = await client.post(f"/api/v1/jobs/{job_id}/stop", headers=headers)
    assert answer.status_code == 202


async def chunks(size):
    for _ in range(size // 1000):
        yield b" " * 1000


async def test_a_body_over_the_limit_is_refused(options, ask_with, check):
    limited = dataclasses.replace(options, max_body=10_000)
    async with ask_with(limited) as client:
        for path in ("/api/v1/jobs", "/api/v1/media-uniq/start", "/api/v1/proxy-diagnostics/start"):
            declared = await client.post(path, content=b" " * 10_001, headers=JSON)
            check.problem(declared, 413)
            streamed = await client.post(path, content=chunks(11_000), headers=JSON)
            assert "content-length" not in streamed.request.headers
            assert "10,000" in check.problem(streamed, 413)["detail"]
            check.problem(await client.post(path, content=chunks(10_000), headers=JSON), 400)


async def test_a_false_or_absurd_length_does_not_lift_the_limit(options, ask_with, check):
    async with ask_with(dataclasses.replace(options, max_body=10_000)) as client:
        for length in ("5", "-1", "x", "9" * 5000):
            headers = JSON | {"content-length": length}
            answer = await client.post("/api/v1/jobs", content=chunks(11_000), headers=headers)
            check.problem(answer, 413)


async def test_the_usual_limit_is_20_mib(options):
    assert options.max_body == 20 * 1024 * 1024


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml+json", ""]
)
async def test_bodies_that_are_not_json_are_refused(client, check, media_type):
    body = json.dumps({"kind": "add", "payload": {"a": 1, "b": 2}})
    answer = await client.post("/api/v1/jobs", content=body, headers={"content-type": media_type})
    check.problem(answer, 415)


async def test_json_may_name_its_charset(client):
    answer = await client.post(
        "/api/v1/jobs",
        content=json.dumps({"kind": "add", "payload": {"a": 1, "b": 2}}),
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert answer.status_code == 201


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 5000, b"'x'"])
async def test_malformed_json_is_a_bad_request(client, check, body):
    check.problem(await client.post("/api/v1/jobs", content=body, headers=JSON), 400)


async def test_fields_that_cannot_be_encoded_are_still_told(client, check):
    body = b'{"kind": "add", "\\ud800": 1, "\\u2028": 2}'
    check.refused(await client.post("/api/v1/batches", content=body, headers=JSON))
    check.problem(await client.post("/api/v1/jobs", content=body, headers=JSON), 400)


async def test_unknown_addresses_and_methods_are_problems(client, check):
    for path in ("/", "/api/v1", "/api/v1/health/", "/docs", "/redoc", "/echo/", "/api/v1/jobs//"):
        check.problem(await client.get(path), 404)
    for path, allowed in (
        ("/api/v1/jobs", "GET, POST"),
        (UNKNOWN, "DELETE, GET"),
        ("/api/v1/media-uniq/start", "POST"),
        ("/echo", "GET, HEAD"),
    ):
        answer = await client.put(path)
        check.problem(answer, 405)
        assert answer.headers["allow"] == allowed


async def test_the_echo_describes_the_request(client):
    seen = (await client.get("/echo", headers={"x-test": "yes", "cookie": "c=1"})).json()
    assert (seen["remote"], seen["path"]) == ("127.0.0.1", "/echo")
    assert (seen["headers"]["x-test"], seen["headers"]["cookie"]) == ("yes", "******")


class FaultyStore(SqliteStore):
    """A store whose reads and inserts fail as they are told to."""

    fault: Exception | None = None

    def fail(self):
        if self.fault is not None:
            raise self.fault

    async def get(self, job_id):
        self.fail()
        return await super().get(job_id)

    async def counts(self):
        self.fail()
        return await super().counts()

    async def insert(self, jobs, **options):
        self.fail()
        return await super().insert(jobs, **options)


@pytest.fixture
async def store():
    async with FaultyStore(":memory:") as store:
        yield store


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (StoreFullError("no space left on /secret/path"), 507, None),
        (StoreUnavailableError("locked: /secret/path"), 503, "5"),
        (StoreCorruptError("/secret/path is no database"), 503, None),
        (StoreFrozenError("the store was moved to /secret/path"), 503, "30"),
        (RateLimitError("slowly"), 429, "5"),
    ],
)
async def test_a_store_that_fails_is_told_without_its_details(
    client, check, store, error, status, retry_after
):
    store.fault = error
    with capture_logs() as logs:
        answers = [
            await client.get(UNKNOWN),
            await client.post("/api/v1/jobs", json={"kind": "add", "payload": {"a": 1, "b": 2}}),
        ]
    for answer in answers:
        check.problem(answer, status)
        assert answer.headers.get("retry-after") == retry_after
        assert "/secret/path" not in answer.text
    logged = [entry["request"] for entry in logs]
    assert logged == ([a.headers["x-request-id"] for a in answers] if status >= 500 else [])


@pytest.mark.parametrize("error", [StoreFullError("full"), StoreCorruptError("broken")])
async def test_health_is_unavailable_when_the_store_fails(client, check, store, error):
    store.fault = error
    check.problem(await client.get("/api/v1/health"), 503)


async def test_a_closed_store_is_unavailable(registry, options, check):
    async with SqliteStore(":memory:") as store:
        pass
    closed = create_app(jobs=JobManager(store, registry, Sealer(bytes)), options=options)
    transport = httpx.ASGITransport(app=closed)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        check.problem(await client.get("/api/v1/health"), 503)
        check.problem(await client.get(UNKNOWN), 503)


@pytest.mark.parametrize(
    "error", [RuntimeError("canary-detail"), ConfigurationError("canary-detail"), KeyError("x")]
)
async def test_an_unexpected_error_is_logged_and_not_told(client, check, store, error):
    store.fault = error
    with capture_logs() as logs:
        answer = await client.get(UNKNOWN)
    body = check.problem(answer, 500)
    assert body == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    [entry] = logs
    assert (entry["event"], entry["log_level"]) == ("request failed", "error")
    assert entry["request"] == answer.headers["x-request-id"]
    assert entry["exc_info"]


async def test_an_answer_that_breaks_half_way_breaks_the_connection():
    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("canary")

    transport = httpx.ASGITransport(app=guarded(half))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        with capture_logs() as logs, pytest.raises(RuntimeError):
            await client.get("/")
    assert [entry["event"] for entry in logs] == ["request failed"]


async def test_the_lifespan_passes_unchanged():
    seen = []

    async def inner(scope, receive, send):
        seen.append((scope["type"], receive, send))

    guard = guarded(inner)
    await guard({"type": "lifespan"}, "receive", "send")
    assert seen == [("lifespan", "receive", "send")]


async def test_a_body_that_nobody_reads_is_not_counted():
    async def deaf(scope, receive, send):
        await Response("ok")(scope, receive, send)

    transport = httpx.ASGITransport(app=guarded(deaf))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.post("/", content=chunks(5000), headers=JSON)
    assert answer.status_code == 200


async def test_no_more_errors_are_told_than_can_be_read(client, check):
    body = {"proxies": [5] * (MAX_ERRORS + 7)}
    answer = await client.post("/api/v1/proxy-diagnostics/start", json=body)
    problem = check.problem(answer, 422)
    assert (len(problem["errors"]), problem["errors_omitted"]) == (MAX_ERRORS, 7)


async def test_input_is_not_echoed_in_any_refusal(client):
    canary = "hunter2-canary"
    bodies = {
        "/api/v1/jobs": [
            {"kind": "login", "payload": {"user": 5, "password": [canary]}},
            {"kind": "login", "payload": {"user": "u", "password": {"deep": canary}}},
            {"kind": "add", "payload": {"a": canary, "b": canary}},
            {"kind": "add", "payload": canary, "run_at": canary, "priority": canary, "id": canary},
            canary,
        ],
        "/api/v1/proxy-diagnostics/start": [
            {"proxies": [f"http://user:{canary}@", f"{canary}:x:y", f"ftp://{canary}@h:1"]},
            {"proxies_csv": f"host,port,username,password\nh,{canary},u,{canary}\n"},
            {"proxies_csv": f"host,port,{canary}\nh,1,2\n"},
            {"proxies": {"password": canary}, "tries": canary},
        ],
        "/api/v1/media-uniq/start": [
            {"accounts": ["a"], "sources": [canary, f"/{canary}", f"../{canary}"], "output": "x"},
            {"accounts_csv": f'account\n"{canary}\n{canary}\n{canary}\n', "sources": ["sea.png"]},
            {"accounts": [canary, canary], "sources": ["sea.png"], "output": "x"},
            {"accounts": canary, "sources": canary, "output": [canary], "watermark": canary},
            {"accounts": ["a"], "sources": ["sea.png"], "output": "x", "spec": {"name": canary}},
        ],
    }
    for path, cases in bodies.items():
        for body in cases:
            answer = await client.post(path, json=body)
            assert answer.status_code == 422, answer.text
            assert canary not in answer.text
            assert canary not in str(answer.headers)


async def test_a_store_that_does_not_answer_is_told_within_the_deadline(
    tmp_path, registry, options, check
):
    path = tmp_path / "jobs.db"
    async with SqliteStore(str(path)) as store:
        hasty = dataclasses.replace(options, deadline=0.3)
        api = create_app(jobs=JobManager(store, registry, Sealer(bytes)), options=hasty)
        transport = httpx.ASGITransport(app=api)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            with contextlib.closing(apsw.Connection(str(path))) as other:
                other.execute("BEGIN IMMEDIATE")
                began = time.monotonic()
                answer = await client.post("/api/v1/jobs", json={"kind": "linger"})
                assert time.monotonic() - began < 4
            check.problem(answer, 503)
            assert answer.headers["Retry-After"] == "5"
