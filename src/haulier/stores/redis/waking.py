"""Being told of changes: by this process at once, by others over the server's channels.

The listener lives from the first watch to the end of the store, on a connection of its own. It is
pinged, so that a dead one is noticed, and opened again; while it is down, and when it comes up, the
history is looked at instead, so that no change is missed for longer than a second or so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from haulier.exceptions import HaulierError
from haulier.stores.redis.history import History
from haulier.stores.watching import Change, Watchers

TICK_SECONDS = 0.5
"""How often the history is looked at while the channels are silent."""

PING_SECONDS = 5.0
SILENT_SECONDS = 15.0
"""A listener that got no answer to its pings for so long is opened again."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Before it is opened again; the pause doubles while that fails."""

_CHANNELS = (
    (Change.READY, "wake:ready"),
    (Change.SETTLED, "wake:settled"),
    (Change.EVENTS, "events"),
)

CLOSING_SECONDS = 0.2
"""How long a task that was cancelled is waited for before it is cancelled again."""


class Listener:
    """Watchers of one store, and the connection that hears of what others do.

    `tick` is called about twice a second while anybody waits for jobs that are ready.
    """

    def __init__(self, history: History, tick: Callable[[], Awaitable[None]]) -> None:
        self._history = history
        self._tick = tick
        self._watchers = Watchers()
        self._wanted = Change.NOTHING
        self._watching: dict[Change, int] = {}
        self._up = True
        self._subscribed = Change.NOTHING
        self._connection: AbstractConnection | None = None
        self._subscribing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._place: tuple[Any, ...] | None = None
        self._cut_off = False
        self._own = history.caller.encode()
        self._own_events = f'{{"by":"{history.caller}"'.encode()

    @contextlib.contextmanager
    def watch(self, notify: Callable[[], None], change: Change) -> Iterator[None]:
        """Call `notify` on the running loop whenever there was such a change."""
        missing, self._wanted = change & ~self._wanted, self._wanted | change
        if missing and self._connection is not None:
            self._subscribing = asyncio.create_task(self._subscribe(self._connection))
        if self._task is None or self._task.done():
            self._place = (str(self._history.last).encode(), None)
            self._task = asyncio.create_task(self._listen(), name="haulier-redis-listener")
        for flag, _ in _CHANNELS:
            self._watching[flag] = self._watching.get(flag, 0) + bool(flag & change)
        try:
            with self._watchers.watch(notify, change):
                yield
        finally:
            for flag, _ in _CHANNELS:
                self._watching[flag] -= bool(flag & change)

    def tell(self, change: Change) -> None:
        """Wake those of this process who wait for such a change."""
        self._watchers.tell(change)

    async def close(self) -> None:
        tasks = [task for task in (self._task, self._subscribing) if task is not None]
        self._task = self._subscribing = None
        # More than once: beneath TLS and Sentinel a cancel can get lost while a connection is made.
        while tasks:
            for task in tasks:
                task.cancel()
            _, left = await asyncio.wait(tasks, timeout=CLOSING_SECONDS)
            tasks = list(left)
        self._wanted = Change.NOTHING

    # ── The connection ───────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        pause = SHORTEST_PAUSE
        while True:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    connection = await self._history.pool.connect()
                try:
                    await self._hear(connection)
                finally:
                    self._connection = None
                    with contextlib.suppress(RedisError, OSError):
                        await connection.disconnect(nowait=True)
            except (RedisError, OSError, HaulierError) as error:
                # What the channels had sent by then may never arrive, though a look has seen it.
                self._cut_off = True
                if self._up:
                    # Said once, however often it then fails to come back.
                    _log("the listener was cut off", self._history.address.text, error)
                    pause, self._up = SHORTEST_PAUSE, False
            await self._look()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _hear(self, connection: AbstractConnection) -> None:
        self._subscribed = Change.NOTHING
        await self._subscribe(connection)
        self._connection = connection
        heard = asked = ticked = time.monotonic()
        while True:
            message = await connection.read_response(timeout=TICK_SECONDS)
            now = time.monotonic()
            if message is not None:
                heard = now
                if message[0] == b"subscribe":
                    self._up = True
                    self._subscribed |= self._flag_of(message[1])
                    # Whatever came before is not told by the channel.
                    await self._look()
                else:
                    self._take(message)
            if now - ticked > TICK_SECONDS:
                ticked = now
                await self._mind()
            if now - heard > PING_SECONDS and now - asked > PING_SECONDS:
                asked = now
                await connection.send_command("PING", check_health=False)
            if now - heard > SILENT_SECONDS:
                raise TimeoutError("no answer to its pings")

    async def _subscribe(self, connection: AbstractConnection) -> None:
        names = [self._history.key(name) for flag, name in _CHANNELS if flag & self._wanted]
        # If it fails, so does the reading of it, and the listener begins anew.
        with contextlib.suppress(RedisError, OSError):
            await connection.send_command("SUBSCRIBE", *names, check_health=False)

    def _flag_of(self, channel: bytes) -> Change:
        for flag, name in _CHANNELS:
            if channel == self._history.key(name).encode():
                return flag
        return Change.NOTHING

    def _take(self, message: list[Any]) -> None:
        kind, channel, data = (*message, b"")[:3]
        if kind != b"message" or data == self._own or data.startswith(self._own_events):
            # What this process did itself it was told at once.
            return
        self._watchers.tell(self._flag_of(channel))

    async def _mind(self) -> None:
        if self._subscribed == self._wanted:
            await self._look(quietly=True)
        if self._watching.get(Change.READY):
            with contextlib.suppress(HaulierError):
                await self._tick()

    async def _look(self, *, quietly: bool = False) -> None:
        """Tell everybody if the history has gone on since the last look."""
        with contextlib.suppress(HaulierError):
            last, notes = await self._history.call(
                "HMGET", self._history.key("history"), "last", "notes"
            )
            before, self._place = self._place, (last or b"0", notes)
            unchanged = before is None or before[0] == self._place[0]
            if before is not None and before[1] is not None:
                unchanged = unchanged and before[1] == notes
            if self._cut_off or (not unchanged and not quietly):
                self._cut_off = False
                self._watchers.tell(Change.ANY)


def _log(event: str, store: str, error: BaseException) -> None:
    import structlog

    structlog.get_logger("haulier.store").warning(event, store=store, error=str(error))
