"""The routes of API v1, one module for each thing they are about."""

from __future__ import annotations

from fastapi import APIRouter

from haulier.web.routes import (
    access,
    aliases,
    batches,
    configuration,
    enqueuing,
    events,
    filling,
    flows,
    health,
    jobs,
    limits,
    live,
    queues,
    schedules,
    starts,
    webhooks,
)

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    health.scraped,
    enqueuing.router,
    jobs.router,
    batches.router,
    filling.router,
    flows.router,
    queues.router,
    limits.router,
    schedules.router,
    configuration.router,
    live.router,
    events.router,
    webhooks.router,
    starts.router,
    aliases.router,
    access.router,
)
