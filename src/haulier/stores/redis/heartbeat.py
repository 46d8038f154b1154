"""Renews one incarnation on a connection of the calling thread's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hiredis import pack_command
from redis import connection as blocking
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from haulier.domain.job import MICROSECOND
from haulier.domain.worker import Renewal
from haulier.stores.redis.address import Address
from haulier.stores.redis.errors import translated
from haulier.stores.redis.scripts import script

SHORTEST, LONGEST = 1.0, 5.0
"""Seconds that a renewal waits for any answer: a fifth of the ttl, within these bounds."""

_BLOCKING: dict[Any, Any] = {
    Connection: blocking.Connection,
    SSLConnection: blocking.SSLConnection,
    UnixDomainSocketConnection: blocking.UnixDomainSocketConnection,
}


class RedisHeartbeat:
    def __init__(
        self, address: Address, worker_id: str, ttl: int, now: Callable[[], int | str]
    ) -> None:
        self._address = address
        self._worker = worker_id
        self._ttl = ttl
        self._now = now
        self._connection: Any = None

    def renew(self) -> Renewal:
        # It renews whatever became of the history: a worker that has to end is told so.
        head = (self._now(), "", "", 0, 0)
        args = (f"{self._address.prefix}history", *head, self._worker, self._ttl)
        try:
            reply = self._call(args)
        except (RedisError, OSError) as error:
            self.close()
            raise translated(error, self._address.text) from error
        alive, cancels, version = reply[5]
        return Renewal(
            alive=bool(alive), cancels=tuple(each.decode() for each in cancels), version=version
        )

    def _call(self, args: tuple[Any, ...]) -> Any:
        if self._connection is None:
            patience = min(max(self._ttl / MICROSECOND / 5, SHORTEST), LONGEST)
            self._connection = connect_blocking(self._address, patience)
        which = script("renew")
        try:
            return self._ask("EVALSHA", which.sha, 1, *args)
        except NoScriptError:
            return self._ask("EVAL", which.source, 1, *args)

    def _ask(self, *command: Any) -> Any:
        assert self._connection is not None
        self._connection.send_packed_command([pack_command(command)], check_health=False)
        return self._connection.read_response()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None


def connect_blocking(address: Address, patience: float) -> Any:
    """A connection for a thread that has no event loop; each of its waits is bounded.

    Not a client of the driver, whose pool takes a connection for a dirty one when the server has
    sent it a TLS session ticket.
    """
    # By itself the driver tries ten times, which may take a minute: far longer than a ttl.
    once: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": patience,
        "socket_connect_timeout": patience,
    }
    arguments = address.arguments | once
    if address.service is not None:
        arguments["host"], arguments["port"] = _primary(address, once)
    connection = _BLOCKING[address.connection](**arguments)
    connection.connect()
    return connection


def _primary(address: Address, arguments: dict[str, Any]) -> tuple[str, int]:
    """Where the first Sentinel that answers says that the primary is."""
    tls = address.sentinel_tls
    kind: Any = blocking.Connection if tls is None else blocking.SSLConnection
    for host, port in address.sentinels:
        connection = kind(host=host, port=port, protocol=2, **(tls or {}), **arguments)
        try:
            connection.connect()
            connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
            found = connection.read_response()
        except (RedisError, OSError):
            continue
        finally:
            connection.disconnect()
        if found:
            return found[0].decode(), int(found[1])
    raise MasterNotFoundError(f"no Sentinel knows where the primary of {address.service} is")
