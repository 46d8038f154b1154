"""What happened to jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from haulier.web.access import VIEWER
from haulier.web.bodies import EventQuery
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, Jobs
from haulier.web.schemas import EventList, EventView

router = APIRouter(prefix=PREFIX, tags=["events"])


@router.get(
    "/events",
    summary="List what happened to jobs",
    dependencies=[VIEWER],
    responses=problem_responses(422),
)
async def list_events(jobs: Jobs, query: Annotated[EventQuery, Query()]) -> EventList:
    """In order, page by page: each `next` leads on, also from a page without events.

    An event of the type `reset` says that some are missing, because they are kept no longer.
    """
    # Asked for first: what is appended while the page is read must follow its cursor.
    last = await jobs.store.last_event()
    found = await jobs.store.events(after=query.after, limit=query.limit)
    following = found[-1].cursor if found else query.after or last
    return EventList(events=[EventView.model_validate(event) for event in found], next=following)
