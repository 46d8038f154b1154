"""Batches as a thing of their own: open, fill line by line, seal, alter, list, export."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from haulier.domain.job import Job, JobState
from haulier.exceptions import JobStateError
from haulier.services.export import COLUMNS, csv_lines, item_pages, row_of
from haulier.services.filling import open_empty
from haulier.web.access import (
    OPERATOR,
    OPERATOR_IN_SCOPE,
    VIEWER,
    Caller,
    check_covered,
    tell_audit,
)
from haulier.web.intake import ItemLines
from haulier.web.models.batches import (
    AlterBody,
    BatchList,
    BatchQuery,
    BatchView,
    ExportQuery,
    OpenBody,
)
from haulier.web.models.enqueuing import StreamQuery, StreamTaken
from haulier.web.problems import STREAM, StreamTold, problem_responses
from haulier.web.routes.common import (
    PREFIX,
    IdempotencyKey,
    Jobs,
    OneStream,
    Settings,
    started,
)
from haulier.web.routes.enqueuing import stream_taken, taken_in
from haulier.web.schemas import Started, StateChange
from haulier.web.starts import check_enqueued
from haulier.web.streams import NDJSON, described

router = APIRouter(prefix=PREFIX, tags=["batches"])

CSV = "text/csv"
EXPORT_COLUMNS = (*COLUMNS, "cursor")

_LINES = '{"account": "ada", "size": 640}\n{"account": "grace", "size": 640}'


@router.post(
    "/batches",
    status_code=201,
    summary="Open a batch",
    dependencies=[OPERATOR_IN_SCOPE],
    responses=problem_responses(400, 409, 413, 415, 422, 507),
)
async def open_batch(
    jobs: Jobs,
    caller: Caller,
    body: OpenBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Started:
    """Without items: they are streamed into it and run as they come. Seal it behind the last one.

    Until it is sealed it does not settle, however many of its items are done.
    """
    check_enqueued(body.kind)
    if caller.scoped:
        queue = body.queue or jobs.registry.get(body.kind).queue
        for kind in (body.kind, body.on_finish or body.kind):
            check_covered(caller, kind, queue)
    options = body.options(idempotency_key)
    return started(await open_empty(jobs, body.kind, options, finish_kind=body.on_finish), response)


@router.get(
    "/batches", summary="List batches", dependencies=[VIEWER], responses=problem_responses(422)
)
async def list_batches(jobs: Jobs, query: Annotated[BatchQuery, Query()]) -> BatchList:
    """Newest first, page by page."""
    found = await jobs.store.batches(
        limit=query.limit,
        cursor=None if query.cursor is None else str(query.cursor),
        within=None if query.within is None else str(query.within),
    )
    full = len(found) == query.limit
    return BatchList(
        batches=[BatchView.of(batch) for batch in found], next=found[-1].id if full else None
    )


@router.get(
    "/batches/{job_id}",
    summary="Show a batch",
    dependencies=[VIEWER],
    responses=problem_responses(404),
)
async def show_batch(jobs: Jobs, job_id: str) -> BatchView:
    """From its counters: as quick for a million items as for ten."""
    return BatchView.of(await jobs.store.batch(job_id))


@router.post(
    "/batches/{job_id}/items",
    status_code=201,
    summary="Add items to an open batch line by line",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 404, 408, 409, 413, 415, 422, 429, 507),
    openapi_extra=described(_LINES),
)
async def add_items(
    jobs: Jobs,
    settings: Settings,
    request: Request,
    job_id: str,
    query: Annotated[StreamQuery, Query()],
    stream: OneStream,
    idempotency_key: IdempotencyKey = None,
) -> StreamTaken:
    """NDJSON: each line is the payload of an item. They join those that are there already.

    As with a stream of jobs: `taken` says how many lines were taken, and after a broken connection
    the same lines with the same `Idempotency-Key` double none.
    """
    del stream
    batch = await jobs.store.batch(job_id)
    head = await jobs.store.get(job_id)
    if head.lease or head.state is JobState.PENDING:
        # One that its producer fills runs from the start, held by nobody.
        raise JobStateError(f"batch {job_id} is filled by its own task")
    told = request.scope[STREAM] = StreamTold()
    intake = ItemLines(
        jobs,
        told,
        head,
        skip=query.on_bad == "skip",
        key=idempotency_key,
        first=batch.counts.total,
    )
    await taken_in(intake, request, settings)
    return stream_taken(told)


@router.post(
    "/batches/{job_id}/seal",
    summary="Seal a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(404),
)
async def seal_batch(jobs: Jobs, job_id: str) -> BatchView:
    """It has all its items: it settles with the last one. Harmless for one that is sealed."""
    await jobs.store.seal(job_id)
    return BatchView.of(await jobs.store.batch(job_id))


@router.post(
    "/batches/{job_id}/cancel",
    status_code=202,
    summary="Cancel a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(404),
)
async def cancel_batch(jobs: Jobs, job_id: str) -> StateChange:
    """Its pending items are cancelled at once, its running ones are told."""
    await jobs.store.batch(job_id)
    return StateChange(id=job_id, state=await jobs.cancel(job_id))


@router.patch(
    "/batches/{job_id}",
    summary="Change the limits of a batch",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 404, 409, 413, 415, 422),
)
async def alter_batch(
    jobs: Jobs, caller: Caller, request: Request, job_id: str, body: AlterBody
) -> BatchView:
    """It holds at once, also for items that wait in the line already; those that run go on."""
    changes = body.changes()
    tell_audit(request, limits=changes)
    return BatchView.of(await jobs.alter_batch(job_id, changes, by=caller.name))


@router.get(
    "/batches/{job_id}/export",
    summary="Export the items of a batch",
    dependencies=[VIEWER],
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A row per item, in their order.",
            "content": {
                NDJSON: {"schema": {"type": "string"}},
                CSV: {"schema": {"type": "string"}},
            },
        },
        **problem_responses(404, 422, 429),
    },
)
async def export_items(
    jobs: Jobs, job_id: str, query: Annotated[ExportQuery, Query()], stream: OneStream
) -> StreamingResponse:
    """All of them, however many, as they are when their turn comes; secrets are masked.

    Each row has a `cursor`. After a broken download, ask with that of the last whole row: the rest
    follows, without the headings of CSV.
    """
    del stream
    batch = await jobs.store.batch(job_id)
    pages = await _begun(item_pages(jobs.store, batch.id, states=query.state, after=query.cursor))
    comma = query.format == "csv"
    rows = _csv(pages, headed=query.cursor is None) if comma else _ndjson(pages)
    name = f"{batch.id}.{query.format}"
    return StreamingResponse(
        rows,
        media_type=CSV if comma else NDJSON,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def _begun(pages: AsyncIterator[Sequence[Job]]) -> AsyncIterator[Sequence[Job]]:
    """The same pages. A store that fails with the first can still be told as that."""
    first = await anext(pages, None)

    async def read() -> AsyncIterator[Sequence[Job]]:
        if first is not None:
            yield first
            async for page in pages:
                yield page

    return read()


def _rows(page: Sequence[Job]) -> list[dict[str, Any]]:
    return [row_of(job) | {"cursor": str(job.seq)} for job in page]


async def _ndjson(pages: AsyncIterator[Sequence[Job]]) -> AsyncIterator[str]:
    async for page in pages:
        yield "".join(f"{json.dumps(row)}\n" for row in _rows(page))


async def _csv(pages: AsyncIterator[Sequence[Job]], *, headed: bool) -> AsyncIterator[str]:
    if headed:
        yield f"{','.join(EXPORT_COLUMNS)}\n"
    async for page in pages:
        yield csv_lines(_rows(page), EXPORT_COLUMNS)
