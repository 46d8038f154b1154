"""Schedules and their ticks in Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from haulier.domain.event import SCHEDULE_DELETED
from haulier.domain.schedule import TICK_STATES, Due, Firing, Overlap, Schedule, Tick
from haulier.domain.transfer import Records, ScheduleRecord, TickRecord
from haulier.exceptions import ScheduleNotFoundError
from haulier.stores.marks import PAGE_BYTES, PAGE_RECORDS
from haulier.stores.redis.history import History
from haulier.stores.redis.packing import Arg, canonical, known_id, optional, pack_jobs, pack_policy
from haulier.stores.redis.records import Writer
from haulier.stores.watching import Change

OVERLAPS = (Overlap.ALLOW, Overlap.SKIP, Overlap.CANCEL)


def _record(row: Sequence[Any]) -> ScheduleRecord:
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


def _schedule(row: Sequence[Any]) -> Schedule:
    return Schedule.stored(**_record(row)._asdict())


def _tick(name: str, member: bytes) -> Tick:
    tick, at, state, since, job = member.decode().split(" ")
    return Tick(
        name,
        int(tick),
        int(at),
        TICK_STATES[int(state)],
        None if job == "-" else job,
        None if since == "-" else int(since),
    )


def _pack_firings(firings: Sequence[Firing]) -> list[Arg]:
    packed: list[Arg] = [len(firings)]
    for firing in firings:
        packed += (firing.name, firing.revision, optional(firing.next))
        packed += (OVERLAPS.index(firing.overlap), int(firing.manual), len(firing.ticks))
        for planned in firing.ticks:
            packed += (planned.tick, optional(planned.since), int(planned.job is not None))
            if planned.job is not None:
                packed += (*pack_policy(firing.policy), *pack_jobs([planned.job]))
    return packed


# ── Copies ───────────────────────────────────────────────────────────────────────────────────


async def read_schedules(history: History, after: str | None) -> Records:
    rows = await history.script("schedule_find", f"({after or ''}", "+", PAGE_RECORDS + 1)
    records: list[ScheduleRecord] = []
    size = 0
    for row in rows:
        if len(records) == PAGE_RECORDS or size > PAGE_BYTES:
            return Records(tuple(records), records[-1].name)
        records.append(_record(row))
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
            found = [_tick(each, member) for member in members]
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


# ── The verbs ────────────────────────────────────────────────────────────────────────────────


class _Write(Protocol):
    def __call__(self, verb: str, *args: Any, change: Change) -> Awaitable[Any]: ...


class RedisSchedules:
    """The part of a Redis store that keeps schedules."""

    def __init__(
        self, history: History, write: _Write, drain: Callable[[str], Awaitable[int]]
    ) -> None:
        self._history = history
        self._write = write
        self._drain = drain

    async def find(self, *, after: str = "", limit: int = 100) -> list[Schedule]:
        rows = await self._history.script("schedule_find", f"({after}", "+", limit)
        return [_schedule(row) for row in rows]

    async def get(self, name: str) -> Schedule:
        rows = await self._history.script("schedule_find", f"[{name}", f"[{name}", 1)
        if not rows:
            raise ScheduleNotFoundError(name)
        return _schedule(rows[0])

    async def put(self, schedule: Schedule, event: str) -> bool:
        template = schedule.template
        done = await self._write(
            "schedule_put",
            *(schedule.name, canonical(schedule.id), schedule.revision, event),
            *(optional(schedule.next), template.kind, template.queue, schedule.body()),
            schedule.changed_by,
            change=Change.READY,
        )
        return bool(done)

    async def delete(self, name: str) -> None:
        args = (name, SCHEDULE_DELETED)
        if not await self._write("schedule_delete", *args, change=Change.EVENTS):
            raise ScheduleNotFoundError(name)

    async def due(self, limit: int = 100) -> Due:
        now, rows, following = await self._history.script("schedule_due", limit)
        at = int(now)
        found = tuple(map(_schedule, rows))
        return Due(at, found, int(following) - at if following else None)

    async def fire(self, firings: Sequence[Firing]) -> list[tuple[Tick, ...] | None]:
        packed = _pack_firings(firings)
        answers, heads = await self._write("schedule_fire", *packed, change=Change.ANY)
        for head in heads:
            await self._drain(head.decode())
        return [
            None if told == b"" else tuple(_tick(firing.name, member) for member in told)
            for firing, told in zip(firings, answers, strict=True)
        ]

    async def ticks(self, name: str, *, before: int | None = None, limit: int = 50) -> list[Tick]:
        last = "+inf" if before is None else f"({before}"
        members = await self._history.script("schedule_ticks", name, "-inf", last, limit, 1)
        return [_tick(name, member) for member in members]

    async def tick_of(self, job_id: str) -> Tick | None:
        found = await self._history.script("schedule_tick_of", known_id(job_id))
        return _tick(found[0].decode(), found[1]) if len(found) == 2 else None
