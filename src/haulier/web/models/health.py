"""How the service is, as models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from haulier.domain.job import JobState


class Health(BaseModel):
    """`degraded`: the store answers, but there is no live worker. `jobs` leaves items out.

    `live`: this process answers. `ready`: it can take work, which is also kept while no worker is
    there. `oldest_ready_seconds`: how long the first job of the longest waiting queue has been due;
    left out: none waits. `sweep_lag_seconds`: how long a worker that holds jobs has been lost, and
    they have not gone to others.

    Who shows no token is told the status alone, and that without a look at the store.
    """

    status: Literal["ok", "degraded"]
    live: bool | None = None
    ready: bool | None = None
    version: str | None = None
    versions: dict[str, str] | None = Field(None, description="Of what this server is made of.")
    store_ms: float | None = Field(None, description="How long the store took to answer.")
    workers: int | None = Field(None, description="Live worker processes.")
    oldest_ready_seconds: float | None = None
    sweep_lag_seconds: float | None = None
    jobs: dict[JobState, int] | None = None
    items: dict[JobState, int] | None = None


class JobMetrics(BaseModel):
    """Figures of all jobs that are kept: single and head jobs, never items, but for accounts.

    `total_accounts_processed`: items of batches that completed or failed. Uploads are those of the
    kind `bulk_upload`.
    """

    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    total_accounts_processed: int
    total_uploads_success: int
    total_uploads_failed: int
    jobs_by_type: dict[str, int]
    running_jobs_count: int
