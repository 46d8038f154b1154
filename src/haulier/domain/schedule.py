"""Schedules: when they tick, which ticks are made up for, and what their jobs are.

All instants are microseconds UTC. Nothing here looks at a clock: what is due follows from a
schedule and the time that is given.

Daylight saving is that of Debian's cron, as the library cronsim has it. A cron expression of five
fields whose minute and hour do not begin with `*` names a time of day: when the clocks skip it, it
ticks at the first moment after the gap, and when they repeat it, the first time only. Every other
expression counts real time: what is skipped never is, and what is repeated is twice.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import takewhile
from typing import Any, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.ids import derived_id
from haulier.domain.job import LONGEST_DELAY, MICROSECOND, NewJob, OnLost, Role
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import Problem, ValidationError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")
"""What names of schedules look like."""

SHORTEST_INTERVAL = 0.1
MOST_MADE_UP = 1000
LONGEST_CRON = 200
GRACE = 60 * MICROSECOND
"""A tick that is no later than this is not missed, unless the next one is due as well."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def refused(*problems: tuple[str, str]) -> ValidationError:
    """The error for what is wrong with a schedule: fields and reasons."""
    return ValidationError("the schedule was refused", [Problem(*each) for each in problems])


# ── Cadence ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Cron:
    """Ticks of a cron expression: five fields, or six with seconds first, in an IANA time zone.

    Raises ValidationError for an unknown zone, and for an expression that is none or never ticks.
    """

    expression: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        zone = _zone(self.zone)
        if not isinstance(self.expression, str) or len(self.expression) > LONGEST_CRON:
            raise refused(("cron", f"must be a text of at most {LONGEST_CRON} characters"))
        try:
            next(CronSim(self.expression, _ANY_TIME.astimezone(zone)))
        except CronSimError as error:
            reason = str(error)
            if _is_of_no_month(self.expression):
                raise refused(("cron", "never ticks: no month has such a day")) from None
            raise refused(
                ("cron", f"is no cron expression: {reason[:1].lower()}{reason[1:]}")
            ) from None
        except StopIteration:
            raise refused(("cron", "never ticks")) from None

    def after(self, instant: int) -> Iterator[int]:
        """The ticks after an instant, in their order."""
        start = (_EPOCH + timedelta(microseconds=instant)).astimezone(_zone(self.zone))
        for tick in CronSim(self.expression, start):
            found = round((tick.astimezone(UTC) - _EPOCH).total_seconds()) * MICROSECOND
            # In an hour that comes twice a time of day lies in the past, if the first was meant.
            if found > instant:
                yield found

    def __str__(self) -> str:
        return f"{self.expression} ({self.zone})"


@dataclass(frozen=True, slots=True)
class Interval:
    """A tick every so many seconds, counted from `start` (microseconds UTC).

    Without a start it is counted from when the schedule is made. Raises ValidationError for less
    than a tenth of a second or more than ten years.
    """

    seconds: float
    start: int | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if not number or not SHORTEST_INTERVAL <= self.seconds <= LONGEST_DELAY:
            reason = f"must be seconds from {SHORTEST_INTERVAL} up to ten years"
            raise refused(("interval", reason))
        if self.start is not None and type(self.start) is not int:
            raise refused(("start", "must be microseconds UTC"))

    @property
    def length(self) -> int:
        """Microseconds."""
        return round(self.seconds * MICROSECOND)

    def after(self, instant: int) -> Iterator[int]:
        """The ticks after an instant, in their order."""
        start = self.start or 0
        tick = start + ((instant - start) // self.length + 1) * self.length
        while True:
            yield tick
            tick += self.length

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"


Cadence = Cron | Interval


def _is_of_no_month(expression: str) -> bool:
    """Whether only the months of a refused expression are in its way: a 30th of February."""
    fields = expression.split()
    try:
        CronSim(" ".join([*fields[:-2], "*", *fields[-1:]]), _ANY_TIME)
    except CronSimError:
        return False
    return len(fields) in (5, 6) and fields[-2] != "*"


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    # Also a folder of the time zone database, and a path out of it.
    except (KeyError, ValueError, OSError, TypeError, AttributeError):
        raise refused(("zone", f"{str(name)[:60]!r} is no time zone that is known here")) from None


# ── Policies ─────────────────────────────────────────────────────────────────────────────────


class Overlap(StrEnum):
    """What a tick does while the job of the tick before is pending or running.

    allow: its job is enqueued all the same. skip: it is not. cancel: it is, and the earlier one is
    asked to stop.
    """

    ALLOW = "allow"
    SKIP = "skip"
    CANCEL = "cancel"


class MakeUp(StrEnum):
    """The words of `Missed`."""

    SKIP = "skip"
    ONCE = "once"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Missed:
    """What becomes of ticks that no worker was there for.

    skip: nothing; a tick is missed when it is more than a minute late or the next one is due too.
    once: the latest one runs. all: each runs, at most the last `most` of them.
    """

    make_up: MakeUp = MakeUp.ONCE
    most: int = 1

    def __post_init__(self) -> None:
        if self.make_up not in list(MakeUp):
            raise refused(("missed", f"must be one of {', '.join(MakeUp)}"))
        object.__setattr__(self, "make_up", MakeUp(self.make_up))
        if type(self.most) is not int or not 1 <= self.most <= MOST_MADE_UP:
            raise refused(("missed", f"all is up to an integer from 1 to {MOST_MADE_UP:,}"))

    @classmethod
    def skip(cls) -> Self:
        return cls(MakeUp.SKIP)

    @classmethod
    def once(cls) -> Self:
        return cls(MakeUp.ONCE)

    @classmethod
    def all(cls, most: int) -> Self:
        """All of them, at most the last so many."""
        return cls(MakeUp.ALL, most)

    def __str__(self) -> str:
        return f"all:{self.most}" if self.make_up is MakeUp.ALL else self.make_up.value

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what `str` gives; raises ValidationError."""
        word, colon, most = str(text).partition(":")
        if word == MakeUp.ALL and colon:
            return cls.all(int(most) if most.isascii() and most.isdigit() else 0)
        if word == MakeUp.ALL or colon or word not in list(MakeUp):
            raise refused(("missed", "must be skip, once, or all:N"))
        return cls(MakeUp(word))


# ── A schedule ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The job that each tick enqueues, as NewJob describes it; `policy` is its batch's."""

    kind: str
    payload: bytes
    version: int = 1
    queue: str = "default"
    priority: int = 0
    key: str | None = None
    retry: RetryPolicy | None = None
    role: Role = Role.SINGLE
    on_lost: OnLost = OnLost.RETRY
    policy: BatchPolicy = field(default_factory=BatchPolicy)

    def job(self, job_id: str) -> NewJob:
        """The job itself, to run at once."""
        return NewJob(
            id=job_id,
            kind=self.kind,
            payload=self.payload,
            version=self.version,
            queue=self.queue,
            priority=self.priority,
            key=self.key,
            retry=self.retry,
            role=self.role,
            on_lost=self.on_lost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What enqueues a job at each tick of its cadence.

    `id` tells it from an earlier one of the same name. `next` is the next tick, None while it is
    paused. `last_job` is the job of its latest tick. `revision` rises with every change and every
    tick. `declared` is the digest of the declaration in code that it came from.
    """

    name: str
    id: str
    template: Template
    cadence: Cadence
    missed: Missed = field(default_factory=Missed)
    overlap: Overlap = Overlap.ALLOW
    declared: str | None = None
    revision: int = 0
    next: int | None = None
    last_job: str | None = None
    changed_by: str = ""
    changed_at: int = 0

    @property
    def paused(self) -> bool:
        return self.next is None

    def job_id(self, tick: int) -> str:
        """The id of a tick's job: the same tick has the same job, whoever enqueues it."""
        return derived_id(self.id, f"tick/{tick}")

    def resumed(self, now: int) -> Self:
        """The schedule with its next tick after now: what went by is not made up for."""
        return replace(self, next=next(self.cadence.after(now)))

    def body(self) -> str:
        """Everything that stores need not understand, as JSON."""
        t, p = self.template, self.template.policy
        cadence = self.cadence
        return json.dumps(
            {
                "payload": t.payload.decode(),
                "version": t.version,
                "priority": t.priority,
                "key": t.key,
                "retry": None if t.retry is None else t.retry.as_dict(),
                "role": t.role,
                "on_lost": t.on_lost,
                "finish": None if p.finish is None else [p.finish.kind, p.finish.queue],
                "concurrency": p.concurrency,
                "batch_size": p.batch_size,
                "max_failures": p.max_failures,
                "cadence": [cadence.expression, cadence.zone]
                if isinstance(cadence, Cron)
                else [cadence.seconds, cadence.start],
                "missed": str(self.missed),
                "overlap": self.overlap,
                "declared": self.declared,
            },
            separators=(",", ":"),
            ensure_ascii=False,
        )

    @classmethod
    def stored(cls, *, kind: str, queue: str, body: str, **fields: Any) -> Self:
        """A schedule as a store keeps it."""
        values = json.loads(body)
        finish, (first, second) = values["finish"], values["cadence"]
        retry = values["retry"]
        return cls(
            template=Template(
                kind=kind,
                queue=queue,
                payload=values["payload"].encode(),
                version=values["version"],
                priority=values["priority"],
                key=values["key"],
                retry=None if retry is None else RetryPolicy.from_dict(retry),
                role=Role(values["role"]),
                on_lost=OnLost(values["on_lost"]),
                policy=BatchPolicy(
                    finish=finish and FinishCallback(kind=finish[0], queue=finish[1]),
                    concurrency=values["concurrency"],
                    batch_size=values["batch_size"],
                    max_failures=values["max_failures"],
                ),
            ),
            cadence=Cron(first, second) if isinstance(first, str) else Interval(first, second),
            missed=Missed.parse(values["missed"]),
            overlap=Overlap(values["overlap"]),
            declared=values["declared"],
            **fields,
        )


@dataclass(frozen=True, slots=True)
class Due:
    """What is due by the store's clock, which is at `now`, the longest overdue first.

    `wait`: microseconds until the next tick of those that are not; None if there is none.
    """

    now: int
    schedules: tuple[Schedule, ...] = ()
    wait: int | None = None


# ── Firing ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Planned:
    """A tick to be recorded: with a job to enqueue, or as missed `since` an earlier one."""

    tick: int
    job: NewJob | None
    since: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """What is to be done about a schedule, if it still is as it was read (`revision`)."""

    name: str
    revision: int
    next: int | None
    ticks: tuple[Planned, ...]
    overlap: Overlap
    policy: BatchPolicy
    manual: bool = False


def plan(schedule: Schedule, now: int) -> Firing | None:
    """What is due of a schedule at this time; None if nothing is."""
    due = schedule.next
    if due is None or due > now:
        return None
    wanted = schedule.missed.most if schedule.missed.make_up is MakeUp.ALL else 1
    found = _last_ticks(schedule.cadence, due, now, wanted + 1)
    fire, left_out = found[-wanted:], found[:-wanted]
    if schedule.missed.make_up is MakeUp.SKIP and now - found[-1] > GRACE:
        fire, left_out = [], found
    ticks = [Planned(left_out[-1], None, due)] if left_out else []
    ticks += [Planned(tick, schedule.template.job(schedule.job_id(tick))) for tick in fire]
    return Firing(
        name=schedule.name,
        revision=schedule.revision,
        next=next(schedule.cadence.after(now)),
        ticks=tuple(ticks),
        overlap=schedule.overlap,
        policy=schedule.template.policy,
    )


def by_hand(schedule: Schedule, now: int) -> Firing:
    """A tick now, whatever the cadence says; the next one stays."""
    # Not in the place of a tick of the cadence, which would then count as done.
    tick = now + 1 if next(schedule.cadence.after(now - 1)) == now else now
    job = schedule.template.job(derived_id(schedule.id, f"manual/{tick}"))
    return Firing(
        name=schedule.name,
        revision=schedule.revision,
        next=schedule.next,
        ticks=(Planned(tick, job),),
        overlap=schedule.overlap,
        policy=schedule.template.policy,
        manual=True,
    )


def _last_ticks(cadence: Cadence, due: int, now: int, count: int) -> list[int]:
    """The last ticks up to now, the due one and later, at most so many, in order.

    Looked for in a stretch before now that grows until it is long enough: nobody counts what a
    schedule of every second has missed in a year.
    """
    stretch = 60 * MICROSECOND
    while True:
        first = max(due, now - stretch)
        ticks = takewhile(lambda tick: tick <= now, cadence.after(first - 1))
        # The due tick itself even if the cadence no longer has it: it was promised.
        found = deque([due] if first == due else [], maxlen=count)
        found.extend(tick for tick in ticks if tick > due)
        if first == due or len(found) == count:
            return list(found)
        stretch *= 8
