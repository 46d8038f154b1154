"""Puts the HTTP API together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from haulier.records.auditing import AuditLog
from haulier.records.credentials import Credentials
from haulier.records.database import Records
from haulier.records.webhooks import WebhookRecords
from haulier.runners import echo
from haulier.services.jobs import JobManager
from haulier.services.webhooks import Webhooks
from haulier.web.access import OPEN
from haulier.web.asked import Asked
from haulier.web.authority import Authority
from haulier.web.diary import Book, Diary
from haulier.web.document import TAGS, complete
from haulier.web.guard import Guard
from haulier.web.live.hub import Live
from haulier.web.meter import Meter
from haulier.web.options import WebOptions
from haulier.web.problems import install_handlers
from haulier.web.routes import ROUTERS
from haulier.web.routes.common import PREFIX
from haulier.web.starts import ECHO_PATH
from haulier.web.streams import Streams

LEAST_PACKED = 2048
"""Bytes of an answer from which on it is packed for those who understand gzip."""

PACKED_LEVEL = 4
"""Of gzip: beyond it an answer hardly gets smaller, but takes twice the time."""

__all__ = ["WebOptions", "create_app"]


def create_app(*, jobs: JobManager, options: WebOptions, records: Records | None = None) -> FastAPI:
    """The ASGI application of the HTTP API.

    The store behind `jobs` and the records must be open while it serves, until its lifespan has
    ended: then the last entries of the audit log are written. Without records nobody is recognised
    by a token, and nothing is written down.
    """
    app = _Api(
        title="haulier",
        version=options.version,
        openapi_url=f"{PREFIX}/openapi.json",
        openapi_tags=TAGS,
        # The documentation pages would load scripts of third parties.
        docs_url=None,
        redoc_url=None,
        # An address with a slash too many is not found: a redirect is no problem document.
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        lifespan=_lifespan,
    )
    app.state.jobs = jobs
    app.state.options = options
    app.state.meter = Meter()
    app.state.streams = Streams(options.max_streams)
    credentials = None if records is None else Credentials(records)
    log = None if records is None else AuditLog(records)
    authority = Authority(credentials)
    diary = Diary(
        Book(log.append, credentials.mark_used) if log is not None and credentials else None
    )
    app.state.credentials, app.state.audit_log = credentials, log
    app.state.webhooks = None
    if records is not None:
        book = WebhookRecords(records)
        app.state.webhooks = Webhooks(jobs.store, jobs.sealer, book, options.guard)
    app.state.authority, app.state.diary = authority, diary
    app.state.live = Live(lambda: jobs.store, options.live, authority.still_valid)
    echo_route = Route(ECHO_PATH, _Echo(), methods=["GET"])
    app.state.routes = (*(route for router in ROUTERS for route in router.routes), echo_route)
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(echo_route)
    install_handlers(app)
    app.add_middleware(_Packing)
    app.add_middleware(
        Guard, options=options, authority=authority, diary=diary, is_open=_opened(options)
    )
    return app


def _opened(options: WebOptions) -> Callable[[Asked], bool]:
    """Tells which requests are answered whoever sends them."""
    open_routes = {
        (method, route.path)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and any(each is OPEN for each in route.dependencies)
        for method in route.methods or ()
    }

    def is_open(asked: Asked) -> bool:
        if asked.scope["type"] != "http":
            return False
        path, method = asked.scope["path"], asked.scope["method"]
        if path == ECHO_PATH:
            # Proxies that are checked come here by themselves, and shall be given no token. Where
            # nothing is checked against this server, or others could reach it, it is closed.
            return options.check_url is None and asked.local
        return (method, path) in open_routes or (method == "HEAD" and ("GET", path) in open_routes)

    return is_open


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.live.close()
    await app.state.meter.close()
    await app.state.authority.close()
    await app.state.diary.close()


class _Api(FastAPI):
    """Tells in its OpenAPI document also what no single route says."""

    @override
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


class _Packing:
    """Packs large answers for those who ask for it, and costs the others nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._packing = GZipMiddleware(app, minimum_size=LEAST_PACKED, compresslevel=PACKED_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What is posted is answered in a few lines.
        asked = scope["type"] == "http" and scope["method"] == "GET" and _asks_for_gzip(scope)
        await (self._packing if asked else self._plain)(scope, receive, send)


def _asks_for_gzip(scope: Scope) -> bool:
    return any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])


class _Echo:
    """The echo server as a route: a plain function would be called with a request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await echo.app(scope, receive, send)


def _operation_id(route: APIRoute) -> str:
    return route.name
