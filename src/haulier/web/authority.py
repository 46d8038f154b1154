"""Recognises who asks, from memory: the records are looked at again every second or so."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable

from haulier.domain.access import Identity
from haulier.records.credentials import Credentials, Live, now
from haulier.services.tokens import Presented, What, presented
from haulier.web.throttle import Throttle, network_of

FRESH = 1.0
"""Seconds for which what the records said is taken as it is."""

STALE = 3.0
"""Seconds after which it is no longer taken at all: a revoked token is out by then."""

_KINDS = {What.TOKEN: "token", What.SESSION: "session"}


class Authority:
    """Who is who. Without credentials nobody is recognised by a token.

    All tokens and sessions that are good are kept in memory, so that a request costs no question
    to the records, and one with a token that is not known can be told as cheaply.
    """

    def __init__(
        self, credentials: Credentials | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.throttle = Throttle(clock)
        self._credentials = credentials
        self._clock = clock
        self._known: dict[str, Live] = {}
        self._version = -1
        self._as_of = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def recognise(self, what: What, text: str, source: str) -> tuple[Identity | None, float]:
        """Whose token or session cookie this is.

        None if it is not good; then also for how many seconds no other one should be tried. Raises
        StoreError when the records cannot be asked and what they said last is too old.
        """
        shown = presented(what, text)
        if shown is not None and self._credentials is not None:
            identity = await self._find(what, shown, source)
            if identity is not None:
                return identity, 0.0
        return None, self.throttle.fail(*_keys(what, shown, source))

    async def still_valid(self, identity: Identity) -> bool:
        """Whether somebody who was recognised some time ago would be still.

        For streams, which ask every two seconds or so. Raises StoreError.
        """
        if ":" not in identity.credential:
            return True
        if self._credentials is None:
            return False
        await self._look(self._clock() - FRESH)
        return self._good(self._known.get(identity.credential)) is not None

    async def close(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _find(self, what: What, shown: Presented, source: str) -> Identity | None:
        age = self._clock() - self._as_of
        if age > STALE:
            await self._look(self._clock())
        elif age > FRESH:
            self._start_to_look()
        credential = f"{_KINDS[what]}:{shown.id}"
        live = self._known.get(credential)
        if live is None and not self.throttle.wait(*_keys(what, shown, source)):
            # It may have been made a moment ago.
            await self._look(self._clock())
            live = self._known.get(credential)
        if live is None or not shown.matches(live.digest):
            return None
        return self._good(live)

    def _good(self, live: Live | None) -> Identity | None:
        if live is None or (live.expires_at is not None and live.expires_at <= now()):
            return None
        return live.identity

    async def _look(self, since: float) -> None:
        """Know what the records said at an instant of our clock, or later."""
        while self._as_of < since:
            await asyncio.shield(self._start_to_look())

    def _start_to_look(self) -> asyncio.Task[None]:
        if self._looking is None or self._looking.done():
            # In a context of its own: others wait for it too, each with another deadline.
            self._looking = asyncio.get_running_loop().create_task(
                self._reload(), context=contextvars.Context()
            )
            self._looking.add_done_callback(_seen)
        return self._looking

    async def _reload(self) -> None:
        assert self._credentials is not None
        began = self._clock()
        if await self._credentials.version() != self._version:
            version, found = await self._credentials.live()
            self._known = {live.identity.credential: live for live in found}
            self._version = version
        self._as_of = began


def _keys(what: What, shown: Presented | None, source: str) -> list[str]:
    """What a failure counts for."""
    keys = [f"source {network_of(source)}"]
    return keys if shown is None else [*keys, f"{what} {shown.id}"]


def _seen(task: asyncio.Task[None]) -> None:
    """Its failure is told to those who wait for it; if nobody does, the next look tells it."""
    if not task.cancelled():
        task.exception()
