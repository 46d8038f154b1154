"""One attempt at one job, from its stored payload to its outcome."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import structlog
from pydantic import BaseModel

from haulier.domain.job import Expanded, Job, Outcome, Snoozed, Succeeded
from haulier.domain.worker import Note
from haulier.exceptions import CancelJob, JobStateError, PermanentError
from haulier.ports import Fence
from haulier.services.context import Context, Control, Runtime
from haulier.services.items import inner_policy
from haulier.services.jobs import JobManager
from haulier.services.payload import NEWER_DELAY, decode, encode_result, newer_than
from haulier.services.registry import Executor, TaskDefinition
from haulier.services.secrets import Scrubber
from haulier.worker.around import Around
from haulier.worker.children import Children
from haulier.worker.outcomes import outcome_of
from haulier.worker.threads import ThreadExecutor
from haulier.worker.timeouts import Timed

_log = structlog.get_logger("haulier.worker")


@dataclass(slots=True)
class Executors:
    """What jobs run in beside the event loop; they outlive an incarnation.

    `abandoned` are the coroutines that go on although nobody waits for them any more, `too_new`
    kinds and versions of payloads that were met and cannot be read here.
    """

    threads: ThreadExecutor
    children: Children
    abandoned: set[asyncio.Task[None]] = field(default_factory=set)
    too_new: set[tuple[str, int]] = field(default_factory=set)


async def execute(
    job: Job,
    definition: TaskDefinition,
    control: Control,
    runtime: Runtime,
    manager: JobManager,
    executors: Executors,
    around: Around | None = None,
) -> Outcome:
    """Run the job and say what it came to. Whatever the task raises becomes an outcome.

    Only a cancellation of the running asyncio task itself passes through as CancelledError. What is
    `around` is entered here, and left by the caller.
    """
    older = None
    if job.version != definition.version:
        if job.version > definition.version:
            return _put_off(job, definition, runtime, executors)
        older = job.version
    with Scrubber() if around is None else around.scrubber as scrubber:
        try:
            if around is not None:
                await around.enter()
            _check_role(job, definition)
            payload = decode(definition, job.payload, job.id, manager.sealer, older)
            if definition.executor is Executor.PROCESS:
                return await executors.children.run(job, definition, payload, control, runtime)
            ctx = Context(job, control, runtime)
            if around is not None:
                ctx.state = around.attempt.state
            if definition.expand is not None:
                await _expand(job, definition, ctx, manager, payload, executors.threads)
                return Expanded()
            if definition.executor is Executor.THREAD:
                value = await _in_thread(definition, ctx, control, payload, executors.threads)
            else:
                assert definition.call is not None
                coroutine, seconds = definition.call(ctx, payload), definition.timeout
                value = await (coroutine if seconds is None else Timed(coroutine, seconds, control))
            return Succeeded(encode_result(value))
        except BaseException as error:
            # A job ends here, also by SystemExit, and also by a CancelledError of its own doing or
            # of its soft timeout.
            if isinstance(error, asyncio.CancelledError) and _stopped_from_outside():
                raise
            return _raised(error, job, control, scrubber, around)


def _put_off(
    job: Job, definition: TaskDefinition, runtime: Runtime, executors: Executors
) -> Outcome:
    """Leave a job to workers of a later release, as there are many while one is rolled out."""
    why = newer_than(definition, job.version)
    if (job.kind, job.version) not in executors.too_new:
        # Once: there may be thousands of them.
        executors.too_new.add((job.kind, job.version))
        _log.warning("payload too new", job=job.id, kind=job.kind, reason=why)
    runtime.report(Note(job.id, job.lease, message=why))
    return Snoozed(NEWER_DELAY)


def _raised(
    error: BaseException, job: Job, control: Control, scrubber: Scrubber, around: Around | None
) -> Outcome:
    if around is not None:
        around.exception = error
    return outcome_of(error, job, control, scrubber)


def _stopped_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _check_role(job: Job, definition: TaskDefinition) -> None:
    """Who inserts past the library says by themselves whether a kind is a bulk kind.

    A head that is not expanded, or a single job that is, would never settle.
    """
    if job.role.heads != (definition.expand is not None):
        bulk = "a bulk kind" if definition.expand else "no bulk kind"
        raise PermanentError(f"{job.kind} is {bulk}, but was enqueued as a {job.role} job")


async def _in_thread(
    definition: TaskDefinition,
    ctx: Context,
    control: Control,
    payload: BaseModel,
    threads: ThreadExecutor,
) -> Any:
    assert definition.call is not None
    seconds = definition.timeout
    if seconds is None:
        return await threads.run(definition.call, ctx, payload)
    # A thread cannot be stopped: it is told by its context.
    timer = asyncio.get_running_loop().call_later(seconds, control.expire, seconds)
    try:
        return await threads.run(definition.call, ctx, payload)
    finally:
        timer.cancel()


async def _expand(
    job: Job,
    definition: TaskDefinition,
    ctx: Context,
    manager: JobManager,
    payload: Any,
    threads: ThreadExecutor,
) -> None:
    """Insert the batch's items, a chunk at a time, each under the head's fence."""
    expand = definition.expand
    assert expand is not None
    assert definition.item_kind is not None
    item = manager.registry.get(definition.item_kind)
    items = await threads.run(lambda: iter(expand(ctx, payload)))
    position = 0
    while chunk := await threads.run(lambda: list(islice(items, manager.store.chunk))):
        ctx.check()
        numbered = enumerate(chunk, start=position)
        made = manager.expanded_items(definition, job, numbered)
        try:
            policy = inner_policy(item, made)
            await manager.store.insert(made, fence=Fence(job.id, job.lease), policy=policy)
        except JobStateError as error:
            # The batch was cancelled, and this call met it before the worker was told.
            if (await manager.store.get(job.id)).cancel_requested:
                raise CancelJob("cancelled on request") from None
            # It was cut short, or is closed: it will not be open again at the next attempt.
            raise PermanentError(str(error)) from error
        position += len(chunk)
