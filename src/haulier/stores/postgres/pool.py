"""A few connections, shared: every call has a deadline, and leaves nothing under way behind it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import asyncpg

from haulier.exceptions import StoreClosedError, StoreUnavailableError
from haulier.services.deadlines import shortened
from haulier.stores.postgres.connection import BROKEN, RETRIED, Connection, Place, translated

T = TypeVar("T")
Work = Callable[[Connection], Awaitable[T]]

GRACE = 1.0
"""Seconds that a call which was cancelled waits for what it had asked for; of one that has come to
its deadline, they are the last ones before it."""

SLOW = 0.02
PLANS_LAST = 5.0
"""After a call of so many seconds plans are made anew, if they are so many seconds old."""

LONGEST_PAUSE = 0.1
"""Seconds between two tries of what collided with another transaction."""


@dataclass(slots=True)
class _Link:
    """A connection, and how old its plans may be.

    The server keeps the plans of our functions, made for tables of the size that they had then. One
    made for an empty table reads all of it; so plans are made anew when calls begin to take long.
    """

    connection: Connection
    planned: float = field(default_factory=time.monotonic)
    slow: bool = False


class Pool:
    """At most `size` connections, opened when they are needed.

    One that failed, or did not answer in time, is not used again, nor are those that lay idle then:
    most likely the server or the way to it is gone.
    """

    def __init__(self, place: Place, deadline: float) -> None:
        self._place = place
        self._deadline = deadline
        self._idle: list[_Link] = []
        self._free = asyncio.Semaphore(place.pool)
        self._open = False

    def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        """Close what lies idle; what is at work is closed when it comes back."""
        self._open = False
        idle, self._idle = self._idle, []
        for link in idle:
            with contextlib.suppress(Exception):
                await link.connection.close(timeout=GRACE)
            link.connection.terminate()

    async def run(self, work: Work[T]) -> T:
        """Do a piece of work on a connection; raises StoreUnavailableError after the deadline.

        Work that collided with another transaction is done again.
        """
        if not self._open:
            raise StoreClosedError(f"the store {self._place.shown} is closed")
        loop = asyncio.get_running_loop()
        deadline = shortened(self._deadline)
        give_up = loop.time() + deadline
        pause = 0.002
        with translated(self._place):
            while True:
                try:
                    return await self._once(work, deadline, give_up)
                except asyncpg.PostgresError as error:
                    if error.sqlstate not in RETRIED or loop.time() + pause > give_up:
                        raise
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _once(self, work: Work[T], deadline: float, give_up: float) -> T:
        grace = min(GRACE, deadline / 4)
        try:
            async with asyncio.timeout_at(give_up - grace), self._free:
                # A task of its own: a caller that is cancelled must not leave a statement behind
                # that may still be done while others already go on.
                task = asyncio.ensure_future(self._work(work, give_up))
                try:
                    return await asyncio.shield(task)
                except BaseException:
                    if not task.done():
                        await self._end(task, grace)
                    raise
        except TimeoutError:
            # What lies idle leads to the same silence: each would cost a call its deadline.
            self._drop_idle()
            raise StoreUnavailableError(
                f"the store {self._place.shown} did not answer within {deadline:g} s"
            ) from None

    async def _end(self, task: asyncio.Task[T], grace: float) -> None:
        """Wait a little for work that nobody waits for any more, then cut it off."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=grace)
        task.cancel()
        await asyncio.wait([task])
        with contextlib.suppress(BaseException):
            task.result()

    async def _work(self, work: Work[T], give_up: float) -> T:
        link = await self._take(give_up)
        began = time.monotonic()
        try:
            if link.slow and began - link.planned > PLANS_LAST:
                await link.connection.execute("DISCARD PLANS")
                link.planned, link.slow = began, False
            async with self._place.session(link.connection):
                value = await work(link.connection)
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "").startswith(("08", "57P")):
                self._broken(link)
            else:
                self._give_back(link)
            raise
        except BROKEN as error:
            if isinstance(error, ValueError):
                self._give_back(link)
            else:
                self._broken(link)
            raise
        except asyncio.CancelledError:
            link.connection.terminate()
            raise
        except BaseException:
            # Of the work itself; a transaction that it had open was rolled back.
            self._give_back(link)
            raise
        link.slow |= time.monotonic() - began > SLOW
        self._give_back(link)
        return value

    async def _take(self, give_up: float) -> _Link:
        while self._idle:
            # The last one used, so that those which are too many stay unused.
            link = self._idle.pop()
            if not link.connection.is_closed():
                return link
        left = give_up - asyncio.get_running_loop().time()
        return _Link(await self._place.connect("store", self._deadline, max(0.1, left)))

    def _give_back(self, link: _Link) -> None:
        connection = link.connection
        if self._open and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append(link)
        else:
            connection.terminate()

    def _broken(self, link: _Link) -> None:
        link.connection.terminate()
        self._drop_idle()

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for link in idle:
            link.connection.terminate()
