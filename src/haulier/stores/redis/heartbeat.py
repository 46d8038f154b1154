"""Renews one incarnation on a connection of the calling thread's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis as driver
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from haulier.domain.worker import Renewal
from haulier.stores.redis.address import Address
from haulier.stores.redis.errors import translated
from haulier.stores.redis.scripts import script

RENEWAL_SECONDS = 5.0


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
            self._client = connect_blocking(self._address)
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


def connect_blocking(address: Address) -> driver.Redis:
    """A client for a thread that has no event loop; its waits are bounded."""
    arguments = dict(address.arguments)
    arguments["socket_timeout"] = RENEWAL_SECONDS
    # Whoever beats comes again by itself.
    arguments["retry"] = Retry(NoBackoff(), 0)
    if address.service is not None:
        sentinel = driver.Sentinel(address.sentinels, socket_timeout=RENEWAL_SECONDS)  # type: ignore[no-untyped-call]
        arguments["host"], arguments["port"] = sentinel.discover_master(  # type: ignore[no-untyped-call]
            address.service
        )
    if "path" in arguments:
        arguments["unix_socket_path"] = arguments.pop("path")
    if "SSL" in address.connection.__name__:
        arguments["ssl"] = True
    return driver.Redis(**arguments, single_connection_client=True)
