"""Connections: where they lead, how they are set up, and PostgreSQL's errors made ours."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Self

import asyncpg

from haulier.domain.flow import absent
from haulier.exceptions import (
    ConfigurationError,
    DuplicateJobError,
    HaulierError,
    IdempotencyConflictError,
    JobNotFoundError,
    JobStateError,
    LeaseLostError,
    LimitNotFoundError,
    StoreCorruptError,
    StoreError,
    StoreFrozenError,
    StoreFullError,
    StoreUnavailableError,
)
from haulier.services.urls import own_options, positive_int, shown

Connection = Any
"""An asyncpg connection; its own type is too narrow for what a test may put in its place."""

OLDEST_SERVER = 13

DEFAULT_SCHEMA = "haulier"
DEFAULT_POOL = 4

_OPTIONS = frozenset({"schema", "pool", "pooler"})
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,47}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is: the driver's URL, the schema, and how to connect.

    `pooled`: the server is behind a pooler that gives each transaction another session, so nothing
    may rest on a session's settings, prepared statements or LISTEN.
    """

    url: str
    schema: str = DEFAULT_SCHEMA
    pool: int = DEFAULT_POOL
    pooled: bool = False

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Raises ConfigurationError for options that make no sense."""
        theirs, ours = own_options(url, _OPTIONS)
        schema = ours.get("schema", DEFAULT_SCHEMA)
        if not _SCHEMA.fullmatch(schema):
            raise ConfigurationError(
                "the store URL's option schema is a name of up to 48 small letters, digits and _"
            )
        pooler = ours.get("pooler", "session")
        if pooler not in ("session", "transaction"):
            raise ConfigurationError("the store URL's option pooler is session or transaction")
        size = positive_int(ours, "pool", DEFAULT_POOL)
        return cls(theirs, schema, size, pooler == "transaction")

    @property
    def whole(self) -> str:
        """The URL with our options again."""
        options = f"schema={self.schema}&pool={self.pool}"
        if self.pooled:
            options += "&pooler=transaction"
        return f"{self.url}{'&' if '?' in self.url else '?'}{options}"

    @property
    def shown(self) -> str:
        """For messages: without the password."""
        return shown(self.url)

    async def connect(
        self, purpose: str, deadline: float, patience: float | None = None
    ) -> Connection:
        """A connection whose statements end by themselves within `deadline` seconds.

        `patience` is how long it may take to connect, in seconds; as long as that unless told.
        """
        milliseconds = str(max(1, round(deadline * 1000)))
        settings = {"application_name": f"haulier {purpose}"}
        if not self.pooled:
            settings |= {
                # Work for a caller that has given up must not be committed much later.
                "statement_timeout": milliseconds,
                "lock_timeout": milliseconds,
                "idle_in_transaction_session_timeout": milliseconds,
                "search_path": f'"{self.schema}", pg_temp',
                "jit": "off",
            }
        options: dict[str, Any] = {"statement_cache_size": 0} if self.pooled else {}
        try:
            return await asyncpg.connect(
                self.url,
                timeout=deadline if patience is None else min(patience, deadline),
                server_settings=settings,
                max_cached_statement_lifetime=0,
                **options,
            )
        except ValueError:
            # The driver quotes parts of what it could not read, which may be the password.
            raise ConfigurationError(f"{self.shown} is not a PostgreSQL URL") from None

    @contextlib.asynccontextmanager
    async def session(self, connection: Connection) -> AsyncIterator[None]:
        """Within the block, statements run with this store's settings.

        They are set once for a connection of our own; behind a pooler, for one transaction.
        """
        if not self.pooled:
            yield
            return
        async with connection.transaction():
            await connection.execute(f'SET LOCAL search_path = "{self.schema}", pg_temp')
            yield


ABSENT = "HL007"
"""Jobs that others were to wait for are not there; the message is their ids."""

_REFUSALS: dict[str, type[HaulierError]] = {
    "HL001": JobNotFoundError,
    "HL002": JobStateError,
    "HL003": LeaseLostError,
    "HL006": StoreFrozenError,
    "HL008": LimitNotFoundError,
}
_CONFLICTS: dict[str, type[DuplicateJobError | IdempotencyConflictError]] = {
    "HL004": DuplicateJobError,
    "HL005": IdempotencyConflictError,
}

_UNAVAILABLE = (
    "08",  # connection exceptions
    "53300",  # too many connections
    "53200",  # out of memory
    "55P03",  # lock not available in time
    "57",  # shut down, cancelled by a timeout, cannot connect now
    "25006",  # read-only: a standby, or a primary that was stepped down
    "25P",  # idle in transaction for too long
    "40",  # serialization failures that outlasted their retries
)
_FULL = ("53100",)
_CORRUPT = ("XX001", "XX002")
_NOT_ALLOWED = ("42501",)
_NOT_THERE = ("42P01", "42883", "3F000", "42703", "42704")
_NO_ENTRY = ("28", "3D000")

BROKEN = (
    OSError,
    asyncio.IncompleteReadError,
    asyncpg.InterfaceError,
    # What the driver says of a connection whose server died before anybody was told.
    asyncpg.InternalClientError,
)
"""What is raised on a connection that is good for nothing any more."""

RETRIED = frozenset({"40001", "40P01"})
"""Of what another transaction did at the same moment: every verb can be repeated."""


@contextlib.contextmanager
def translated(place: Place) -> Iterator[None]:
    """The one place where PostgreSQL's errors become ours."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _ours(place, error) from error
    except BROKEN as error:
        if isinstance(error, ValueError):
            # The driver could not even write it: an id that is none, a number that is too large.
            raise StoreError(f"the store {place.shown} refused what was asked: {error}") from error
        raise StoreUnavailableError(
            f"the store {place.shown} cannot be reached: {type(error).__name__}"
        ) from error


def _ours(place: Place, error: asyncpg.PostgresError) -> HaulierError:
    code = error.sqlstate or ""
    what = str(error)
    if code in _REFUSALS:
        return _REFUSALS[code](what)
    if code in _CONFLICTS:
        return _CONFLICTS[code](what, error.detail or "")
    if code == ABSENT:
        return absent(what.split(","))
    name = place.shown
    if code in _FULL:
        return StoreFullError(f"no space left for the store {name}")
    if code in _CORRUPT:
        return StoreCorruptError(f"the store {name} is damaged: {what}")
    if code.startswith(_NO_ENTRY):
        return ConfigurationError(f"the store {name} does not let us in: {what}")
    if code in _NOT_ALLOWED:
        return ConfigurationError(f"the store {name} lacks a privilege for us: {what}")
    if code in _NOT_THERE:
        return StoreError(f"the store {name} is not set up, or was removed: {what}")
    if code.startswith(_UNAVAILABLE):
        return StoreUnavailableError(f"the store {name} did not serve: {what}")
    return StoreError(f"the store {name} failed: {what}")
