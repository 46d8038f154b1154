"""What waits where, which queues are paused, how they weigh, and who works on them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from haulier.domain.routing import lines_of
from haulier.services.configuring import Queues
from haulier.web.access import ADMIN, OPERATOR, VIEWER, Caller
from haulier.web.models.configuring import QueueSetting, WeightBody, WorkerList, WorkerView
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, Jobs
from haulier.web.schemas import QueueLineView, QueueList

router = APIRouter(prefix=PREFIX, tags=["queues"])

QueueName = Annotated[str, Path(max_length=200, description="The name of the queue.")]


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


@router.post(
    "/queues/{queue}/pause",
    summary="Pause a queue",
    dependencies=[OPERATOR],
    responses=problem_responses(422),
)
async def pause_queue(jobs: Jobs, caller: Caller, queue: QueueName) -> QueueSetting:
    """No more of its jobs start, on any worker; those that run go on."""
    return QueueSetting.of(queue, await Queues(jobs.store).pause(queue, by=caller.name))


@router.post(
    "/queues/{queue}/resume",
    summary="Resume a queue",
    dependencies=[OPERATOR],
    responses=problem_responses(422),
)
async def resume_queue(jobs: Jobs, caller: Caller, queue: QueueName) -> QueueSetting:
    """Its jobs start again."""
    return QueueSetting.of(queue, await Queues(jobs.store).resume(queue, by=caller.name))


@router.put(
    "/queues/{queue}/weight",
    summary="Weigh a queue",
    dependencies=[ADMIN],
    responses=problem_responses(400, 413, 415, 422),
)
async def weigh_queue(
    jobs: Jobs, caller: Caller, queue: QueueName, body: WeightBody
) -> QueueSetting:
    """Its share of what workers with several queues take; it comes before what they say."""
    now = await Queues(jobs.store).weigh(queue, body.weight, by=caller.name)
    return QueueSetting.of(queue, now)


@router.get(
    "/workers", summary="List workers", dependencies=[VIEWER], responses=problem_responses()
)
async def list_workers(jobs: Jobs) -> WorkerList:
    """All that the store knows, also those that are lost, for as long as it keeps them."""
    found = await jobs.store.workers()
    return WorkerList(workers=[WorkerView.model_validate(worker) for worker in found])
