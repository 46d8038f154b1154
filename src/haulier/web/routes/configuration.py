"""What all workers of the store go by: read, changed all or none, with who and when."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from haulier.web.access import ADMIN, VIEWER, Caller
from haulier.web.models.configuring import (
    AlterationList,
    AlterationQuery,
    AlterationView,
    ConfigurationBody,
    ConfigurationView,
)
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, Jobs, tagged

router = APIRouter(prefix=PREFIX, tags=["configuration"])


@router.get(
    "/configuration",
    summary="Show the configuration",
    dependencies=[VIEWER],
    response_model=ConfigurationView,
    responses=problem_responses(),
)
async def show_configuration(jobs: Jobs, request: Request) -> Response:
    """What is set, with an ETag: ask with If-None-Match whether it has changed."""
    now = await jobs.store.configurable().configuration()
    return tagged(request, ConfigurationView.of(now), str(now.version))


@router.patch(
    "/configuration",
    summary="Change the configuration",
    dependencies=[ADMIN],
    responses=problem_responses(400, 409, 413, 415, 422),
)
async def change_configuration(
    jobs: Jobs, caller: Caller, body: ConfigurationBody
) -> ConfigurationView:
    """All or none. Running workers go by it within a moment."""
    now = await jobs.store.configurable().configure(
        body.set, unset=body.unset, by=caller.name, expected=body.expected
    )
    return ConfigurationView.of(now)


@router.get(
    "/configuration/changes",
    summary="List changes of the configuration",
    dependencies=[VIEWER],
    responses=problem_responses(422),
)
async def list_changes(jobs: Jobs, query: Annotated[AlterationQuery, Query()]) -> AlterationList:
    """Who changed what, and when; the latest first."""
    found = await jobs.store.configurable().history(query.limit)
    return AlterationList(changes=[AlterationView.model_validate(each) for each in found])
