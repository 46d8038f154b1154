"""Guessing is slowed down, by where it comes from and by the token that is guessed at."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

BURST = 10
"""Failures in a row that are answered as such."""

REFILL = 5.0
"""Seconds after which one more is."""

MOST = 10_000
"""Sources and tokens that are remembered; the ones that were quiet longest are forgotten."""


class Throttle:
    """Buckets of failures, one for each source and each token id.

    It never keeps out a token that is good: it says how failures are answered, and whether it is
    worth while to look for what is not known. Secrets of 190 bits need no more.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, *keys: str) -> float:
        """Seconds until a failure of all these is answered again, 0 if it is now."""
        return max((self._missing(key) * REFILL for key in keys), default=0.0)

    def fail(self, *keys: str) -> float:
        """Count a failure; answers how long to wait with the next one, 0 if it need not wait."""
        waiting = self.wait(*keys)
        for key in keys:
            level = min(self._level(key) + 1.0, float(BURST))
            self._buckets[key] = (level, self._clock())
            self._buckets.move_to_end(key)
        while len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        return waiting

    def _missing(self, key: str) -> float:
        """How many failures too many there were, in part."""
        return max(0.0, self._level(key) - (BURST - 1))

    def _level(self, key: str) -> float:
        level, since = self._buckets.get(key, (0.0, 0.0))
        return max(0.0, level - (self._clock() - since) / REFILL)


def retry_after(seconds: float) -> str:
    """A wait as the header has it."""
    return str(max(1, math.ceil(seconds)))


def network_of(address: str) -> str:
    """Who is counted as one source: an IPv4 address, or the network that an IPv6 user has."""
    try:
        found = ip_address(address)
    except ValueError:
        return address[:100]
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{IPv6Address(int(found) >> 64 << 64)}/64"
