"""What is done to whole batches while they run."""

from __future__ import annotations

from typing import Unpack

from haulier.domain.batch import Batch
from haulier.services.jobs import JobManager
from haulier.services.options import BatchLimits


class Batches:
    """What is done to whole batches, by their ids; all of it also holds for batches within them.

    A batch is cancelled and deleted by its head job, which has its id. Each verb raises
    JobNotFoundError if there is no such batch.
    """

    def __init__(self, jobs: JobManager) -> None:
        self._jobs = jobs

    async def seal(self, batch_id: str) -> None:
        """Declare that a batch that was left open has all its items."""
        await self._jobs.store.seal(batch_id)

    async def pause(self, batch_id: str) -> None:
        """Let no more items of a batch start, nor of those within it; those that run go on."""
        await self._jobs.store.pause(batch_id)

    async def resume(self, batch_id: str) -> None:
        """Let the items of a paused batch start again."""
        await self._jobs.store.resume(batch_id)

    async def retry_failed(
        self, batch_id: str, *, error_type: str | None = None, limit: int | None = None
    ) -> int:
        """Requeue only the failed items of a batch; returns how many.

        All, or those whose last error is of the class `error_type`, and at most `limit` of them. Of
        batches within it too.
        """
        return await self._jobs.retry_failed(batch_id, error_type=error_type, limit=limit)

    async def alter(
        self, batch_id: str, *, by: str | None = None, **limits: Unpack[BatchLimits]
    ) -> Batch:
        """Change limits of a batch while it runs: `concurrency=20, max_failures=None`.

        None removes a limit. It holds at once, see the guarantees. The event says who did it, `by`,
        by default the user of this process. Raises ValidationError, JobNotFoundError, or
        JobStateError while the batch is being cancelled, retried or deleted.
        """
        return await self._jobs.alter_batch(batch_id, limits, by=by)
