"""Connections to the server: a pool with deadlines, and scripts called by their digests.

A call is sent once. Its connection goes back to the pool only when its answer was read to the end:
one that was given up on, by its deadline or by a cancel, is dropped, so that no answer ever reaches
another caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from haulier.exceptions import StoreClosedError, StoreUnavailableError
from haulier.services.deadlines import shortened
from haulier.stores.redis.address import Address
from haulier.stores.redis.errors import translated
from haulier.stores.redis.scripts import script

IDLE_SECONDS = 60.0
"""A connection that was not used for so long is asked whether it still lives before it is used."""

SENTINEL_SECONDS = 2.0
"""How long one Sentinel is waited for before the next is asked."""

Greeting = Callable[[AbstractConnection], Awaitable[None]]
"""What is said on a new connection before it is used."""


class Pool:
    """Connections of one event loop. Open it before use; a closed one can be opened again."""

    def __init__(self, address: Address, greet: Greeting) -> None:
        self._address = address
        self._greet = greet
        self._idle: list[tuple[AbstractConnection, float]] = []
        self._slots = asyncio.Semaphore(address.connections)
        self._open = False
        self._sentinel: Sentinel | None = None

    def open(self) -> None:
        self._slots = asyncio.Semaphore(self._address.connections)
        self._open = True

    async def close(self) -> None:
        self._open = False
        await self._drop_idle()
        if self._sentinel is not None:
            for client in self._sentinel.sentinels:
                await client.aclose()
            self._sentinel = None

    async def call(self, *command: Any, deadline: float) -> Any:
        """The answer to one command; raises our errors, StoreUnavailableError after `deadline`."""
        return (await self.pipeline([command], deadline=deadline))[0]

    async def script(self, verb: str, args: Sequence[Any], deadline: float) -> Any:
        """The answer of a verb's script; it is given to the server first if that has lost it."""
        which = script(verb)
        command = ("EVALSHA", which.sha, 1, *args)
        try:
            return await self._guarded(self._send([command]), deadline, one=True)
        except NoScriptError:
            # After a restart, SCRIPT FLUSH, or a failover. Nothing has happened yet.
            commands = [("SCRIPT", "LOAD", which.source), command]
            try:
                return (await self._guarded(self._send(commands), deadline))[1]
            except RedisError as error:
                raise translated(error, self._address.text) from error

    async def pipeline(self, commands: Sequence[Sequence[Any]], *, deadline: float) -> list[Any]:
        """The answers to several commands that go out together."""
        answers: list[Any] = await self._guarded(self._send(commands), deadline)
        return answers

    async def _guarded(self, sending: Any, deadline: float, *, one: bool = False) -> Any:
        if not self._open:
            sending.close()
            raise StoreClosedError(f"the store {self._address.text} is closed")
        deadline = shortened(deadline)
        try:
            async with asyncio.timeout(deadline):
                answers = await sending
        except NoScriptError:
            raise
        except TimeoutError:
            raise StoreUnavailableError(
                f"the store {self._address.text} did not answer within {deadline:g} s"
            ) from None
        except (RedisError, OSError) as error:
            if isinstance(error, ReadOnlyError):
                # This server is no primary any more; the other connections lead to it too.
                await self._drop_idle()
            raise translated(error, self._address.text) from error
        return answers[0] if one else answers

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        async with self._slots:
            connection = await self._take()
            try:
                # Not by the connection's own packer, which works in Python, value by value.
                packed = [pack_command(tuple(command)) for command in commands]
                await connection.send_packed_command(packed, check_health=False)
                answers = [await _answer(connection) for _ in commands]
            except BaseException:
                await asyncio.shield(_drop(connection))
                raise
            self._give_back(connection)
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    async def _take(self) -> AbstractConnection:
        while self._idle:
            connection, since = self._idle.pop()
            alive = False
            try:
                alive = await _is_alive(connection, time.monotonic() - since)
            finally:
                if not alive:
                    await asyncio.shield(_drop(connection))
            if alive:
                return connection
        return await self.connect()

    async def _drop_idle(self) -> None:
        while self._idle:
            connection, _ = self._idle.pop()
            await _drop(connection)

    def _give_back(self, connection: AbstractConnection) -> None:
        if self._open and connection.is_connected:
            self._idle.append((connection, time.monotonic()))
        elif connection.is_connected:
            # The store was closed meanwhile.
            connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001

    async def connect(self) -> AbstractConnection:
        """A new connection that belongs to the caller."""
        arguments = dict(self._address.arguments)
        if self._address.service is not None:
            arguments["host"], arguments["port"] = await self._primary()
        connection = self._address.connection(**arguments)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await self._greet(connection)
        except BaseException:
            await _drop(connection)
            raise
        return connection

    async def _primary(self) -> tuple[str, int]:
        """Where Sentinel says that the primary is."""
        assert self._address.service is not None
        if self._sentinel is None:
            tls = self._address.sentinel_tls
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                self._address.sentinels,
                # By itself the driver asks a dead one ten times before it turns to the next.
                sentinel_kwargs={
                    **({} if tls is None else {"ssl": True, **tls}),
                    "retry": Retry(NoBackoff(), 0),
                    "socket_timeout": SENTINEL_SECONDS,
                    "socket_connect_timeout": SENTINEL_SECONDS,
                },
            )
        host, port = await self._sentinel.discover_master(self._address.service)
        return str(host), int(port)


async def _answer(connection: AbstractConnection) -> Any:
    """The next answer, also if it is a refusal; raises what ends the connection."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        if not connection.is_connected:
            raise
        return error


async def _is_alive(connection: AbstractConnection, idle: float) -> bool:
    """Whether an idle connection can be used: neither closed by the server nor with stray data."""
    look = getattr(connection, "can_read", None) or connection.can_read_destructive
    try:
        if not connection.is_connected or await look():
            return False
        if idle > IDLE_SECONDS:
            async with asyncio.timeout(1.0):
                await connection.send_command("PING", check_health=False)
                await connection.read_response()
    except (RedisError, OSError, TimeoutError):
        return False
    return True


async def _drop(connection: AbstractConnection) -> None:
    with contextlib.suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)
