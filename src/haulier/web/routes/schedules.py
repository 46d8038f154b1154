"""Schedules: what is enqueued at each tick of a cadence."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from haulier.services.schedules import ScheduleManager
from haulier.web.access import ADMIN, OPERATOR, VIEWER, Caller
from haulier.web.models.schedules import (
    ScheduleBody,
    ScheduleList,
    ScheduleQuery,
    ScheduleView,
    TickList,
    TickQuery,
    TickView,
)
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, Jobs, started, tagged
from haulier.web.schemas import Started
from haulier.web.starts import refuse_started_elsewhere

router = APIRouter(prefix=PREFIX, tags=["schedules"])


def _manager(jobs: Jobs) -> ScheduleManager:
    return ScheduleManager(jobs.store, jobs.registry, jobs.sealer)


Manager = Annotated[ScheduleManager, Depends(_manager)]
Name = Annotated[str, Path(max_length=200, description="The name of the schedule.")]


@router.get(
    "/schedules",
    summary="List schedules",
    dependencies=[VIEWER],
    responses=problem_responses(422),
)
async def list_schedules(jobs: Jobs, query: Annotated[ScheduleQuery, Query()]) -> ScheduleList:
    """By name, page by page."""
    found = await jobs.store.schedules().find(after=query.after, limit=query.limit)
    return ScheduleList(
        schedules=[ScheduleView.of(schedule) for schedule in found],
        next=found[-1].name if len(found) == query.limit else None,
    )


@router.get(
    "/schedules/{name}",
    summary="Show a schedule",
    dependencies=[VIEWER],
    response_model=ScheduleView,
    responses=problem_responses(404),
)
async def show_schedule(manager: Manager, request: Request, name: Name) -> Response:
    """As it is now, with an ETag."""
    schedule = await manager.get(name)
    return tagged(request, ScheduleView.of(schedule), f"{schedule.id}.{schedule.revision}")


@router.put(
    "/schedules/{name}",
    summary="Set a schedule",
    dependencies=[ADMIN],
    responses=problem_responses(400, 413, 415, 422),
)
async def set_schedule(
    manager: Manager, caller: Caller, name: Name, body: ScheduleBody
) -> ScheduleView:
    """Make it, or change all of the one with this name; a paused one stays paused."""
    refuse_started_elsewhere(body.kind)
    return ScheduleView.of(
        await manager.set(
            name, body.kind, body.cadence(), body.payload, by=caller.name, **body.given()
        )
    )


@router.delete(
    "/schedules/{name}",
    status_code=204,
    summary="Delete a schedule",
    dependencies=[ADMIN],
    responses=problem_responses(404),
)
async def delete_schedule(manager: Manager, name: Name) -> None:
    """Its jobs stay. One that code declares comes back when a worker starts: pause that one."""
    await manager.delete(name)


@router.post(
    "/schedules/{name}/pause",
    summary="Pause a schedule",
    dependencies=[OPERATOR],
    responses=problem_responses(404),
)
async def pause_schedule(manager: Manager, caller: Caller, name: Name) -> ScheduleView:
    """It ticks no more until it is resumed."""
    return ScheduleView.of(await manager.pause(name, by=caller.name))


@router.post(
    "/schedules/{name}/resume",
    summary="Resume a schedule",
    dependencies=[OPERATOR],
    responses=problem_responses(404),
)
async def resume_schedule(manager: Manager, caller: Caller, name: Name) -> ScheduleView:
    """From its next tick on: what went by meanwhile is not made up for."""
    return ScheduleView.of(await manager.resume(name, by=caller.name))


@router.post(
    "/schedules/{name}/run",
    status_code=202,
    summary="Run a schedule's job now",
    dependencies=[OPERATOR],
    responses=problem_responses(404, 409),
)
async def run_schedule(manager: Manager, name: Name, response: Response) -> Started:
    """Beside its cadence, also while it is paused."""
    return started(await manager.run(name), response)


@router.get(
    "/schedules/{name}/ticks",
    summary="List the ticks of a schedule",
    dependencies=[VIEWER],
    responses=problem_responses(404, 422),
)
async def list_ticks(
    manager: Manager, name: Name, query: Annotated[TickQuery, Query()]
) -> TickList:
    """The last ones that are kept, and what became of each."""
    await manager.get(name)
    found = await manager.ticks(name, before=query.microseconds, limit=query.limit)
    return TickList(ticks=[TickView.model_validate(tick) for tick in found])
