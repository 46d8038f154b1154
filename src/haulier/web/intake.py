"""What comes of the lines of a stream: jobs, inserted as they come, and told what became of them.

A line is taken or at fault. One that is at fault ends the stream, and nothing after it is taken; or
it alone is left out. What was taken before stays, whatever ends the stream.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import pydantic
from pydantic import BaseModel
from pydantic_core import from_json
from typing_extensions import override

from haulier.domain.access import Identity
from haulier.domain.ids import derived_ids
from haulier.domain.job import Job, NewJob
from haulier.domain.sealed import masked
from haulier.exceptions import (
    DuplicateJobError,
    IdempotencyConflictError,
    JobNotFoundError,
    Problem,
    ValidationError,
)
from haulier.ports import Inserted
from haulier.services.ahead import PART, insert_all
from haulier.services.ids import new_id, new_ids
from haulier.services.jobs import UNIQUE_CHUNK, JobManager
from haulier.services.options import Plan, job_id_of
from haulier.services.orders import Order, made, name_of, named, plan_among_others
from haulier.services.payload import refused, validate
from haulier.services.registry import TaskDefinition
from haulier.web.models.enqueuing import EnqueueBody
from haulier.web.problems import StreamTold
from haulier.web.starts import check_enqueued
from haulier.web.streams import Numbered

TOLD = 100
"""Lines at fault that an answer names."""

PLANS = 500
"""Sets of options that are remembered: lines differ little, and to check them again takes long."""

KEYED_CHUNK = 500
"""Jobs with no name but the key of their stream that one transaction inserts: stores take them
together."""

R = TypeVar("R")


class Intake(ABC, Generic[R]):
    """Takes lines: reads each, makes jobs of them, inserts these. `told` is kept up to date."""

    _own_names = 0
    """Names that a job has because of the stream's key."""

    def __init__(self, jobs: JobManager, told: StreamTold, *, skip: bool, size: int) -> None:
        self._jobs = jobs
        self._told = told
        self._skip = skip
        self._size = size
        self._numbers: dict[str, int] = {}
        self._stopped: ValidationError | None = None

    @abstractmethod
    def _read(self, number: int, item: dict[str, Any]) -> R:
        """What a line says; raises ValidationError."""

    @abstractmethod
    def _made(self, good: Sequence[tuple[int, R]]) -> list[NewJob]:
        """The jobs of lines; raises ValidationError for what cannot be stored."""

    @abstractmethod
    async def _put(self, jobs: Sequence[NewJob]) -> Inserted:
        """Insert jobs in one transaction."""

    async def run(self, lines: AsyncGenerator[list[Numbered], None]) -> None:
        """Take all lines, or those before the first one at fault and raise its error."""
        async with contextlib.aclosing(self._parts(lines)) as parts:
            await insert_all(self._insert, parts, self._size, ahead=True)
        if self._stopped is not None:
            raise self._stopped

    async def _parts(
        self, lines: AsyncGenerator[list[Numbered], None]
    ) -> AsyncGenerator[list[NewJob], None]:
        async with contextlib.aclosing(lines):
            async for part in lines:
                jobs = self._part(part)
                if jobs:
                    yield jobs
                if self._stopped is not None:
                    return

    def _part(self, lines: list[Numbered]) -> list[NewJob]:
        good: list[tuple[int, R]] = []
        for number, raw in lines:
            try:
                good.append((number, self._read(number, _parsed(raw))))
            except ValidationError as error:
                self._fault(number, error)
                if self._stopped is not None:
                    break
        try:
            jobs = self._made(good)
        except ValidationError:
            jobs = self._made_one_by_one(good)
        self._numbers.update(zip((job.id for job in jobs), (n for n, _ in good), strict=False))
        return jobs

    def _made_one_by_one(self, good: list[tuple[int, R]]) -> list[NewJob]:
        """As one of them cannot be stored. What is left of `good` belongs to the jobs."""
        jobs: list[NewJob] = []
        fine: list[tuple[int, R]] = []
        for each in good:
            try:
                jobs += self._made([each])
                fine.append(each)
            except ValidationError as error:
                # It comes before whatever stopped the reading.
                self._stopped = None
                self._fault(each[0], error)
                if self._stopped is not None:
                    break
        good[:] = fine
        return jobs

    def _fault(self, number: int, error: ValidationError) -> None:
        problems = [
            Problem(each.field, each.reason, line=number)
            for each in error.problems or (Problem("", error.message),)
        ]
        if self._skip:
            self._told.skipped += 1
            if len(self._told.errors) < TOLD:
                self._told.errors += problems
        else:
            self._stopped = ValidationError(f"line {number:,} was refused", problems)

    async def _insert(self, jobs: Sequence[NewJob]) -> None:
        most = len(jobs)
        if any(len(job.unique) > self._own_names for job in jobs):
            most = UNIQUE_CHUNK
        for begin in range(0, len(jobs), most):
            await self._insert_all_but(jobs[begin : begin + most])

    async def _insert_all_but(self, jobs: Sequence[NewJob]) -> None:
        """Insert jobs; one that the store does not take is found by halves."""
        try:
            inserted = await self._put(jobs)
        except (DuplicateJobError, ValidationError) as error:
            if len(jobs) > 1:
                half = len(jobs) // 2
                await self._insert_all_but(jobs[:half])
                await self._insert_all_but(jobs[half:])
                return
            number = self._numbers.pop(jobs[0].id)
            problems = getattr(error, "problems", ()) or (Problem("", str(error)),)
            if not self._skip and isinstance(error, DuplicateJobError):
                self._told.errors = [Problem("", str(error), line=number)]
                raise
            self._fault(number, ValidationError(str(error), problems))
            if self._stopped is not None:
                raise self._stopped from None
            return
        self._told.taken += len(jobs)
        self._told.new += inserted.new
        for job in jobs:
            self._numbers.pop(job.id, None)


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        item = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ValidationError("", [Problem("", f"is not JSON: {error}")]) from None
    if not isinstance(item, dict):
        raise ValidationError("", [Problem("", 'must be an object: {"name": value}')])
    return item


def payload_checked(definition: TaskDefinition, payload: Any) -> BaseModel:
    """The payload of a body as its kind's model; faults are told with their place in the body."""
    try:
        return validate(definition, payload)
    except ValidationError as error:
        faults = [
            Problem(f"payload.{fault.field}".removesuffix(".payload"), fault.reason)
            for fault in error.problems
        ]
        raise ValidationError(error.message, faults) from None


class _Known(NamedTuple):
    definition: TaskDefinition
    plan: Plan


class JobLines(Intake[Order]):
    """Each line is a job of any kind, as the body of one that is enqueued by itself."""

    def __init__(
        self,
        jobs: JobManager,
        told: StreamTold,
        caller: Identity,
        *,
        skip: bool,
        key: str | None,
    ) -> None:
        size = jobs.store.chunk if key is None else KEYED_CHUNK
        super().__init__(jobs, told, skip=skip, size=size)
        self._caller = caller
        self._key = key
        self._own_names = 0 if key is None else 1
        self._plain: dict[str, _Known] = {}
        self._plans: dict[tuple[str, str], _Known] = {}
        self._ids: list[str] = []

    @override
    def _read(self, number: int, item: dict[str, Any]) -> Order:
        kind, payload = item.get("kind"), item.get("payload")
        if len(item) == 2 and type(kind) is str and type(payload) is dict:
            known = self._plain.get(kind)
            if known is None:
                known = self._plain[kind] = self._known(EnqueueBody(kind=kind))
            checked = payload_checked(known.definition, payload)
            return Order(known.definition, known.plan, self._new_id(), checked)
        return self._order(item)

    def _order(self, item: dict[str, Any]) -> Order:
        try:
            body = EnqueueBody.model_validate(item)
        except pydantic.ValidationError as error:
            raise refused("job", error) from None
        rest = repr({name: item[name] for name in item if name not in _ITS_OWN})
        known = self._plans.get((body.kind, rest))
        if known is None:
            known = self._known(body.model_copy(update={"key": None, "id": None}))
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[body.kind, rest] = known
        plan = known.plan
        if body.key is not None:
            plan = replace(plan, key=body.key)
        job_id = self._new_id() if body.id is None else job_id_of({"job_id": str(body.id)})
        return Order(
            known.definition, plan, job_id, payload_checked(known.definition, body.payload)
        )

    def _known(self, body: EnqueueBody) -> _Known:
        check_enqueued(body.kind)
        definition = self._jobs.registry.get(body.kind)
        plan = plan_among_others(definition, body.options(None))
        if not self._caller.covers(definition.kind, plan.queue):
            raise ValidationError("", [Problem("kind", "is not within your token's scope")])
        if self._caller.scoped and plan.after is not None:
            # To look at each parent would take longer than all the rest.
            reason = "needs a token without kinds and queues, or another request"
            raise ValidationError("", [Problem("after", reason)])
        return _Known(definition, plan)

    def _new_id(self) -> str:
        if not self._ids:
            self._ids = new_ids(PART)[::-1]
        return self._ids.pop()

    @override
    def _made(self, good: Sequence[tuple[int, Order]]) -> list[NewJob]:
        jobs = made(self._jobs, [order for _, order in good])
        if self._key is None:
            return jobs
        return [
            named(job, name_of(order, self._key, number))
            for job, (number, order) in zip(jobs, good, strict=True)
        ]

    @override
    async def _put(self, jobs: Sequence[NewJob]) -> Inserted:
        return await self._jobs.store.insert(jobs)


_ITS_OWN = frozenset({"kind", "payload", "id", "key"})
"""What differs from line to line."""


class ItemLines(Intake[BaseModel]):
    """Each line is the payload of an item of a batch that is open.

    An item is known by the key of its stream and its line, so that a repeated stream doubles none.
    """

    def __init__(
        self,
        jobs: JobManager,
        told: StreamTold,
        head: Job,
        *,
        skip: bool,
        key: str | None,
        first: int,
    ) -> None:
        super().__init__(jobs, told, skip=skip, size=jobs.store.chunk)
        self._head = head
        self._definition = jobs.item_definition(head.kind)
        self._plan = Plan(head.queue, head.priority, None, 0, head.key, head.retry)
        self._key = key
        self._stream = key or new_id()
        self._first = first

    @override
    def _read(self, number: int, item: dict[str, Any]) -> BaseModel:
        return validate(self._definition, item)

    @override
    def _made(self, good: Sequence[tuple[int, BaseModel]]) -> list[NewJob]:
        return self._jobs.new_jobs(
            self._definition,
            self._plan,
            derived_ids(self._head.id, [f"stream/{self._stream}/{number}" for number, _ in good]),
            [payload for _, payload in good],
            self._head.id,
            [self._first + number - 1 for number, _ in good],
        )

    @override
    async def _put(self, jobs: Sequence[NewJob]) -> Inserted:
        if self._key is not None:
            await self._check_same(jobs)
        return await self._jobs.insert_items(jobs, self._definition)

    async def _check_same(self, jobs: Sequence[NewJob]) -> None:
        """See that those of an earlier stream of this key are the same; secrets do not count."""
        for job in jobs:
            try:
                there = await self._jobs.store.get(job.id)
            except JobNotFoundError:
                # They were inserted in their order: nor is any that follows.
                return
            if masked(from_json(there.payload)) != masked(from_json(job.payload)):
                raise IdempotencyConflictError(
                    "this idempotency key was used before, with another body", job.id
                )
