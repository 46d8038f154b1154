"""What each route needs: one of these stands in every route's `dependencies`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from haulier.domain.access import Access, Identity

IDENTITY = "haulier.identity"
"""Where in the ASGI scope the Identity is that the guard has recognised."""


def identity_of(connection: HTTPConnection) -> Identity:
    """Who sends a request."""
    identity: Identity = connection.scope[IDENTITY]
    return identity


def _needing(needed: Access) -> Callable[[HTTPConnection], None]:
    async def check(connection: HTTPConnection) -> None:
        if not identity_of(connection).access.allows(needed):
            raise HTTPException(403, f"This needs the role {needed}")

    check.needed = needed  # type: ignore[attr-defined]
    return check  # type: ignore[return-value]


VIEWER: Any = Depends(_needing(Access.VIEWER))
OPERATOR: Any = Depends(_needing(Access.OPERATOR))
ADMIN: Any = Depends(_needing(Access.ADMIN))


# A coroutine, though it waits for nothing: of a plain function each call would go to a thread.
async def _caller(connection: HTTPConnection) -> Identity:
    return identity_of(connection)


Caller = Annotated[Identity, Depends(_caller)]
"""A route's parameter: who asks, for what is kept of who did something."""
