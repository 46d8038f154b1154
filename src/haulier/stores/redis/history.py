"""The connection's memory: which history the server tells, and how far this process has seen it.

Redis may lose acknowledged writes: the tail of the append-only file in a crash, what a replica had
not received in a failover. Then its history is another one than we remember, and that must not go
unnoticed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from haulier.exceptions import StoreCorruptError
from haulier.stores.redis.address import Address
from haulier.stores.redis.connection import Pool
from haulier.stores.redis.errors import refusal
from haulier.stores.redis.scripts import SCHEMA


class History:
    """Scripts of one prefix, each answer checked against what was seen before."""

    def __init__(self, address: Address, deadline: float, now: Callable[[], int | str]) -> None:
        self.address = address
        self.pool = Pool(address)
        self.epoch = ""
        self.last = 0
        self._deadline = deadline
        self._now = now
        self._key = f"{address.prefix}history"

    def key(self, name: str) -> str:
        return self.address.prefix + name

    async def open(self) -> None:
        self.pool.open()
        try:
            await self.script("open", SCHEMA, secrets.token_hex(4))
        except BaseException:
            await self.pool.close()
            raise

    async def close(self) -> None:
        await self.pool.close()

    async def call(self, *command: Any) -> Any:
        return await self.pool.call(*command, deadline=self._deadline)

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to several commands that go out together."""
        return await self.pool.pipeline(commands, deadline=self._deadline)

    async def script(self, verb: str, *args: Any) -> Any:
        reply = await self.pool.script(verb, self._key, (self._now(), *args), self._deadline)
        status, *rest = reply
        if status:
            code, text, job_id = (each.decode() for each in rest)
            raise refusal(code, text, job_id)
        last, _, epoch = rest[:3]
        self.last, self.epoch = max(last, self.last), epoch.decode()
        return rest[3] if len(rest) > 3 else None
