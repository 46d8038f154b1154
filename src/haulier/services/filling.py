"""Filling a batch as its items come: open, add, seal; in flat memory, and never twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from time import monotonic
from types import TracebackType
from typing import Self

from pydantic import BaseModel

from haulier.domain.batch import Batch
from haulier.domain.ids import derived_ids
from haulier.domain.job import NewJob
from haulier.exceptions import JobNotFoundError, Problem, StoreError, ValidationError
from haulier.services.ahead import LINGER, PART, insert_all
from haulier.services.items import chunks, validated_item
from haulier.services.jobs import JobManager
from haulier.services.options import LONGEST_KEY, Options, job_id_of, plan_of
from haulier.services.payload import Payload
from haulier.services.registry import TaskDefinition

Items = Iterable[Payload] | AsyncIterable[Payload]


async def open_empty(
    jobs: JobManager, kind: str, options: Options, *, finish_kind: str | None = None
) -> str:
    """Open a batch without items and return its id; it waits for them until it is sealed.

    With an idempotency key that was used for the same within a day, the batch of that time.
    """
    definition = jobs.item_definition(kind)
    plan = plan_of(definition, options, batch=True)
    policy = plan.batch_policy(jobs.finish_callback(finish_kind))
    head = jobs.own_head(definition, plan, job_id_of(options), (), finish_kind)
    opened = await jobs.store.open_batch(head, (), policy=policy, sealed=False)
    if not opened.new and not opened.instead:
        await check_same(jobs, head.id, definition)
    return opened.instead.get(head.id, head.id)


async def check_same(jobs: JobManager, batch_id: str, definition: TaskDefinition) -> Batch:
    """The batch that has this id already; raises ValidationError if it is another one."""
    try:
        batch = await jobs.store.batch(batch_id)
    except JobNotFoundError:
        raise ValidationError(
            "the batch cannot be opened", [Problem("job_id", "is the id of a single job")]
        ) from None
    if batch.kind != definition.kind:
        raise ValidationError(
            "the batch cannot be opened",
            [Problem("job_id", f"is the id of a batch of {batch.kind}")],
        )
    return batch


class Filling:
    """A batch that is open: an async context manager that gives itself.

    `id` is the batch's. `added` is how many items this block has added, `position` the place of
    the next one. When the block begins, `found` says how many items the batch has already, because
    an earlier block with the same id did not come to its end: 0 for a new one.
    """

    def __init__(
        self,
        jobs: JobManager,
        kind: str,
        options: Options,
        *,
        finish_kind: str | None = None,
        keep_open: bool = False,
    ) -> None:
        self._jobs = jobs
        self._definition = jobs.item_definition(kind)
        self._plan = plan_of(self._definition, options, batch=True)
        if self._plan.named:
            raise ValidationError(
                f"{kind}: the options were refused",
                [
                    Problem(name, "is not for an open batch: give a job_id to go on with it")
                    for name in ("unique", "idempotency_key")
                    if options.get(name) is not None
                ],
            )
        self._policy = self._plan.batch_policy(jobs.finish_callback(finish_kind))
        self._finish_kind = finish_kind
        self._keep_open = keep_open
        self.id = job_id_of(options)
        self.added = 0
        self.position = 0
        self.found = 0

    async def __aenter__(self) -> Self:
        head = self._jobs.own_head(self._definition, self._plan, self.id, (), self._finish_kind)
        opened = await self._jobs.store.open_batch(head, (), policy=self._policy, sealed=False)
        if not opened.new:
            batch = await check_same(self._jobs, self.id, self._definition)
            self.found = batch.counts.total
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if exc is None:
            await self._jobs.store.seal(self.id)
            return
        told = None
        if not self._keep_open:
            told = await asyncio.shield(self._cancel())
        exc.add_note(told or f"the batch {self.id} may still be open")

    async def _cancel(self) -> str | None:
        """Cancel the batch unless it was sealed before; says so if it could be done."""
        store = self._jobs.store
        try:
            # What was last to be inserted may still be under way: behind this write it is not.
            await store.cancel([])
            if (await store.batch(self.id)).sealed:
                return f"the batch {self.id} had been filled before"
            await store.cancel([self.id])
        except (JobNotFoundError, StoreError):
            return None
        return f"the batch {self.id} was cancelled before it was filled"

    def skip(self, count: int) -> None:
        """Leave out so many places: items that an earlier block has added, `found` of them."""
        if type(count) is not int or count < 0:
            raise ValidationError(
                "cannot skip", [Problem("count", "must be an integer, 0 or more")]
            )
        self.position += count

    async def add(self, items: Items, *, token: Callable[[Payload], str] | None = None) -> int:
        """Add items, in the order in which they come; returns how many were not there before.

        They are durable when this returns; meanwhile those before the last chunk are, and run. An
        item is known by its place in the batch, or by the text that `token` makes of it: one that
        is there already is left as it is. So a producer that was interrupted may start again from
        the beginning, or skip what it has `found`. Raises ValidationError for the first bad item,
        with its index; full chunks before it have been added. JobStateError when the batch was
        sealed or cancelled meanwhile.
        """
        new = 0

        async def insert(jobs: Sequence[NewJob]) -> None:
            nonlocal new
            new += (await self._jobs.insert_items(jobs, self._definition)).new
            self.added += len(jobs)

        store = self._jobs.store
        if isinstance(items, AsyncIterable):
            parts = self._made_async(items, token)
            await insert_all(insert, parts, store.chunk, ahead=True)
        else:
            made = (self._made(part, token) for part in chunks(items, PART))
            await insert_all(insert, made, store.chunk, ahead=isinstance(items, Sequence))
        return new

    async def _made_async(
        self, items: AsyncIterable[Payload], token: Callable[[Payload], str] | None
    ) -> AsyncIterator[Sequence[NewJob]]:
        part: list[Payload] = []
        since = monotonic()
        async for item in items:
            part.append(item)
            if len(part) == PART or monotonic() - since > LINGER:
                yield self._made(part, token)
                part, since = [], monotonic()
        if part:
            yield self._made(part, token)

    def _made(
        self, part: Sequence[Payload], token: Callable[[Payload], str] | None
    ) -> Sequence[NewJob]:
        first = self.position
        models: list[BaseModel] = [
            validated_item(self._definition, index, payload)
            for index, payload in enumerate(part, first)
        ]
        positions = range(first, first + len(part))
        if token is None:
            names: Iterable[str] = map(str, positions)
        else:
            names = [_name(token(item), index) for index, item in enumerate(part, first)]
        ids = derived_ids(self.id, names)
        self.position += len(part)
        return self._jobs.new_jobs(self._definition, self._plan, ids, models, self.id, positions)


def _name(token: object, index: int) -> str:
    if not isinstance(token, str) or not 1 <= len(token) <= LONGEST_KEY:
        reason = f"must be a text of 1 to {LONGEST_KEY} characters"
        raise ValidationError("bad token", [Problem(f"items[{index}].token", reason)])
    return f"item/{token}"
