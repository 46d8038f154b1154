"""Instruments: percentiles, countdowns, the disk's own speed."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from haulier.app import App

Figures = dict[str, Any]

FSYNCS = 200
PAGE = 4096


class Countdown:
    """Set when so many jobs have run. `began` and `ended` are when the first and the last did."""

    def __init__(self, count: int) -> None:
        self.began = self.ended = 0.0
        self._left = count
        self._event = asyncio.Event()

    def one(self) -> None:
        """One job runs."""
        self.began = self.began or time.perf_counter()
        self._left -= 1
        if not self._left:
            self.ended = time.perf_counter()
            self._event.set()

    async def wait(self) -> None:
        """Until the last one."""
        await self._event.wait()


async def all_settled(app: App) -> None:
    """Wait until the store has every finish: only then is the work really done."""
    changed = asyncio.Event()
    with app.store.watch(changed.set, settled=True):
        while True:
            changed.clear()
            counts = await app.store.counts()
            if not any(n for (*_, state), n in counts.items() if not state.final):
                return
            await changed.wait()


def file_of(url: str) -> Path | None:
    """The file behind a store's URL; None if it is in memory or on a server."""
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    return Path(path) if parts.scheme == "sqlite" and path else None


def fsync(folder: Path) -> dict[str, float]:
    """What the disk itself takes to make one page durable."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            file.write(b"\0" * PAGE)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return {"fsync_p50_ms": percentile(times, 50), "fsync_p99_ms": percentile(times, 99)}


def percentile(seconds: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile, in milliseconds."""
    ordered = sorted(seconds)
    rank = max(0, -(-len(ordered) * percent // 100) - 1)
    return round(ordered[int(rank)] * 1000, 3)


def peak_memory() -> int:
    """The most bytes this process has held; producer and worker are both in it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """The bytes this process holds now; where the system does not say so, the most it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")
