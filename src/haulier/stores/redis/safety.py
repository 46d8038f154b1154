"""Whether a server is one that jobs can be trusted to: looked at whenever a store is opened."""

from __future__ import annotations

import re

from haulier.exceptions import ConfigurationError, StoreUnavailableError
from haulier.stores.redis.history import History

OLDEST = (6, 2)
SAFE_POLICY = "noeviction"


async def look(history: History) -> None:
    """Refuse a server that throws keys away; warn of one that forgets them when it stops.

    Raises ConfigurationError, or StoreUnavailableError for a replica.
    """
    address = history.address
    try:
        info = _parsed(await history.call("INFO"))
    except ConfigurationError:
        _warn(
            "the server's settings could not be checked",
            store=address.text,
            why="this user may not ask for INFO",
            expected="maxmemory-policy noeviction, appendonly yes",
        )
        return
    _check_version(info, address.text)
    if info.get("role") == "slave":
        raise StoreUnavailableError(f"the store {address.text} is a replica: give its primary")
    policy = info.get("maxmemory_policy", SAFE_POLICY)
    if policy != SAFE_POLICY:
        raise ConfigurationError(
            f"the store {address.text} throws keys away when its memory is full "
            f"(maxmemory-policy {policy}): jobs would be lost; set it to {SAFE_POLICY}"
        )
    if info.get("redis_mode") == "cluster" and not re.search(r"\{[^}]+\}", address.prefix):
        raise ConfigurationError(
            f"the store {address.text} is a cluster: all keys of a store must lie in one slot, "
            "so its prefix needs a hash tag, as in ?prefix={haulier}:"
        )
    if info.get("aof_enabled") == "0" and address.durability == "aof":
        _warn(
            "the server keeps no append-only file: acknowledged jobs are lost when it stops",
            store=address.text,
            remedy="set appendonly yes, or say ?durability=none if that is meant",
        )


def _parsed(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _check_version(info: dict[str, str], store: str) -> None:
    # Valkey tells here which Redis it is compatible with.
    version = info.get("redis_version", "")
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers and numbers < OLDEST:
        raise ConfigurationError(f"the store {store} is Redis {version}; 6.2 or later is needed")


def _warn(event: str, **fields: str) -> None:
    # Loaded only now: it is slow to load, and short commands open stores too.
    import structlog

    structlog.get_logger("haulier.store").warning(event, **fields)
