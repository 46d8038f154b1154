"""One adapter, run: its figures, or the reason why there are none."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import clean_environment
from places import Places
from table import Peer

PATIENCE = 180.0
WARM_UP_PAUSE = 1.5
"""Seconds between a worker's start and the first job of a latency run."""

IDLE_LOOK = 2.0

RATE = 100
LATENCY_JOBS = 300


class MeasureError(Exception):
    """An adapter failed; the message is the last thing it said."""


@dataclass
class Row:
    """A peer and what was measured of it."""

    peer: Peer
    command: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    pilots: dict[str, float] = field(default_factory=dict)
    setting: str = ""
    jobs: int = 0
    rates: list[float] = field(default_factory=list)
    enqueue_rates: list[float] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    inside: list[tuple[float, float]] = field(default_factory=list)
    worker_us: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    failed: str = ""


@dataclass(frozen=True)
class Throughput:
    """Jobs a second; microseconds of processor time that one costs the worker and the server."""

    enqueued: float
    ran: float
    worker_us: float
    server_us: float
    peak_mb: float


def throughput(row: Row, setting: str, jobs: int, places: Places) -> Throughput:
    """Jobs are enqueued by one process, then run by another."""
    environment = clean_environment(places.fresh(row.peer.server))
    produced = _ask(row, "produce", [str(jobs)], setting, environment)
    before = places.processor_time(row.peer.server)
    worked = _ask(row, "work", [str(jobs)], setting, environment)
    served = places.processor_time(row.peer.server) - before
    return Throughput(
        enqueued=jobs / produced["seconds"],
        ran=jobs / worked["seconds"],
        worker_us=1e6 * worked["processor"] / jobs,
        server_us=1e6 * served / jobs,
        peak_mb=worked["peak_mb"],
    )


def latency(row: Row, places: Places) -> tuple[float, float]:
    """Milliseconds from enqueue to start, p50 and p99, from one process to another."""
    environment = clean_environment(places.fresh(row.peer.server))
    listener = _start(row, "listen", [str(LATENCY_JOBS)], environment)
    stop = threading.Timer(PATIENCE, listener.kill)
    stop.start()
    try:
        assert listener.stdout is not None
        said = []
        for line in listener.stdout:
            said.append(line)
            if line.strip() == "ready":
                break
        else:
            raise MeasureError(_reason("".join(said), listener.communicate()[1]))
        time.sleep(WARM_UP_PAUSE)
        _ask(row, "send", [str(LATENCY_JOBS), str(RATE)], row.setting, environment)
        figures = _figures(*listener.communicate())
        return figures["p50_ms"], figures["p99_ms"]
    finally:
        stop.cancel()
        listener.kill()
        listener.wait()


def latency_inside(row: Row, places: Places) -> tuple[float, float]:
    """The same inside one process: what `haulier bench --profile latency` says."""
    server = places.fresh(row.peer.server)
    url = server if "://" in server else f"sqlite:///{server}/haulier.db"
    command = [row.command[0], "-m", "haulier", "bench", "--profile", "latency", "--json"]
    command += ["--singles", str(LATENCY_JOBS), "--store", url]
    figures = _run(command, clean_environment(server))
    return figures["latency_p50_ms"], figures["latency_p99_ms"]


def busy() -> float:
    """The share of the processors that others use, while nothing of ours runs."""
    before = _processor_times()
    time.sleep(IDLE_LOOK)
    total, idle = (
        after - earlier for earlier, after in zip(before, _processor_times(), strict=True)
    )
    return 1 - idle / total if total else 0.0


def _processor_times() -> tuple[int, int]:
    """All of it, and what was idle (proc(5)); zeros where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0, 0
    times = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    return sum(times), times[3] + times[4]


def _ask(
    row: Row, command: str, amounts: list[str], setting: str, environment: dict[str, str]
) -> dict[str, Any]:
    return _run([*row.command, command, *amounts, *setting.split()], environment)


def _run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MeasureError(f"no answer after {PATIENCE:.0f} s") from None
    return _figures(done.stdout, done.stderr)


def _start(
    row: Row, command: str, amounts: list[str], environment: dict[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*row.command, command, *amounts, *row.setting.split()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _figures(out: str, errors: str) -> dict[str, Any]:
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise MeasureError(_reason(out, errors))


def _reason(out: str, errors: str) -> str:
    lines = [line.strip() for line in (out + errors).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it ended without a word"
