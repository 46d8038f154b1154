"""What a run did and was answered, written down outside the store; and what it left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from haulier.domain.batch import Batch
from haulier.domain.event import Event
from haulier.domain.flow import After, Parent
from haulier.domain.job import Job, JobState, Role
from haulier.domain.moves import Move
from haulier.domain.unique import Scope
from haulier.ports import JobFilter, JobStore, pages

MANY = 10_000


class What(StrEnum):
    """Each names what was asked of the store, or what it answered.

    enqueue: a producer inserted `job`, which belongs to `batch`. claim: `worker` was given `job`
    under `lease`. finish: it handed in `move` for that lease. step: it did `step` of the job and
    had it kept under that lease. end: the incarnation `worker` was declared over. cancel: an
    operator asked for it. requeue: `job`, or all failed items of `batch`, may run again. delete: an
    operator had it removed with all that lies within. discard: the items of the head `job` are
    deleted, because it expands anew.
    """

    ENQUEUE = "enqueue"
    CLAIM = "claim"
    FINISH = "finish"
    STEP = "step"
    END = "end"
    CANCEL = "cancel"
    REQUEUE = "requeue"
    DELETE = "delete"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `ok`: yes, no (refused), or None when the answer got lost: nobody knows.

    calls_back: it is the head of a batch with a finish callback. name: no other job may have it at
    the same time, `held` says for how long. after: the jobs that it waits for. span: the numbers
    of the last events before and after it.
    """

    what: What
    job: str = ""
    ok: bool | None = True
    batch: str | None = None
    worker: str = ""
    lease: int = 0
    move: Move | None = None
    calls_back: bool = False
    name: str | None = None
    held: Scope = Scope.ACTIVE
    step: str = ""
    after: tuple[After, ...] = ()
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Final:
    """All that a store tells when nothing goes on any more. `events` None: it keeps none.

    `steps`: the names of those that each job has finished; `parents`: what it is told of them.
    Both where somebody has asked for them.
    """

    jobs: Mapping[str, Job]
    batches: Mapping[str, Batch]
    counts: Mapping[tuple[str, str, Role, JobState], int]
    events: Sequence[Event] | None = None
    steps: Mapping[str, frozenset[str]] | None = None
    parents: Mapping[str, Sequence[Parent]] | None = None


def callbacks_of(final: Final) -> dict[str, list[str]]:
    """The ids of the callbacks of each batch, round by round; their payload names the batch."""
    found: dict[str, list[str]] = {batch_id: [] for batch_id in final.batches}
    for job in sorted(final.jobs.values(), key=lambda job: job.seq):
        if b'"batch_id"' in job.payload:
            # Of a batch that its outer one made anew, they may be older than itself.
            found.setdefault(json.loads(job.payload)["batch_id"], []).append(job.id)
    return found


async def look(store: JobStore) -> Final:
    """What a store tells now."""
    batches = await store.batches(limit=MANY)
    for batch in batches:
        # Those within it, and within these.
        batches += await store.batches(limit=MANY, within=batch.id)
    assert len(batches) < MANY
    return Final(
        jobs={job.id: job async for job in pages(store, JobFilter())},
        batches={batch.id: batch for batch in batches},
        counts=await store.counts(),
        events=await _all_events(store),
    )


async def _all_events(store: JobStore) -> list[Event]:
    found: list[Event] = []
    while more := await store.events(after=found[-1].cursor if found else None):
        found.extend(more)
    return found
