"""The results of a run: as data, as text, as a page and as a chart."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

from measure import LATENCY_JOBS, RATE, Row
from places import DURABILITY
from table import HAULIER, ROOT, SERVERS

PAGE = ROOT / "docs" / "benchmarks.md"
DATA = ROOT / "docs" / "benchmarks-peers.json"
CHART = ROOT / "docs" / "benchmarks-peers.svg"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "redis": "Redis"}

FASTEST = "the fastest Python peer"
BARS = (
    ("redis", "BullMQ on Node", 1.5, 3.0),
    ("redis", FASTEST, 6.0, None),
    ("postgres", "PgQueuer", 1.3, 2.0),
    ("postgres", "Procrastinate", 20.0, None),
    ("sqlite", "Huey", 10.0, 20.0),
)
"""What haulier is held to: the least ratio to a peer on the same server, and what it aims at."""

LATENCY_BAR = {"p50": 3.0, "p99": 20.0}
"""Milliseconds from enqueue to start at 100 jobs a second, in one process."""

QUIET = 0.1
"""The share of the processors that others may use before it is told with the results."""


def results(
    rows: list[Row],
    *,
    versions: dict[str, str],
    others: list[float],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    ours = {row.peer.server: row for row in rows if row.peer.name == HAULIER}
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        "machine": _machine(),
        "others": _spread(others, 3),
        "servers": versions,
        "rounds": rounds,
        "seconds": seconds,
        "rows": [_row(row, ours.get(row.peer.server)) for row in rows],
    }


def _row(row: Row, ours: Row | None) -> dict[str, Any]:
    # Each round against haulier's own in the same round: the machine drifts from one to the next.
    ratios = [a / b for a, b in zip(ours.rates, row.rates, strict=False)] if ours else []
    return {
        "name": row.peer.name,
        "server": row.peer.server,
        "language": row.peer.language,
        "at_least_once": row.peer.at_least_once,
        "versions": row.versions,
        "setting": row.setting,
        "pilots": {setting: round(rate) for setting, rate in row.pilots.items()},
        "jobs": row.jobs,
        "per_s": _spread(row.rates),
        "enqueued_per_s": _spread(row.enqueue_rates),
        "haulier_ratio": _spread(ratios, 2),
        "latency_ms": _latencies(row.latencies),
        "latency_inside_ms": _latencies(row.inside),
        "worker_us": _spread(row.worker_us),
        "server_us": _spread(row.server_us),
        "peak_mb": round(row.peak_mb),
        "failed": row.failed,
    }


def _spread(values: list[float], digits: int | None = None) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "min": round(min(values), digits),
        "median": round(statistics.median(values), digits),
        "max": round(max(values), digits),
    }


def _latencies(pairs: list[tuple[float, float]]) -> dict[str, float] | None:
    """The median over the rounds of either percentile."""
    if not pairs:
        return None
    p50, p99 = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {"p50": round(p50, 2), "p99": round(p99, 2)}


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": commit,
    }


# ── As text ──────────────────────────────────────────────────────────────────────────────────


def text(found: dict[str, Any]) -> str:
    """The tables for a terminal, which are also those of the page."""
    parts = [_conditions(found), ""]
    for server in SERVERS:
        rows = [row for row in found["rows"] if row["server"] == server]
        if rows:
            parts += [f"### {TITLES[server]}", "", *_throughput(rows), ""]
    parts += ["### What haulier is held to", "", *_bars(found), ""]
    parts += ["### Enqueue to start", "", *_latency(found), ""]
    parts += ["### Settings", "", *_settings(found)]
    return "\n".join(parts)


def _conditions(found: dict[str, Any]) -> str:
    machine, servers = found["machine"], found["servers"]
    named = ", ".join(f"{name} {version}" for name, version in servers.items())
    measured = (
        f"Measured {found['date'][:10]} at commit {machine['commit']} on {machine['cores']} cores "
        f"({machine['processor']}), {machine['system']}, Python {machine['python']}"
        f"{', ' + named if named else ''}. {found['rounds']} rounds of about "
        f"{found['seconds']:g} s for each."
    )
    lines = [measured]
    others = found["others"]
    if others and others["max"] > QUIET:
        lines.append(
            f"**The machine was not quiet**: between the rounds other processes used "
            f"{others['median']:.0%} of it (up to {others['max']:.0%}). Compare only within tables."
        )
    return "\n".join(lines)


def _throughput(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| | run, jobs/s | min to max | haulier is | enqueue, jobs/s | worker | server | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=_rank):
        name = _name(row)
        if row["per_s"] is None:
            reason = row["failed"].replace("|", "/")
            lines.append(f"| {name} | failed: {reason} | | | | | | |")
            continue
        rate, ratio = row["per_s"], row["haulier_ratio"]
        times = "" if ratio is None or row["name"] == HAULIER else f"{ratio['median']:.1f} times"
        lines.append(
            f"| {name} | {rate['median']:,.0f} | {rate['min']:,.0f} to {rate['max']:,.0f} "
            f"| {times} | {row['enqueued_per_s']['median']:,.0f} "
            f"| {row['worker_us']['median']:,.0f} us | {row['server_us']['median']:,.0f} us "
            f"| {row['peak_mb']} MB |"
        )
    return lines


def _rank(row: dict[str, Any]) -> float:
    return -row["per_s"]["median"] if row["per_s"] else 1.0


def _name(row: dict[str, Any]) -> str:
    name = f"**{HAULIER}**" if row["name"] == HAULIER else row["name"]
    return name if row["at_least_once"] else f"{name} (at most once)"


def _bars(found: dict[str, Any]) -> list[str]:
    lines = ["| on | against | bar | aim | measured (min to max) | |", "|---|---|--:|--:|--:|---|"]
    for server, wanted, bar, aim in BARS:
        row = _opponent(found, server, wanted)
        if row is None or row["haulier_ratio"] is None:
            continue
        ratio = row["haulier_ratio"]
        name = wanted if row["name"] == wanted else f"{wanted}, {row['name']}"
        verdict = "missed" if ratio["median"] < bar else "met"
        if aim is not None and ratio["median"] >= aim:
            verdict = "aim met"
        lines.append(
            f"| {TITLES[server]} | {name} | {bar:g} | {'' if aim is None else f'{aim:g}'} "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | {verdict} |"
        )
    for row in found["rows"]:
        for name, bar in LATENCY_BAR.items() if row["latency_inside_ms"] else ():
            measured = row["latency_inside_ms"][name]
            lines.append(
                f"| {TITLES[row['server']]} | enqueue to start, {name} | {bar:g} ms | "
                f"| {measured:.2f} ms | {'met' if measured < bar else 'missed'} |"
            )
    return lines


def _opponent(found: dict[str, Any], server: str, name: str) -> dict[str, Any] | None:
    rows = [
        row
        for row in found["rows"]
        if row["server"] == server and row["per_s"] and row["name"] != HAULIER
    ]
    if name == FASTEST:
        rows = [row for row in rows if row["language"] == "Python" and row["at_least_once"]]
        return min(rows, key=_rank, default=None)
    return next((row for row in rows if row["name"] == name), None)


def _latency(found: dict[str, Any]) -> list[str]:
    what = (
        f"At {RATE} jobs a second on an idle worker, {LATENCY_JOBS} jobs a round. From one process "
        "to another, and for haulier also inside one process."
    )
    lines = [
        what,
        "",
        "| | between processes, p50 | p99 | inside one, p50 | p99 |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        between, inside = row["latency_ms"], row["latency_inside_ms"]
        if between is None and inside is None:
            continue
        cells = [
            f"{pair[name]:.1f} ms" if pair else ""
            for pair in (between, inside)
            for name in ("p50", "p99")
        ]
        lines.append(f"| {_name(row)}, {TITLES[row['server']]} | {' | '.join(cells)} |")
    return lines


def _settings(found: dict[str, Any]) -> list[str]:
    lines = ["| | versions | setting | jobs a round | tried once |", "|---|---|---|--:|---|"]
    for row in found["rows"]:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        tried = "; ".join(
            f"{setting or 'as it comes'}: {rate:,}" for setting, rate in row["pilots"].items()
        )
        lines.append(
            f"| {row['name']}, {TITLES[row['server']]} | {versions} "
            f"| {row['setting'] or 'as it comes'} | {row['jobs']:,} | {tried} |"
        )
    durability = [f"{TITLES[server]}: {DURABILITY[server]}." for server in SERVERS]
    return [*lines, "", "Durability, the same for all on one server. " + " ".join(durability)]


# ── As a page ────────────────────────────────────────────────────────────────────────────────


def write(found: dict[str, Any]) -> None:
    """Put the tables into the page, draw the chart, keep the data they come from."""
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{text(found)}\n{END}{tail}")
    DATA.write_text(json.dumps(found, indent=1) + "\n")
    import chart

    chart.draw(found, CHART)
