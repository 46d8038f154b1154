"""Renews one incarnation on a connection of the calling thread's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis as driver
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from haulier.domain.job import MICROSECOND
from haulier.domain.worker import Renewal
from haulier.stores.redis.address import Address
from haulier.stores.redis.errors import translated
from haulier.stores.redis.scripts import script

SHORTEST, LONGEST = 1.0, 5.0
"""Seconds that a renewal waits for any answer: a fifth of the ttl, within these bounds."""


class RedisHeartbeat:
    def __init__(
        self, address: Address, worker_id: str, ttl: int, now: Callable[[], int | str]
    ) -> None:
        self._address = address
        self._worker = worker_id
        self._ttl = ttl
        self._now = now
        self._client: driver.Redis | None = None

    def renew(self) -> Renewal:
        # It renews whatever became of the history: a worker that has to end is told so.
        head = (self._now(), "", "", 0, 0)
        args = (f"{self._address.prefix}history", *head, self._worker, self._ttl)
        try:
            reply = self._call(args)
        except (RedisError, OSError) as error:
            self.close()
            raise translated(error, self._address.text) from error
        alive, cancels = reply[5]
        return Renewal(alive=bool(alive), cancels=tuple(each.decode() for each in cancels))

    def _call(self, args: tuple[Any, ...]) -> Any:
        if self._client is None:
            patience = min(max(self._ttl / MICROSECOND / 5, SHORTEST), LONGEST)
            self._client = connect_blocking(self._address, patience)
        which = script("renew")
        call = self._client.execute_command
        try:
            return call("EVALSHA", which.sha, 1, *args)  # type: ignore[no-untyped-call]
        except NoScriptError:
            return call("EVAL", which.source, 1, *args)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def connect_blocking(address: Address, patience: float) -> driver.Redis:
    """A client for a thread that has no event loop; each of its waits is bounded."""
    # By itself the driver tries ten times, which may take a minute: far longer than a ttl.
    once: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": patience,
        "socket_connect_timeout": patience,
    }
    arguments = address.arguments | once
    if address.service is not None:
        arguments["host"], arguments["port"] = _primary(address, once)
    if "path" in arguments:
        arguments["unix_socket_path"] = arguments.pop("path")
    if "SSL" in address.connection.__name__:
        arguments["ssl"] = True
    return driver.Redis(**arguments, single_connection_client=True)


def _primary(address: Address, arguments: dict[str, Any]) -> tuple[str, int]:
    """Where Sentinel says that the primary is."""
    sentinel = driver.Sentinel(address.sentinels, sentinel_kwargs=arguments)  # type: ignore[no-untyped-call]
    try:
        host, port = sentinel.discover_master(address.service)  # type: ignore[no-untyped-call]
    finally:
        for client in sentinel.sentinels:
            client.close()
    return str(host), int(port)
