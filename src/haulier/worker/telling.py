"""Tells webhooks: turns events into deliveries and works on these, one server at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence

import structlog

from haulier.domain.webhook import QUEUE, Webhook
from haulier.exceptions import StoreClosedError, StoreError
from haulier.services.ids import new_id
from haulier.services.webhooks import Webhooks
from haulier.worker.lanes import WorkerOptions
from haulier.worker.worker import Worker

LOOK = 1.0
"""Seconds between two looks at the webhooks."""

TURN = 15.0
"""Seconds after which another server goes on where one has died."""

AT_ONCE = 32
"""Messages that are sent at once."""

GRACE = 5.0

_log = structlog.get_logger("haulier.webhooks")


class Teller:
    """Runs beside a server. While there are no webhooks it only looks for them.

    `look` and `turn` are seconds.
    """

    def __init__(self, webhooks: Webhooks, *, look: float = LOOK, turn: float = TURN) -> None:
        self._webhooks = webhooks
        self._book = webhooks.book
        # Looked often enough that the turn does not end by itself.
        self._look = min(look, turn / 3)
        self._turn = turn
        self._owner = new_id()
        self._stopped = asyncio.Event()
        self._changed = asyncio.Event()
        self._places: dict[str, tuple[str, str]] = {}
        """For each webhook the cursor that was last written down, and the one it has reached."""

    def stop(self) -> None:
        """End soon; messages that are being sent get a few seconds."""
        self._stopped.set()
        self._changed.set()

    async def run(self) -> None:
        """Tell webhooks until stopped. A store or records that are away are waited for."""
        while not self._stopped.is_set():
            try:
                if await self._book.all() and await self._book.take_turn(self._owner, self._turn):
                    await self._tell()
            except StoreClosedError:
                raise
            except StoreError as error:
                _log.warning("webhooks not told", error=str(error))
            await self._pause(self._stopped, self._look)

    async def _tell(self) -> None:
        """Tell while it is this one's turn and there are webhooks."""
        worker = Worker(
            self._webhooks.jobs,
            WorkerOptions(queues=(QUEUE,), concurrency=AT_ONCE, threads=1, children=1, grace=GRACE),
        )
        working = asyncio.create_task(worker.run())
        looking = asyncio.create_task(self._follow())
        try:
            await asyncio.wait({working, looking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            looking.cancel()
            worker.stop()
            await asyncio.wait({working, looking})
            for last in (self._write_down(), self._book.end_turn(self._owner)):
                with contextlib.suppress(StoreError):
                    await last
        for task in (working, looking):
            if not task.cancelled():
                task.result()

    async def _follow(self) -> None:
        """Turn events into deliveries; returns when the turn is another's, or all is told."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        webhooks = await self._book.all()
        with self._webhooks.jobs.store.watch(self._changed.set, events=True):
            while not self._stopped.is_set():
                self._changed.clear()
                more = await self._pass_on([each for each in webhooks if each.disabled is None])
                if loop.time() - looked >= self._look:
                    looked = loop.time()
                    await self._write_down()
                    webhooks = await self._book.all()
                    if not webhooks or not await self._book.take_turn(self._owner, self._turn):
                        return
                if not more:
                    await self._pause(self._changed, self._look)

    async def _pass_on(self, webhooks: Sequence[Webhook]) -> bool:
        """Enqueue what the next events bring; whether there may be more of them."""
        more, reached = False, {each.id: self._reached(each) for each in webhooks}
        self._places = {id_: place for id_, place in self._places.items() if id_ in reached}
        alike: dict[str, list[Webhook]] = defaultdict(list)
        for each in webhooks:
            alike[reached[each.id]].append(each)
        for cursor, group in alike.items():
            found = await self._webhooks.events(cursor)
            if not found:
                continue
            await self._webhooks.enqueue(found, group)
            # Only now: whoever dies before this enqueues the same jobs again, which are there.
            for each in group:
                self._places[each.id] = (each.after, found[-1].cursor)
            more = True
        return more

    def _reached(self, webhook: Webhook) -> str:
        """How far a webhook has been told: as is written down, unless this one knows better."""
        written, reached = self._places.get(webhook.id, (webhook.after, webhook.after))
        return reached if written == webhook.after else webhook.after

    async def _write_down(self) -> None:
        moved = {id_: at for id_, (written, at) in self._places.items() if at != written}
        if moved:
            await self._book.move_on(moved)
            self._places |= {id_: (at, at) for id_, at in moved.items()}

    @staticmethod
    async def _pause(until: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await until.wait()
