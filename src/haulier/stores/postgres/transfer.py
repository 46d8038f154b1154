"""Copies from and into PostgreSQL: what the verbs of a copy do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from haulier.domain.transfer import (
    Mark,
    Numbers,
    Record,
    Records,
    Section,
    Stage,
    Standing,
)
from haulier.stores.marks import check_replaced
from haulier.stores.postgres import limiting, queries
from haulier.stores.postgres import records as rows
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.pool import Pool
from haulier.stores.watching import Change

TABLES = {
    Section.LIMITS: "limits",
    Section.METERS: limiting.METERS,
    Section.JOBS: "jobs",
    Section.BATCHES: "batches",
    Section.NAMES: "uniques",
    Section.SCHEDULES: "schedules",
    Section.TICKS: "ticks",
    Section.CONFIGURATION: "configuration",
    Section.EVENTS: "events",
}

_STANDING = f"""
SELECT (SELECT mark FROM transfer) AS mark, h.epoch, h.last,
    (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM job_seqs) AS seq,
    (SELECT count(*) FROM jobs_live WHERE state = 1 AND worker IS NOT NULL) AS running,
    (SELECT count(*) FROM batches WHERE draining > 0)
        + (SELECT count(DISTINCT batch) FROM nested_due)
         + flows_wait()::integer AS under_way,
    {", ".join(f"(SELECT count(*) FROM {table}) AS {section}" for section, table in TABLES.items())}
FROM history h
"""

EMPTIED_AT_ONCE = 5000

_KEYS = {
    "limits": "name",
    "slots": "name",
    "key_states": "name, key",
    "errors": "job, lease",
    "steps": "job, name",
    "lines": "job, lease, number",
    "events": "seq",
    "uniques": "name",
    "schedules": "name",
    "ticks": "schedule, tick",
    "configuration": "version",
    "settings": "name",
    "alterations": "version, name",
    "jobs": "seq",
    "batches": "id",
    "counts": "queue, kind, role, state",
}


async def standing(connection: Connection) -> Standing:
    await queries.number_events(connection)
    while await connection.fetchval("SELECT fold_circuits()"):
        pass
    row = await connection.fetchrow(_STANDING)
    return Standing(
        mark=None if row["mark"] is None else Mark.from_text(row["mark"]),
        numbers=Numbers(row["epoch"], row["last"], row["seq"]),
        running=row["running"],
        under_way=row["under_way"],
        totals={section: row[section] for section in Section},
    )


class PostgresTransfer:
    """The part of a PostgreSQL store that copies speak to."""

    def __init__(self, pool: Pool, schema: str, tell: Callable[[Change], None]) -> None:
        self._pool = pool
        self._schema = schema
        self._tell = tell

    async def standing(self) -> Standing:
        return await self._pool.run(standing)

    async def freeze(self, mark: Mark) -> Standing:
        return await self._mark("freeze", mark)

    async def receive(self, mark: Mark) -> Standing:
        return await self._mark("receive", mark)

    async def _mark(self, verb: str, mark: Mark) -> Standing:
        async def work(db: Connection) -> Standing:
            await db.execute(f"SELECT {verb}($1, $2)", mark.stage, mark.to_text())
            return await standing(db)

        return await self._pool.run(work)

    async def read(self, section: Section, after: str | None = None) -> Records:
        return await self._pool.run(lambda db: rows.READ[section](db, after))

    async def advance(
        self,
        was: Mark,
        now: Mark,
        records: Sequence[Record] = (),
        *,
        numbers: Numbers | None = None,
    ) -> None:
        async def work(db: Connection) -> bool | None:
            async with db.transaction():
                replaced = await db.fetchval(
                    "SELECT replace_mark($1, $2, $3)", was.to_text(), now.stage, now.to_text()
                )
                if replaced and records:
                    assert was.section is not None
                    await rows.INSERT[was.section](db, self._schema, records)
                if replaced and numbers is not None:
                    await _set_numbers(db, numbers)
                return bool(replaced) if replaced is not None else None

        if await self._pool.run(work) is None:
            check_replaced((await self.standing()).mark, was, now)
        if now.stage is not Stage.RECEIVING:
            self._tell(Change.ANY)

    async def thaw(self) -> None:
        mark = (await self.standing()).mark
        if mark is not None and mark.stage is Stage.RECEIVING:
            # From here on nobody can go on with that copy, also when this stops half-way.
            given_up = replace(mark, token="")
            await self._pool.run(
                lambda db: db.execute("SELECT set_mark($1, $2)", given_up.stage, given_up.to_text())
            )
            for table, key in _KEYS.items():
                await self._empty(table, key)
        was_read = mark is not None and mark.stage in (Stage.FROZEN, Stage.MOVED)

        async def work(db: Connection) -> None:
            async with db.transaction():
                if was_read:
                    await db.execute(
                        "UPDATE history SET epoch = substr(md5(gen_random_uuid()::text), 1, 8)"
                    )
                await db.execute("SELECT set_mark(NULL, NULL)")

        await self._pool.run(work)
        self._tell(Change.ANY)

    async def _empty(self, table: str, key: str) -> None:
        sql = (
            f"DELETE FROM {table} WHERE ({key}) IN "
            f"(SELECT {key} FROM {table} LIMIT {EMPTIED_AT_ONCE})"
        )
        while await self._pool.run(lambda db: db.execute(sql)) != "DELETE 0":
            pass


async def _set_numbers(connection: Connection, numbers: Numbers) -> None:
    await connection.execute(
        "UPDATE history SET epoch = $1, last = $2", numbers.epoch, numbers.last_event
    )
    # The sequence begins with 1, also when nothing was ever inserted.
    await connection.execute(
        "SELECT setval('job_seqs', greatest($1::bigint, 1), $1::bigint > 0)", numbers.last_seq
    )
