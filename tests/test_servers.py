"""The servers of the tests themselves: they start, survive their own death, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis

import servers
from nursery import alive
from support import wait_until

RUN = """
import time, servers

def test_that_never_ends():
    with servers.private("{name}") as private:
        shared = servers.shared("{name}")
        for server in (private, shared):
            print("server", server.pid, server.folder, flush=True)
        print("ready", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("name", ["postgres", "postgres-wheel"])
def test_postgres_keeps_what_was_committed_when_it_is_killed(name):
    with servers.or_skip(), servers.private(name) as server:
        with psycopg.connect(server.url) as db:
            db.execute("CREATE TABLE kept AS SELECT 7 AS n")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url)
        server.start()
        with psycopg.connect(server.url) as db:
            assert db.execute("SELECT n FROM kept").fetchone() == (7,)
    assert not server.folder.exists()


@pytest.mark.parametrize("name", ["redis", "valkey"])
def test_redis_keeps_what_it_wrote_when_it_is_killed(name):
    with servers.or_skip(), servers.private(name) as server:
        client = redis.Redis(port=server.port)
        client.set("kept", 7)
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert client.get("kept") == b"7"
        client.close()
    assert not server.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name)
@pytest.mark.parametrize("name", ["postgres", "redis"])
async def test_they_end_with_a_run_that_is_killed(tmp_path, name, number):
    with servers.or_skip():
        _ = servers.any_postgres() if name == "postgres" else servers.any_redis()
    (tmp_path / "test_run.py").write_text(RUN.format(name=name))
    tests = Path(__file__).parent
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider"),
            *("-c", str(tests.parent / "pyproject.toml"), str(tmp_path / "test_run.py")),
        ],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests, *sys.path)))},
        text=True,
    )
    try:
        found = []
        while "ready" not in (line := run.stdout.readline()):
            assert line, "it ended before it was ready"
            if line.lstrip(".").startswith("server "):
                _, pid, folder = line.split()
                found.append((int(pid), Path(folder)))
        assert len(found) == 2
        assert all(alive(pid) and folder.exists() for pid, folder in found)
    finally:
        run.send_signal(number)
        run.communicate()
    await wait_until(lambda: not any(alive(pid) or folder.exists() for pid, folder in found))
