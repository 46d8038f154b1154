"""The clock of this machine: the store's clock, since the file is on this machine."""

from __future__ import annotations

import time
from pathlib import Path


class SystemClock:
    """Wall time in microseconds, and time since boot, which no clock change moves."""

    def __init__(self) -> None:
        try:
            self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        except OSError:
            # Without Linux's id, a boot is told by nothing; CLOCK_MONOTONIC still starts anew.
            self._boot_id = "unknown"
        self._boot_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> int:
        return time.time_ns() // 1000

    def boot(self) -> tuple[str, int]:
        return self._boot_id, time.clock_gettime_ns(self._boot_clock) // 1000
