"""Jobs from the producer's and the operator's side: enqueue, look, wait, cancel, retry, delete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

from pydantic import BaseModel

from haulier.domain.batch import Batch, FinishCallback
from haulier.domain.ids import derived_ids
from haulier.domain.job import Job, JobState, NewJob, Role
from haulier.exceptions import (
    ConfigurationError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    Problem,
    StoreError,
    ValidationError,
)
from haulier.ports import Inserted, JobFilter, JobStore
from haulier.services import nesting, selection
from haulier.services.ahead import PART, insert_all
from haulier.services.baggage import carried
from haulier.services.flow import STARTER, Flow
from haulier.services.ids import new_id, new_ids
from haulier.services.items import chunks, inner_policy, validated_item
from haulier.services.options import BatchLimits, Options, Plan, checked_limits, job_id_of, plan_of
from haulier.services.payload import Payload, encode, validate
from haulier.services.registry import Registry, TaskDefinition
from haulier.services.secrets import Sealer
from haulier.services.who import who

UNIQUE_CHUNK = 150
"""Jobs with unique names, which are looked at one by one, that one transaction inserts."""

CHECKED_FIRST = 10_000
"""A sequence of up to so many items is checked whole before the first one is inserted."""

SETTLE_PAUSE = 0.02


class JobManager:
    """Manages jobs over a store; the only way in for the library, the API and the CLI."""

    def __init__(self, store: JobStore, registry: Registry, sealer: Sealer) -> None:
        self.store = store
        self.registry = registry
        self.sealer = sealer

    # ── Enqueue ──────────────────────────────────────────────────────────────────────────────

    async def enqueue(
        self, kind: str, payload: Payload, options: Options, *, connection: object | None = None
    ) -> str:
        """Insert one job and return its id; for a bulk kind this is its head job.

        The id is another job's if that one holds the unique name or the idempotency key. With a
        `connection` of the caller's, in the transaction that is open on it.
        """
        definition = self.registry.get(kind)
        plan = plan_of(definition, options, batch=definition.role is Role.HEAD)
        job_id = job_id_of(options)
        checked = validate(definition, payload)
        if definition.expand:
            # The whole input of a batch may take a second to seal: not on the event loop.
            (job,) = await asyncio.to_thread(self.new_jobs, definition, plan, [job_id], [checked])
        else:
            (job,) = self.new_jobs(definition, plan, [job_id], [checked])
        policy = plan.batch_policy(definition.own_finish(plan.queue))
        inserted = await self.store.insert([job], policy=policy, connection=connection)
        return inserted.instead.get(job.id, job.id)

    async def enqueue_many(
        self, kind: str, payloads: Iterable[Payload], options: Options
    ) -> list[str]:
        """Insert a job per payload, in order, a chunk to a transaction; returns their ids.

        Raises ValidationError at the first bad payload, with its index. Up to 10,000 payloads of a
        sequence are checked before the first one is inserted; more, or those of an iterator, are
        checked as they come.
        """
        definition = self.registry.get(kind)
        plan = plan_of(definition, options, batch=definition.role is Role.HEAD)
        _refuse_options_of_one(options, plan)
        policy = plan.batch_policy(definition.own_finish(plan.queue))
        ids: list[str] = []

        async def insert(jobs: Sequence[NewJob]) -> None:
            instead = (await self.store.insert(jobs, policy=policy)).instead
            ids.extend([instead.get(job.id, job.id) for job in jobs] if instead else _ids(jobs))

        parts = (
            self.new_jobs(definition, plan, new_ids(len(part)), part)
            for part in chunks(self._checked(definition, payloads), PART)
        )
        size = self.store.chunk if plan.unique is None else UNIQUE_CHUNK
        await insert_all(insert, parts, size, ahead=isinstance(payloads, Sequence))
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
        input is inserted as it comes, in flat memory; a bad item then cancels the batch, or with an
        idempotency key deletes it, so that the key is free again. When an earlier call with the
        same idempotency key did not come to its end, this one goes on; so with a key, a batch that
        the store could not take whole is left open.
        """
        definition = self.item_definition(kind)
        plan = plan_of(definition, options, batch=True)
        policy = plan.batch_policy(self.finish_callback(finish_kind))
        checked = self._checked(definition, items)
        head = self.own_head(definition, plan, job_id_of(options), checked, finish_kind)
        batch_id = head.id
        numbered: Iterator[tuple[int, BaseModel]] = iter(enumerate(checked))
        first = list(islice(numbered, self.store.chunk))
        sealed = len(first) < self.store.chunk
        if definition.expand:
            # What comes with its head has its policy.
            sealed = False
            numbered, first = chain(first, numbered), []
        opening = self._items(definition, batch_id, first, plan)
        ours = False
        try:
            opened = await self.store.open_batch(head, opening, policy=policy, sealed=sealed)
            ours = opened.new > 0
            if opened.instead:
                batch_id = opened.instead[head.id]
                if plan.idempotency_key is None or (await self.store.batch(batch_id)).sealed:
                    return batch_id
                await self.store.insert(self._items(definition, batch_id, first, plan))
            parts = chunks(numbered, PART)
            rest = (self._items(definition, batch_id, part, plan) for part in parts)
            ahead = isinstance(items, Sequence)

            async def insert(jobs: Sequence[NewJob]) -> None:
                await self.insert_items(jobs, definition)

            await insert_all(insert, rest, self.store.chunk, ahead=ahead)
            if not sealed or opened.instead:
                await self.store.seal(batch_id)
        except (Exception, asyncio.CancelledError) as error:
            if plan.idempotency_key is None or not isinstance(error, _REPEATABLE):
                told = await asyncio.shield(self._abandon(batch_id, plan, ours=ours))
                if told:
                    error.add_note(told)
            elif isinstance(error, JobStateError) and await self._filled(batch_id):
                # Somebody else with the same key was faster: what it holds is the same.
                return batch_id
            raise
        return batch_id

    def item_definition(self, kind: str) -> TaskDefinition:
        """The definition of a kind that items may have: any. Those of a bulk kind are batches."""
        return self.registry.get(kind)

    async def insert_items(self, jobs: Sequence[NewJob], definition: TaskDefinition) -> Inserted:
        """Insert items of a batch that is open, all of one definition."""
        return await self.store.insert(jobs, policy=inner_policy(definition, jobs))

    async def _filled(self, batch_id: str) -> bool:
        return (await self.store.batch(batch_id)).sealed

    def own_head(
        self,
        definition: TaskDefinition,
        plan: Plan,
        batch_id: str,
        items: Iterable[BaseModel],
        finish_kind: str | None,
    ) -> NewJob:
        """The head of a batch that its producer fills, not yet inserted.

        Items count for what is unique about it only if all of them are known.
        """
        known = items if isinstance(items, list) else ()
        if plan.after is not None:
            raise ValidationError(
                f"{definition.kind}: the options were refused",
                [Problem("after", "a batch that its producer fills begins at once")],
            )
        if plan.unique is not None and plan.idempotency_key is not None:
            # The store does not say which of the two another batch holds: whether to fill it.
            raise ValidationError(
                f"{definition.kind}: the options were refused",
                [Problem("unique", "cannot be given to a batch together with idempotency_key")],
            )
        if plan.unique is not None and plan.unique.by is None and known == ():
            raise ValidationError(
                f"{definition.kind}: the options were refused",
                [Problem("unique.by", "must be given for a batch whose items come one by one")],
            )
        return NewJob(
            id=batch_id,
            kind=definition.kind,
            payload=b"{}",
            queue=plan.queue,
            priority=plan.priority,
            key=plan.key,
            role=Role.HEAD,
            unique=plan.names(definition, _Nothing(), known, finish_kind=finish_kind),
            baggage=carried(),
        )

    async def _abandon(self, batch_id: str, plan: Plan, *, ours: bool) -> str | None:
        """Cancel a batch that is half filled; says so if there was one and the store could.

        One that this very call opened with an idempotency key is deleted if it can be: else nobody
        could use the key for as long as it holds.
        """
        try:
            # Its first items may be on their way to the store: behind this write they are not.
            await self.store.cancel([])
            # A sealed one was filled by an earlier call with the same id, and is no ruin.
            if (await self.store.batch(batch_id)).sealed:
                return None
            await self.store.cancel([batch_id])
        except (JobNotFoundError, StoreError):
            return None
        told = f"the batch {batch_id} was cancelled before it was filled"
        if plan.idempotency_key is None:
            return told
        if ours:
            # Not if some of its items run already.
            with contextlib.suppress(JobNotFoundError, JobStateError, StoreError):
                await self.store.delete(batch_id)
                return f"the batch {batch_id} was deleted before it was filled"
        return f"{told}; delete it to use its idempotency key again"

    def _items(
        self,
        definition: TaskDefinition,
        batch_id: str,
        numbered: Iterable[tuple[int, BaseModel]],
        plan: Plan,
    ) -> list[NewJob]:
        positions: list[int] = []
        payloads: list[BaseModel] = []
        for position, payload in numbered:
            positions.append(position)
            payloads.append(payload)
        ids = derived_ids(batch_id, map(str, positions))
        return self.new_jobs(definition, plan, ids, payloads, batch_id, positions)

    def _checked(
        self, definition: TaskDefinition, payloads: Iterable[Payload]
    ) -> Iterable[BaseModel]:
        """The payloads as models: all checked first if they are few, else as they are taken."""
        checked = (
            validated_item(definition, index, payload) for index, payload in enumerate(payloads)
        )
        if isinstance(payloads, Sequence) and len(payloads) <= CHECKED_FIRST:
            return list(checked)
        return checked

    def finish_callback(self, finish_kind: str | None) -> FinishCallback | None:
        if finish_kind is None:
            return None
        definition = self.registry.get(finish_kind)
        if definition.version != 1:
            # The store makes its payload, which has no versions.
            raise ConfigurationError(f"{finish_kind} has a version: it cannot be a finish callback")
        return FinishCallback(kind=finish_kind, queue=definition.queue)

    def new_jobs(
        self,
        definition: TaskDefinition,
        plan: Plan,
        ids: Sequence[str],
        payloads: Sequence[BaseModel],
        batch_id: str | None = None,
        positions: Iterable[int | None] = repeat(None),
    ) -> list[NewJob]:
        """Jobs of one kind and plan; those of a batch are its items."""
        sealer, single = self.sealer, batch_id is None
        kind, version, on_lost = definition.kind, definition.version, definition.on_lost
        queue, priority, run_at, delay = plan.queue, plan.priority, plan.run_at, plan.delay
        key, retry = plan.key, plan.retry
        role = definition.role if single else definition.role_as_item
        named = single and plan.named
        baggage, after = carried(), plan.after or () if single else ()
        return [
            # All fields in their order: given by name they take twice the time.
            NewJob(
                job_id,
                kind,
                encode(definition, payload, job_id, sealer),
                version,
                queue,
                priority,
                run_at,
                delay,
                key,
                retry,
                role,
                batch_id,
                position,
                on_lost,
                plan.names(definition, payload) if named else (),
                baggage,
                after,
            )
            for job_id, payload, position in zip(ids, payloads, positions, strict=False)
        ]

    # ── Flows ────────────────────────────────────────────────────────────────────────────────

    def flow(self, kind_of: Callable[[Any], str]) -> Flow:
        """A flow to be built and started; `kind_of` a task is its kind."""

        def starter() -> NewJob:
            return NewJob(new_id(), STARTER, b"{}", role=Role.HEAD, baggage=carried())

        def make(task: Any, payloads: Sequence[Payload], options: Any) -> list[NewJob]:
            return self._flow_jobs(kind_of(task), payloads, options)

        return Flow(self.store, make, starter)

    def _flow_jobs(self, kind: str, payloads: Sequence[Payload], options: Any) -> list[NewJob]:
        definition = self.registry.get(kind)
        bulk = definition.role is Role.HEAD
        plan = plan_of(definition, options, batch=bulk)
        problems = [
            Problem(name, "is for jobs that are enqueued one by one")
            for name in ("unique", "idempotency_key", "concurrency", "batch_size", "max_failures")
            if getattr(plan, name) is not None
        ]
        if problems:
            raise ValidationError(f"{kind}: the options were refused", problems)
        if len(payloads) == 1:
            ids = [job_id_of(options)]
        else:
            _refuse_options_of_one(options, plan)
            ids = new_ids(len(payloads))
        checked = [
            validated_item(definition, index, payload)
            if len(payloads) > 1
            else validate(definition, payload)
            for index, payload in enumerate(payloads)
        ]
        return self.new_jobs(definition, plan, ids, checked)

    # ── Expand, on behalf of a head job that a worker runs ───────────────────────────────────

    def expanded_items(
        self, definition: TaskDefinition, head: Job, numbered: Iterable[tuple[int, Payload]]
    ) -> list[NewJob]:
        """The item jobs of a bulk kind's head; the same position always gets the same id."""
        assert definition.item_kind is not None
        item = self.registry.get(definition.item_kind)
        plan = Plan(head.queue, head.priority, None, 0, head.key, head.retry)
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
        batch = await self.store.batch(job_id) if job.role.heads else None
        if on_change is not None:
            on_change(job, batch)
        if not job.state.final:
            return None
        if batch is not None and not batch.settled:
            return None
        if batch is not None and batch.finish_job is not None:
            # One that is there no longer was pruned or deleted, so it had ended.
            with contextlib.suppress(JobNotFoundError):
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

    async def alter_batch(
        self, batch_id: str, changes: BatchLimits, *, by: str | None = None
    ) -> Batch:
        """Change limits of a batch while it runs; see `JobStore.alter_batch`."""
        await self.store.alter_batch(batch_id, checked_limits(changes), by=who(by))
        return await self.store.batch(batch_id)

    async def retry_failed(
        self, batch_id: str, *, error_type: str | None = None, limit: int | None = None
    ) -> int:
        """Requeue failed items of a batch, all or those of one error class; returns how many."""
        selection.check_limit(limit)
        return await nesting.retry_failed(self.store, batch_id, error_type=error_type, limit=limit)

    async def cancel_all(self, where: JobFilter, *, limit: int | None = None) -> int:
        """Request that all jobs that a filter finds stop; see `selection.cancel_all`."""
        return await selection.cancel_all(self.store, where, limit=limit)

    async def retry_all(self, where: JobFilter, *, limit: int | None = None) -> int:
        """Make failed jobs that a filter finds pending again; see `selection.retry_all`."""
        return await selection.retry_all(self.store, where, limit=limit)

    async def delete_all(self, where: JobFilter, *, limit: int | None = None) -> int:
        """Delete the finished jobs that a filter finds; see `selection.delete_all`."""
        return await selection.delete_all(self.store, where, limit=limit)


class _Nothing(BaseModel):
    """The payload of a head whose items its producer inserts; unlike that of any single job."""

    filled_by: str = "producer"


_REPEATABLE = (StoreError, JobStateError, asyncio.CancelledError)
"""What ends the filling of a batch without a fault of its items."""


def _ids(jobs: Sequence[NewJob]) -> list[str]:
    return [job.id for job in jobs]


def _refuse_options_of_one(options: Options, plan: Plan) -> None:
    """What names one job cannot be said of many."""
    problems = [
        Problem(name, "is for one job")
        for name in ("job_id", "idempotency_key")
        if options.get(name) is not None
    ]
    if plan.unique is not None and plan.unique.by is not None:
        problems.append(Problem("unique.by", "is for one job: without it each payload is unique"))
    if problems:
        raise ValidationError("options were refused", problems)
