"""The command: which profile on which store, and its figures as lines or as JSON."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from haulier.cli.bench.measure import Figures, file_of, fsync, peak_memory
from haulier.cli.output import command_body, emit_fields, emit_json, json_option
from haulier.exceptions import ConfigurationError
from haulier.services.urls import shown

PROFILES = (
    "noop",
    "batch",
    "retry",
    "latency",
    "backlog",
    "writers",
    "limits",
    "flow",
    "schedule",
    "http",
    "live",
)
FOR_POSTGRES = "long-reader"


@dataclass(frozen=True, slots=True)
class Load:
    """How much of everything."""

    jobs: int
    singles: int
    concurrency: int
    processes: int
    present: int
    rounds: int
    writers: int
    seconds: float
    schedules: int
    readers: int


@click.command()
@click.option(
    "--profile",
    default="noop",
    show_default=True,
    type=click.Choice([*PROFILES, FOR_POSTGRES, "all"]),
    help="What to measure.",
)
@click.option("--jobs", default=100_000, show_default=True, type=click.IntRange(100, 10_000_000))
@click.option(
    "--singles",
    default=300,
    show_default=True,
    type=click.IntRange(10, 100_000),
    help="Jobs whose latency is measured, one by one.",
)
@click.option("--concurrency", default=1000, show_default=True, type=click.IntRange(1, 10_000))
@click.option(
    "--processes",
    default=0,
    show_default=True,
    type=click.IntRange(0, 64),
    help="noop: the same again with so many more worker processes.",
)
@click.option(
    "--present",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(100, 10_000_000),
    help="batch, backlog: how many items or jobs there are beside those that run; limits: of one "
    "key, at most 100,000.",
)
@click.option(
    "--rounds",
    default=5,
    show_default=True,
    type=click.IntRange(1, 100),
    help="backlog, limits: rounds of each, in turn; the median counts.",
)
@click.option(
    "--writers",
    default=4,
    show_default=True,
    type=click.IntRange(1, 64),
    help="writers: processes that only enqueue and count.",
)
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 86_400),
    help="writers, long-reader, limits (its rate), schedule, live: for how long.",
)
@click.option(
    "--schedules",
    default=10_000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="schedule: how many there are beside those that tick.",
)
@click.option(
    "--readers",
    default=500,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="live: how many open a stream and stop reading.",
)
@click.option(
    "--store",
    metavar="URL",
    help="A store for this run alone; its jobs stay there.  [default: a new SQLite file]",
)
@json_option
@command_body
async def bench(profile: str, store: str | None, as_json: bool, **load: Any) -> None:
    """Measure this machine; by default one process with no-op jobs, and the latency of single ones.

    \b
    noop      enqueue and run jobs that do nothing
    batch     a batch with its finish callback, and how fast it tells its status
    retry     every job fails once and is tried again
    latency   from enqueue to start, at 100 jobs/s on an idle worker
    backlog   what a million waiting jobs cost the claim
    writers   several processes write to one store
    limits    10,000 jobs of 500 keys, one at a time; a fresh key in a crowd; a rate
    flow      jobs that wait for each other against jobs that do not
    http      jobs posted one by one and line by line, and how fast status is told
    schedule  how many schedules tick a second, how late, and what thousands cost
    live      how late a viewer hears of a job, beside many who stopped reading
    long-reader  PostgreSQL: what a snapshot that is held open costs the claim

    A benchmark, not a test: run it on a quiet machine, several times, and compare ratios.
    """
    if profile == "all" and store is not None:
        raise ConfigurationError("every profile needs a store of its own: leave out --store")
    chosen = PROFILES if profile == "all" else (profile,)
    amount = Load(**load)
    figures: Figures = {
        "profile": profile,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }
    lines = [("machine", f"{figures['cores']} cores, Python {figures['python']}")]
    for name in chosen:
        measured, told = await _measured(name, store, amount)
        if len(chosen) == 1:
            figures |= measured
        else:
            figures[name] = measured
        lines += [("", ""), (name, "")] if len(chosen) > 1 else []
        lines += told
    figures["peak_memory_mb"] = round(peak_memory() / 1e6, 1)
    lines.append(("peak memory", f"{figures['peak_memory_mb']:.0f} MB"))
    if as_json:
        emit_json(figures)
    else:
        emit_fields(lines)


Lines = list[tuple[str, str]]
Profile = Callable[[str, Load], Awaitable[tuple[Figures, Lines]]]


async def _measured(name: str, store: str | None, load: Load) -> tuple[Figures, Lines]:
    """One profile on a store of its own, with what the disk under it takes."""
    from haulier.cli.bench.backlog import backlog
    from haulier.cli.bench.flow import flow
    from haulier.cli.bench.http import http
    from haulier.cli.bench.limits import limits
    from haulier.cli.bench.live import live
    from haulier.cli.bench.long_reader import long_reader
    from haulier.cli.bench.processes import writers
    from haulier.cli.bench.profiles import batch, latency, noop, retry
    from haulier.cli.bench.scheduling import schedule

    profiles: dict[str, Profile] = {
        "noop": noop,
        "batch": batch,
        "retry": retry,
        "latency": latency,
        "backlog": backlog,
        "writers": writers,
        "limits": limits,
        "flow": flow,
        "schedule": schedule,
        "live": live,
        "http": http,
        FOR_POSTGRES: long_reader,
    }
    with _own_store(store) as url:
        await _refuse_used(url)
        disk, disk_line = _disk(url)
        figures, lines = await profiles[name](url, load)
    if disk and "latency_p50_ms" in figures:
        beyond = round(figures["latency_p50_ms"] - disk["fsync_p50_ms"], 3)
        figures["latency_p50_beyond_fsync_ms"] = beyond
        lines.append(("beyond the fsync", f"p50 {beyond:.2f} ms"))
    store_line = ("store", f"{shown(url)}  ({_durability(url)})")
    return {"store": shown(url), **disk, **figures}, [store_line, *lines, disk_line]


@contextlib.contextmanager
def _own_store(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="haulier-bench-") as folder:
        yield f"sqlite:///{folder}/bench.db"


async def _refuse_used(url: str) -> None:
    """Jobs of others would be measured, and never run: bench has no tasks but its own."""
    from haulier.stores import open_store

    async with open_store(url) as store:
        if any(n for (*_, state), n in (await store.counts()).items() if not state.final):
            raise ConfigurationError(
                f"{shown(url)} has jobs that are not done; bench needs a store for itself"
            )


def _disk(url: str) -> tuple[Figures, tuple[str, str]]:
    """What the disk under the store takes, if that is a file of this machine."""
    file = file_of(url)
    if file is None:
        return {}, ("disk's own fsync", "not measured: the store is no file of this machine")
    disk = fsync(file.parent)
    told = f"p50 {disk['fsync_p50_ms']:.2f} ms, p99 {disk['fsync_p99_ms']:.2f} ms"
    return disk, ("disk's own fsync", told)


def _durability(url: str) -> str:
    if file_of(url) is not None:
        return "synchronous=FULL"
    if url.startswith("sqlite:"):
        return "nothing is written to disk"
    return "as durable as its server is set up to be"
