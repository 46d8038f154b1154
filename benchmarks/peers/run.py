"""haulier beside its peers, in one run on this machine: one worker process each, no-op jobs.

    python benchmarks/peers/run.py              measure all and print
    python benchmarks/peers/run.py --write      also into docs/benchmarks.md and its chart
    python benchmarks/peers/run.py --only haulier,huey --seconds 2 --rounds 3

Each peer has an environment of its own (made at the first run, in `.cache` beside this file). All
settings of a peer are tried once; the fastest is then measured in rounds. In each round every peer
has its turn, and each round begins with another one, so that a machine that is faster at one time
than at another is so for all. A peer that fails is shown with its reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import report
from environments import NotMadeError, prepare
from measure import MeasureError, Row, busy, latency, latency_inside, throughput
from places import Places
from table import HAULIER, HERE, PEERS, Peer

PILOT_JOBS = 1000
PILOT_SECONDS = 1.5
LEAST_JOBS, MOST_JOBS = 500, 400_000


def main() -> None:
    """Prepare, try the settings, measure in rounds, report."""
    arguments = _arguments()
    chosen = [peer for peer in PEERS if _wanted(peer, arguments.only)]
    rows = [_prepared(peer, arguments.cache) for peer in chosen]
    with Places({peer.server for peer in chosen}) as places:
        versions = places.versions()
        for row in rows:
            _attempt(row, "settings", lambda row=row: _pilot(row, arguments.seconds, places))
        others = []
        for number in range(arguments.rounds):
            others.append(busy())
            for row in _rotated(rows, number):
                _attempt(row, f"round {number + 1}", lambda row=row: _round(row, places))
        others.append(busy())
        for number in range(arguments.latency_rounds):
            for row in _rotated(rows, number):
                _attempt(row, "latency", lambda row=row: _latency(row, places))
    results = report.results(
        rows,
        versions=versions,
        others=others,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    )
    print("\n" + report.text(results))
    if arguments.write:
        report.write(results)
    if not all(row.rates for row in rows):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names and servers, by commas: haulier,celery or postgres")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a run should take")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency-rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="environments")
    parser.add_argument("--write", action="store_true", help="docs/benchmarks.md and its chart")
    return parser.parse_args()


def _wanted(peer: Peer, only: str | None) -> bool:
    if only is None:
        return True
    return any(word.strip().lower() in peer.title.lower() for word in only.split(","))


def _rotated(rows: list[Row], number: int) -> list[Row]:
    first = number * 5 % max(len(rows), 1)
    return rows[first:] + rows[:first]


def _prepared(peer: Peer, cache: Path) -> Row:
    row = Row(peer)
    _tell(row, "environment")
    try:
        row.command, row.versions = prepare(peer, cache.resolve())
    except NotMadeError as error:
        row.failed = f"its environment could not be made: {error}"
        _tell(row, row.failed)
    return row


def _attempt(row: Row, what: str, step: Callable[[], object]) -> None:
    """One step, unless an earlier one failed."""
    if row.failed:
        return
    try:
        step()
    except MeasureError as error:
        row.failed = f"{what}: {error}"
        _tell(row, f"FAILED, {row.failed}")


def _pilot(row: Row, seconds: float, places: Places) -> None:
    """Find the fastest setting, and how many jobs keep it busy for so long."""
    failures = []
    for setting in row.peer.settings:
        jobs = PILOT_JOBS
        try:
            rate = throughput(row, setting, jobs, places).ran
            if jobs / rate < PILOT_SECONDS:
                jobs = _bounded(rate * PILOT_SECONDS)
                rate = throughput(row, setting, jobs, places).ran
        except MeasureError as error:
            failures.append(f"{setting}: {error}")
            _tell(row, f"{setting}: {error}")
            continue
        row.pilots[setting] = rate
        _tell(row, f"{setting:<30} {rate:>9,.0f} jobs/s")
    if not row.pilots:
        raise MeasureError("; ".join(failures))
    row.setting = max(row.pilots, key=row.pilots.__getitem__)
    row.jobs = _bounded(row.pilots[row.setting] * seconds)


def _bounded(jobs: float) -> int:
    return int(min(max(jobs, LEAST_JOBS), MOST_JOBS))


def _round(row: Row, places: Places) -> None:
    found = throughput(row, row.setting, row.jobs, places)
    row.enqueue_rates.append(found.enqueued)
    row.rates.append(found.ran)
    row.worker_us.append(found.worker_us)
    row.server_us.append(found.server_us)
    row.peak_mb = max(row.peak_mb, found.peak_mb)
    _tell(
        row,
        f"{found.enqueued:>9,.0f} enqueued/s {found.ran:>9,.0f} jobs/s; a job takes "
        f"{found.worker_us:,.0f} us of the worker, {found.server_us:,.0f} us of the server",
    )


def _latency(row: Row, places: Places) -> None:
    row.latencies.append(latency(row, places))
    if row.peer.name == HAULIER:
        row.inside.append(latency_inside(row, places))
    for p50, p99 in (row.latencies[-1], *row.inside[-1:]):
        _tell(row, f"enqueue to start p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def _tell(row: Row, what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {row.peer.title:<28} {what}", flush=True)


if __name__ == "__main__":
    main()
