"""Schedules and their ticks in Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from haulier.domain.event import SCHEDULE_DELETED
from haulier.domain.schedule import Due, Firing, Overlap, Schedule
from haulier.domain.tick import Tick
from haulier.exceptions import ScheduleNotFoundError
from haulier.stores.redis.history import History
from haulier.stores.redis.packing import Arg, canonical, known_id, optional, pack_jobs, pack_policy
from haulier.stores.redis.schedule_records import schedule_record, tick_from
from haulier.stores.watching import Change

OVERLAPS = (Overlap.ALLOW, Overlap.SKIP, Overlap.CANCEL)


def _schedule(row: Sequence[Any]) -> Schedule:
    return Schedule.stored(**schedule_record(row)._asdict())


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

    async def delete(self, name: str, *, by: str) -> None:
        args = (name, SCHEDULE_DELETED, by)
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
            None if told == b"" else tuple(tick_from(firing.name, member) for member in told)
            for firing, told in zip(firings, answers, strict=True)
        ]

    async def ticks(self, name: str, *, before: int | None = None, limit: int = 50) -> list[Tick]:
        last = "+inf" if before is None else f"({before}"
        members = await self._history.script("schedule_ticks", name, "-inf", last, limit, 1)
        return [tick_from(name, member) for member in members]

    async def tick_of(self, job_id: str) -> Tick | None:
        found = await self._history.script("schedule_tick_of", known_id(job_id))
        return tick_from(found[0].decode(), found[1]) if len(found) == 2 else None
