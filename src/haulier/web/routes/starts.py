"""The bulk kinds that have a start of their own."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from haulier.web.access import OPERATOR
from haulier.web.bodies import MediaUniqBody, ProxyDiagnosticsBody
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, IdempotencyKey, Jobs, Settings, started
from haulier.web.schemas import Started
from haulier.web.starts import START_PATHS, media_uniq_start, own_echo_url, proxy_diagnostics_start

router = APIRouter(prefix=PREFIX)


@router.post(
    START_PATHS["media_uniq"].removeprefix(PREFIX),
    status_code=202,
    summary="Start renditions of pictures for accounts",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 409, 413, 415, 422, 507),
)
async def start_media_uniq(
    jobs: Jobs,
    options: Settings,
    body: MediaUniqBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Started:
    """One batch: every source for every account. All faults are told at once."""
    start = await asyncio.to_thread(media_uniq_start, body, options)
    given = body.options(idempotency_key)
    return started(await jobs.enqueue("media_uniq", start, given), response)


@router.post(
    START_PATHS["proxy_diagnostics"].removeprefix(PREFIX),
    status_code=202,
    summary="Start checks of proxies",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 409, 413, 415, 422, 507),
)
async def start_proxy_diagnostics(
    jobs: Jobs,
    options: Settings,
    request: Request,
    body: ProxyDiagnosticsBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Started:
    """One batch, an item per proxy. All lines at fault are told at once."""
    check_url = options.check_url or own_echo_url(request.scope.get("server"))
    start = await asyncio.to_thread(proxy_diagnostics_start, body, check_url, options.guard)
    given = body.options(idempotency_key)
    return started(await jobs.enqueue("proxy_diagnostics", start, given), response)
