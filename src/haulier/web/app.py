"""Puts the HTTP API together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from haulier.runners import echo
from haulier.services.jobs import JobManager
from haulier.web.guard import Guard
from haulier.web.live.hub import Live
from haulier.web.options import WebOptions
from haulier.web.problems import MEDIA_TYPE, install_handlers
from haulier.web.routes import ROUTERS
from haulier.web.routes.common import PREFIX
from haulier.web.starts import ECHO_PATH

__all__ = ["WebOptions", "create_app"]


def create_app(*, jobs: JobManager, options: WebOptions) -> FastAPI:
    """The ASGI application of the HTTP API. The store behind `jobs` must be open while it serves.

    It must face the network itself, without a reverse proxy: it trusts whoever reaches it by a
    loopback name, and its echo reports the address of the socket.
    """
    app = _Api(
        title="haulier",
        version=options.version,
        openapi_url=f"{PREFIX}/openapi.json",
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
    app.state.live = Live(
        lambda: jobs.store, options.live, lambda: getattr(app.state, "still_valid", None)
    )
    echo_route = Route(ECHO_PATH, _Echo(), methods=["GET"])
    app.state.routes = (*(route for router in ROUTERS for route in router.routes), echo_route)
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(echo_route)
    install_handlers(app)
    app.add_middleware(Guard, max_body=options.max_body, deadline=options.deadline)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.live.close()


class _Api(FastAPI):
    """Says in its OpenAPI document that problems have a media type of their own."""

    @override
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    for status, response in operation["responses"].items():
                        if status[0] not in "123":
                            # Under whatever type the route has for what it gives.
                            (content,) = response["content"].values()
                            response["content"] = {MEDIA_TYPE: content}
        assert self.openapi_schema is not None
        return self.openapi_schema


class _Echo:
    """The echo server as a route: a plain function would be called with a request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await echo.app(scope, receive, send)


def _operation_id(route: APIRoute) -> str:
    return route.name
