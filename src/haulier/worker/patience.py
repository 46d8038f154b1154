"""How long a worker waits before it asks a store again that could not serve."""

from __future__ import annotations

import random

LONGEST = 2.0


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row: more each time, never the same twice."""
    return min(0.05 * 2.0 ** min(failures, 10), LONGEST) * random.random()
