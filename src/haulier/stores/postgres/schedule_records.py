"""Between rows of schedules and ticks and what they say, and the records of a copy.

Copies need nothing that knows time zones and cron, and are loaded without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from haulier.domain.tick import TICK_STATES, Tick, TickState
from haulier.domain.transfer import Records, ScheduleRecord, TickRecord
from haulier.stores.marks import PAGE_BYTES, PAGE_RECORDS
from haulier.stores.postgres.connection import Connection

COLUMNS = "name, id, revision, next, last_job, kind, queue, body, changed_by, changed_at"
READ = f"SELECT {COLUMNS} FROM schedules".replace(" id,", " id::text,").replace(
    "last_job,", "last_job::text,"
)
TICK = "schedule, tick, at, state, job, since"
READ_TICKS = f"SELECT {TICK} FROM ticks".replace(" job,", " job::text,")


def tick_from_row(row: Sequence[Any]) -> Tick:
    schedule, tick, at, state, job, since = row
    return Tick(schedule, tick, at, TICK_STATES[state], job, since)


async def read_schedules(db: Connection, after: str | None) -> Records:
    sizes = await db.fetch(
        "SELECT name, length(body) FROM schedules WHERE name > $1 ORDER BY name LIMIT $2",
        *(after or "", PAGE_RECORDS + 1),
    )
    page: list[str] = []
    size = 0
    for name, length in sizes[:PAGE_RECORDS]:
        if size > PAGE_BYTES:
            break
        page.append(name)
        size += length
    rows = await db.fetch(f"{READ} WHERE name = ANY ($1) ORDER BY name", page)
    more = len(page) < len(sizes)
    return Records(tuple(ScheduleRecord._make(row) for row in rows), page[-1] if more else None)


async def insert_schedules(db: Connection, schema: str, records: Sequence[ScheduleRecord]) -> None:
    await db.copy_records_to_table(
        "schedules", schema_name=schema, columns=COLUMNS.split(", "), records=records
    )


async def read_ticks(db: Connection, after: str | None) -> Records:
    # A name has no spaces.
    name, _, tick = (after or " 0").rpartition(" ")
    rows = await db.fetch(
        f"{READ_TICKS} WHERE (schedule, tick) > ($1, $2) ORDER BY schedule, tick LIMIT $3",
        *(name, int(tick), PAGE_RECORDS + 1),
    )
    records = tuple(TickRecord._make(astuple(tick_from_row(row))) for row in rows[:PAGE_RECORDS])
    if len(rows) <= PAGE_RECORDS:
        return Records(records)
    return Records(records, f"{records[-1].schedule} {records[-1].tick}")


async def insert_ticks(db: Connection, schema: str, records: Sequence[TickRecord]) -> None:
    rows = [
        (r.schedule, r.tick, r.at, TICK_STATES.index(TickState(r.state)), r.job, r.since)
        for r in records
    ]
    await db.copy_records_to_table(
        "ticks", schema_name=schema, columns=TICK.split(", "), records=rows
    )
