"""What operators change while everything runs, kept in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from haulier.domain.configuration import KEPT_CHANGES, Alteration, Configuration, checked
from haulier.domain.transfer import ConfigurationRecord, Records
from haulier.stores.configuring import Kept, configuration_of
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.pool import Pool, Work
from haulier.stores.watching import Change

_SETTING = "name, value, version, changed_by, changed_at"
_ALTERATION = "version, at, by, name, before, after"

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


async def history(connection: Connection, limit: int) -> list[Alteration]:
    """The last changes, the latest first."""
    rows = await connection.fetch(
        f"SELECT {_ALTERATION} FROM alterations ORDER BY version DESC, name LIMIT $1", limit
    )
    return [Alteration._make(tuple(row)) for row in rows]


# ── Copies ───────────────────────────────────────────────────────────────────────────────────


async def read_copied(connection: Connection, after: str | None) -> Records:
    """The configuration as a copy takes it."""
    del after
    version = await connection.fetchval("SELECT version FROM configuration")
    if version is None:
        return Records(())
    settings = await connection.fetch(f"SELECT {_SETTING} FROM settings ORDER BY name")
    alterations = await history(connection, KEPT_CHANGES)
    return Records((ConfigurationRecord(version, tuple(map(tuple, settings)), tuple(alterations)),))


async def insert_copied(
    connection: Connection, schema: str, records: Sequence[ConfigurationRecord]
) -> None:
    for record in records:
        await connection.execute("INSERT INTO configuration (version) VALUES ($1)", record.version)
        for table, columns, rows in (
            ("settings", _SETTING, record.settings),
            ("alterations", _ALTERATION, record.alterations),
        ):
            await connection.copy_records_to_table(
                table, schema_name=schema, columns=columns.split(", "), records=rows
            )
    await connection.execute("SELECT note_paused()")


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

    async def noted(self) -> list[str]:
        """The paused queues as exchanges see them."""
        paused = await self._pool.run(lambda db: db.fetchval("SELECT paused FROM configuration"))
        return list(paused or ())

    async def history(self, limit: int = 50) -> list[Alteration]:
        return await self._pool.run(lambda db: history(db, limit))
