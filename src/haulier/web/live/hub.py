"""All streams of a server: who has one, and what they are fed from."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import structlog
from starlette.exceptions import HTTPException

from haulier.domain.access import Identity
from haulier.exceptions import StoreClosedError
from haulier.ports import JobStore
from haulier.web.live.broadcast import Broadcast
from haulier.web.live.interest import Interest
from haulier.web.live.options import LiveOptions
from haulier.web.live.seats import LAST_WORDS, End, Seat, Seats
from haulier.web.live.viewer import Viewer

RECHECK = 2.0
"""Seconds after which it is asked again whether those who look still may."""

RETRY = 2000
"""Milliseconds after which a browser whose stream has ended opens it again."""

StillValid = Callable[[Identity], Awaitable[bool]]

_log = structlog.get_logger("haulier.web")


class Live:
    """Starts to follow the store with the first viewer, and stops with the last one.

    `still_valid` tells whether an identity may still look; None: nobody has to be asked.
    """

    def __init__(
        self,
        store: Callable[[], JobStore],
        options: LiveOptions,
        still_valid: StillValid | None = None,
    ) -> None:
        self.options = options
        self._store = store
        self.still_valid = still_valid
        self._seats = Seats(options.most, options.per_caller)
        self._broadcast: Broadcast | None = None
        self._warden: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._emptied = asyncio.Event()
        self._closed = False

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return len(self._seats)

    @asynccontextmanager
    async def seat(self, identity: Identity) -> AsyncIterator[Seat]:
        """Room for a stream; the block ends with it. Raises RateLimitError when there is none."""
        if self._closed:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, "The server stops", headers={"Retry-After": "5"}
            )
        seat = self._seats.take(identity)
        if self._warden is None:
            self._warden = asyncio.get_running_loop().create_task(
                self._watch_over(), context=contextvars.Context()
            )
        try:
            async with seat.held():
                yield seat
        finally:
            self._seats.give_back(seat)
            await self._tidy()

    def viewer(self, seat: Seat, interest: Interest, after: str | None = None) -> Viewer:
        """What the holder of a seat is shown."""
        if self._broadcast is None:
            self._broadcast = Broadcast(self._store(), ring=self.options.ring, done=self._failed)
        return Viewer(self._broadcast, seat, interest, after, gather=self.options.gather)

    async def close(self) -> None:
        """End all streams, and take no new ones; returns once they are gone."""
        self._closed = True
        self._emptied.clear()
        self._end(End.SHUTDOWN)
        if len(self._seats):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * LAST_WORDS):
                    await self._emptied.wait()

    def _end(self, why: End) -> None:
        for seat in self._seats:
            seat.end(why)

    def _failed(self, error: BaseException) -> None:
        """The broadcast cannot go on: viewers come again, to another one."""
        if not isinstance(error, StoreClosedError):
            _log.error("live streams failed", exc_info=error)
        broadcast, self._broadcast = self._broadcast, None
        self._end(End.FAILED)
        if broadcast is not None:
            self._closing = asyncio.get_running_loop().create_task(broadcast.close())

    async def _tidy(self) -> None:
        if len(self._seats):
            return
        self._emptied.set()
        warden, self._warden = self._warden, None
        broadcast, self._broadcast = self._broadcast, None
        if warden is not None:
            warden.cancel()
        if broadcast is not None:
            await broadcast.close()

    async def _watch_over(self) -> None:
        """Ask for each identity that has a stream whether it still may."""
        while True:
            await asyncio.sleep(RECHECK)
            ask = self.still_valid
            if ask is None:
                continue
            identities = list({seat.identity for seat in self._seats})
            answers = await asyncio.gather(
                *(asyncio.wait_for(ask(each), RECHECK) for each in identities),
                return_exceptions=True,
            )
            ended = set()
            for identity, answer in zip(identities, answers, strict=True):
                if isinstance(answer, BaseException):
                    # Who cannot be asked about is not trusted: it may come again.
                    _log.warning("identity not checked", error=repr(answer))
                if answer is not True:
                    ended.add(identity)
            for seat in self._seats:
                if seat.identity in ended:
                    seat.end(End.REVOKED)
