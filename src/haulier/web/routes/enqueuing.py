"""New jobs of any registered kind: one, many in one body, or line by line."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from haulier.exceptions import Problem, ValidationError
from haulier.services.jobs import JobManager
from haulier.services.options import job_id_of
from haulier.services.orders import Order, enqueue_together, plan_among_others
from haulier.web.access import OPERATOR_IN_SCOPE, Caller, identity_of, tell_audit
from haulier.web.intake import Intake, JobLines, payload_checked
from haulier.web.models.enqueuing import (
    EnqueueBody,
    ManyBody,
    ManyStarted,
    StreamQuery,
    StreamTaken,
)
from haulier.web.options import WebOptions
from haulier.web.problems import STREAM, FieldError, StreamTold, problem_responses
from haulier.web.routes.common import (
    PREFIX,
    IdempotencyKey,
    Jobs,
    OneStream,
    Settings,
    told_of,
)
from haulier.web.routes.lean import body_of, lean
from haulier.web.schemas import Started
from haulier.web.scopes import check_new
from haulier.web.starts import check_enqueued
from haulier.web.streams import described, lines_of

router = APIRouter(prefix=PREFIX, tags=["jobs"])

_LINES = "\n".join(
    json.dumps({"kind": "send", "payload": {"to": f"{name}@example.org"}})
    for name in ("ada", "grace")
)


async def _take(request: Request, idempotency_key: str | None) -> Started:
    jobs: JobManager = request.app.state.jobs
    body = await body_of(request, EnqueueBody)
    caller = identity_of(request)
    await check_new(jobs, caller, body)
    return await enqueue(jobs, body, idempotency_key)


async def enqueue(jobs: Jobs, body: EnqueueBody, idempotency_key: IdempotencyKey = None) -> Started:
    """A job of any registered kind; bulk kinds that have a start route of their own go there."""
    check_enqueued(body.kind)
    payload = payload_checked(jobs.registry.get(body.kind), body.payload)
    return told_of(await jobs.enqueue(body.kind, payload, body.options(idempotency_key)))


router.add_api_route(
    "/jobs",
    enqueue,
    methods=["POST"],
    status_code=201,
    summary="Enqueue a job",
    dependencies=[OPERATOR_IN_SCOPE],
    responses=problem_responses(400, 409, 413, 415, 422, 507),
    route_class_override=lean(_take),
)


@router.post(
    "/jobs/many",
    status_code=201,
    summary="Enqueue many jobs, all or none",
    dependencies=[OPERATOR_IN_SCOPE],
    responses=problem_responses(400, 409, 413, 415, 422, 507),
)
async def enqueue_many(
    jobs: Jobs,
    caller: Caller,
    request: Request,
    body: ManyBody,
    idempotency_key: IdempotencyKey = None,
) -> ManyStarted:
    """Up to a thousand jobs of any kinds but bulk ones, in one transaction.

    All that is wrong with any of them is told, each with its place in the list as `line`, and then
    none is there. They may wait `after` each other, by ids of your own.
    """
    orders: list[Order] = []
    faults: list[Problem] = []
    own = {str(each.id) for each in body.jobs if each.id is not None} if caller.scoped else set()
    for number, each in enumerate(body.jobs, start=1):
        try:
            await check_new(jobs, caller, each, beside=own)
            orders.append(_order(jobs, each))
        except ValidationError as error:
            faults += [
                Problem(f"jobs.{number - 1}.{fault.field}", fault.reason, line=number)
                for fault in error.problems
            ]
    if faults:
        raise ValidationError("none of the jobs was enqueued", faults)
    ids = await enqueue_together(jobs, orders, idempotency_key=idempotency_key)
    tell_audit(request, jobs=len(ids), first=ids[0])
    return ManyStarted(ids=ids)


def _order(jobs: JobManager, body: EnqueueBody) -> Order:
    check_enqueued(body.kind)
    definition = jobs.registry.get(body.kind)
    options = body.options(None)
    plan = plan_among_others(definition, options)
    return Order(definition, plan, job_id_of(options), payload_checked(definition, body.payload))


@router.post(
    "/jobs/stream",
    status_code=201,
    summary="Enqueue jobs line by line",
    dependencies=[OPERATOR_IN_SCOPE],
    responses=problem_responses(400, 408, 409, 413, 415, 422, 429, 507),
    openapi_extra=described(_LINES),
)
async def enqueue_lines(
    jobs: Jobs,
    settings: Settings,
    request: Request,
    query: Annotated[StreamQuery, Query()],
    stream: OneStream,
    idempotency_key: IdempotencyKey = None,
) -> StreamTaken:
    """NDJSON: each line as the body of one job, of any kind but bulk ones; any number of them.

    Jobs run as soon as they are taken, while the rest still comes. Whatever ends the stream before
    its end, `taken` in the answer says how many lines were; after a broken connection, send it
    again from its beginning with the same `Idempotency-Key`: what was taken is not doubled.
    """
    del stream
    told = request.scope[STREAM] = StreamTold()
    intake = JobLines(
        jobs, told, identity_of(request), skip=query.on_bad == "skip", key=idempotency_key
    )
    await taken_in(intake, request, settings)
    return stream_taken(told)


async def taken_in(intake: Intake[Any], request: Request, settings: WebOptions) -> None:
    """Take the lines of a request; the audit log is told how many, however it ends."""
    try:
        await intake.run(lines_of(request, settings.max_lines))
    finally:
        told: StreamTold = request.scope[STREAM]
        tell_audit(request, taken=told.taken)


def stream_taken(told: StreamTold) -> StreamTaken:
    """What became of a stream, as it is answered."""
    return StreamTaken(
        taken=told.taken,
        new=told.new,
        skipped=told.skipped,
        errors=[
            FieldError(field=each.field, reason=each.reason, line=each.line) for each in told.errors
        ],
    )
