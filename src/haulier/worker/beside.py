"""A worker that runs beside other code of its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from haulier.worker.worker import Worker


@asynccontextmanager
async def beside(worker: Worker) -> AsyncIterator[Worker]:
    """Run a worker beside the block; it is stopped and drained at its end."""
    alone: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.stop()
    except BaseExceptionGroup as errors:
        # The block's own exception must leave as itself, not wrapped in our group.
        if len(errors.exceptions) > 1:
            raise
        (alone,) = errors.exceptions
    if alone is not None:
        # Out here, or the group would take the place of its own context.
        raise alone
