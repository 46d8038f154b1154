"""`haulier serve` and who gets in, as real processes."""

from __future__ import annotations

import contextlib
import re
import signal
import time

import httpx
import pytest

from processes import haulier, haulier_json, running
from support import wait_until

USAGE = 2


@contextlib.asynccontextmanager
async def served(folder, *flags):
    with running(folder, "serve", "--port", "0", *flags) as server:
        found = await wait_until(
            lambda: re.search(r"serves http://(\S+?):(\d+)", server.says()), 60
        )
        yield server, f"http://127.0.0.1:{found[2]}"


def token_of(folder, role="admin", *more):
    return haulier_json(folder, "token", "create", "--role", role, "--name", role, *more)


def bearer(made):
    return {"authorization": f"Bearer {made['token']}"}


class TestBinding:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
    def test_where_others_could_come_in_without_a_token_it_does_not_start(self, tmp_path, host):
        done = haulier(tmp_path, "serve", "--port", "0", "--host", host)
        assert done.returncode == USAGE
        assert "haulier token create" in done.stderr
        done = haulier(tmp_path, "serve", "--port", "0", "--host", host, "--no-token")
        assert done.returncode == USAGE
        assert "--no-token lets everybody in" in done.stderr

    def test_a_token_that_is_good_no_longer_is_none(self, tmp_path):
        haulier(tmp_path, "token", "revoke", token_of(tmp_path)["id"])
        done = haulier(tmp_path, "serve", "--port", "0", "--host", "0.0.0.0")
        assert done.returncode == USAGE

    async def test_with_a_token_it_listens_anywhere_and_answers_by_its_names(self, tmp_path):
        made = token_of(tmp_path)
        flags = ("--host", "0.0.0.0", "--public-host", "jobs.example")
        async with (
            served(tmp_path, *flags) as (_, url),
            httpx.AsyncClient(base_url=url, headers=bearer(made)) as client,
        ):
            for host, status in (("jobs.example", 200), ("evil.example", 421)):
                answer = await client.get("/api/v1/session", headers={"host": host})
                assert answer.status_code == status

    def test_names_that_are_none_are_refused(self, tmp_path):
        for name in ("http://x", "x:80", "", "a b"):
            done = haulier(tmp_path, "serve", "--no-token", "--port", "0", "--public-host", name)
            assert done.returncode == USAGE, name


async def test_on_loopback_nobody_gets_in_either_without_a_token(tmp_path):
    async with served(tmp_path) as (server, url), httpx.AsyncClient(base_url=url) as client:
        assert "haulier token create" in server.says()
        assert (await client.get("/api/v1/health")).json() == {"status": "ok"}
        assert (await client.get("/api/v1/jobs")).status_code == 401
        made = token_of(tmp_path)
        assert (await client.get("/api/v1/jobs", headers=bearer(made))).status_code == 200
    async with (
        served(tmp_path, "--no-token") as (_, url),
        httpx.AsyncClient(base_url=url) as client,
    ):
        assert (await client.get("/api/v1/session")).json()["credential"] == "local"


async def test_a_revoked_token_is_out_within_five_seconds_also_on_open_streams(tmp_path):
    made = token_of(tmp_path, "viewer")
    async with (
        served(tmp_path) as (_, url),
        httpx.AsyncClient(base_url=url, headers=bearer(made), timeout=30) as client,
        client.stream("GET", "/api/v1/events/stream") as stream,
    ):
        assert stream.status_code == 200
        lines = stream.aiter_lines()
        await anext(lines)
        revoked = haulier(tmp_path, "token", "revoke", made["id"])
        assert revoked.returncode == 0
        since = time.monotonic()
        with contextlib.suppress(httpx.RemoteProtocolError):
            async for _ in lines:
                pass
        assert time.monotonic() - since < 5
        assert (await client.get("/api/v1/jobs")).status_code == 401


async def test_what_was_done_is_in_the_log_after_a_stop(tmp_path):
    made = token_of(tmp_path)
    async with (
        served(tmp_path) as (server, url),
        httpx.AsyncClient(base_url=url, headers=bearer(made)) as client,
    ):
        for _ in range(20):
            await client.post("/api/v1/jobs/nobody/stop")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    entries = haulier_json(tmp_path, "audit")["entries"]
    stops = [each for each in entries if each["action"] == "POST /api/v1/jobs/{job_id}/stop"]
    assert len(stops) == 20
    assert {each["who"] for each in stops} == {"admin"}
    assert haulier(tmp_path, "audit", "--verify").returncode == 0


async def test_a_token_is_in_nothing_that_is_logged(tmp_path):
    made = token_of(tmp_path)
    async with (
        served(tmp_path, "--log-level", "debug", "--log-format", "json") as (server, url),
        httpx.AsyncClient(base_url=url, headers=bearer(made)) as client,
    ):
        for path in ("/api/v1/jobs", "/api/v1/jobs/nobody", "/nothing"):
            await client.get(path)
        link = haulier(tmp_path, "token", "link", "--url", url).stdout.strip()
        code = link.partition("#")[2]
        assert (await client.post("/api/v1/session", json={"link": code})).status_code == 201
        said = server.says()
    for secret in (made["token"], code):
        assert secret.split("_")[2] not in said
