"""The routes of API v1, one module for each thing they are about."""

from __future__ import annotations

from fastapi import APIRouter

from haulier.web.routes import batches, enqueuing, events, health, jobs, live, queues, starts

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    enqueuing.router,
    jobs.router,
    batches.router,
    queues.router,
    live.router,
    events.router,
    starts.router,
)
