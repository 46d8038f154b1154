"""Makes the ids of new jobs and worker incarnations."""

from __future__ import annotations

import os
import time

from haulier.domain.ids import ENTROPY_BYTES, uuid7s


def new_id() -> str:
    """One new UUIDv7."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """Many at once, at a fraction of the cost of one by one."""
    return uuid7s(time.time_ns() // 1_000_000, os.urandom(ENTROPY_BYTES * count))
