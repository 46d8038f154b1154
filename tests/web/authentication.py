"""Clients of an API that asks for tokens."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.routing import APIRoute

from haulier.domain.access import Access
from haulier.records.auditing import AuditLog
from haulier.records.credentials import Credentials
from haulier.records.database import Records
from haulier.services.audit import Actor, Entry
from haulier.web.routes import ROUTERS
from haulier.web.streams import NDJSON

ROOT = Actor("root", "local", "command line")
HOST = "http://jobs.example"


@dataclass(frozen=True)
class Door:
    """An API behind its guard, and what makes the keys to it."""

    api: FastAPI
    credentials: Credentials
    log: AuditLog

    def client(self, token: str | None = None, base_url: str = HOST, **more: Any) -> Any:
        """A client that shows a token, or none. `source` is where it comes from."""
        source = more.pop("source", "192.0.2.7")
        transport = httpx.ASGITransport(app=self.api, client=(source, 40_000))
        headers = {"authorization": f"Bearer {token}"} if token is not None else {}
        return httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers, **more)

    async def token(self, access: Access = Access.ADMIN, **scope: frozenset[str]) -> str:
        _, minted = await self.credentials.create_token(
            ROOT, f"the {access}", access, None, **scope
        )
        return minted.text

    async def told(self) -> list[Entry]:
        """The entries of the log, all that was done included, the first one first."""
        diary = self.api.state.diary
        while diary._writer is not None and not diary._writer.done():
            await asyncio.wait([diary._writer])
        return [each.entry for each in reversed(await self.log.latest(10_000))]


@asynccontextmanager
async def door_of(
    serving: Callable[..., Any], records: Records, **options: Any
) -> AsyncIterator[Door]:
    named = {"no_token": False, "public_hosts": ("jobs.example",)} | options
    async with serving(**named) as api:
        yield Door(api, Credentials(records), AuditLog(records))


ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def needed(route):
    return next(
        dependency.dependency.needed
        for dependency in route.dependencies
        if hasattr(dependency.dependency, "needed")
    )


CLOSED = [
    (method, route)
    for route in ROUTES
    for method in sorted(route.methods)
    if needed(route) is not None
]


def address(route, job_id="01890000-0000-7000-8000-000000000000"):
    return re.sub("{.*?}", job_id, route.path)


async def ask(client, method, route, **more):
    """Send a request that gets as far as the route's own check of its input at the most."""
    if NDJSON in str(getattr(route, "openapi_extra", None)):
        more.setdefault("content", b"{}\n")
        more["headers"] = {"content-type": NDJSON}
    elif method in ("POST", "PUT", "PATCH"):
        more.setdefault("json", {"no such field": 1})
    return await client.request(method, address(route, **more.pop("ids", {})), **more)
