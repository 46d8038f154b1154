"""Schedules and their ticks, as models."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt

from haulier.domain.job import MICROSECOND
from haulier.domain.schedule import Cadence, Cron, Interval, Overlap, Schedule, refused
from haulier.domain.tick import TickState
from haulier.services.schedules import ScheduleOptions
from haulier.web.bodies import BatchBody, Moment, Taken
from haulier.web.schemas import Instant, Json, View


class CadenceBody(Taken):
    """Either `cron`, in a time `zone`, or `every` so many seconds, counted from `start`."""

    cron: str | None = Field(None, max_length=200, description="Five fields, or six with seconds.")
    zone: str | None = Field(None, max_length=100, description="IANA; UTC if left out.")
    every: StrictFloat | None = Field(None, description="Seconds.")
    start: Moment | None = None

    def cadence(self) -> Cadence:
        """What is meant; raises ValidationError."""
        if (self.cron is None) == (self.every is None):
            raise refused(("cron", "give it or every"))
        if self.cron is not None:
            if self.start is not None:
                raise refused(("start", "goes with every"))
            return Cron(self.cron, self.zone or "UTC")
        if self.zone is not None:
            raise refused(("zone", "goes with cron"))
        assert self.every is not None
        return Interval(self.every, None if self.start is None else _micros(self.start))


class ScheduleBody(CadenceBody, BatchBody):
    """A schedule, whole: what is left out has its default, also if it is otherwise now."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"kind": "report", "cron": "0 6 * * mon-fri", "zone": "Europe/Berlin"}
        }
    )

    kind: str = Field(max_length=200)
    payload: dict[str, Any] = Field(default_factory=dict)
    missed: str = Field("once", max_length=20, description="skip, once, or all:N.")
    overlap: Overlap = Overlap.ALLOW
    queue: str | None = Field(None, min_length=1, max_length=200)
    priority: StrictInt | str | None = None
    key: str | None = Field(None, max_length=200)

    def given(self) -> ScheduleOptions:
        """What was said beside kind, cadence and payload, in the library's words."""
        return {
            "missed": self.missed,
            "overlap": self.overlap,
            "queue": self.queue,
            "priority": self.priority,
            "key": self.key,
            "concurrency": self.concurrency,
            "batch_size": self.batch_size,
            "max_failures": self.max_failures,
        }


class ScheduleView(BaseModel):
    """A schedule as it is now. `next` is null while it is paused."""

    name: str
    kind: str
    payload: Json
    cron: str | None = None
    zone: str | None = None
    every: float | None = None
    start: Instant | None = None
    missed: str
    overlap: Overlap
    paused: bool
    next: Instant | None
    last_job: str | None
    queue: str
    priority: int
    key: str | None
    concurrency: int | None
    batch_size: int | None
    max_failures: int | None
    declared: bool = Field(description="It came from a declaration in code.")
    revision: int
    changed_by: str
    changed_at: Instant

    @classmethod
    def of(cls, schedule: Schedule) -> Self:
        cadence, template = schedule.cadence, schedule.template
        when: dict[str, Any] = (
            {"cron": cadence.expression, "zone": cadence.zone}
            if isinstance(cadence, Cron)
            else {"every": cadence.seconds, "start": cadence.start}
        )
        told = {
            **when,
            "name": schedule.name,
            "kind": template.kind,
            "payload": template.payload,
            "missed": str(schedule.missed),
            "overlap": schedule.overlap,
            "paused": schedule.paused,
            "next": schedule.next,
            "last_job": schedule.last_job,
            "queue": template.queue,
            "priority": template.priority,
            "key": template.key,
            "concurrency": template.policy.concurrency,
            "batch_size": template.policy.batch_size,
            "max_failures": template.policy.max_failures,
            "declared": schedule.declared is not None,
            "revision": schedule.revision,
            "changed_by": schedule.changed_by,
            "changed_at": schedule.changed_at,
        }
        return cls.model_validate(told)


class ScheduleQuery(Taken):
    """Which schedules: those whose names follow `after`."""

    after: str = Field("", max_length=200, description="The `next` of the page before.")
    limit: int = Field(100, ge=1, le=500, description="At most so many.")


class ScheduleList(BaseModel):
    """Schedules by name. `next` is the `after` of the following page."""

    schedules: list[ScheduleView]
    next: str | None


class TickView(View):
    """A tick and what became of it. `since`: the first of several that it makes up for."""

    tick: Instant
    state: TickState
    since: Instant | None
    job: str | None
    at: Instant


class TickQuery(Taken):
    """Which ticks: those before an instant."""

    before: Moment | None = Field(None, description="Only ticks before this instant.")
    limit: int = Field(50, ge=1, le=500, description="At most so many.")

    @property
    def microseconds(self) -> int | None:
        return None if self.before is None else _micros(self.before)


class TickList(BaseModel):
    """The last ticks that are kept, the latest first."""

    ticks: list[TickView]


def _micros(value: datetime) -> int:
    return round(value.timestamp() * MICROSECOND)
