"""Who waits is told: this process at once, others through NOTIFY, and by looking where that fails.

A NOTIFY makes its transaction's commit wait for those of others, so none is sent from the hot
transactions: what changed within a moment goes out as one, on the connection that listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager

import asyncpg

from haulier.exceptions import HaulierError
from haulier.stores.postgres.connection import Connection, Place, translated
from haulier.stores.watching import Change, Watchers

QUIET = 0.02
"""Seconds between two notifications of this process."""

PROOF = 1.0
"""Seconds between two proofs that the listener still hears."""

LOOK = 0.25
"""Seconds between two looks while nobody listens."""

PATIENCE = 5.0
"""Seconds for the listener's own connection and for each of its statements."""

FIRST = 2.0
"""Seconds that opening a store waits until it listens."""

LONGEST_PAUSE = 5.0
"""Seconds between two tries to listen again."""

# Every change takes a number from it, committed or not, so a look costs next to nothing.
_MARK = "SELECT last_value FROM journal_id_seq"


class Signals:
    """Tells watchers of this process and of others what changed."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._watchers = Watchers()
        self._me = secrets.token_hex(4)
        self._task: asyncio.Task[None] | None = None
        self._listener: Connection | None = None
        self._speaking = asyncio.Lock()
        self._unsaid = Change.NOTHING
        self._sender: asyncio.Task[None] | None = None
        self._spoke = 0.0
        self._echo = asyncio.Event()
        self._listens = asyncio.Event()
        self._mark: int | None = None
        self._heard = False

    async def open(self) -> None:
        """Begin to listen; without success within a moment it goes on in the background."""
        self._listens.clear()
        self._task = asyncio.create_task(self._keep_listening())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST):
                await self._listens.wait()

    async def close(self) -> None:
        """What is still unsaid is said first, if somebody listens to us."""
        tasks = [task for task in (self._sender, self._task) if task is not None]
        if self._unsaid and self._listener is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._say(self._unsaid)
        self._unsaid = Change.NOTHING
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = self._sender = None

    def watch(self, notify: Callable[[], None], change: Change) -> AbstractContextManager[None]:
        """Within the block, call `notify` on the running loop whenever there was such a change."""
        return self._watchers.watch(notify, change)

    def tell(self, change: Change) -> None:
        """Something was committed: wake those here now, and those elsewhere within a moment."""
        if not change:
            return
        self._watchers.tell(change)
        self._unsaid |= change
        if self._sender is None and self._listener is not None:
            self._sender = asyncio.create_task(self._speak())

    async def _speak(self) -> None:
        """Say what is unsaid; what comes up within the pause after the last word goes together."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(max(0.0, self._spoke + QUIET - loop.time()))
            while self._unsaid:
                change, self._unsaid = self._unsaid, Change.NOTHING
                self._spoke = loop.time()
                await self._say(change)
                await asyncio.sleep(QUIET)
        except (OSError, TimeoutError, HaulierError, asyncpg.PostgresError, asyncpg.InterfaceError):
            # Who is not told will look; the watchdog sees to the connection.
            pass
        finally:
            self._sender = None

    async def _say(self, change: Change) -> None:
        await self._ask(
            "SELECT pg_notify($1, $2)", self._place.schema, f"{change.value} {self._me}"
        )

    async def _ask(self, sql: str, *values: object) -> object:
        async with self._speaking:
            if self._listener is None:
                return None
            return await self._listener.fetchval(sql, *values, timeout=PATIENCE)

    # ── Listening ────────────────────────────────────────────────────────────────────────────

    async def _keep_listening(self) -> None:
        """Listen, and listen again whenever the connection breaks or is deaf."""
        pause = 0.05
        while True:
            try:
                await self._listen()
                pause = 0.05
            except (OSError, TimeoutError, HaulierError, asyncpg.PostgresError) as error:
                await self._hang_up()
                self._log(error)
            except asyncpg.InterfaceError as error:
                await self._hang_up()
                self._log(error)
            finally:
                await self._hang_up()
            # Meanwhile anything may have happened.
            self._watchers.tell(Change.ANY)
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _listen(self) -> None:
        """Returns when the connection breaks or does not hear its own words any more."""
        with translated(self._place):
            connection = await self._place.connect("listener", PATIENCE)
        try:
            # A word that is lost in a crash of the server was lost with what it told of.
            await connection.execute("SET synchronous_commit = off")
            await connection.add_listener(self._place.schema, self._hear)
        except BaseException:
            connection.terminate()
            raise
        self._listener = connection
        self._listens.set()
        self._watchers.tell(Change.ANY)
        if self._unsaid and self._sender is None:
            self._sender = asyncio.create_task(self._speak())
        while not connection.is_closed():
            await asyncio.sleep(PROOF)
            await self._look()
            self._echo.clear()
            await self._ask("SELECT pg_notify($1, $2)", self._place.schema, f"0 {self._me}")
            async with asyncio.timeout(PATIENCE):
                await self._echo.wait()

    async def _look(self) -> None:
        """Whether anything changed of which nobody told: its author may have died before it."""
        mark = await self._ask(_MARK)
        if isinstance(mark, int) and mark != self._mark:
            silent = self._mark is not None and not self._heard
            self._mark = mark
            if silent:
                self._watchers.tell(Change.ANY)
        self._heard = False

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        del connection, pid, channel
        number, _, author = str(payload).partition(" ")
        self._heard = True
        if author == self._me:
            self._echo.set()
            return
        # Without a number it came from enqueue(), in somebody's own transaction.
        change = Change(int(number)) if number.isdigit() and int(number) <= 7 else Change.ANY
        self._watchers.tell(change)

    async def _hang_up(self) -> None:
        connection, self._listener = self._listener, None
        if connection is not None:
            connection.terminate()

    def _log(self, error: BaseException) -> None:
        import structlog

        log = structlog.get_logger("haulier.store")
        log.warning("store listener lost", store=self._place.shown, error=type(error).__name__)
