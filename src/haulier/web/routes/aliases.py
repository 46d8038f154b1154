"""Addresses and shapes that front ends of before know; each is a row that leads to the engine."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from haulier.services.orchestrator import WorkerOrchestrator
from haulier.web.access import OPERATOR, VIEWER
from haulier.web.models.starts import CamelStatus, Cancelled, GenerateBody, WorkflowBody
from haulier.web.problems import problem_responses
from haulier.web.routes.common import IdempotencyKey, Jobs, job_and_batch, started
from haulier.web.schemas import Started

router = APIRouter(prefix="/api", tags=["aliases"])

WORKFLOWS = (
    ("autoResolveIssue", "auto_resolve_issue", "Resolve an issue by itself"),
    ("commentOnIssue", "comment_on_issue", "Comment on an issue"),
    ("resolveIssue", "resolve_issue", "Resolve an issue"),
)
"""Where each kind is started (`/workflow/<name>`), the kind, and what the start is called."""


@router.post(
    "/accounts/generate",
    status_code=202,
    summary="Provision accounts",
    dependencies=[OPERATOR],
    responses=problem_responses(400, 409, 413, 415, 422, 501, 507),
)
async def generate_accounts(
    jobs: Jobs, body: GenerateBody, response: Response, idempotency_key: IdempotencyKey = None
) -> Started:
    """Through a platform's own account API; 501 where no runner of it is installed."""
    job_id = await WorkerOrchestrator(jobs).start(
        "accounts.generate",
        given=body.given(),
        enqueue={"priority": body.priority, "idempotency_key": idempotency_key},
    )
    return started(job_id, response)


def _workflow_of(kind: str) -> Callable[..., Awaitable[CamelStatus]]:
    async def enqueue(
        jobs: Jobs, body: WorkflowBody, idempotency_key: IdempotencyKey = None
    ) -> CamelStatus:
        """Enqueue it; its status is at `/api/jobs/{jobId}`. 501 where the kind is not installed."""
        job_id = await WorkerOrchestrator(jobs).start(
            kind,
            given=body.given(),
            enqueue={
                "job_id": body.job_id,
                "priority": body.options.priority,
                "idempotency_key": idempotency_key,
            },
        )
        return await show_status(jobs, job_id)

    return enqueue


for _name, _kind, _summary in WORKFLOWS:
    router.add_api_route(
        f"/workflow/{_name}",
        _workflow_of(_kind),
        methods=["POST"],
        name=f"enqueue_{_kind}",
        status_code=202,
        summary=_summary,
        dependencies=[OPERATOR],
        responses=problem_responses(400, 409, 413, 415, 422, 501, 507),
    )


@router.get(
    "/jobs/{job_id}",
    summary="Show the status of a job",
    dependencies=[VIEWER],
    responses=problem_responses(404),
)
async def show_status(jobs: Jobs, job_id: str) -> CamelStatus:
    """In camel case: state, progress, result, error, and when it was made and last moved on."""
    job, batch = await job_and_batch(jobs, job_id)
    return CamelStatus.of(job, batch, time.time_ns() // 1000)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    summary="Cancel a job",
    dependencies=[OPERATOR],
    responses=problem_responses(404),
)
async def cancel_job(jobs: Jobs, job_id: str) -> Cancelled:
    """Pending: cancelled at once; running: told to stop."""
    return Cancelled(job_id=job_id, status=await jobs.cancel(job_id))
