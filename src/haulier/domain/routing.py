"""Which jobs wait for a worker that is not there: by the rows of live workers, queue and kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from haulier.domain.configuration import Configuration
from haulier.domain.job import JobState, Role
from haulier.domain.worker import WorkerRow


class Unroutable(StrEnum):
    """Why nobody would take a job, although there are live workers."""

    KIND = "no live worker knows the kind"
    QUEUE = "no live worker that knows the kind listens to the queue"


@dataclass(frozen=True, slots=True)
class QueueLine:
    """The jobs of a kind in a queue, items among them, by their states.

    `unroutable` says why those that wait would wait for ever; None without any live worker, since
    then nothing is said of one kind that does not hold for all. `paused`: they wait because the
    queue does. `weight`: what the store's configuration says of the queue.
    """

    queue: str
    kind: str
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int
    workers: int
    unroutable: Unroutable | None
    paused: bool = False
    weight: int | None = None


def lines_of(
    counts: Mapping[tuple[str, str, Role, JobState], int],
    workers: Iterable[WorkerRow],
    configuration: Configuration | None = None,
) -> list[QueueLine]:
    """All lines that have any jobs, by queue and kind; `workers` of each are alive and serve it."""
    alive = [worker for worker in workers if worker.alive]
    known = {kind for worker in alive for kind in worker.kinds}
    served = Counter(
        (queue, kind) for worker in alive for queue in worker.queues for kind in worker.kinds
    )
    paused = configuration.paused if configuration else frozenset()
    weights = configuration.weights if configuration else {}
    found: dict[tuple[str, str], Counter[JobState]] = {}
    for (queue, kind, _, state), number in counts.items():
        found.setdefault((queue, kind), Counter())[state] += number
    lines = []
    for (queue, kind), states in sorted(found.items()):
        if not states.total():
            continue
        lost = Unroutable.QUEUE if kind in known else Unroutable.KIND
        waits = states[JobState.PENDING] > 0 and bool(alive) and not served[queue, kind]
        lines.append(
            QueueLine(
                queue,
                kind,
                **{state.value: states[state] for state in JobState},
                workers=served[queue, kind],
                unroutable=lost if waits else None,
                paused=queue in paused,
                weight=weights.get(queue),
            )
        )
    return lines
