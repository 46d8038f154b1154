"""What each route needs: one of these stands in every route's `dependencies`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from haulier.domain.access import Access, Identity
from haulier.exceptions import JobNotFoundError
from haulier.services.jobs import JobManager

IDENTITY = "haulier.identity"
"""Where in the ASGI scope the Identity is that the guard has recognised."""

FACTS = "haulier.audit"
"""Where in the ASGI scope is what the audit log's entry of this request tells besides its ids."""

WRITTEN = "haulier.audited"
"""Where in the ASGI scope is whether this request's entry was written with what it tells of."""

_WHOLE = "This needs a token without kinds and queues"
_JOB_IDS = ("job_id", "batch_id")


def identity_of(connection: HTTPConnection) -> Identity:
    """Who sends a request."""
    identity: Identity = connection.scope[IDENTITY]
    return identity


def guest_of(connection: HTTPConnection) -> Identity | None:
    """Who sends a request to a route that answers everybody; None for a stranger."""
    identity: Identity | None = connection.scope.get(IDENTITY)
    return identity


def tell_audit(connection: HTTPConnection, **facts: Any) -> None:
    """Have the audit log's entry of this request tell more than the ids in its address."""
    connection.scope.setdefault(FACTS, {}).update(facts)


def _needing(needed: Access, *, scoped: bool = False) -> Callable[[HTTPConnection], Any]:
    """`scoped`: the route looks after scopes itself."""

    async def check(connection: HTTPConnection) -> None:
        identity = identity_of(connection)
        if not identity.access.allows(needed):
            raise HTTPException(403, f"This needs the role {needed}")
        if identity.scoped and not scoped:
            await _check_scope(connection, identity)

    check.needed = needed  # type: ignore[attr-defined]
    return check


async def _open(connection: HTTPConnection) -> None:
    del connection


_open.needed = None  # type: ignore[attr-defined]


async def _check_scope(connection: HTTPConnection, identity: Identity) -> None:
    """A job outside the scope is not there; what is about all jobs is not for such a token."""
    named = [connection.path_params[name] for name in _JOB_IDS if name in connection.path_params]
    if not named:
        raise HTTPException(403, _WHOLE)
    jobs: JobManager = connection.app.state.jobs
    for job_id in named:
        job = await jobs.store.get(job_id)
        if not identity.covers(job.kind, job.queue):
            raise JobNotFoundError(job_id)


def check_covered(identity: Identity, kind: str | None, queue: str | None) -> None:
    """For routes that look after scopes themselves: what is asked for must be within it."""
    if identity.kinds is not None and (kind is None or not identity.covers_kind(kind)):
        raise HTTPException(403, "Name a kind of your token's scope")
    if identity.queues is not None and (queue is None or queue not in identity.queues):
        raise HTTPException(403, "Name a queue of your token's scope")


def operator_of(kind: str) -> Any:
    """What a route that starts one kind needs: an operator whose token is for that kind."""

    async def check(connection: HTTPConnection) -> None:
        await _operator(connection)
        identity = identity_of(connection)
        if identity.scoped:
            jobs: JobManager = connection.app.state.jobs
            known = kind in jobs.registry
            check_covered(identity, kind, jobs.registry.get(kind).queue if known else None)

    check.needed = Access.OPERATOR  # type: ignore[attr-defined]
    return Depends(check)


_operator = _needing(Access.OPERATOR, scoped=True)

VIEWER: Any = Depends(_needing(Access.VIEWER))
OPERATOR: Any = Depends(_needing(Access.OPERATOR))
ADMIN: Any = Depends(_needing(Access.ADMIN))

VIEWER_IN_SCOPE: Any = Depends(_needing(Access.VIEWER, scoped=True))
OPERATOR_IN_SCOPE: Any = Depends(_needing(Access.OPERATOR, scoped=True))
"""For routes that look after the scope of a token themselves, by `check_covered`."""

OPEN: Any = Depends(_open)
"""For the few routes that answer everybody. Their addresses have no parameters."""


# A coroutine, though it waits for nothing: of a plain function each call would go to a thread.
async def _caller(connection: HTTPConnection) -> Identity:
    return identity_of(connection)


async def _guest(connection: HTTPConnection) -> Identity | None:
    return guest_of(connection)


Caller = Annotated[Identity, Depends(_caller)]
"""A route's parameter: who asks, for what is kept of who did something."""

Guest = Annotated[Identity | None, Depends(_guest)]
"""The same of a route that answers everybody."""
