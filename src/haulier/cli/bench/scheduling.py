"""What schedules cost: how many tick a second, how late, and beside thousands that do not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from haulier.app import App
from haulier.cli.bench.measure import Figures, percentile
from haulier.domain.event import SCHEDULE_SET
from haulier.domain.job import MICROSECOND
from haulier.domain.schedule import Interval, Schedule, Template
from haulier.services.ids import new_id

if TYPE_CHECKING:
    from haulier.cli.bench.command import Lines, Load
    from haulier.domain.tick import Tick

SECONDLY = 10
"""Schedules of every second whose lateness is measured, each at a time of its own."""

AT_ONCE = 64
HOUR = 3600


async def schedule(url: str, load: Load) -> tuple[Figures, Lines]:
    """All of many due at once; then some of every second, alone and beside the many."""
    app = App(url)

    @app.task
    async def tick() -> None:
        return

    async with app:
        alone, idle = await _lateness(app, load.seconds)
        due = (await app.store.schedules().due(0)).now
        await _make(app, "hourly", load.schedules, Interval(HOUR, due))
        asked = [await _asked(app) for _ in range(300)]
        beside, crowded = await _lateness(app, load.seconds)
        # Their hour comes at once.
        await _make_due(app)
        began = time.perf_counter()
        ticked = await app.schedules.tick()
        took = time.perf_counter() - began
    figures: Figures = {
        "schedules": load.schedules,
        "ticks_per_s": round(ticked / took),
        "late_p50_ms": percentile(alone, 50),
        "late_p99_ms": percentile(alone, 99),
        "late_beside_p50_ms": percentile(beside, 50),
        "late_beside_p99_ms": percentile(beside, 99),
        "cpu_percent": round(100 * idle, 2),
        "cpu_beside_percent": round(100 * crowded, 2),
        "look_p50_ms": percentile(asked, 50),
    }
    many = f"beside {load.schedules:,}"
    return figures, [
        (f"{ticked:,} due at once", f"{figures['ticks_per_s']:,} ticks/s"),
        ("late, 10 of every second", _spread(figures, "late")),
        (f"late, {many}", _spread(figures, "late_beside")),
        ("processor, those 10", f"{figures['cpu_percent']:.1f} %"),
        (f"processor, {many}", f"{figures['cpu_beside_percent']:.1f} %"),
        (f"a look what is due, {many}", f"p50 {figures['look_p50_ms']:.2f} ms"),
    ]


async def _make(app: App, prefix: str, count: int, cadence: Interval) -> None:
    schedules = app.store.schedules()
    first = next(cadence.after(cadence.start or 0))
    template = Template(kind="tick", payload=b"{}")

    async def put(number: int) -> None:
        made = Schedule(
            name=f"{prefix}-{number}",
            id=new_id(),
            template=template,
            cadence=cadence,
            next=first,
            changed_by="bench",
        )
        await schedules.put(made, SCHEDULE_SET)

    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*map(put, range(start, min(start + AT_ONCE, count))))


async def _make_due(app: App) -> None:
    schedules = app.store.schedules()
    now = (await schedules.due(0)).now
    found = [each for each in await app.schedules.all() if each.name.startswith("hourly-")]
    for start in range(0, len(found), AT_ONCE):
        part = found[start : start + AT_ONCE]
        await asyncio.gather(
            *(schedules.put(replace(each, next=now), SCHEDULE_SET) for each in part)
        )


async def _asked(app: App) -> float:
    began = time.perf_counter()
    await app.store.schedules().due()
    return time.perf_counter() - began


async def _lateness(app: App, seconds: float) -> tuple[list[float], float]:
    """Seconds from each tick until its job was there, and the processor's share of the time."""
    names = [f"secondly-{number}" for number in range(SECONDLY)]
    now = (await app.store.schedules().due(0)).now
    for number, name in enumerate(names):
        start = now + number * MICROSECOND // SECONDLY
        await app.schedules.set(name, "tick", Interval(1, start), by="bench")
    ticks: list[Tick] = []
    async with app.working():
        # Without the first moments: connections open, the server compiles.
        await asyncio.sleep(1)
        began, used = time.perf_counter(), time.process_time()
        since = (await app.store.schedules().due(0)).now
        await asyncio.sleep(seconds)
        share = (time.process_time() - used) / (time.perf_counter() - began)
    for name in names:
        ticks += await app.schedules.ticks(name, limit=1000)
        await app.schedules.delete(name)
    late = [(tick.at - tick.tick) / MICROSECOND for tick in ticks if tick.tick >= since]
    return late, share


def _spread(figures: Figures, name: str) -> str:
    return f"p50 {figures[f'{name}_p50_ms']:.1f} ms, p99 {figures[f'{name}_p99_ms']:.1f} ms"
