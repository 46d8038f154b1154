"""The records, opened: short transactions, each with a deadline, and their errors made ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import URL, Connection, event, exc, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from haulier.exceptions import (
    ConfigurationError,
    HaulierError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from haulier.records.places import MEMORY, Place, PostgresSchema, SqliteFile
from haulier.records.tables import HEAD
from haulier.services.deadlines import shortened

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

DEFAULT_DEADLINE = 10.0
"""Seconds that a transaction may take, waiting for others included."""

APPLICATION_ID = 0x48415552
"""Marks our files in SQLite's own header field: the letters HAUR."""

_BUSY_SECONDS = 8.0
_WRITES = "haulier_writes"
_LOCK = 0x68617572
"""PostgreSQL's advisory lock for the time of a migration."""


class Records:
    """The relational database beside the store; any number of processes may use one.

    `deadline` (seconds) bounds every transaction. `create`: make the tables where there are none.
    """

    def __init__(
        self, place: Place, *, create: bool = True, deadline: float = DEFAULT_DEADLINE
    ) -> None:
        self.place = place
        self._create = create
        self._deadline = deadline
        self._engine: AsyncEngine | None = None
        self._under_way: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        if isinstance(self.place, SqliteFile) and self.place.path != MEMORY:
            _touch(self.place.path, create=self._create)
        self._engine = _engine_of(self.place)
        try:
            if await self.read(_revision) != HEAD:
                await self.write(self._upgrade)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._close()

    async def read(self, work: Work[T]) -> T:
        """Do a piece of work that changes nothing; raises StoreError or one of its kin."""
        return await self._run(work, writes=False)

    async def write(self, work: Work[T]) -> T:
        """Do a piece of work in a transaction, which is committed when it returns.

        Raises StoreError or one of its kin; after StoreUnavailableError it may have been done.
        """
        return await self._run(work, writes=True)

    async def _run(self, work: Work[T], *, writes: bool) -> T:
        engine = self._engine
        if engine is None:
            raise StoreClosedError(f"the records {self.place.shown} are closed")
        deadline = shortened(self._deadline)
        # A task of its own: a caller that is cancelled in the middle of a statement would cost the
        # connection, and with records in memory all that is in them.
        task = asyncio.ensure_future(_once(engine, self.place, work, writes=writes))
        self._under_way.add(task)
        task.add_done_callback(self._done)
        with _translated(self.place):
            try:
                async with asyncio.timeout(deadline):
                    return await asyncio.shield(task)
            except TimeoutError:
                raise StoreUnavailableError(
                    f"the records {self.place.shown} did not answer within {deadline:g} s"
                ) from None

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Nobody may wait for it any more.
            task.exception()

    async def _close(self) -> None:
        engine, self._engine = self._engine, None
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._deadline)
        for task in [*self._under_way]:
            task.cancel()
            await asyncio.wait([task])
        if engine is not None:
            await engine.dispose()

    async def _upgrade(self, connection: AsyncConnection) -> None:
        if isinstance(self.place, PostgresSchema):
            # Two that make the same schema at once would both fail.
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        revision = await _revision(connection)
        if revision == HEAD:
            return
        if revision is None and not self._create:
            raise _nothing_at(self.place.shown)
        if isinstance(self.place, PostgresSchema):
            await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{self.place.schema}"'))
        else:
            await connection.run_sync(_claim_file, self.place.path)
        from haulier.records.migrations import upgrade

        await connection.run_sync(upgrade)


def _nothing_at(where: str) -> ConfigurationError:
    return ConfigurationError(
        f"there are no records at {where}; look whether the URL is right, or make a token first"
    )


def _touch(path: str, *, create: bool) -> None:
    """Make the file for its owner alone, before SQLite would make it for everybody."""
    if not create and not os.path.exists(path):  # noqa: PTH110 - a text is what SQLite is given
        raise _nothing_at(path)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreUnavailableError(
            f"the records {path} cannot be opened: {error.strerror}"
        ) from error


def _claim_file(connection: Connection, path: str) -> None:
    """Mark an empty file as ours; raises StoreCorruptError for the database of another program."""
    found = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
    tables = connection.exec_driver_sql("SELECT 1 FROM sqlite_schema LIMIT 1").first()
    if found not in (0, APPLICATION_ID) or (found == 0 and tables is not None):
        raise StoreCorruptError(f"{path} is an SQLite database of something else")
    connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")


async def _revision(connection: AsyncConnection) -> str | None:
    """The newest migration that these records have seen."""

    def look(sync: Connection) -> str | None:
        schema = sync.get_execution_options().get("haulier_schema")
        if not inspect(sync).has_table("alembic_version", schema=schema):
            return None
        found: str | None = sync.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return found

    return await connection.run_sync(look)


# ── Connections ──────────────────────────────────────────────────────────────────────────────


async def _once(engine: AsyncEngine, place: Place, work: Work[T], *, writes: bool) -> T:
    options: dict[str, Any] = {_WRITES: writes}
    if isinstance(place, PostgresSchema):
        options["haulier_schema"] = place.schema
    async with engine.connect() as connection:
        await connection.execution_options(**options)
        async with connection.begin():
            return await work(connection)


def _engine_of(place: Place) -> AsyncEngine:
    if isinstance(place, SqliteFile):
        return _sqlite_engine(place)
    return _postgres_engine(place)


def _sqlite_engine(place: SqliteFile) -> AsyncEngine:
    # In memory each connection would be a database of its own: there is one, which all wait for.
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=place.path),
        connect_args={"timeout": _BUSY_SECONDS},
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1 if place.path == MEMORY else 3,
        max_overflow=0,
        pool_timeout=DEFAULT_DEADLINE,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        del record
        # The driver would begin transactions by itself, and not for statements that make tables.
        connection.isolation_level = None
        cursor = connection.cursor()
        # No write-ahead log: the interpreter's SQLite may be one that can corrupt it. EXTRA, since
        # with a rollback journal only that has a commit on disk when it is acknowledged.
        for pragma in ("journal_mode = DELETE", "synchronous = EXTRA", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres_engine(place: PostgresSchema) -> AsyncEngine:
    from uuid import uuid4

    arguments: dict[str, Any] = {
        "dsn": place.url,
        "timeout": DEFAULT_DEADLINE,
        "command_timeout": DEFAULT_DEADLINE,
        "server_settings": {"application_name": "haulier records"},
    }
    if place.pooled:
        # Another session may have taken a statement's name, and the next transaction is elsewhere.
        arguments |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__haulier_{uuid4()}__",
        }
        engine = create_async_engine(
            "postgresql+asyncpg://", connect_args=arguments, poolclass=NullPool
        )
    else:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            connect_args=arguments,
            pool_size=place.pool,
            max_overflow=0,
            pool_timeout=DEFAULT_DEADLINE,
            pool_pre_ping=True,
        )

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # For this transaction alone: a pooler gives the session to others afterwards.
        connection.exec_driver_sql(f'SET LOCAL search_path TO "{place.schema}"')

    return engine


# ── Errors ───────────────────────────────────────────────────────────────────────────────────

_FULL = frozenset({"SQLITE_FULL"})
_CORRUPT = frozenset({"SQLITE_NOTADB", "SQLITE_CORRUPT"})
_AWAY = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_READONLY"})
_AWAY_CLASSES = ("08", "57", "53", "40", "55", "25", "28")
"""PostgreSQL's classes of conditions that may pass, or that the operator sees to."""


@contextlib.contextmanager
def _translated(place: Place) -> Iterator[None]:
    """The one place where the errors of SQLAlchemy and its drivers become ours."""
    try:
        yield
    except HaulierError:
        raise
    except exc.SQLAlchemyError as error:
        raise _ours(place, error) from error
    except (OSError, TimeoutError) as error:
        raise StoreUnavailableError(f"the records {place.shown} cannot be reached") from error
    except Exception as error:
        # A connection that cannot be made raises the driver's own errors.
        if type(error).__module__.partition(".")[0] not in ("asyncpg", "sqlite3"):
            raise
        raise _ours(place, error) from error


def _ours(place: Place, error: Exception) -> HaulierError:
    driver = getattr(error, "orig", None) or error
    where = f"the records {place.shown}"
    name = str(getattr(driver, "sqlite_errorname", None) or "")
    base = "_".join(name.split("_")[:2])
    state = str(getattr(driver, "sqlstate", None) or "")
    if base in _FULL or state == "53100":
        return StoreFullError(f"no space left for {where}")
    if base in _CORRUPT:
        return StoreCorruptError(f"{where} are damaged, or no records at all")
    if state in ("42501", "3D000"):
        return ConfigurationError(f"{where} cannot be used: {driver}")
    if base in _AWAY or state[:2] in _AWAY_CLASSES or isinstance(error, exc.TimeoutError):
        return StoreUnavailableError(f"{where} cannot be used now: {_first_line(driver)}")
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return StoreUnavailableError(f"{where} cannot be reached")
    return StoreError(f"{where} failed: {_first_line(driver)}")


def _first_line(error: object) -> str:
    """Without the statement and its parameters, which SQLAlchemy adds."""
    return str(error).partition("\n")[0]
