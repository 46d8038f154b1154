"""Limits and circuit breakers: looked at and changed while everything runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from haulier.services.limits import Limits
from haulier.web.access import ADMIN, OPERATOR, VIEWER, Caller
from haulier.web.models.limits import (
    BreakerChange,
    BreakerKey,
    KeyList,
    KeyQuery,
    KeyView,
    LimitBody,
    LimitChange,
    LimitList,
    LimitView,
)
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, Jobs

router = APIRouter(prefix=PREFIX, tags=["limits"])


@router.get("/limits", summary="List limits", dependencies=[VIEWER], responses=problem_responses())
async def list_limits(jobs: Jobs) -> LimitList:
    """By name, each with who changed it last."""
    return LimitList(limits=[LimitView.of(state) for state in await Limits(jobs.store).all()])


# Names of declared limits have slashes: `fetch/rate`.
@router.put(
    "/limits/{name:path}",
    summary="Set a limit",
    dependencies=[ADMIN],
    responses=problem_responses(400, 413, 415, 422),
)
async def set_limit(jobs: Jobs, caller: Caller, name: str, body: LimitBody) -> LimitChange:
    """Add it, or put it in place of the one of its name. It takes effect at once."""
    changed = await Limits(jobs.store).set(name, by=caller.name, **body.options())
    return LimitChange(name=name, changed=changed)


@router.delete(
    "/limits/{name:path}",
    status_code=204,
    summary="Delete a limit",
    dependencies=[ADMIN],
    responses=problem_responses(404),
)
async def delete_limit(jobs: Jobs, caller: Caller, name: str) -> None:
    """One that code declares stays away, until its declaration is another."""
    await Limits(jobs.store).delete(name, by=caller.name)


@router.get(
    "/limit-keys",
    summary="Show how keys stand under a limit",
    dependencies=[VIEWER],
    responses=problem_responses(404, 422),
)
async def list_keys(jobs: Jobs, query: Annotated[KeyQuery, Query()]) -> KeyList:
    """The keys that have something to tell, with their circuits where the limit is a breaker."""
    found = await Limits(jobs.store).keys(query.name, limit=query.limit, cursor=query.after)
    return KeyList(
        keys=[KeyView.model_validate(state) for state in found],
        next=found[-1].key if len(found) == query.limit else None,
    )


@router.post(
    "/breakers/reset",
    summary="Close the breaker of a key",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 404, 409, 413, 415, 422),
)
async def reset_breaker(jobs: Jobs, caller: Caller, body: BreakerKey) -> BreakerChange:
    """What it has counted is forgotten, and jobs of the key start again."""
    done = await Limits(jobs.store).reset(body.name, body.key, by=caller.name)
    return BreakerChange(name=body.name, key=body.key, reset=done)
