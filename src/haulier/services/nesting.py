"""What is done to a batch and all that lies within it, batch by batch."""

from __future__ import annotations

from collections.abc import AsyncIterator

from haulier.domain.batch import Batch
from haulier.domain.job import JobState
from haulier.exceptions import JobStateError
from haulier.ports import JobStore

PAGE = 500


async def batches_within(store: JobStore, batch_id: str) -> AsyncIterator[Batch]:
    """The batches whose heads are items of this one, the youngest first."""
    cursor = None
    while found := await store.batches(limit=PAGE, cursor=cursor, within=batch_id):
        for batch in found:
            yield batch
        cursor = found[-1].id


async def retry_failed(
    store: JobStore, batch_id: str, *, error_type: str | None = None, limit: int | None = None
) -> int:
    """Requeue failed items of a batch and of those within it; returns how many.

    A batch within it that failed before all its items were made starts anew, and counts as one.
    Not one transaction: when it is broken off, doing it again does the rest.
    """
    count = 0
    async for inner in batches_within(store, batch_id):
        if limit is not None and count >= limit:
            return count
        count += await _retry(store, inner, error_type, None if limit is None else limit - count)
    left = None if limit is None else limit - count
    return count + await store.retry_failed(batch_id, error_type=error_type, limit=left)


async def _retry(store: JobStore, inner: Batch, error_type: str | None, limit: int | None) -> int:
    if inner.sealed:
        if inner.cancel_requested and not inner.settled:
            return 0
        return await retry_failed(store, inner.id, error_type=error_type, limit=limit)
    if inner.state is not JobState.FAILED:
        return 0
    error = (await store.get(inner.id)).error
    if error_type is not None and (error is None or error.type != error_type):
        return 0
    try:
        await store.requeue([inner.id])
    except JobStateError:
        # Items of it that were asked to stop still run.
        return 0
    return 1
