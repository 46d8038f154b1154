"""Schedules from the operator's side: declare, set, pause, resume, run, delete; and their ticks.

A declaration in code is stored when a worker starts, and once more when it has changed. What is
changed at run time stays until then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypedDict, Unpack, cast

import structlog
from pydantic_core import to_jsonable_python

from haulier.domain.event import SCHEDULE_PAUSED, SCHEDULE_RESUMED, SCHEDULE_SET
from haulier.domain.job import Role
from haulier.domain.retry import RetryPolicy
from haulier.domain.schedule import (
    NAME,
    Cadence,
    Cron,
    Firing,
    Interval,
    Missed,
    Overlap,
    Schedule,
    Template,
    by_hand,
    plan,
    refused,
)
from haulier.domain.tick import Tick
from haulier.exceptions import (
    HaulierError,
    JobStateError,
    Problem,
    ScheduleNotFoundError,
    StoreUnavailableError,
    ValidationError,
)
from haulier.ports import JobStore
from haulier.services.ids import new_id
from haulier.services.options import Options, plan_of
from haulier.services.payload import encode, validate
from haulier.services.registry import Registry
from haulier.services.secrets import Sealer, Secret, collect_into
from haulier.services.who import who

AnyCadence = Cadence | str | float | timedelta
"""A Cron or an Interval; in short a cron expression in UTC, or seconds."""

TRIES = 100
"""How often a change is tried that collides with others and with ticks."""

AT_ONCE = 100
"""Schedules that are looked at in one go."""

TICKS_AT_ONCE = 200
"""Ticks that one transaction records, unless a single schedule has more of them to make up for."""

BY_CODE = "code"
"""Who has changed a schedule, if its declaration did."""

_log = structlog.get_logger("haulier.schedules")


class ScheduleOptions(TypedDict, total=False):
    """How a schedule ticks and how its jobs are enqueued; what is left out has its default.

    missed: what becomes of ticks that nobody was there for, a Missed, or skip, once (the default)
    or all:N. overlap: what a tick does while the job of the one before is not done: allow (the
    default), skip, or cancel. The rest is that of Options; concurrency, batch_size and max_failures
    for bulk kinds.
    """

    missed: Missed | str
    overlap: Overlap | str
    queue: str | None
    priority: int | str | None
    key: str | None
    retry: RetryPolicy | None
    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


_OF_JOBS = ("queue", "priority", "key", "retry", "concurrency", "batch_size", "max_failures")


class ScheduleManager:
    """Manages the schedules of a store; the only way in for the library, the API and the CLI."""

    def __init__(self, store: JobStore, registry: Registry, sealer: Sealer) -> None:
        self._store = store
        self._registry = registry
        self._sealer = sealer

    # ── Change ───────────────────────────────────────────────────────────────────────────────

    def declare(
        self,
        name: str,
        kind: str,
        cadence: AnyCadence,
        payload: Any = None,
        options: ScheduleOptions | None = None,
    ) -> None:
        """Say in code that there is such a schedule; workers that start store it.

        Raises ValidationError for what `set` would refuse, and for a name that is declared twice.
        """
        drafted = self._draft(name, kind, cadence, payload, options or {})
        digest = hashlib.sha256(f"{kind}\n{drafted.template.queue}\n{drafted.body()}".encode())
        if name in self._registry.schedules:
            raise refused(("name", f"{name!r} is declared twice"))
        self._registry.schedules[name] = replace(drafted, declared=digest.hexdigest()[:32])

    async def store_declared(self) -> None:
        """Store the schedules that code declares: those that are new, and those it has changed."""
        for draft in self._registry.schedules.values():

            def change(there: Schedule | None, now: int, draft: Schedule = draft) -> Schedule:
                if there is not None and there.declared == draft.declared:
                    return there
                return replace(_merged(draft, there, now), declared=draft.declared)

            await self._change(draft.name, change, BY_CODE)

    async def set(
        self,
        name: str,
        kind: str,
        cadence: AnyCadence,
        payload: Any = None,
        *,
        by: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Make a schedule, or change all of the one with this name; a paused one stays paused.

        `by` is who does it, by default the user of this process. Raises ValidationError with the
        fields at fault, InvalidTaskTypeError for an unknown kind.
        """
        draft = self._draft(name, kind, cadence, payload, options)

        def change(there: Schedule | None, now: int) -> Schedule:
            merged = _merged(draft, there, now)
            return replace(merged, declared=there.declared if there else None)

        return await self._change(name, change, by)

    async def pause(self, name: str, *, by: str | None = None) -> Schedule:
        """Let it tick no more until it is resumed; raises ScheduleNotFoundError."""

        def change(there: Schedule | None, now: int) -> Schedule:
            del now
            return replace(_there(there, name), next=None)

        return await self._change(name, change, by, SCHEDULE_PAUSED)

    async def resume(self, name: str, *, by: str | None = None) -> Schedule:
        """Let it tick again, from its next tick on; raises ScheduleNotFoundError."""

        def change(there: Schedule | None, now: int) -> Schedule:
            known = _there(there, name)
            return known.resumed(now) if known.paused else known

        return await self._change(name, change, by, SCHEDULE_RESUMED)

    async def delete(self, name: str, *, by: str | None = None) -> None:
        """Remove it with its ticks; its jobs stay. Raises ScheduleNotFoundError.

        One that code declares comes back when a worker starts: pause that one instead. `by` is who
        does it, by default the user of this process: its event tells.
        """
        await self._store.schedules().delete(name, by=who(by))

    async def run(self, name: str) -> str:
        """Enqueue its job now, beside its cadence, also while it is paused; returns the job's id.

        Raises ScheduleNotFoundError, or JobStateError if its overlap policy skips the job.
        """
        schedules = self._store.schedules()
        for _ in range(TRIES):
            schedule = await schedules.get(name)
            now = (await schedules.due(0)).now
            (ticks,) = await schedules.fire([by_hand(schedule, now)])
            # None: it was changed or has ticked meanwhile; nothing: that instant has a tick.
            for tick in ticks or ():
                if tick.job is None:
                    raise JobStateError(
                        f"the job {schedule.last_job} of {name} is not done, and it is not to "
                        "overlap"
                    )
                return tick.job
        raise _busy(name)

    # ── Look ─────────────────────────────────────────────────────────────────────────────────

    async def get(self, name: str) -> Schedule:
        """The schedule as it is now; raises ScheduleNotFoundError."""
        return await self._store.schedules().get(name)

    async def all(self) -> list[Schedule]:
        """All schedules by name."""
        found: list[Schedule] = []
        after = ""
        while page := await self._store.schedules().find(after=after, limit=AT_ONCE):
            found += page
            after = page[-1].name
        return found

    async def ticks(self, name: str, *, before: int | None = None, limit: int = 50) -> list[Tick]:
        """Its last ticks and what became of them, the latest first."""
        return await self._store.schedules().ticks(name, before=before, limit=limit)

    async def tick_of(self, job_id: str) -> Tick | None:
        """The schedule and tick that a job was enqueued for; None if for none, or forgotten."""
        return await self._store.schedules().tick_of(job_id)

    # ── Tick ─────────────────────────────────────────────────────────────────────────────────

    async def tick(self) -> int:
        """Do all that is due, as workers do without being told; how many jobs were enqueued."""
        enqueued = 0
        while True:
            done, _ = await tick_once(self._store)
            enqueued += sum(tick.job is not None for tick in done)
            if not done:
                return enqueued

    # ── Inside ───────────────────────────────────────────────────────────────────────────────

    async def _change(
        self,
        name: str,
        change: Callable[[Schedule | None, int], Schedule],
        by: str | None,
        event: str = SCHEDULE_SET,
    ) -> Schedule:
        """Read, change, write if nobody else has written meanwhile; else all over again."""
        changed_by = who(by)
        schedules = self._store.schedules()
        for _ in range(TRIES):
            there: Schedule | None
            try:
                there = await schedules.get(name)
            except ScheduleNotFoundError:
                there = None
            changed = change(there, (await schedules.due(0)).now)
            if changed == there:
                return there
            if await schedules.put(replace(changed, changed_by=changed_by), event):
                return await schedules.get(name)
        raise _busy(name)

    def _draft(
        self,
        name: str,
        kind: str,
        cadence: AnyCadence,
        payload: Any,
        given: Mapping[str, Any],
    ) -> Schedule:
        """A checked schedule that is not stored yet, without a next tick."""
        if not isinstance(name, str) or not NAME.match(name):
            reason = "must be 1 to 200 letters, digits, dots, hyphens and underscores"
            raise refused(("name", reason))
        unknown = [each for each in given if each not in ScheduleOptions.__annotations__]
        if unknown:
            raise refused(*((each, "is no option of a schedule") for each in unknown))
        return Schedule(
            name=name,
            id="",
            template=self._template(kind, payload, given),
            cadence=cadence_of(cadence),
            missed=_missed(given.get("missed", Missed())),
            overlap=_overlap(given.get("overlap", Overlap.ALLOW)),
        )

    def _template(self, kind: str, payload: Any, given: Mapping[str, Any]) -> Template:
        definition = self._registry.get(kind)
        options = cast("Options", {each: given[each] for each in _OF_JOBS if each in given})
        chosen = plan_of(definition, options, batch=definition.role is Role.HEAD)
        model = validate(definition, {} if payload is None else payload)
        if definition.has_secrets:
            secrets: list[Secret] = []
            to_jsonable_python(model, context=collect_into(secrets), round_trip=True)
            if secrets:
                # Sealed for one job, which here is not known yet.
                problem = Problem("payload", "holds a secret, which a schedule cannot keep")
                raise ValidationError("the schedule was refused", [problem])
        return Template(
            kind=kind,
            payload=encode(definition, model, "", self._sealer),
            version=definition.version,
            queue=chosen.queue,
            priority=chosen.priority,
            key=chosen.key,
            retry=chosen.retry,
            role=definition.role,
            on_lost=definition.on_lost,
            policy=chosen.batch_policy(definition.own_finish(chosen.queue)),
        )


async def tick_once(store: JobStore, limit: int = AT_ONCE) -> tuple[list[Tick], float | None]:
    """Do some of what is due: the ticks that were done here, and the seconds until there is more.

    The seconds are None if no schedule has a next tick, 0 when there was more than `limit`.
    """
    due = await store.schedules().due(limit)
    firings = []
    for schedule in due.schedules:
        try:
            firing = plan(schedule, due.now)
        except HaulierError as error:
            # A time zone that another machine knows, and this one does not.
            _log.error("a schedule cannot tick here", schedule=schedule.name, error=str(error))
            continue
        if firing is not None:
            firings.append(firing)
    wait = None if due.wait is None else due.wait / 1_000_000
    if not firings:
        return [], 1.0 if due.schedules else wait
    done: list[Tick] = []
    for part in _parts(firings):
        fired = await store.schedules().fire(part)
        done += [tick for ticks in fired for tick in ticks or ()]
    return done, 0.0


def _parts(firings: Sequence[Firing]) -> Iterator[list[Firing]]:
    """So many at once as one transaction may take: each may have many ticks to make up for."""
    part: list[Firing] = []
    ticks = 0
    for firing in firings:
        if part and ticks + len(firing.ticks) > TICKS_AT_ONCE:
            yield part
            part, ticks = [], 0
        part.append(firing)
        ticks += len(firing.ticks)
    yield part


def cadence_of(value: AnyCadence) -> Cadence:
    """A cadence from its short forms; raises ValidationError."""
    if isinstance(value, Cron | Interval):
        return value
    if isinstance(value, str):
        return Cron(value)
    if isinstance(value, timedelta):
        return Interval(value.total_seconds())
    return Interval(value)


def _missed(value: Missed | str) -> Missed:
    return value if isinstance(value, Missed) else Missed.parse(value)


def _overlap(value: str) -> Overlap:
    try:
        return Overlap(value)
    except ValueError:
        raise refused(("overlap", f"must be one of {', '.join(Overlap)}")) from None


def _merged(draft: Schedule, there: Schedule | None, now: int) -> Schedule:
    """The draft in the place of what is there, with the next tick that it has then."""
    cadence = draft.cadence
    if isinstance(cadence, Interval) and cadence.start is None:
        same = there is not None and isinstance(there.cadence, Interval)
        if same and there.cadence.seconds == cadence.seconds:  # type: ignore[union-attr]
            cadence = there.cadence  # type: ignore[union-attr]
        else:
            cadence = replace(cadence, start=now)
    if there is None:
        made = replace(draft, id=new_id(), cadence=cadence)
        return made.resumed(now)
    merged = replace(
        draft,
        id=there.id,
        cadence=cadence,
        revision=there.revision,
        next=there.next,
        last_job=there.last_job,
        changed_by=there.changed_by,
        changed_at=there.changed_at,
    )
    if there.paused or there.cadence == cadence:
        return merged
    return merged.resumed(now)


def _there(schedule: Schedule | None, name: str) -> Schedule:
    if schedule is None:
        raise ScheduleNotFoundError(name)
    return schedule


def _busy(name: str) -> StoreUnavailableError:
    return StoreUnavailableError(f"the schedule {name} is changed too often by others")
