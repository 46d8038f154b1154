"""The servers of the tests themselves: they start, survive their own death, and leave nothing."""

from __future__ import annotations

import psycopg
import pytest
import redis

import servers


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
