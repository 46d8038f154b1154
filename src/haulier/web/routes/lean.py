"""A route for the one request that comes by the thousand: half the time goes around its work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pydantic
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import override

from haulier.services.options import LONGEST_KEY
from haulier.web.schemas import Started

M = TypeVar("M", bound=BaseModel)
Take = Callable[[Request, str | None], Awaitable[Started]]
"""What a lean route does with a request and its Idempotency-Key."""


def lean(take: Take) -> type[APIRoute]:
    """A class of routes that are described by their functions, but carried out by `take`.

    Of the route's `dependencies`, each is asked with the request. Nothing else is solved, as
    nothing else is needed: its function's parameters are for the OpenAPI document.
    """

    class LeanRoute(APIRoute):
        @override
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            checks: list[Any] = [each.dependency for each in self.dependencies]
            status = self.status_code or 200

            async def handle(request: Request) -> Response:
                for check in checks:
                    await check(request)
                told = await take(request, _idempotency_key(request))
                return Response(
                    told.model_dump_json(),
                    status,
                    {"Location": told.status_url.removesuffix("/status")},
                    media_type="application/json",
                )

            return handle

    return LeanRoute


async def body_of(request: Request, model: type[M]) -> M:
    """The JSON body as a model; raises RequestValidationError as other routes do."""
    try:
        return model.model_validate_json(await request.body())
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [fault | {"loc": ("body", *fault["loc"])} for fault in faults]
        ) from None


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= LONGEST_KEY:
        fault = {
            "type": "string_length",
            "loc": ("header", "Idempotency-Key"),
            "msg": f"String should have 1 to {LONGEST_KEY} characters",
        }
        raise RequestValidationError([fault])
    return key
