"""What a token that is for some kinds or queues may enqueue: jobs of these, waiting for such."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from uuid import UUID

from haulier.domain.access import Identity
from haulier.exceptions import JobNotFoundError, Problem, ValidationError
from haulier.services.jobs import JobManager
from haulier.web.access import check_covered
from haulier.web.models.enqueuing import AfterBody, EnqueueBody


async def check_new(
    jobs: JobManager, caller: Identity, body: EnqueueBody, *, beside: Collection[str] = ()
) -> None:
    """Refuse a new job that is not within the scope of who asks for it.

    It may wait for those of the ids `beside`, which come with it. Raises HTTPException, or
    ValidationError for a parent that does not exist for them.
    """
    if not caller.scoped:
        return
    check_covered(caller, body.kind, body.queue or jobs.registry.get(body.kind).queue)
    await _check_parents(jobs, caller, body.after, beside)


async def _check_parents(
    jobs: JobManager,
    caller: Identity,
    after: Iterable[UUID | AfterBody],
    beside: Collection[str],
) -> None:
    for place, each in enumerate(after):
        job_id = str(each.id if isinstance(each, AfterBody) else each)
        if job_id not in beside and not await exists_for(jobs, caller, job_id):
            raise ValidationError(
                "the job was refused", [Problem(f"after.{place}", "there is no such job")]
            )


async def exists_for(jobs: JobManager, caller: Identity, job_id: str) -> bool:
    """Whether there is such a job, and within the scope of who asks."""
    try:
        job = await jobs.store.get(job_id)
    except JobNotFoundError:
        return False
    return caller.covers(job.kind, job.queue)
