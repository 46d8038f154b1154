"""The whole way: a real server, a real worker, a real store file, real proxies and pictures."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from PIL import Image

from haulier.cli.demo_proxies import Behaviour, DeadPort, DemoProxy
from haulier.domain.job import JobState
from haulier.stores.sqlite import SqliteStore
from support import wait_until


@pytest.fixture
async def store(tmp_path):
    async with SqliteStore(str(tmp_path / "haulier.db")) as store:
        yield store


@asynccontextmanager
async def served(api):
    config = uvicorn.Config(api, log_config=None, access_log=False, proxy_headers=False, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            await wait_until(lambda: server.started)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            try:
                async with httpx.AsyncClient(base_url=url) as client:
                    yield client
            finally:
                server.should_exit = True


async def finished(client, started):
    """The status of a batch once its finish callback has run, and what that has returned."""

    async def report():
        status = (await client.get(started["status_url"])).json()
        if not JobState(status["status"]).final or status["finish_job"] is None:
            return None
        job = (await client.get(f"/api/v1/jobs/{status['finish_job']}/status")).json()
        return (status, job["result"]) if JobState(job["status"]).final else None

    return await wait_until(report)


async def test_renditions_from_request_to_manifest(api, options, working):
    Image.effect_noise((200, 150), 50).save(options.media_root / "noise.png")
    (options.media_root / "torn.png").write_bytes(b"no picture at all")
    body = {
        "accounts": ["ann", "bob", "cem"],
        "sources": ["noise.png", "torn.png"],
        "output": "spring/run",
        "spec": "thumb",
        "watermark": {"text": "@{account}"},
    }
    async with served(api) as client, working():
        answer = await client.post("/api/v1/media-uniq/start", json=body)
        assert answer.status_code == 202, answer.text
        status, result = await finished(client, answer.json())
        items = (await client.get(f"/api/v1/jobs/{answer.json()['id']}/items")).json()["items"]
    assert status["counts"] | {"total": 6, "completed": 3, "failed": 3} == status["counts"]
    assert {item["result"]["account"] for item in items[:3]} == {"ann", "bob", "cem"}
    assert {item["error"]["type"] for item in items[3:]} == {"UnsupportedPictureError"}
    manifest = options.output_root / "spring" / "run" / "manifest.jsonl"
    assert result["manifest"] == str(manifest)
    assert len(manifest.read_text().splitlines()) == 6


async def test_proxies_are_judged_by_the_servers_own_echo(api, working):
    secret = "pass-canary-77"
    async with (
        served(api) as client,
        working(),
        DemoProxy(Behaviour(username="ann", password=secret)) as open_one,
        DemoProxy(Behaviour(headers=(("X-Forwarded-For", "{client}"),))) as revealing,
    ):
        with DeadPort() as dead:
            lines = [
                f"http://ann:{secret}@127.0.0.1:{open_one.port}",
                f"socks5://127.0.0.1:{revealing.port}",
                f"http://127.0.0.1:{revealing.port}",
                f"http://127.0.0.1:{dead.port}",
                f"socks5://ann:wrong-{secret}@127.0.0.1:{open_one.port}",
            ]
            body = {"proxies": lines, "tries": 2, "timeout": 3}
            answer = await client.post("/api/v1/proxy-diagnostics/start", json=body)
            assert answer.status_code == 202, answer.text
            _, summary = await finished(client, answer.json())
        job_id = answer.json()["id"]
        answers = [
            await client.get(f"/api/v1/jobs{path}")
            for path in ("?role=item", "?role=head", f"/{job_id}", f"/{job_id}/items")
        ]
        results = [item["result"] for item in answers[-1].json()["items"]]
        answers += [
            await client.get(f"/api/v1/jobs/{item['id']}") for item in answers[-1].json()["items"]
        ]
    assert [result["verdict"] for result in results] == [*["healthy"] * 3, "dead", "dead"]
    assert [result["exit_address"] for result in results[:3]] == ["127.0.0.1"] * 3
    assert results[2]["anonymity"] == "transparent"
    assert results[4]["error"] == "auth_refused"
    assert summary["verdicts"] == {"healthy": 3, "degraded": 0, "dead": 2}
    for answer in answers:
        assert answer.status_code == 200
        assert secret not in answer.text
        assert "$sealed" not in answer.text


async def test_limits_hold_on_a_real_connection(api, check):
    async def endless():
        for _ in range(30):
            yield b" " * 1_000_000

    async with served(api) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/api/v1/jobs", content=endless(), headers=headers)
        check.problem(answer, 413)
        host = {"host": "evil.example"}
        check.problem(await client.get("/echo", headers=host), 421)
        seen = (await client.get("/echo", headers={"x-forwarded-for": "203.0.113.9"})).json()
        assert seen["remote"] == "127.0.0.1"
