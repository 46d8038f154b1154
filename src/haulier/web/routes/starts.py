"""Starts of bulk kinds: a row of a table for each, and two whose input is files and proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from haulier.services.orchestrator import WorkerOrchestrator
from haulier.web.access import operator_of
from haulier.web.bodies import MediaUniqBody, ProxyDiagnosticsBody
from haulier.web.models.starts import StartBody
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, IdempotencyKey, Jobs, Settings, started
from haulier.web.schemas import Started
from haulier.web.starts import (
    START_PATHS,
    media_uniq_start,
    own_echo_url,
    proxy_diagnostics_start,
    refuse_task,
)

router = APIRouter(prefix=PREFIX, tags=["starts"])

_PROBLEMS: dict[int | str, dict[str, Any]] = problem_responses(400, 409, 413, 415, 422, 501, 507)

STARTS = (
    ("bulk-tasks", "bulk_upload", "Start uploads for accounts"),
    ("bulk-login", "bulk_login", "Start sign-ins of accounts"),
    ("warmup", "warmup", "Start preparing and checking signed-in sessions"),
    ("avatar", "avatar", "Start changes of avatars"),
    ("bio", "bio", "Start changes of profile texts and links"),
    ("follow", "follow", "Start following"),
    ("cookie-robot", "cookie_robot", "Start refreshing own sessions"),
)
"""Where each kind is started (`/<path>/start`), the kind, and what the start is called."""


def _start_of(kind: str) -> Callable[..., Awaitable[Started]]:
    async def start(
        jobs: Jobs, body: StartBody, response: Response, idempotency_key: IdempotencyKey = None
    ) -> Started:
        """One batch, of a task of the catalog or of the input given here.

        Answers 501 where no runner of the kind is installed, or none that can look tasks up.
        """
        job_id = await WorkerOrchestrator(jobs).start(
            kind,
            task_id=body.task_id,
            given=body.input,
            options=body.options,
            enqueue={"idempotency_key": idempotency_key},
        )
        return started(job_id, response)

    return start


for _path, _kind, _summary in STARTS:
    router.add_api_route(
        f"/{_path}/start",
        _start_of(_kind),
        methods=["POST"],
        name=f"start_{_kind}",
        status_code=202,
        summary=_summary,
        dependencies=[operator_of(_kind)],
        responses=_PROBLEMS,
    )


@router.post(
    START_PATHS["media_uniq"].removeprefix(PREFIX),
    status_code=202,
    summary="Start renditions of pictures for accounts",
    dependencies=[operator_of("media_uniq")],
    responses=_PROBLEMS,
)
async def start_media_uniq(
    jobs: Jobs,
    options: Settings,
    body: MediaUniqBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Started:
    """One batch: every source for every account. All faults are told at once."""
    refuse_task("media_uniq", body)
    start = await asyncio.to_thread(media_uniq_start, body, options)
    given = body.options(idempotency_key)
    return started(await jobs.enqueue("media_uniq", start, given), response)


@router.post(
    START_PATHS["proxy_diagnostics"].removeprefix(PREFIX),
    status_code=202,
    summary="Start checks of proxies",
    dependencies=[operator_of("proxy_diagnostics")],
    responses=_PROBLEMS,
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
    refuse_task("proxy_diagnostics", body)
    check_url = options.check_url or own_echo_url(request.scope.get("server"))
    start = await asyncio.to_thread(proxy_diagnostics_start, body, check_url, options.guard)
    given = body.options(idempotency_key)
    return started(await jobs.enqueue("proxy_diagnostics", start, given), response)
