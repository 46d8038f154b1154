"""One attempt at one job, from its stored payload to its outcome."""

from __future__ import annotations

import asyncio
import traceback
from itertools import islice
from typing import Any

from haulier.domain.job import (
    Cancelled,
    Expanded,
    Failed,
    Interrupted,
    Job,
    JobError,
    Outcome,
    Snoozed,
    Succeeded,
)
from haulier.exceptions import (
    CancelJob,
    ConfigurationError,
    JobStateError,
    LeaseLostError,
    PermanentError,
    RetryLater,
    Snooze,
    ValidationError,
)
from haulier.ports import Fence
from haulier.services.context import Context, storable
from haulier.services.jobs import CHUNK, JobManager
from haulier.services.payload import decode, encode_result
from haulier.services.registry import Executor, TaskDefinition
from haulier.services.secrets import Scrubber
from haulier.worker.threads import ThreadExecutor

LONGEST_MESSAGE = 2_000
LONGEST_TRACEBACK = 8_000
FRAMES = 20

_HOPELESS = (PermanentError, ValidationError, ConfigurationError)
"""Errors that come back with every attempt: the input is at fault, not the moment."""


async def execute(
    job: Job,
    definition: TaskDefinition,
    ctx: Context,
    manager: JobManager,
    threads: ThreadExecutor,
) -> Outcome:
    """Run the job and say what it came to. Whatever the task raises becomes an outcome.

    Only a cancellation of the running asyncio task itself passes through as CancelledError.
    """
    with Scrubber() as scrubber:
        try:
            payload = decode(definition, job.payload, job.id, manager.sealer)
            if definition.expand is not None:
                await _expand(job, definition, ctx, manager, payload, threads)
                return Expanded()
            assert definition.call is not None
            if definition.executor is Executor.ASYNC:
                value = await definition.call(ctx, payload)
            else:
                value = await threads.run(definition.call, ctx, payload)
            return Succeeded(encode_result(value))
        except Snooze as signal:
            return Snoozed(signal.delay)
        except CancelJob as signal:
            return Cancelled(scrubber.scrub(str(signal)))
        except LeaseLostError as error:
            # Believed only if it is so: a job that is given back costs no attempt, so a task that
            # raised this by itself would run for ever.
            return Interrupted() if ctx.lost else Failed(_describe(job, error, scrubber))
        except RetryLater as signal:
            return Failed(_describe(job, signal, scrubber), delay=signal.delay)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The task's own doing: nobody cancelled it, so it failed.
            return Failed(_describe(job, error, scrubber))
        except BaseException as error:  # noqa: BLE001 - a job ends here, also by SystemExit
            return Failed(_describe(job, error, scrubber), permanent=isinstance(error, _HOPELESS))


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
    items = await threads.run(lambda: iter(expand(ctx, payload)))
    position = 0
    while chunk := await threads.run(lambda: list(islice(items, CHUNK))):
        ctx.check()
        numbered = enumerate(chunk, start=position)
        made = manager.expanded_items(definition, job, numbered)
        try:
            await manager.store.insert(made, fence=Fence(job.id, job.lease))
        except JobStateError:
            # The batch was cancelled, and this call met it before the worker was told.
            if (await manager.store.get(job.id)).cancel_requested:
                raise CancelJob("cancelled on request") from None
            raise
        position += len(chunk)


def _describe(job: Job, error: BaseException, scrubber: Scrubber) -> JobError:
    """The error as it is kept: without secrets, without what would not fit."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    own = [frame for frame in frames if "/haulier/worker/" not in frame.filename]
    lines = traceback.format_list(own) + traceback.format_exception_only(error)
    return JobError(
        type=type(error).__name__,
        message=storable(scrubber.scrub(_text_of(error)))[:LONGEST_MESSAGE],
        traceback=storable(scrubber.scrub("".join(lines)))[-LONGEST_TRACEBACK:],
        attempt=job.attempt,
    )


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it is the task's own code, and must not stop the worker
        return "(its text could not be read)"
