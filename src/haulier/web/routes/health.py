"""How the service is, and its figures."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version

from fastapi import APIRouter, Request, Response

from haulier.domain.job import JobState
from haulier.exceptions import StoreError, StoreUnavailableError
from haulier.ports import JobFilter, JobStore
from haulier.services.metrics import Standing, job_metrics
from haulier.web.access import OPEN, VIEWER, Guest
from haulier.web.meter import Meter
from haulier.web.models.health import Health, JobMetrics
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, Jobs, Settings

router = APIRouter(prefix=PREFIX, tags=["service"])
scraped = APIRouter(tags=["service"])

_MADE_OF = ("fastapi", "uvicorn", "pydantic", "apsw")
_LOOKED_AT = 20
"""Lost workers, the latest first, of which it is asked whether they still hold jobs."""

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/health",
    summary="Whether the service works",
    dependencies=[OPEN],
    response_model_exclude_none=True,
    responses=problem_responses(503),
)
async def health(jobs: Jobs, options: Settings, guest: Guest) -> Health:
    """Asks the store; answers 503 when it fails. Without a token: only that the server answers."""
    if guest is None:
        return Health(status="ok")
    asked = time.perf_counter()
    try:
        standing = await Standing.of(jobs.store, time.time_ns() // 1000)
        lag = await _sweep_lag(jobs.store, standing)
    except StoreError as error:
        # A store that is full or damaged does not serve either, whatever other routes call it.
        raise StoreUnavailableError(str(error)) from error
    return Health(
        status="ok" if standing.alive else "degraded",
        live=True,
        ready=True,
        version=options.version,
        versions={"python": platform.python_version()} | {name: version(name) for name in _MADE_OF},
        store_ms=round(1000 * (time.perf_counter() - asked), 3),
        workers=standing.alive,
        oldest_ready_seconds=standing.oldest(),
        sweep_lag_seconds=lag,
        jobs=standing.by_state(items=False),
        items=standing.by_state(items=True),
    )


async def _sweep_lag(store: JobStore, standing: Standing) -> float:
    """How long the jobs of a lost worker have been waiting for the sweep to release them."""
    lost = [worker for worker in standing.workers if not worker.alive][:_LOOKED_AT]
    running = frozenset({JobState.RUNNING})
    lags = [0.0]
    for worker in lost:
        where = JobFilter(states=running, worker=worker.id)
        held = await store.find(where, limit=1, payloads=False)
        if held.jobs:
            lags.append(standing.age(worker.renewed_at) - store.ttl)
    return max(lags)


@router.get(
    "/metrics",
    summary="Show figures of jobs",
    dependencies=[VIEWER],
    responses=problem_responses(503),
)
async def metrics(jobs: Jobs) -> JobMetrics:
    """From counters: as quick with a million jobs as with ten. They are of jobs that are kept."""
    return JobMetrics.model_validate(job_metrics(await jobs.store.counts()))


@scraped.get(
    "/metrics",
    summary="Show all figures for Prometheus",
    dependencies=[VIEWER],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problem_responses(503),
    },
)
async def prometheus(jobs: Jobs, request: Request) -> Response:
    """In its text format. What happens is counted from the first scrape on, while there are any."""
    meter: Meter = request.app.state.meter
    return Response(await meter.scrape(jobs.store), media_type=PROMETHEUS)
