"""Operations on all jobs that a filter finds: cancel, retry, delete, a slice at a time.

They need no task definitions, only the store, so a command line can use them without loading any.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace

from haulier.domain.job import JobState, Role
from haulier.exceptions import JobNotFoundError, JobStateError, Problem, ValidationError
from haulier.ports import JobFilter, JobReader, JobStore

SLICE = 500
"""Jobs that are looked for at once."""

TOGETHER = 50
"""Jobs that one transaction moves, so that nobody waits for long."""

MOST = 1_000_000_000
"""More jobs than any batch can have, and less than any store can count."""

TOP = frozenset({Role.SINGLE, Role.HEAD})

CANCELLABLE = frozenset({JobState.PENDING, JobState.RUNNING})
RETRYABLE = frozenset({JobState.FAILED, JobState.CANCELLED})
DELETABLE = frozenset(state for state in JobState if state.final)


async def cancel_all(store: JobStore, where: JobFilter, *, limit: int | None = None) -> int:
    """Request that all jobs that a filter finds stop; returns how many it concerned.

    Heads take their items with them. Jobs that are done already do not count.
    """
    return await _for_all(store, _narrowed(where, CANCELLABLE), limit, store.cancel)


async def retry_all(store: JobStore, where: JobFilter, *, limit: int | None = None) -> int:
    """Make failed jobs that a filter finds pending again, the oldest first; returns how many.

    Only failed ones, unless the filter names `cancelled`. Of batches, name the batch to retry its
    items, or use `retry_failed`.
    """
    wanted = RETRYABLE if where.states else frozenset({JobState.FAILED})

    async def requeue(ids: Sequence[str]) -> Collection[str]:
        try:
            states = await store.requeue(ids)
        except JobStateError:
            # One that is refused (its batch is being cancelled) must not spoil the others.
            if len(ids) == 1:
                return []
            return [job_id for each in ids for job_id in await requeue([each])]
        return [job_id for job_id in states if states[job_id] is JobState.PENDING]

    return await _for_all(store, _narrowed(where, wanted), limit, requeue)


async def delete_all(store: JobStore, where: JobFilter, *, limit: int | None = None) -> int:
    """Delete finished jobs that a filter finds, batches with their items; returns how many."""

    async def delete(ids: Sequence[str]) -> Collection[str]:
        # Beside each other, because a store commits those together that come together.
        done = await asyncio.gather(*(_deleted(store, job_id) for job_id in ids))
        return [job_id for job_id, gone in zip(ids, done, strict=True) if gone]

    return await _for_all(store, _narrowed(where, DELETABLE, TOP), limit, delete)


async def count_all(
    store: JobStore, where: JobFilter, states: Iterable[JobState], *, limit: int | None = None
) -> int:
    """How many jobs in one of these states a filter finds, up to `limit`; nothing is changed.

    With CANCELLABLE, RETRYABLE or DELETABLE it is what the operation would be tried on. It looks at
    each of them: as long as the operation's own reading takes.
    """

    async def none(ids: Sequence[str]) -> Collection[str]:
        return ids

    wanted = frozenset(states)
    if wanted == RETRYABLE and not where.states:
        wanted = frozenset({JobState.FAILED})
    roles = TOP if wanted == DELETABLE else None
    return await _for_all(store, _narrowed(where, wanted, roles), limit, none)


async def _deleted(store: JobStore, job_id: str) -> bool:
    try:
        await store.delete(job_id)
    except (JobStateError, JobNotFoundError):
        return False
    return True


def check_limit(value: int | None, *, least: int = 0) -> None:
    """Refuse a number of jobs, to be worked on or shown at most, that is none."""
    if value is not None and (type(value) is not int or not least <= value <= MOST):
        reason = f"must be an integer from {least} to {MOST:,}"
        raise ValidationError("the limit was refused", [Problem("limit", reason)])


async def _for_all(
    reader: JobReader,
    where: JobFilter | None,
    limit: int | None,
    act: Callable[[Sequence[str]], Awaitable[Collection[str]]],
) -> int:
    """Do something to all jobs of a query until `limit` of them were moved; how many that were."""
    check_limit(limit)
    done = 0
    if where is None:
        return done
    async for ids in _slices(reader, where):
        wanted = ids if limit is None else ids[: limit - done]
        if not wanted:
            break
        done += len(await act(wanted))
    return done


def _narrowed(
    where: JobFilter, states: Iterable[JobState], roles: frozenset[Role] | None = None
) -> JobFilter | None:
    """The filter, for jobs in these states only; None when it can find none."""
    both = frozenset(states) & (where.states or frozenset(JobState))
    if roles is not None:
        roles &= where.roles or roles
    elif where.roles is None and where.batch_id is None:
        # Items are named by their batch; without it single jobs and whole batches are meant.
        roles = TOP
    else:
        roles = where.roles
    if not both or (roles is not None and not roles):
        return None
    return replace(where, states=both, roles=roles)


async def _slices(reader: JobReader, where: JobFilter) -> AsyncIterator[list[str]]:
    """The ids of all jobs of a query, the oldest first."""
    cursor: int | None = None
    while True:
        page = await reader.find(
            where, limit=SLICE, cursor=cursor, oldest_first=True, payloads=False
        )
        ids = [job.id for job in page.jobs]
        for start in range(0, len(ids), TOGETHER):
            yield ids[start : start + TOGETHER]
        if page.next is None:
            return
        cursor = page.next
