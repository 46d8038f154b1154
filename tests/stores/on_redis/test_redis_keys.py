"""URLs, the key map, and the driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from haulier.domain.ids import uuid7
from haulier.domain.job import MICROSECOND
from haulier.exceptions import (
    ConfigurationError,
)
from haulier.stores import open_store
from haulier.stores.redis import RedisStore
from haulier.stores.redis.address import Address
from haulier.stores.redis.keys import KEYS, family_of
from redis_keys import Keyspace, check
from support import TTL, Hand, work

SECRET = "s3cret-word"


class TestAddress:
    """URLs, and what they must not show."""

    @pytest.mark.parametrize(
        ("url", "arguments"),
        [
            ("redis://h", {"host": "h", "port": 6379, "db": 0}),
            ("redis://h:7/3", {"host": "h", "port": 7, "db": 3}),
            ("redis://[::1]:7?db=2", {"host": "::1", "port": 7, "db": 2}),
            ("redis://u:p%40w@h/", {"username": "u", "password": "p@w", "host": "h"}),
            ("redis://:pw@h", {"username": None, "password": "pw"}),
            ("rediss://h?ssl_ca_certs=/ca.pem", {"host": "h", "ssl_ca_certs": "/ca.pem"}),
            ("unix:///run/r.sock?db=1", {"path": "/run/r.sock", "db": 1}),
            ("redis+unix://u:pw@/run/r.sock", {"path": "/run/r.sock", "password": "pw"}),
            ("redis+sentinel://a,b:7/main/2", {"db": 2}),
        ],
    )
    def test_it_names_a_place(self, url, arguments):
        address = Address.of(url)
        assert {name: address.arguments[name] for name in arguments} == arguments
        assert "pw" not in address.text.replace("p%40w", "pw")
        assert "pw" not in repr(address)

    def test_sentinels_and_options(self):
        address = Address.of("redis+sentinel://a,b:7/main?prefix=x:&durability=none&connections=4")
        assert (address.sentinels, address.service) == ((("a", 26379), ("b", 7)), "main")
        assert (address.prefix, address.durability, address.connections) == ("x:", "none", 4)

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("redis://h/x", "database is a number"),
            ("redis://h:port", "port|Port"),
            ("redis://h?what=1", "unknown options what"),
            ("redis://h?durability=some", "durability is one of"),
            ("redis://h?connections=1", "connections is a number"),
            ("redis://h?prefix=", "needs exactly one value"),
            ("redis+sentinel://h", "ends with its service"),
            ("rediss+sentinel://h/main?sentinel_tls=maybe", "sentinel_tls is yes or no"),
            ("redis+sentinel://h/main?sentinel_tls=no", "sentinel_tls is for rediss.sentinel"),
            ("redis+cluster://h", "hash tag"),
            (f"redis://u:{SECRET}@h/x", "database is a number"),
        ],
    )
    def test_what_is_none_is_refused(self, url, reason):
        with pytest.raises(ConfigurationError, match=reason) as caught:
            open_store(url)
        assert SECRET not in str(caught.value)


class TestKeyMap:
    """The documented keys."""

    def test_every_family_is_in_the_documentation(self):
        text = Path("docs/stores.md").read_text("utf-8")
        for family in KEYS:
            assert f"`{family.pattern}`" in text, family.pattern

    def test_strange_keys_belong_to_none(self):
        assert family_of("job:x") is None
        assert family_of("what") is None
        assert family_of("ready:a%3Ab:work").type == "zset"

    @pytest.mark.parametrize(
        ("command", "what"),
        [
            (("SET", "{p}strange", "1"), "key map"),
            (("SET", "{p}jobs:{id}", "1"), "key map"),
            (("DEL", "{p}job:{id}"), ""),
            (("HSET", "{p}errors:" + uuid7(5, bytes(10)), "1", "x"), "orphaned"),
            (("ZREM", "{p}scheduled", "{id}"), ""),
            (("HINCRBY", "{p}counts", "default:work:0:0", "1"), ""),
            (("HSET", "{p}uniques", "x", "{id}|1||"), ""),
            (("EXPIRE", "{p}job:{id}", "1000"), ""),
        ],
    )
    async def test_what_belongs_to_nothing_or_is_missing_is_found_out(
        self, store, home, client, command, what
    ):
        job = work(delay=MICROSECOND)
        await store.insert([job, work()])
        check(Keyspace(client, home.prefix))
        places = {"p": home.prefix, "id": job.id}

        client.execute_command(*(part.format_map(places) for part in command))
        try:
            with pytest.raises((AssertionError, KeyError), match=what or None):
                check(Keyspace(client, home.prefix))
        finally:
            Keyspace(client, home.prefix).clear()

    async def test_names_with_colons_keep_to_their_own_lines(self, store, hand):
        await store.insert(
            [work("b:c", queue="a"), work("c", queue="a:b"), work("50%3A", queue="a")]
        )
        told = {(queue, kind) for queue, kind, _, _ in await store.counts()}
        assert told == {("a", "b:c"), ("a:b", "c"), ("a", "50%3A")}
        other = await Hand.enlist(store, queues=["a"], kinds=["b:c"])
        assert (await other.claim_one()).kind == "b:c"
        assert await other.claim(5) == []


def test_a_missing_driver_is_named(monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("haulier.stores.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'haulier\[redis\]'"):
        open_store("redis://h")


def test_the_time_of_life_is_what_the_store_was_given():
    assert RedisStore("redis://h").ttl == TTL
