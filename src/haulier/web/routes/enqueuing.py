"""New jobs of any registered kind."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from haulier.exceptions import Problem, ValidationError
from haulier.services.jobs import JobManager
from haulier.services.payload import validate
from haulier.web.access import OPERATOR_IN_SCOPE, Caller, check_covered
from haulier.web.bodies import EnqueueBody
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, IdempotencyKey, Jobs, started
from haulier.web.schemas import Started
from haulier.web.starts import refuse_started_elsewhere

router = APIRouter(prefix=PREFIX)


@router.post(
    "/jobs",
    status_code=201,
    summary="Enqueue a job",
    dependencies=[OPERATOR_IN_SCOPE],
    responses=problem_responses(400, 409, 413, 415, 422, 507),
)
async def enqueue(
    jobs: Jobs,
    caller: Caller,
    body: EnqueueBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Started:
    """A job of any registered kind; bulk kinds that have a start route of their own go there."""
    if caller.scoped:
        check_covered(caller, body.kind, body.queue or jobs.registry.get(body.kind).queue)
    refuse_started_elsewhere(body.kind)
    options = body.options(idempotency_key)
    return started(await jobs.enqueue(body.kind, _payload(jobs, body), options), response)


def _payload(jobs: JobManager, body: EnqueueBody) -> Any:
    """The checked payload; faults are told with their place in the body."""
    definition = jobs.registry.get(body.kind)
    try:
        return validate(definition, body.payload)
    except ValidationError as error:
        faults = [
            Problem(f"payload.{fault.field}".removesuffix(".payload"), fault.reason)
            for fault in error.problems
        ]
        raise ValidationError(error.message, faults) from None
