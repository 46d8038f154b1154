"""What waits where."""

from __future__ import annotations

from fastapi import APIRouter

from haulier.domain.routing import lines_of
from haulier.web.access import VIEWER
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, Jobs
from haulier.web.schemas import QueueLineView, QueueList

router = APIRouter(prefix=PREFIX)


@router.get(
    "/queues",
    summary="Count jobs by queue and kind",
    dependencies=[VIEWER],
    responses=problem_responses(),
)
async def list_queues(jobs: Jobs) -> QueueList:
    """By queue and kind, from counters: as quick with a million jobs as with ten."""
    counts, workers = await jobs.store.counts(), await jobs.store.workers()
    now = await jobs.store.configurable().configuration()
    lines = [QueueLineView.model_validate(line) for line in lines_of(counts, workers, now)]
    return QueueList(
        workers=sum(worker.alive for worker in workers), queues=lines, paused=sorted(now.paused)
    )
