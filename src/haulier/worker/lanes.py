"""How many jobs a worker takes at once: its options, and a lane for each kind of slot."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from haulier.domain.job import Job
from haulier.domain.shares import Share, check_weight, moved_on
from haulier.domain.worker import Demand, Portion
from haulier.services.registry import Executor, TaskDefinition

JOBS_PER_CHILD = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    queues: the names of those it listens to, or names with weights (1 to 1000): full ones are then
    shared as they weigh; without weights all stand in one line. A weight that the store's
    configuration has comes first.
    concurrency: jobs on the event loop at once. threads: plain functions at once. children: jobs
    in processes of their own at once; each such process is replaced after `jobs_per_child` jobs (0:
    never), and may take `child_memory` megabytes of address space (None: no limit). grace: seconds
    that running jobs are given to finish after a stop.
    """

    queues: tuple[str, ...] | Mapping[str, int] = ("default",)
    concurrency: int = 100
    threads: int = 16
    children: int = field(default_factory=lambda: os.cpu_count() or 1)
    jobs_per_child: int = JOBS_PER_CHILD
    child_memory: int | None = None
    grace: float = 30.0

    def __post_init__(self) -> None:
        for queue, weight in self.weights.items():
            check_weight(queue, weight)

    @property
    def names(self) -> tuple[str, ...]:
        """The queues without their weights."""
        return tuple(self.queues)

    @property
    def weights(self) -> dict[str, int]:
        """The weights of its queues; empty if they have none."""
        return dict(self.queues) if isinstance(self.queues, Mapping) else {}


@dataclass(slots=True)
class Lane:
    """The kinds that share one kind of slot, and how many of these there are.

    `withheld` slots are not filled: something that was given up on still takes their place.
    `shares` say which of the queues it takes from next, if these have weights.
    """

    slots: int
    free_kinds: tuple[str, ...]
    capped: dict[str, int]
    busy: int = 0
    busy_by_kind: dict[str, int] = field(default_factory=dict)
    withheld: int = 0
    shares: tuple[Share, ...] = ()

    @classmethod
    def of(cls, slots: int, definitions: Iterable[TaskDefinition]) -> Lane:
        """A lane for the given definitions; those with `per_worker` are capped."""
        definitions = list(definitions)
        return cls(
            slots=slots,
            free_kinds=tuple(d.kind for d in definitions if d.per_worker is None),
            capped={d.kind: d.per_worker for d in definitions if d.per_worker is not None},
        )

    def demand(self, queues: tuple[str, ...]) -> Demand | None:
        """What this lane could start now, but no more than half of it; None if nothing.

        All at once, short jobs would run in step: the worker idle while the store is busy, and the
        other way round. By halves the one half runs while the other is exchanged.
        """
        free = self.slots - self.busy - self.withheld
        if free <= 0:
            return None
        free = min(free, (self.slots + 1) // 2)
        together = list(self.free_kinds)
        portions = []
        for kind, cap in self.capped.items():
            room = cap - self.busy_by_kind.get(kind, 0)
            if room >= free:
                # The cap does not bind now: claimed with the others, in one line of priorities.
                together.append(kind)
            elif room > 0:
                portions.append(Portion((kind,), room))
        if together:
            portions.insert(0, Portion(tuple(together), free))
        return Demand(queues, tuple(portions), free, self.shares) if portions else None

    def shared(self, queues: tuple[str, ...], jobs: Iterable[Job]) -> None:
        """Move the shares on by what a claim has brought."""
        mine = Counter(
            job.queue for job in jobs if job.kind in self.capped or job.kind in self.free_kinds
        )
        self.shares = moved_on(self.shares, [mine[queue] for queue in queues])

    def took(self, kind: str, change: int) -> None:
        """Count a job of the lane in (+1) or out (-1)."""
        self.busy += change
        if kind in self.capped:
            self.busy_by_kind[kind] = self.busy_by_kind.get(kind, 0) + change


def lanes(options: WorkerOptions, definitions: Iterable[TaskDefinition]) -> dict[Executor, Lane]:
    """A lane for each executor; that of the processes only if a kind asks for it."""
    definitions = list(definitions)
    slots = {
        Executor.ASYNC: options.concurrency,
        Executor.THREAD: options.threads,
        Executor.PROCESS: options.children,
    }
    if not any(definition.executor is Executor.PROCESS for definition in definitions):
        del slots[Executor.PROCESS]
    return {
        executor: Lane.of(count, (d for d in definitions if d.executor is executor))
        for executor, count in slots.items()
    }
