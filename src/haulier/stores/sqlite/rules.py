"""The limits of a store as what an operation goes by, and which of them concern a job."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

import apsw

from haulier.domain.limits import Limit
from haulier.stores.sqlite.rows import fetch

_TOLD = "SELECT told FROM limits ORDER BY name"


class Concern(NamedTuple):
    """The limits on the jobs of one queue and kind: for all of them as one, and per key."""

    shared: tuple[Limit, ...]
    keyed: tuple[Limit, ...]

    def __bool__(self) -> bool:
        return bool(self.shared or self.keyed)


class Rules:
    """All limits of a store, at one moment."""

    __slots__ = ("_concerns", "breakers", "limits")

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        self.breakers = any(limit.breaker is not None for limit in limits)
        self._concerns: dict[tuple[str, str], Concern] = {}

    def of(self, queue: str, kind: str) -> Concern:
        """The limits that concern such jobs; false if there are none."""
        found = self._concerns.get((queue, kind))
        if found is None:
            some = [limit for limit in self.limits if limit.concerns(queue, kind)]
            found = self._concerns[queue, kind] = Concern(
                tuple(limit for limit in some if not limit.per_key),
                tuple(limit for limit in some if limit.per_key),
            )
        return found


def rules_of(db: apsw.Connection) -> Rules | None:
    """The limits; None if there never were any, and so no lanes either."""
    rows = fetch(db, _TOLD)
    return _parsed(tuple(row[0] for row in rows)) if rows else None


@lru_cache(maxsize=16)
def _parsed(told: tuple[str | None, ...]) -> Rules:
    return Rules(tuple(Limit.from_json(json.loads(text)) for text in told if text is not None))
