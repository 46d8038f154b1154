"""Jobs from the producer's and the operator's side: enqueue, look, wait, cancel, retry, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, TypedDict

from pydantic import BaseModel

from haulier.domain.batch import Batch, BatchPolicy, FinishCallback
from haulier.domain.ids import derived_id, raw_id, text_id
from haulier.domain.job import LONGEST_DELAY, MICROSECOND, Job, JobState, NewJob, Role
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import (
    ConfigurationError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    Problem,
    StoreError,
    ValidationError,
)
from haulier.ports import JobStore
from haulier.services.ids import new_id, new_ids
from haulier.services.payload import encode, validate
from haulier.services.registry import Registry, TaskDefinition, check_name
from haulier.services.secrets import Sealer

Payload = Mapping[str, Any] | BaseModel

CHUNK = 2000
"""Jobs that one transaction inserts: it stays far below the 50 ms that a writer may take."""

CHECKED_FIRST = 10_000
"""A sequence of up to so many items is checked whole before the first one is inserted."""

HIGHEST_PRIORITY = 10_000
LONGEST_KEY = 200
SETTLE_PAUSE = 0.02


class Options(TypedDict, total=False):
    """How a job is enqueued; what is left out comes from its task definition.

    delay: seconds to wait before it may run. run_at: a time-zone aware instant instead.
    priority: any integer from -10,000 to 10,000, higher goes first. key: the partition it belongs
    to (an account id, a host). job_id: a UUID made by the producer; a repeated enqueue of the same
    id changes nothing.
    """

    queue: str | None
    priority: int | None
    delay: float | None
    run_at: datetime | None
    key: str | None
    retry: RetryPolicy | None
    job_id: str | None


_OPTIONS = frozenset(Options.__annotations__)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Checked options, ready to be put on any number of jobs."""

    queue: str
    priority: int
    run_at: int | None
    delay: int
    key: str | None
    retry: RetryPolicy | None


class JobManager:
    """Manages jobs over a store; the only way in for the library, the API and the CLI."""

    def __init__(self, store: JobStore, registry: Registry, sealer: Sealer) -> None:
        self.store = store
        self.registry = registry
        self.sealer = sealer

    # ── Enqueue ──────────────────────────────────────────────────────────────────────────────

    async def enqueue(self, kind: str, payload: Payload, options: Options) -> str:
        """Insert one job and return its id; for a bulk kind this is its head job."""
        definition = self.registry.get(kind)
        plan = _plan(definition, options)
        job_id = _job_id(options)
        checked = validate(definition, payload)
        if definition.expand:
            # The whole input of a batch may take a second to seal: not on the event loop.
            job = await asyncio.to_thread(self._new_job, definition, checked, plan, job_id)
        else:
            job = self._new_job(definition, checked, plan, job_id)
        await self.store.insert([job], policy=BatchPolicy(finish=_own_finish(definition, plan)))
        return job.id

    async def enqueue_many(
        self, kind: str, payloads: Iterable[Payload], options: Options
    ) -> list[str]:
        """Insert a job per payload, in order, some thousands to a transaction; returns their ids.

        Raises ValidationError at the first bad payload, with its index. Up to 10,000 payloads of a
        sequence are checked before the first one is inserted; more, or those of an iterator, are
        checked as they come.
        """
        if options.get("job_id") is not None:
            raise ValidationError("options were refused", [Problem("job_id", "is for one job")])
        definition = self.registry.get(kind)
        plan = _plan(definition, options)
        ids: list[str] = []
        for chunk in _chunks(self._checked(definition, payloads)):
            jobs = [
                self._new_job(definition, payload, plan, job_id)
                for payload, job_id in zip(chunk, new_ids(len(chunk)), strict=True)
            ]
            await self.store.insert(jobs, policy=BatchPolicy(finish=_own_finish(definition, plan)))
            ids.extend([job.id for job in jobs])
        return ids

    async def enqueue_batch(
        self,
        kind: str,
        items: Iterable[Payload],
        options: Options,
        *,
        finish_kind: str | None = None,
    ) -> str:
        """Insert a batch: a head job and an item per payload; returns the batch's id.

        Up to 10,000 items of a sequence are checked before anything is inserted. A longer or lazy
        input is inserted as it comes, in flat memory; a bad item then cancels the batch.
        """
        definition = self.registry.get(kind)
        if definition.expand:
            raise ConfigurationError(f"{kind} is a bulk kind itself: enqueue it, not its items")
        plan = _plan(definition, options)
        finish = self._finish(finish_kind)
        batch_id = _job_id(options)
        head = NewJob(
            id=batch_id,
            kind=kind,
            payload=b"{}",
            queue=plan.queue,
            priority=plan.priority,
            key=plan.key,
            role=Role.HEAD,
        )
        chunks = _chunks(enumerate(self._checked(definition, items)))
        first = next(chunks, [])
        sealed = len(first) < CHUNK
        opening = self._items(definition, batch_id, first, plan)
        try:
            await self.store.open_batch(
                head, opening, policy=BatchPolicy(finish=finish), sealed=sealed
            )
            for chunk in chunks:
                await self.store.insert(self._items(definition, batch_id, chunk, plan))
            if not sealed:
                await self.store.seal(batch_id)
        except (Exception, asyncio.CancelledError) as error:
            if await asyncio.shield(self._abandon(batch_id)):
                error.add_note(f"the batch {batch_id} was cancelled before it was filled")
            raise
        return batch_id

    async def _abandon(self, batch_id: str) -> bool:
        """Cancel a batch that is half filled; whether there was one and the store could."""
        try:
            # A sealed one was filled by an earlier call with the same id, and is no ruin.
            if (await self.store.batch(batch_id)).sealed:
                return False
            await self.store.cancel([batch_id])
        except (JobNotFoundError, StoreError):
            return False
        return True

    def _items(
        self,
        definition: TaskDefinition,
        batch_id: str,
        numbered: Iterable[tuple[int, BaseModel]],
        plan: _Plan,
    ) -> list[NewJob]:
        return [
            self._new_job(
                definition, payload, plan, derived_id(batch_id, str(position)), batch_id, position
            )
            for position, payload in numbered
        ]

    def _checked(
        self, definition: TaskDefinition, payloads: Iterable[Payload]
    ) -> Iterable[BaseModel]:
        """The payloads as models: all checked first if they are few, else as they are taken."""
        checked = (
            _validated_item(definition, index, payload) for index, payload in enumerate(payloads)
        )
        if isinstance(payloads, Sequence) and len(payloads) <= CHECKED_FIRST:
            return list(checked)
        return checked

    def _finish(self, finish_kind: str | None) -> FinishCallback | None:
        if finish_kind is None:
            return None
        return FinishCallback(kind=finish_kind, queue=self.registry.get(finish_kind).queue)

    def _new_job(
        self,
        definition: TaskDefinition,
        payload: BaseModel,
        plan: _Plan,
        job_id: str,
        batch_id: str | None = None,
        position: int | None = None,
    ) -> NewJob:
        return NewJob(
            id=job_id,
            kind=definition.kind,
            payload=encode(definition, payload, job_id, self.sealer),
            version=definition.version,
            queue=plan.queue,
            priority=plan.priority,
            run_at=plan.run_at,
            delay=plan.delay,
            key=plan.key,
            retry=plan.retry,
            role=definition.role if batch_id is None else Role.ITEM,
            batch_id=batch_id,
            position=position,
        )

    # ── Expand, on behalf of a head job that a worker runs ───────────────────────────────────

    def expanded_items(
        self, definition: TaskDefinition, head: Job, numbered: Iterable[tuple[int, Payload]]
    ) -> list[NewJob]:
        """The item jobs of a bulk kind's head; the same position always gets the same id."""
        assert definition.item_kind is not None
        item = self.registry.get(definition.item_kind)
        plan = _Plan(head.queue, head.priority, None, 0, head.key, head.retry)
        models = ((position, validate(item, payload)) for position, payload in numbered)
        return self._items(item, head.id, models, plan)

    # ── Look and wait ────────────────────────────────────────────────────────────────────────

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        on_change: Callable[[Job, Batch | None], None] | None = None,
    ) -> Job:
        """Wait until a job is in a final state and return it.

        A batch's finish callback is waited for as well. `on_change` is told of every step seen.
        Raises JobTimeoutError after `timeout` seconds; the job goes on.
        """
        changed = asyncio.Event()
        with self.store.watch(changed.set, settled=True):
            try:
                async with asyncio.timeout(timeout):
                    while True:
                        changed.clear()
                        job = await self._look(job_id, on_change)
                        if job is not None:
                            return job
                        await changed.wait()
                        # Under load changes come by the thousand: look once for many of them.
                        await asyncio.sleep(SETTLE_PAUSE)
            except TimeoutError:
                raise JobTimeoutError(f"job {job_id} did not finish within {timeout:g} s") from None

    async def _look(
        self, job_id: str, on_change: Callable[[Job, Batch | None], None] | None
    ) -> Job | None:
        """The job if it is done, with its batch's callback; reports what it saw."""
        job = await self.store.get(job_id)
        batch = await self.store.batch(job_id) if job.role is Role.HEAD else None
        if on_change is not None:
            on_change(job, batch)
        if not job.state.final:
            return None
        if batch is not None and batch.finish_job is not None:
            callback = await self.store.get(batch.finish_job)
            return job if callback.state.final else None
        return job

    # ── Operate ──────────────────────────────────────────────────────────────────────────────

    async def cancel(self, job_id: str) -> JobState:
        """Request that a job or batch stops; returns its state now. Raises JobNotFoundError."""
        states = await self.store.cancel([job_id])
        if job_id not in states:
            await self.store.get(job_id)
        return states[job_id]

    async def retry(self, job_id: str) -> JobState:
        """Make a failed or cancelled job pending again, with fresh attempts.

        A pending job stays as it is, so repeating the call is harmless. Raises JobNotFoundError,
        and JobStateError for a job that is running or completed.
        """
        states = await self.store.requeue([job_id])
        if job_id not in states:
            await self.store.get(job_id)
        if states[job_id] is not JobState.PENDING:
            raise JobStateError(f"job {job_id} is {states[job_id]}: nothing to retry")
        return states[job_id]


def _own_finish(definition: TaskDefinition, plan: _Plan) -> FinishCallback | None:
    """The finish callback of a bulk kind's head; like its items it stays on the head's queue."""
    if definition.finish_kind is None:
        return None
    return FinishCallback(kind=definition.finish_kind, queue=plan.queue)


def _validated_item(definition: TaskDefinition, index: int, payload: Payload) -> BaseModel:
    try:
        return validate(definition, payload)
    except ValidationError as error:
        raise ValidationError(
            error.message,
            [
                Problem(f"items[{index}].{problem.field}", problem.reason)
                for problem in error.problems
            ],
        ) from None


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _job_id(options: Options) -> str:
    job_id = options.get("job_id")
    if job_id is None:
        return new_id()
    try:
        # In one spelling: it is the name that items derive theirs from.
        return text_id(raw_id(str(job_id)))
    except ValueError:
        raise ValidationError(
            "options were refused", [Problem("job_id", "is not a UUID")]
        ) from None


def _plan(definition: TaskDefinition, options: Options) -> _Plan:
    """The options over the definition's defaults; raises ValidationError for bad values."""
    problems = [Problem(name, "is no option") for name in options if name not in _OPTIONS]
    plan = _Plan(
        queue=_queue(options.get("queue"), definition.queue, problems),
        priority=_priority(options.get("priority"), definition.priority, problems),
        delay=_delay(options.get("delay"), problems),
        run_at=_run_at(options.get("run_at"), problems),
        key=_key(options.get("key"), problems),
        retry=options.get("retry"),
    )
    if plan.run_at is not None and plan.delay:
        problems.append(Problem("run_at", "cannot be given together with delay"))
    if plan.retry is not None and not isinstance(plan.retry, RetryPolicy):
        problems.append(Problem("retry", "must be a RetryPolicy"))
    if problems:
        raise ValidationError(f"{definition.kind}: the options were refused", problems)
    return plan


def _queue(value: Any, default: str, problems: list[Problem]) -> str:
    if value is None:
        return default
    try:
        check_name("queue", value)
    except (ConfigurationError, TypeError):
        problems.append(Problem("queue", "is not a dotted name of letters, digits and underscores"))
    return str(value)


def _priority(value: Any, default: int, problems: list[Problem]) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or abs(value) > HIGHEST_PRIORITY:
        problems.append(Problem("priority", f"must be an integer within ±{HIGHEST_PRIORITY:,}"))
        return default
    return int(value)


def _delay(value: Any, problems: list[Problem]) -> int:
    """Microseconds."""
    if value is None:
        return 0
    if not isinstance(value, (int, float)) or not 0 <= value <= LONGEST_DELAY:
        problems.append(Problem("delay", "must be seconds from 0 up to ten years"))
        return 0
    return round(value * MICROSECOND)


def _run_at(value: Any, problems: list[Problem]) -> int | None:
    """Microseconds UTC."""
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        problems.append(Problem("run_at", "must be a date and time with its time zone"))
        return None
    return round(value.timestamp() * MICROSECOND)


def _key(value: Any, problems: list[Problem]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_KEY:
        problems.append(Problem("key", f"must be a text of 1 to {LONGEST_KEY} characters"))
    elif any("\ud800" <= character <= "\udfff" for character in value):
        problems.append(Problem("key", "holds half a character (a lone surrogate)"))
    return str(value)
