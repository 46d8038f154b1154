"""What operators change while everything runs, kept in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from haulier.domain.configuration import KEPT_CHANGES, Alteration, Configuration, checked
from haulier.stores.configuring import Kept, configuration_of
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.pool import Pool, Work
from haulier.stores.watching import Change

# In one statement: the version of just these settings.
_READ = (
    "SELECT v.version AS of, s.name, s.value, s.version, s.changed_by, s.changed_at "
    "FROM (SELECT coalesce((SELECT version FROM configuration), 0) AS version) v "
    "LEFT JOIN settings s ON true"
)


async def read(connection: Connection) -> Configuration:
    """What is set now."""
    rows = await connection.fetch(_READ)
    kept = (Kept._make(row[1:]) for row in map(tuple, rows) if row[1] is not None)
    return configuration_of(rows[0]["of"], kept)


class PostgresConfigurable:
    """The part of a PostgreSQL store that keeps its configuration."""

    def __init__(
        self,
        pool: Pool,
        write: Callable[[Work[Any], Change], Awaitable[Any]],
        now: Callable[[], int | None],
    ) -> None:
        self._pool = pool
        self._write = write
        self._now = now

    async def configuration(self) -> Configuration:
        return await self._pool.run(read)

    async def configure(
        self,
        values: Mapping[str, Any],
        *,
        unset: Iterable[str] = (),
        by: str,
        expected: int | None = None,
    ) -> Configuration:
        texts = checked(values, unset, by)

        async def work(db: Connection) -> Configuration:
            await db.execute(
                "SELECT configure($1, $2, $3, $4, $5, $6)",
                *(self._now(), list(texts), list(texts.values()), by, expected, KEPT_CHANGES),
            )
            return await read(db)

        # All workers are woken: a queue may go on, and each is to hear of the new version.
        told: Configuration = await self._write(work, Change.READY)
        return told

    async def history(self, limit: int = 50) -> list[Alteration]:
        rows = await self._pool.run(
            lambda db: db.fetch(
                "SELECT version, at, by, name, before, after FROM alterations "
                "ORDER BY version DESC, name LIMIT $1",
                limit,
            )
        )
        return [Alteration._make(tuple(row)) for row in rows]
