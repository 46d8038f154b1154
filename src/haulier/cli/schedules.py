"""`haulier schedules`: what is enqueued by itself, and when."""

from __future__ import annotations

import contextlib
import json
import sys
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.output import (
    ago,
    batch_options,
    by_option,
    command_body,
    emit_fields,
    emit_json,
    emit_table,
    existing_store,
    instant,
    json_option,
    line_options,
    payload_option,
    store_option,
)
from haulier.domain.job import MICROSECOND
from haulier.domain.schedule import Cron, Interval, Overlap, refused
from haulier.exceptions import Problem, ValidationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from haulier.domain.schedule import Schedule
    from haulier.domain.tick import Tick
    from haulier.services.schedules import ScheduleManager

SHOWN_TICKS = 10


@click.group()
def schedules() -> None:
    """List, show, set, pause, resume, run and delete schedules."""


@schedules.command("list")
@store_option
@json_option
@command_body
async def list_schedules(store: str | None, as_json: bool) -> None:
    """List all schedules in the order of their names."""
    async with _manager(store) as manager:
        found = await manager.all()
    if as_json:
        emit_json({"schedules": [schedule_document(schedule) for schedule in found]})
        return
    if not found:
        click.echo("No schedules. Make one:  haulier schedules set --help", err=True)
        return
    emit_table(
        ("NAME", "KIND", "WHEN", "NEXT", "MISSED", "OVERLAP", "CHANGED"),
        [
            (
                *(schedule.name, schedule.template.kind, str(schedule.cadence)),
                "paused" if schedule.paused else ago(schedule.next),
                *(str(schedule.missed), schedule.overlap.value),
                f"{ago(schedule.changed_at)} by {schedule.changed_by}",
            )
            for schedule in found
        ],
    )


@schedules.command("show")
@click.argument("name")
@click.option("--ticks", default=SHOWN_TICKS, show_default=True, type=click.IntRange(0, 1000))
@store_option
@json_option
@command_body
async def show(name: str, ticks: int, store: str | None, as_json: bool) -> None:
    """Show one schedule and what became of its last ticks."""
    async with _manager(store) as manager:
        schedule = await manager.get(name)
        last = await manager.ticks(name, limit=ticks) if ticks else []
    document = schedule_document(schedule)
    if as_json:
        emit_json(document | {"ticks": [tick_document(tick) for tick in last]})
        return
    emit_fields(
        (field, json.dumps(value) if isinstance(value, dict) else value)
        for field, value in document.items()
    )
    if last:
        click.echo()
        emit_table(("TICK", "WHAT", "JOB"), [_tick_row(tick) for tick in last])


@schedules.command("set")
@click.argument("name")
@click.argument("kind")
@click.option("--cron", metavar="EXPR", help="Five fields, or six with seconds first.")
@click.option("--zone", metavar="ZONE", help="The IANA time zone of --cron.  [default: UTC]")
@click.option("--every", type=float, metavar="SECONDS", help="Instead of --cron: an interval.")
@click.option("--start", metavar="TIME", help="Where --every counts from; ISO 8601 with a zone.")
@click.option("--missed", default="once", show_default=True, metavar="skip|once|all:N")
@click.option(
    "--overlap",
    default="allow",
    show_default=True,
    type=click.Choice([each.value for each in Overlap]),
    help="What a tick does while the job of the one before is not done.",
)
@payload_option
@line_options
@click.option("--key", help="The partition its jobs belong to, such as an account.")
@batch_options
@click.option("--app", "user_app", envvar="HAULIER_APP", help="module:attribute of your App.")
@by_option
@store_option
@json_option
@command_body
async def set_schedule(
    name: str,
    kind: str,
    payload: str,
    user_app: str | None,
    store: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make the schedule NAME, which enqueues jobs of KIND, or change all of it.

    One that is paused stays so.
    """
    from haulier.cli.enqueue import parsed
    from haulier.config import read_settings
    from haulier.container import build_app

    cadence = _cadence(**{each: given.pop(each) for each in ("cron", "zone", "every", "start")})
    with contextlib.suppress(TypeError, ValueError):
        given["priority"] = int(given["priority"])
    options = {option: value for option, value in given.items() if value is not None}
    document = parsed(sys.stdin.read() if payload == "-" else payload)
    app = build_app(read_settings(store=store), user_app)
    async with app:
        schedule = await app.schedules.set(name, kind, cadence, document, **options)
    _tell(schedule, as_json=as_json)


@schedules.command("pause")
@click.argument("name")
@by_option
@store_option
@json_option
@command_body
async def pause(name: str, by: str | None, store: str | None, as_json: bool) -> None:
    """Let a schedule tick no more; its jobs go on."""
    async with _manager(store) as manager:
        _tell(await manager.pause(name, by=by), as_json=as_json)


@schedules.command("resume")
@click.argument("name")
@by_option
@store_option
@json_option
@command_body
async def resume(name: str, by: str | None, store: str | None, as_json: bool) -> None:
    """Let it tick again. What went by in between is not made up for."""
    async with _manager(store) as manager:
        _tell(await manager.resume(name, by=by), as_json=as_json)


@schedules.command("delete")
@click.argument("name")
@by_option
@store_option
@json_option
@command_body
async def delete(name: str, by: str | None, store: str | None, as_json: bool) -> None:
    """Remove a schedule and the memory of its ticks; its jobs stay.

    One that an app declares comes back when a worker starts: pause that one instead.
    """
    async with _manager(store) as manager:
        await manager.delete(name, by=by)
    emit_json({"name": name, "deleted": True}) if as_json else click.echo(f"{name}  deleted")


@schedules.command("run")
@click.argument("name")
@store_option
@json_option
@command_body
async def run(name: str, store: str | None, as_json: bool) -> None:
    """Enqueue its job now, beside its ticks, and print the job's id."""
    async with _manager(store) as manager:
        job_id = await manager.run(name)
    emit_json({"id": job_id}) if as_json else click.echo(job_id)


@asynccontextmanager
async def _manager(store: str | None) -> AsyncIterator[ScheduleManager]:
    """For what needs to know no kinds, and no keys of secrets."""
    from haulier.services.registry import Registry
    from haulier.services.schedules import ScheduleManager
    from haulier.services.secrets import Sealer

    async with existing_store(store) as opened:
        yield ScheduleManager(opened, Registry(), Sealer(lambda: b""))


def _cadence(
    *, cron: str | None, zone: str | None, every: float | None, start: str | None
) -> Cron | Interval:
    if (cron is None) == (every is None):
        raise refused(("--cron", "give it or --every"))
    if cron is not None:
        if start is not None:
            raise refused(("--start", "goes with --every"))
        return Cron(cron, zone or "UTC")
    if zone is not None:
        raise refused(("--zone", "goes with --cron"))
    assert every is not None
    return Interval(every, None if start is None else _instant(start))


def _instant(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        problem = Problem("--start", "is no time such as 2026-01-31T06:00:00+01:00")
        raise ValidationError("the schedule was refused", [problem])
    return round(found.timestamp() * MICROSECOND)


def _tell(schedule: Schedule, *, as_json: bool) -> None:
    if as_json:
        emit_json(schedule_document(schedule))
        return
    when = "paused" if schedule.paused else f"next {instant(schedule.next)}"
    click.echo(f"{schedule.name}  {schedule.cadence}, {when}")


def schedule_document(schedule: Schedule) -> dict[str, Any]:
    """A schedule as JSON."""
    cadence, template = schedule.cadence, schedule.template
    when: dict[str, Any] = (
        {"cron": cadence.expression, "zone": cadence.zone}
        if isinstance(cadence, Cron)
        else {"every": cadence.seconds, "start": instant(cadence.start)}
    )
    return {
        "name": schedule.name,
        "kind": template.kind,
        "payload": json.loads(template.payload),
        **when,
        "missed": str(schedule.missed),
        "overlap": schedule.overlap,
        "paused": schedule.paused,
        "next": instant(schedule.next),
        "last_job": schedule.last_job,
        "queue": template.queue,
        "priority": template.priority,
        "key": template.key,
        "concurrency": template.policy.concurrency,
        "batch_size": template.policy.batch_size,
        "max_failures": template.policy.max_failures,
        "declared": schedule.declared is not None,
        "changed_by": schedule.changed_by,
        "changed_at": instant(schedule.changed_at),
        "revision": schedule.revision,
    }


def tick_document(tick: Tick) -> dict[str, Any]:
    """A tick as JSON."""
    return {
        "tick": instant(tick.tick),
        "state": tick.state,
        "since": instant(tick.since),
        "job": tick.job,
        "at": instant(tick.at),
    }


def _tick_row(tick: Tick) -> tuple[str, str, str]:
    what: str = tick.state
    if tick.since is not None and tick.since != tick.tick:
        what = f"{what} since {instant(tick.since)}"
    return instant(tick.tick) or "", what, tick.job or ""
