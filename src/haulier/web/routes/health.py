"""How the service is."""

from __future__ import annotations

import time
from collections import Counter

from fastapi import APIRouter

from haulier.domain.job import JobState
from haulier.exceptions import StoreError, StoreUnavailableError
from haulier.web.access import OPEN, Guest
from haulier.web.problems import problem_responses
from haulier.web.routes.common import ITEMS, PREFIX, Jobs, Settings
from haulier.web.schemas import Health

router = APIRouter(prefix=PREFIX)


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
        counts, workers = await jobs.store.counts(), await jobs.store.workers()
    except StoreError as error:
        # A store that is full or damaged does not serve either, whatever other routes call it.
        raise StoreUnavailableError(str(error)) from error
    answered = time.perf_counter()
    tops, items = Counter[JobState](), Counter[JobState]()
    for (_, _, role, state), number in counts.items():
        (items if role in ITEMS else tops)[state] += number
    alive = sum(worker.alive for worker in workers)
    return Health(
        status="ok" if alive else "degraded",
        version=options.version,
        store_ms=round(1000 * (answered - asked), 3),
        workers=alive,
        jobs={state: tops[state] for state in JobState},
        items={state: items[state] for state in JobState},
    )
