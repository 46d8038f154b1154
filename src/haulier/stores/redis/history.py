"""The connection's memory: which history the server tells, and how far this process has seen it.

Redis may lose acknowledged writes: the tail of the append-only file in a crash, what a replica had
not received in a failover. Then its history is another one than we remember, and that must not go
unnoticed: every script is told how far its caller has seen, and does nothing when that is gone.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection

from haulier.exceptions import StoreUnavailableError
from haulier.services.urls import nothing_at
from haulier.stores.redis.address import Address
from haulier.stores.redis.connection import Pool
from haulier.stores.redis.errors import refusal
from haulier.stores.redis.scripts import SCHEMA, script

OK, REFUSED, BEHIND = 0, 1, 2
UNKNOWN = -1


class Loss(NamedTuple):
    """Acknowledged history that the server no longer has.

    `events` is how many; None when that cannot be told, because it has gone on since.
    """

    epoch: str
    events: int | None


class History:
    """Scripts of one prefix, each told what was seen before."""

    def __init__(
        self, address: Address, deadline: float, now: Callable[[], int | str], *, create: bool
    ) -> None:
        self.address = address
        self.pool = Pool(address, self._greet)
        self.caller = secrets.token_hex(4)
        self.losses: list[Loss] = []
        self.epoch = ""
        self.last = 0
        self._last_at = 0
        self._generation = 0
        self.unfinished = False
        self._deadline = deadline
        self._now = now
        self._create = create

    def key(self, name: str) -> str:
        return self.address.prefix + name

    def pattern(self, name: str) -> str:
        """What matches the keys whose names begin so."""
        return re.sub(r"([\\*?\[\]])", r"\\\1", self.key(name)) + "*"

    async def open(self) -> None:
        self.pool.open()
        try:
            await self._begin()
        except BaseException:
            await self.pool.close()
            raise

    async def _begin(self) -> None:
        epoch = secrets.token_hex(4) if self._create else ""
        if not await self.script("open", SCHEMA, epoch):
            raise nothing_at(f"{self.address.text} (prefix {self.address.prefix})")

    async def close(self) -> None:
        await self.pool.close()

    async def call(self, *command: Any) -> Any:
        return await self.pool.call(*command, deadline=self._deadline)

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to several commands that go out together."""
        return await self.pool.pipeline(commands, deadline=self._deadline)

    async def script(self, verb: str, *args: Any) -> Any:
        """What a verb's script returned; raises the error that it was refused with."""
        for _ in range(2):
            reply = await self.pool.script(
                verb, (self.key("history"), *self._head(), *args), self._deadline
            )
            if reply[0] != BEHIND:
                return self._read(reply)
            regress = ("EVAL", script("regress").source, *self._regress_args())
            self._take_regress(await self.call(*regress))
        raise StoreUnavailableError(f"the store {self.address.text} keeps losing its history")

    def _head(self) -> tuple[Any, ...]:
        return (self._now(), self.caller, self.epoch, self.last, self._last_at)

    def _read(self, reply: Sequence[Any]) -> Any:
        if reply[0] == REFUSED:
            code, text, job_id = (each.decode() for each in reply[1:4])
            raise refusal(code, text, job_id)
        _, last, at, epoch, generation, *value = reply
        epoch = epoch.decode()
        if epoch != self.epoch:
            # Without a new generation it was opened again after a copy: nothing is lost.
            if self.epoch and generation > self._generation:
                self._report(Loss(epoch, None), "another process found that the store lost history")
            self.epoch, self.last, self._last_at = epoch, last, at
        elif last > self.last:
            # Answers that overtook each other on two connections may come in any order.
            self.last, self._last_at = last, at
        self._generation = max(self._generation, generation)
        self.unfinished = len(value) > 1
        return value[0] if value else None

    # ── Losses ───────────────────────────────────────────────────────────────────────────────

    def _regress_args(self) -> tuple[Any, ...]:
        new_epoch = secrets.token_hex(4)
        head = self._head()
        return (1, self.key("history"), *head, new_epoch, SCHEMA, self._generation)

    def _take_regress(self, reply: Sequence[Any]) -> None:
        _, last, at, epoch, generation, (found, lost) = reply
        if found:
            self.epoch, self.last, self._last_at = epoch.decode(), last, at
            self._generation = generation
            count = None if lost == UNKNOWN else int(lost)
            self._report(Loss(self.epoch, count), "the store lost acknowledged history")
        elif epoch and epoch.decode() != self.epoch:
            self._read(reply)

    def _report(self, loss: Loss, what: str) -> None:
        # Loaded only now: it is slow to load, and short commands open stores too.
        import structlog

        self.losses.append(loss)
        structlog.get_logger("haulier.store").error(
            what, store=self.address.text, events_lost=loss.events, epoch=loss.epoch
        )

    async def _greet(self, connection: AbstractConnection) -> None:
        """On every new connection: it may lead to a server that has another history."""
        if not self.epoch:
            return
        await connection.send_command("EVAL", script("regress").source, *self._regress_args())
        self._take_regress(await connection.read_response())
