"""What a look at a store's health says, in the same words and by the same limits for all stores."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from datetime import timedelta
from typing import TYPE_CHECKING

from haulier.domain.finding import Finding, Level
from haulier.domain.job import MICROSECOND, Job, JobState, Role
from haulier.domain.transfer import Mark, Stage
from haulier.domain.worker import WorkerRow
from haulier.exceptions import JobNotFoundError
from haulier.parts import Configurable
from haulier.ports import JobFilter, JobReader

if TYPE_CHECKING:
    from haulier.domain.schedule import Due

ROUND_TRIPS = 20

SLOW = 0.020
VERY_SLOW = 0.250
"""Seconds that half of the round trips take: every claim and every finish waits for one."""

SKEW = 2.0
"""Seconds that a clock may be off: ids, logs and rates of batches are made with it."""

OLD = 600.0
"""Seconds that a job may stand in the line before somebody should know."""


LATE = 60.0
"""Seconds that a tick may be late."""


def ok(name: str, what: str) -> Finding:
    return Finding(name, Level.OK, what)


def warning(name: str, what: str, advice: str) -> Finding:
    return Finding(name, Level.WARNING, what, advice)


def problem(name: str, what: str, advice: str) -> Finding:
    return Finding(name, Level.PROBLEM, what, advice)


async def timed(call: Callable[[], Awaitable[object]], times: int = ROUND_TRIPS) -> list[float]:
    """How many seconds each of several calls takes, one after the other."""
    await call()
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        samples.append(time.perf_counter() - began)
    return samples


def latency(name: str, samples: Sequence[float]) -> Finding:
    """How long round trips take."""
    middle, longest = statistics.median(samples), max(samples)
    what = f"p50 {middle * 1000:.2f} ms, max {longest * 1000:.1f} ms of {len(samples)}"
    if middle < SLOW:
        return ok(name, what)
    advice = "every claim waits that long: bring the workers nearer to the store, or relieve it"
    return (problem if middle > VERY_SLOW else warning)(name, what, advice)


def skew(offset: float, uncertainty: float = 0.0) -> Finding:
    """How far the store's clock is ahead of this machine's, in seconds."""
    what = f"the store's is {abs(offset):.3f} s {'ahead' if offset > 0 else 'behind'}"
    if uncertainty:
        what += f", give or take {uncertainty:.3f} s"
    if abs(offset) <= SKEW + uncertainty:
        return ok("clock", what)
    return warning("clock", what, "let both machines take the time from NTP")


def waiting(
    counts: Mapping[tuple[str, str, Role, JobState], int],
    oldest: int | None,
    workers: Iterable[WorkerRow],
    now: int,
) -> list[Finding]:
    """What waits, for how long (`oldest`: since when the first job is ready), and for whom."""
    pending: dict[str, int] = {}
    running = 0
    for (queue, _, _, state), count in counts.items():
        if state is JobState.PENDING and count:
            pending[queue] = pending.get(queue, 0) + count
        running += count if state is JobState.RUNNING else 0
    total = sum(pending.values())
    lines = ", ".join(f"{count} in {queue}" for queue, count in sorted(pending.items()))
    found = [
        ok("queues", f"{total} pending{f' ({lines})' if lines else ''}, {running} running"),
        _oldest(oldest, now),
    ]
    live = [worker for worker in workers if worker.alive]
    slots = sum(worker.slots for worker in live)
    what = f"{len(live)} live with {slots} slots"
    unheard = sorted(pending.keys() - {queue for worker in live for queue in worker.queues})
    if unheard:
        advice = f"no worker listens to {', '.join(unheard)}: start one with --queues"
        found.append(warning("workers", what, advice))
    else:
        found.append(ok("workers", what))
    return found


def _oldest(since: int | None, now: int) -> Finding:
    if since is None:
        return ok("oldest ready job", "none waits")
    seconds = max(now - since, 0) / MICROSECOND
    what = f"waits for {timedelta(seconds=round(seconds))}"
    if seconds <= OLD:
        return ok("oldest ready job", what)
    return warning("oldest ready job", what, "there are too few workers, or none for its kind")


def counters(counts: Mapping[tuple[str, str, Role, JobState], int], jobs: int) -> Finding:
    """Whether the counters of jobs say how many there are."""
    counted = sum(counts.values())
    if counted == jobs:
        return ok("counters", f"{jobs} jobs, as counted")
    what = f"{jobs} jobs, and {counted} by the counters"
    return problem("counters", what, "copy the store into a new one: they are made anew there")


def schedules(due: Due) -> Finding:
    """Whether schedules tick when they should; of what is due, only the longest overdue counts."""
    if not due.schedules:
        wait = None if due.wait is None else timedelta(seconds=round(due.wait / MICROSECOND))
        return ok("schedules", "none ticks" if wait is None else f"the next tick is in {wait}")
    first = due.schedules[0]
    late = (due.now - (first.next or due.now)) / MICROSECOND
    what = f"{first.name} is {timedelta(seconds=round(late))} late"
    if late <= LATE:
        return ok("schedules", what)
    return warning("schedules", what, "every worker ticks: start one, or look into its log")


def slots(limits: int, running: int, wrong: int) -> Finding:
    """Whether limits count what runs under them; `wrong`: counters that do not."""
    if not wrong:
        return ok("limits", f"{limits} limits, {running} jobs run under them, as counted")
    what = f"{wrong} counters of what runs under limits are wrong"
    advice = "copy the store into a new one: they are made anew there"
    return problem("limits", what, advice)


async def configuration(
    part: Configurable, noted: Callable[[], Awaitable[Collection[str]]]
) -> Finding:
    """What is set, and whether exchanges pass over the queues that it says are paused."""
    for _ in range(2):
        # Twice: it may be changed between the one look and the other.
        now, passed = await part.configuration(), frozenset(await noted())
        if now.paused == passed:
            paused = f", paused: {', '.join(sorted(passed))}" if passed else ""
            return ok("configuration", f"version {now.version}, {len(now.settings)} set{paused}")
    names = ", ".join(sorted(now.paused ^ passed))
    what = f"workers and settings do not agree about whether these are paused: {names}"
    return problem("configuration", what, "pause or resume any queue: then it is noted anew")


def under_way(batches: int) -> Finding:
    """Cancels, retries, pauses and deletes of whole batches that are not done yet."""
    what = f"{batches} with a cancel, retry, pause or delete under way"
    return ok("batches", what)


OPEN_LONG = 24 * 3600.0
"""Seconds that a batch may be open before somebody should know: its producer may be dead."""

LOOKED_THROUGH = 10_000
"""Heads that run, the oldest first, that a look goes through for batches that are open."""


async def left_open(reader: JobReader, now: int) -> Finding:
    """Batches that a producer has opened and not yet sealed."""
    count, since = 0, now
    async for head in _waiting_heads(reader):
        with contextlib.suppress(JobNotFoundError):
            if (await reader.batch(head.id)).open:
                count, since = count + 1, min(since, head.created_at)
    if not count:
        return ok("open batches", "none")
    seconds = max(now - since, 0) / MICROSECOND
    what = f"{count}, the oldest for {timedelta(seconds=round(seconds))}"
    if seconds <= OPEN_LONG:
        return ok("open batches", what)
    advice = "`haulier batches list --open` shows them: go on filling, seal or cancel them"
    return warning("open batches", what, advice)


async def _waiting_heads(reader: JobReader) -> AsyncIterator[Job]:
    """Running heads that no worker holds."""
    where = JobFilter(states=frozenset({JobState.RUNNING}), roles=frozenset({Role.HEAD}))
    cursor, seen = None, 0
    while seen < LOOKED_THROUGH:
        page = await reader.find(where, limit=500, cursor=cursor, oldest_first=True, payloads=False)
        for job in page.jobs:
            seen += 1
            if job.worker is None:
                yield job
        cursor = page.next
        if cursor is None:
            return


def copying(mark: Mark | None) -> Finding:
    """Whether the store takes part in a copy."""
    if mark is None or mark.stage is Stage.RECEIVED:
        return ok("copy", "none under way: the store is open")
    what = f"{mark.stage}, with {mark.peer}"
    if mark.stage is Stage.MOVED:
        return problem("copy", what, f"nothing is taken here any more: use {mark.peer}")
    advice = "go on with `haulier store copy`, or give it up with `haulier store thaw`"
    return warning("copy", what, advice)
