"""Jobs of several lines merged into one, so that none of them starves another."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from haulier.domain.worker import Demand
from haulier.stores.sqlite.admission import LaneLine
from haulier.stores.sqlite.rows import Row

_LOWEST = -(1 << 63)


class Plain:
    """The first jobs of a plain line, for as long as they are merged with those of lanes."""

    def __init__(self, jobs: Sequence[Row]) -> None:
        self._jobs = deque(jobs)

    def rank(self) -> int | None:
        """That of the first; None if there is none."""
        return self._jobs[0][0] if self._jobs else None

    def take(self) -> int | None:
        """The seq of the first."""
        return int(self._jobs.popleft()[1]) if self._jobs else None


class Source(NamedTuple):
    """Where jobs come from: a line's plain ones, or those in its lanes."""

    portion: int
    queue: str
    jobs: Plain | LaneLine


def merged(demand: Demand, sources: Sequence[Source]) -> list[int]:
    """The first jobs in the order of their age, or by the shares of their queues."""
    room = [portion.slots for portion in demand.portions]
    shares = dict(zip(demand.queues, demand.shares, strict=True)) if demand.shares else {}
    taken: Counter[str] = Counter()
    chosen: list[int] = []
    line_up = [((_LOWEST, _LOWEST), number) for number in range(len(sources))]
    while len(line_up) > 1 and len(chosen) < demand.slots:
        said, number = line_up[0]
        portion, queue, jobs = sources[number]
        rank = jobs.rank() if room[portion] > 0 else None
        if rank is None:
            heapq.heappop(line_up)
            continue
        time = shares[queue].after(taken[queue] + 1) if shares else 0
        if (time, rank) > said:
            # What another has taken may have left it less than it had.
            heapq.heapreplace(line_up, ((time, rank), number))
            continue
        seq = jobs.take()
        assert seq is not None
        room[portion] -= 1
        taken[queue] += 1
        chosen.append(seq)
    for _, number in line_up:
        # One is left alone in most cases, and need not be compared with others.
        portion, _, jobs = sources[number]
        for _ in range(min(room[portion], demand.slots - len(chosen))):
            seq = jobs.take()
            if seq is None:
                break
            chosen.append(seq)
    return chosen
