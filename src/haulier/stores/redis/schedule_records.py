"""Between what Redis keeps of schedules and ticks and what it says, and the records of a copy.

Copies need nothing that knows time zones and cron, and are loaded without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haulier.domain.tick import TICK_STATES, Tick
from haulier.domain.transfer import Records, ScheduleRecord, TickRecord
from haulier.stores.marks import PAGE_BYTES, PAGE_RECORDS
from haulier.stores.redis.history import History
from haulier.stores.redis.records import Writer


def schedule_record(row: Sequence[Any]) -> ScheduleRecord:
    name, schedule_id, revision, following, last_job, kind, queue, body, changed_by, at = (
        each.decode() for each in row
    )
    return ScheduleRecord(
        name=name,
        id=schedule_id,
        revision=int(revision),
        next=int(following) if following else None,
        last_job=last_job or None,
        kind=kind,
        queue=queue,
        body=body,
        changed_by=changed_by,
        changed_at=int(at),
    )


def tick_from(name: str, member: bytes) -> Tick:
    tick, at, state, since, job = member.decode().split(" ")
    return Tick(
        name,
        int(tick),
        int(at),
        TICK_STATES[int(state)],
        None if job == "-" else job,
        None if since == "-" else int(since),
    )


async def read_schedules(history: History, after: str | None) -> Records:
    rows = await history.script("schedule_find", f"({after or ''}", "+", PAGE_RECORDS + 1)
    records: list[ScheduleRecord] = []
    size = 0
    for row in rows:
        if len(records) == PAGE_RECORDS or size > PAGE_BYTES:
            return Records(tuple(records), records[-1].name)
        records.append(schedule_record(row))
        size += len(records[-1].body)
    return Records(tuple(records))


def write_schedules(writer: Writer, records: Sequence[ScheduleRecord]) -> None:
    for record in records:
        fields = {**record._asdict()}
        del fields["name"]
        there = {name: value for name, value in fields.items() if value is not None}
        writer.hash(f"schedule:{record.name}", there)
        writer.rank("schedules", 0, record.name)
        if record.next is not None:
            writer.rank("ticking", record.next, record.name)


async def read_ticks(history: History, after: str | None) -> Records:
    """Ticks schedule by schedule; a cursor is the schedule and the last tick that was read."""
    # A name has no spaces.
    name, _, tick = (after or "").rpartition(" ")
    records: list[TickRecord] = []
    first = f"[{name}" if name else "-"
    while True:
        names = await _names(history, first)
        for each in names:
            begin = f"({tick}" if each == name else "-inf"
            limit = PAGE_RECORDS + 1 - len(records)
            members = await history.script("schedule_ticks", each, begin, "+inf", limit, 0)
            found = [tick_from(each, member) for member in members]
            records += [
                TickRecord(t.schedule, t.tick, t.at, t.state, t.job, t.since) for t in found
            ]
            if len(records) > PAGE_RECORDS:
                page = records[:PAGE_RECORDS]
                return Records(tuple(page), f"{page[-1].schedule} {page[-1].tick}")
        if len(names) < PAGE_RECORDS:
            return Records(tuple(records))
        first = f"({names[-1]}"


async def _names(history: History, first: str) -> list[str]:
    found = await history.call(
        "ZRANGEBYLEX", history.key("schedules"), first, "+", "LIMIT", 0, PAGE_RECORDS
    )
    return [name.decode() for name in found]


def write_ticks(writer: Writer, records: Sequence[TickRecord]) -> None:
    jobs = {}
    for name, tick, at, state, job, since in records:
        code = [each.value for each in TICK_STATES].index(state)
        values = (tick, at, code, "-" if since is None else since, job or "-")
        writer.rank(f"ticks:{name}", tick, " ".join(map(str, values)))
        if job is not None:
            jobs[job] = f"{name} {tick}"
    writer.hash("ticked", jobs)
