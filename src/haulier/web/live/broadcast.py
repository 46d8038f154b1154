"""One follower of the store's events and one sampler, for all viewers of a server."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from haulier.domain.event import RESET, Event
from haulier.exceptions import StoreClosedError, StoreError
from haulier.ports import JobStore
from haulier.services.following import follow
from haulier.web.live.channel import Channel
from haulier.web.live.frames import Frame
from haulier.web.live.interest import Interest, Topic
from haulier.web.live.sampler import Sample, Sampler
from haulier.web.models.live import Snapshot

Reason = Literal["start", "resume", "slow", "expired"]
T = TypeVar("T")

SAMPLES_EVERY = 1.0
"""Seconds from one sample to the next, while anybody looks."""

SPACING = 0.1
"""Seconds between two samples at least, however many viewers need one."""

AGAIN = 0.5
"""Seconds until a store that failed is asked again."""

READERS = 4
"""Viewers that read the store at once: to catch up, or for a snapshot of their own."""

PAGE = 500


class Broadcast:
    """Lives from the first viewer to the last one.

    `cursor` is that of the latest event that was shown. `done` is called when it cannot go on.
    """

    def __init__(
        self, store: JobStore, *, ring: int, done: Callable[[BaseException], None]
    ) -> None:
        self.cursor = ""
        self.ready = asyncio.Event()
        self._store = store
        self._ring = ring
        self._done = done
        self._over = False
        self._sampler = Sampler(store)
        self._channels: dict[Interest, Channel] = {}
        self._of: dict[str | None, list[Channel]] = {}
        self._last: Sample | None = None
        self._fresh: asyncio.Task[Sample] | None = None
        self._following: asyncio.Task[Sample] | None = None
        self._sampled_at = 0.0
        self._readers = asyncio.Semaphore(READERS)
        self._tasks = [self._start(self._follow()), self._start(self._sample())]

    async def close(self) -> None:
        """End its tasks."""
        tasks = [task for task in (*self._tasks, self._fresh, self._following) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── For viewers ──────────────────────────────────────────────────────────────────────────

    def join(self, interest: Interest) -> Channel:
        """The channel of an interest; to be left again."""
        channel = self._channels.get(interest)
        if channel is None:
            channel = self._channels[interest] = Channel(interest, self._ring)
            self._of.setdefault(_of_one(interest), []).append(channel)
        channel.viewers += 1
        return channel

    def leave(self, channel: Channel) -> None:
        """One viewer fewer."""
        channel.viewers -= 1
        if not channel.viewers:
            del self._channels[channel.interest]
            beside = self._of[_of_one(channel.interest)]
            beside.remove(channel)
            if not beside:
                del self._of[_of_one(channel.interest)]

    async def page(self, after: str) -> list[Event]:
        """The events that follow a cursor, from the store itself."""
        async with self._readers:
            return await self._patiently(lambda: self._store.events(after=after, limit=PAGE))

    async def snapshot(self, interest: Interest, reason: Reason, cursor: str) -> Frame:
        """How everything stands, read after the cursor was."""
        told = Snapshot(reason=reason, cursor=cursor)
        if interest.within is None:
            sample = await self._fresh_sample()
            told.stats = sample.stats
            told.queues = sample.queues() if Topic.QUEUES in interest.topics else None
            told.workers = sample.crew() if Topic.WORKERS in interest.topics else None
        if Topic.BATCHES in interest.topics:
            async with self._readers:
                told.batches = await self._patiently(lambda: self._sampler.batches(interest))
        return Frame.saying("snapshot", told, cursor)

    # ── Events ───────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        self.cursor = await self._patiently(self._store.last_event)
        self.ready.set()
        async with aclosing(follow(self._store, self.cursor)) as events:
            async for event in events:
                self._show(event)

    def _show(self, event: Event) -> None:
        self.cursor = event.cursor
        if event.type == RESET:
            for channel in self._channels.values():
                channel.cut()
            return
        self._sampler.saw(event)
        frame: Frame | None = None
        # Those of one job or batch are many, and each event is of few of them.
        for each in {None, event.job_id, event.batch_id}:
            for channel in self._of.get(each, ()):
                if channel.interest.wants(event):
                    frame = frame or Frame.of(event)
                    channel.append(frame)

    # ── Samples ──────────────────────────────────────────────────────────────────────────────

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLES_EVERY)
            wanted = {topic for each in self._channels for topic in each.samples}
            if Topic.BATCHES not in wanted:
                self._sampler.forget()
            if wanted:
                await self._fresh_sample()

    async def _fresh_sample(self) -> Sample:
        """A sample that is begun from now on; all who ask meanwhile share it."""
        if self._following is None:
            self._following = self._start(self._after(self._fresh))
        return await asyncio.shield(self._following)

    async def _after(self, running: asyncio.Task[Sample] | None) -> Sample:
        if running is not None:
            await asyncio.wait([running])
        await asyncio.sleep(self._sampled_at + SPACING - asyncio.get_running_loop().time())
        self._fresh, self._following = self._following, None
        self._sampled_at = asyncio.get_running_loop().time()
        batches = any(Topic.BATCHES in each.topics for each in self._channels)
        sample = await self._patiently(lambda: self._sampler.take(batches=batches))
        self._tell(sample)
        self._last = sample
        return sample

    def _tell(self, sample: Sample) -> None:
        # Of the first one all that need it were told by a snapshot.
        for topic, frame in sample.frames(self._last or sample):
            for channel in self._channels.values():
                if topic in channel.interest.topics:
                    channel.append(frame)
        for each in sample.batches.values():
            frame = Frame.saying("batch", each)
            for channel in self._channels.values():
                if channel.interest.wants_batch(each.id, each.kind, each.queue):
                    channel.append(frame)

    # ── Both ─────────────────────────────────────────────────────────────────────────────────

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of its own: not within the deadline of the request that happens to be first."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled() or (error := task.exception()) is None or self._over:
            return
        self._over = True
        self._done(error)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What the store answers, as soon as it does."""
        while True:
            try:
                return await ask()
            except StoreClosedError:
                raise
            except StoreError:
                await asyncio.sleep(AGAIN)


def _of_one(interest: Interest) -> str | None:
    """The job or batch that an interest is all about."""
    return interest.job or interest.batch


def upto(events: Sequence[Event], cursor: str) -> list[Event]:
    """Those of a page that do not lie behind a cursor of the same history."""
    epoch, _, seq = cursor.rpartition(":")
    return [event for event in events if event.epoch != epoch or event.seq <= int(seq)]
