"""Between rows of schedules and ticks and what they say, and the records of a copy.

Copies need nothing that knows time zones and cron, and are loaded without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import apsw

from haulier.domain.ids import raw_id, text_id
from haulier.domain.tick import TICK_STATES, Tick, TickState
from haulier.domain.transfer import Records, ScheduleRecord, TickRecord
from haulier.stores.marks import PAGE_BYTES, PAGE_RECORDS
from haulier.stores.sqlite.rows import Row, fetch

COLUMNS = "name, id, revision, next, last_job, kind, queue, body, changed_by, changed_at"
FIND = f"SELECT {COLUMNS} FROM schedules WHERE name > ? ORDER BY name LIMIT ?"
TICK = "schedule, tick, at, state, job, since"
ADD_TICK = f"INSERT INTO ticks ({TICK}) VALUES (?, ?, ?, ?, ?, ?)"
_READ_TICKS = (
    f"SELECT {TICK} FROM ticks WHERE (schedule, tick) > (?, ?) ORDER BY schedule, tick "
    f"LIMIT {PAGE_RECORDS + 1}"
)


def tick_from_row(row: Row) -> Tick:
    schedule, tick, at, state, job, since = row
    return Tick(schedule, tick, at, TICK_STATES[state], job and text_id(job), since)


def read_schedules(db: apsw.Connection, after: str | None) -> Records:
    records: list[ScheduleRecord] = []
    size = 0
    for row in db.execute(FIND, (after or "", -1)):
        if len(records) == PAGE_RECORDS or size > PAGE_BYTES:
            return Records(tuple(records), records[-1].name)
        last_job = row[4] and text_id(row[4])
        records.append(
            ScheduleRecord._make((row[0], text_id(row[1]), *row[2:4], last_job, *row[5:]))
        )
        size += len(row[7])
    return Records(tuple(records))


def insert_schedules(db: apsw.Connection, records: Sequence[ScheduleRecord]) -> None:
    rows = [
        (r.name, raw_id(r.id), *r[2:4], r.last_job and raw_id(r.last_job), *r[5:]) for r in records
    ]
    db.executemany(f"INSERT INTO schedules ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)", rows)


def read_ticks(db: apsw.Connection, after: str | None) -> Records:
    # A name has no spaces.
    name, _, tick = (after or " 0").rpartition(" ")
    rows = fetch(db, _READ_TICKS, (name, int(tick)))
    records = tuple(TickRecord._make(astuple(tick_from_row(row))) for row in rows[:PAGE_RECORDS])
    if len(rows) <= PAGE_RECORDS:
        return Records(records)
    return Records(records, f"{records[-1].schedule} {records[-1].tick}")


def insert_ticks(db: apsw.Connection, records: Sequence[TickRecord]) -> None:
    rows = [
        (*r[:3], TICK_STATES.index(TickState(r.state)), r.job and raw_id(r.job), r.since)
        for r in records
    ]
    db.executemany(ADD_TICK, rows)
