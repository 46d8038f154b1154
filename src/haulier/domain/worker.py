"""What workers and stores tell each other: demands, answers, notes and heartbeats."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from haulier.domain.job import Job
from haulier.domain.line import Said
from haulier.domain.moves import Transition
from haulier.domain.shares import Share


@dataclass(frozen=True, slots=True)
class Portion:
    """Kinds of which a worker can start at most `slots` more."""

    kinds: tuple[str, ...]
    slots: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What a worker could start right now: `slots` jobs in all, each portion within its own.

    With `shares`, one for each queue, jobs are taken from the queues in turn as these say, within a
    queue as always; without, all stand in one line.
    """

    queues: tuple[str, ...]
    portions: tuple[Portion, ...]
    slots: int
    shares: tuple[Share, ...] = ()

    def without(self, queues: Collection[str]) -> Demand | None:
        """The same of the other queues; None if there are none."""
        left = [place for place, queue in enumerate(self.queues) if queue not in queues]
        if len(left) == len(self.queues):
            return self
        if not left:
            return None
        names = tuple(self.queues[place] for place in left)
        shares = tuple(self.shares[place] for place in left) if self.shares else ()
        return replace(self, queues=names, shares=shares)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A store's answer to one exchange.

    `jobs` were claimed for the worker. `lost` are the given transitions that were not applied,
    because their lease is no longer the worker's. `cancels` are ids of the worker's running jobs
    whose cancellation was requested. `due_in` (microseconds) is the time until the next scheduled
    job becomes ready, if the demand was not met. `alive` false: the incarnation has ended.
    `version` is that of the store's configuration; None where nothing was asked.
    """

    jobs: tuple[Job, ...] = ()
    lost: tuple[Transition, ...] = ()
    cancels: tuple[str, ...] = ()
    due_in: int | None = None
    alive: bool = True
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """What a running job says about itself: progress in percent (0 to 100) and a message.

    `heard`: its worker knows that it is to be cancelled and has told it so. `lines` are log lines.
    """

    job_id: str
    lease: int
    progress: int | None = None
    message: str | None = None
    heard: bool = False
    lines: tuple[Said, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker incarnation, as it introduces itself and as the store lists it.

    `id` is random, made at start and never reused. `slots` is the most jobs it runs at once.
    """

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    kinds: tuple[str, ...]
    slots: int
    started_at: int = 0
    renewed_at: int = 0
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Renewal:
    """The store's answer to a heartbeat: whether the incarnation still counts, and its cancels.

    `version` is that of the store's configuration.
    """

    alive: bool
    cancels: tuple[str, ...] = field(default=())
    version: int | None = None
