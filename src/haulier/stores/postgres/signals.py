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
from haulier.stores.postgres.connection import BROKEN, Connection, Place, translated
from haulier.stores.postgres.pool import Pool
from haulier.stores.watching import Change, Watchers

QUIET = 0.02
"""Seconds between two notifications of this process."""

SOON = 0.004
"""The same when there is something to run: an idle worker waits for that."""

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

_NOTIFY = "SELECT pg_notify($1, $2)"

# Every change takes a number from it, committed or not, so a look costs next to nothing.
_MARK = "SELECT last_value + is_called::integer FROM journal_id_seq"

_TROUBLE = (*BROKEN, TimeoutError, HaulierError, asyncpg.PostgresError)


class Signals:
    """Tells watchers of this process and of others what changed."""

    def __init__(self, place: Place, pool: Pool) -> None:
        self._place = place
        self._pool = pool
        self._watchers = Watchers()
        self._me = secrets.token_hex(4)
        self._task: asyncio.Task[None] | None = None
        self._listener: Connection | None = None
        self._listens = asyncio.Event()
        self._echo = asyncio.Event()
        self._asking = asyncio.Lock()
        self._unsaid = Change.NOTHING
        self._sender: asyncio.Task[None] | None = None
        self._spoke = 0.0
        self._mark: object = None
        self._moved = False
        self._heard = False

    async def open(self) -> None:
        """Begin to listen; without success within a moment it goes on in the background."""
        self._listens.clear()
        if self._place.pooled:
            await self._look()
            self._task = asyncio.create_task(self._keep_looking())
            return
        self._task = asyncio.create_task(self._keep_listening())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST):
                await self._listens.wait()

    async def close(self) -> None:
        """What is still unsaid is said first, if that can be done at once."""
        if self._unsaid:
            with contextlib.suppress(*_TROUBLE):
                async with asyncio.timeout(FIRST):
                    await self._say()
        tasks = [task for task in (self._sender, self._task) if task is not None]
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
        # What this process did itself is no reason to look; who only looks must not miss others.
        self._heard |= self._listener is not None
        self._unsaid |= change
        if self._sender is None and self._task is not None:
            self._sender = asyncio.create_task(self._speak())

    async def _speak(self) -> None:
        """Say what is unsaid; what comes up within the pause after the last word goes together."""
        loop = asyncio.get_running_loop()
        try:
            while self._unsaid:
                pause = SOON if Change.READY in self._unsaid else QUIET
                left = self._spoke + pause - loop.time()
                if left > 0:
                    # In short steps: what comes up meanwhile may be more urgent.
                    await asyncio.sleep(min(left, SOON))
                    continue
                self._spoke = loop.time()
                await self._say()
        except _TROUBLE:
            # Who is not told will look; the watchdog sees to the connection.
            self._unsaid = Change.NOTHING
        finally:
            self._sender = None

    async def _say(self) -> None:
        change, self._unsaid = self._unsaid, Change.NOTHING
        await self._ask(_NOTIFY, self._place.schema, f"{change.value} {self._me}")

    async def _ask(self, sql: str, *values: object) -> object:
        """Ask on the connection that listens, which lies idle else, or on any."""
        async with self._asking:
            listener = self._listener
            if listener is not None:
                return await listener.fetchval(sql, *values, timeout=PATIENCE)
        return await self._pool.run(lambda db: db.fetchval(sql, *values))

    # ── Listening ────────────────────────────────────────────────────────────────────────────

    async def _keep_listening(self) -> None:
        """Listen, and listen again whenever the connection breaks or is deaf."""
        pause = LOOK
        while True:
            try:
                await self._listen()
            except _TROUBLE as error:
                self._log(error)
            finally:
                listener, self._listener = self._listener, None
                if listener is not None:
                    listener.terminate()
                    pause = LOOK
            await self._look_for(random.uniform(pause / 2, pause))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _listen(self) -> None:
        """Returns when the connection breaks, raises when it does not hear its own words."""
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
        # Before that anything may have happened.
        self._watchers.tell(Change.ANY)
        while not connection.is_closed():
            await asyncio.sleep(PROOF)
            await self._look()
            self._echo.clear()
            await self._ask(_NOTIFY, self._place.schema, f"0 {self._me}")
            async with asyncio.timeout(PATIENCE):
                await self._echo.wait()

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        del connection, pid, channel
        number, _, author = str(payload).partition(" ")
        if author == self._me:
            self._echo.set()
            return
        self._heard = True
        self._watchers.tell(
            Change(int(number) & Change.ANY.value) if number.isdigit() else Change.ANY
        )

    # ── Looking ──────────────────────────────────────────────────────────────────────────────

    async def _keep_looking(self) -> None:
        while True:
            await self._look_for(LONGEST_PAUSE)

    async def _look_for(self, seconds: float) -> None:
        """Look again and again for so long, while nothing is heard."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            await asyncio.sleep(LOOK)
            with contextlib.suppress(*_TROUBLE):
                await self._look()

    async def _look(self) -> None:
        """Whether anything changed of which nobody told: its author may have died before it.

        A number is taken before its change is committed, so who sees it looks once more.
        """
        mark = await self._ask(_MARK)
        moved = self._mark is not None and mark != self._mark
        if (moved or self._moved) and not self._heard:
            self._watchers.tell(Change.ANY)
        self._mark, self._moved, self._heard = mark, moved, False

    def _log(self, error: BaseException) -> None:
        # Loaded only now: it is slow to load, and short commands open stores too.
        import structlog

        log = structlog.get_logger("haulier.store")
        log.warning("store listener lost", store=self._place.shown, error=type(error).__name__)
