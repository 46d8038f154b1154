"""A look at the health of a Redis store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection

from haulier.domain.finding import Finding
from haulier.domain.job import MICROSECOND
from haulier.exceptions import ConfigurationError, StoreError
from haulier.stores.checking import (
    copying,
    counters,
    ok,
    problem,
    skew,
    slots,
    under_way,
    waiting,
    warning,
)
from haulier.stores.redis import inbox, reading
from haulier.stores.redis.history import History
from haulier.stores.redis.keys import KEYS
from haulier.stores.redis.scripts import SCHEMA
from haulier.stores.redis.transfer import RedisTransfer

OLDEST = (6, 2)
NEWEST = {"redis": 8, "valkey": 9}
"""The newest major versions that are supported."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
CROWDED = 0.8
FRAGMENTED = 1.5
WORTH_A_WORD = 256 << 20

PROBES: tuple[tuple[Any, ...], ...] = (
    ("HSET", 1, "f", 1),
    ("HSETNX", 1, "g", 1),
    ("HINCRBY", 1, "f", 1),
    ("HGET", 1, "f"),
    ("HMGET", 1, "f"),
    ("HGETALL", 1),
    ("HKEYS", 1),
    ("HVALS", 1),
    ("HLEN", 1),
    ("HEXISTS", 1, "f"),
    ("HSCAN", 1, 0),
    ("HDEL", 1, "f", "g"),
    ("ZADD", 2, 1, "m", 2, "n"),
    ("ZCARD", 2),
    ("ZCOUNT", 2, 0, 1),
    ("ZSCORE", 2, "m"),
    ("ZMSCORE", 2, "m", "n"),
    ("ZRANGE", 2, 0, 0),
    ("ZREVRANGE", 2, 0, 0),
    ("ZRANGEBYSCORE", 2, 0, 1),
    ("ZREVRANGEBYSCORE", 2, 1, 0),
    ("ZRANGEBYLEX", 2, "-", "+"),
    ("ZREVRANGEBYLEX", 2, "+", "-"),
    ("ZREM", 2, "m"),
    ("ZPOPMIN", 2, 1),
    ("RENAME", 2, 2),
    ("SADD", 3, "m"),
    ("SCARD", 3),
    ("SISMEMBER", 3, "m"),
    ("SMEMBERS", 3),
    ("SREM", 3, "m"),
    ("RPUSH", 4, "m"),
    ("LPUSH", 4, "m"),
    ("LLEN", 4),
    ("LRANGE", 4, 0, 0),
    ("LTRIM", 4, 1, 0),
    ("XADD", 5, "1-0", "f", "v"),
    ("XLEN", 5),
    ("XRANGE", 5, "-", "+"),
    ("XTRIM", 5, "MINID", 2),
    ("SET", 6, "v", "PX", 1000),
    ("GET", 6),
    ("EXISTS", 6),
    ("OBJECT ENCODING", 6),
    ("DEL", 1, 2, 3, 4, 5, 6),
    ("PUBLISH", 7, "look"),
)
"""Every command that scripts use, each on the probe's own key or channel of that number."""

ONLY_KEYS = frozenset({"DEL", "RENAME"})


async def look(history: History, transfer: RedisTransfer, now: int | None) -> list[Finding]:
    """All findings."""
    info = await _info(history)
    oldest, jobs, flat, rejected, schema = await history.script("look")
    counts = reading.counted(flat)
    standing = await transfer.standing()
    at = now or time.time_ns() // 1000
    return [
        _wire(history),
        await _rights(history),
        *_server(info),
        ok("schema", f"form {int(schema or SCHEMA)} of {SCHEMA}"),
        *await _durability(history, info),
        *_memory(info),
        ok("indexes", f"part of the store: {len(KEYS)} families of keys"),
        await _clock(history, now),
        counters(counts, jobs),
        slots(*await history.script("recount")),
        *waiting(counts, int(oldest) if oldest else None, await reading.workers(history), at),
        *_inbox(await inbox.waiting(history), rejected),
        under_way(standing.under_way),
        copying(standing.mark),
    ]


async def touch(history: History) -> None:
    """A write that changes nothing, to see how long one takes."""
    await history.call("HINCRBY", history.key("history"), "last", 0)


async def _info(history: History) -> Mapping[str, str]:
    """What the server tells of itself; empty if we may not ask."""
    text = await _asked(history, "INFO")
    lines = [] if text is None else text.decode().splitlines()
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name: value for name, _, value in pairs}


async def _setting(history: History, name: str) -> str | None:
    """A setting of the server; None if we may not ask."""
    found = await _asked(history, "CONFIG", "GET", name)
    return found[1].decode() if found else None


# ── The server ───────────────────────────────────────────────────────────────────────────────


def _wire(history: History) -> Finding:
    address = history.address
    if issubclass(address.connection, UnixDomainSocketConnection):
        return ok("connection", "a local socket")
    if issubclass(address.connection, SSLConnection):
        return ok("connection", "TCP with TLS")
    host = str(address.arguments.get("host", ""))
    if host in LOOPBACK:
        return ok("connection", "TCP on this machine, in the clear")
    advice = "use rediss://: the password and all jobs can be read on the way"
    return warning("connection", f"TCP in the clear to {host or address.service}", advice)


async def _rights(history: History) -> Finding:
    who = await _asked(history, "ACL", "WHOAMI")
    name = "this user" if who is None else who.decode()
    denied = await _denied(history)
    if denied:
        advice = "allow them (docs/stores.md has the ACL line): without, the work stops"
        return problem("rights", f"{name} may not use {', '.join(denied)}", advice)
    # Whoever may ask for the rights of users may also give them.
    if who is not None and await _asked(history, "ACL", "GETUSER", who) is not None:
        advice = "let workers use a user that is limited to the keys of the store (docs/stores.md)"
        return warning("rights", f"{name} may administer the server", advice)
    return ok("rights", f"{name} may do what is needed, and does not administer the server")


async def _denied(history: History) -> list[str]:
    """Commands of the scripts that we may not use."""
    flat: list[Any] = [len(PROBES)]
    for command, key, *rest in PROBES:
        keys = [key, *rest] if command in ONLY_KEYS else [key]
        values = [] if command in ONLY_KEYS else rest
        words = command.split()
        flat += (len(words) + len(keys) + len(values), *words)
        flat += (history.key(f"check:{each}") for each in keys)
        flat += values
    answers = await history.script("probe", *flat)
    pairs = zip(answers[::2], answers[1::2], strict=True)
    return [
        command.decode() for command, why in pairs if b"permission" in why or b"can't run" in why
    ]


async def _asked(history: History, *command: Any) -> Any:
    """The answer to a question that we may not be allowed to ask; None then."""
    try:
        return await history.call(*command)
    except (ConfigurationError, StoreError):
        return None


def _server(info: Mapping[str, str]) -> list[Finding]:
    if not info:
        advice = "let us ask: ACL +info; versions, durability and memory stay unseen without"
        return [warning("version", "the server does not tell us", advice)]
    name = "valkey" if "valkey_version" in info else "redis"
    version = info.get("valkey_version") or info["redis_version"]
    major, minor, *_ = (int(part) for part in version.split("."))
    newest = NEWEST[name]
    what = f"{name.title()} {version}, {'.'.join(map(str, OLDEST))} to {newest} are supported"
    found = [ok("version", what)]
    if (major, minor) < OLDEST:
        found = [problem("version", what, "a newer server is needed")]
    elif major > newest:
        found = [warning("version", what, "nobody has tried this one: look for a newer haulier")]
    if info.get("role", "master") != "master":
        found.append(problem("role", "a replica", "use the URL of the primary"))
    return found


async def _durability(history: History, info: Mapping[str, str]) -> list[Finding]:
    policy = await _setting(history, "maxmemory-policy") or info.get("maxmemory_policy")
    found = []
    if policy not in (None, "noeviction"):
        advice = "CONFIG SET maxmemory-policy noeviction: this one throws jobs away"
        found.append(problem("eviction", f"maxmemory-policy {policy}", advice))
    fsync = await _setting(history, "appendfsync")
    if not info:
        advice = "let us ask: ACL +info +config|get"
        return [warning("durability", "the server does not tell us", advice), *found]
    if info.get("aof_enabled") != "1":
        advice = "CONFIG SET appendonly yes; or say durability=none in the URL if that is meant"
        what = "no append-only file: a crash loses what came after the last snapshot"
        level = ok("durability", what) if history.address.durability == "none" else None
        return [level or problem("durability", what, advice), *found]
    losses = {
        "always": "what was acknowledged is on the disk",
        "everysec": "a crash of the machine may lose the last second",
        "no": "a crash of the machine may lose the last half minute",
        None: "appendfsync is not told",
    }
    what = f"append-only file, appendfsync {fsync or 'unknown'}: {losses.get(fsync, '')}"
    if "err" in (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")):
        advice = "the server cannot write its file: look into its log and at its disk"
        return [problem("durability", f"{what}; the last write failed", advice), *found]
    if fsync == "no":
        return [warning("durability", what, "CONFIG SET appendfsync everysec"), *found]
    return [ok("durability", what), *found]


def _memory(info: Mapping[str, str]) -> list[Finding]:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    ratio = float(info.get("mem_fragmentation_ratio", 1))
    what = f"{used / 2**20:.0f} MiB in use, fragmentation {ratio:.2f}"
    if most:
        what += f", of {most / 2**20:.0f} MiB allowed"
    found = [ok("bloat", what)]
    if used > WORTH_A_WORD and ratio > FRAGMENTED:
        found = [warning("bloat", what, "CONFIG SET activedefrag yes gives memory back")]
    if most and used > CROWDED * most:
        advice = "raise maxmemory, or shorten retention: a full server refuses new jobs"
        found.append(warning("space", what, advice))
    return found


async def _clock(history: History, now: int | None) -> Finding:
    if now is not None:
        return ok("clock", "the test's own")
    began = time.time()
    seconds, micros = await history.call("TIME")
    ended = time.time()
    theirs = int(seconds) + int(micros) / MICROSECOND
    return skew(theirs - (began + ended) / 2, (ended - began) / 2)


def _inbox(entries: int, rejected: int) -> list[Finding]:
    what = f"{entries} entries wait, {rejected} were refused"
    if not rejected:
        return [ok("inboxes", what)]
    return [warning("inboxes", what, "see why in the list `rejected` (docs/stores.md)")]
