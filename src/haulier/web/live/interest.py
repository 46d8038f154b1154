"""What a viewer wants to see."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import StrEnum

from starlette.exceptions import HTTPException

from haulier.domain.access import Access, Identity
from haulier.domain.event import OF_NOBODY, OF_SCHEDULES, Event
from haulier.domain.job import Role


class Topic(StrEnum):
    """What there is to see.

    Events of the store: `jobs` (single and head jobs), `items` (of batches), `schedules` and
    `settings`. Samples, taken once a second: `stats`, `queues`, `workers`. Both: `batches`, the
    events of their heads and their counters.
    """

    JOBS = "jobs"
    ITEMS = "items"
    BATCHES = "batches"
    SCHEDULES = "schedules"
    SETTINGS = "settings"
    STATS = "stats"
    QUEUES = "queues"
    WORKERS = "workers"


EVERY_EVENT = frozenset({Topic.JOBS, Topic.ITEMS, Topic.SCHEDULES, Topic.SETTINGS})
"""What is shown unless topics are named: the same as the pages of events have."""

SAMPLED = frozenset({Topic.BATCHES, Topic.STATS, Topic.QUEUES, Topic.WORKERS})

_WHOLE = frozenset({Topic.STATS, Topic.QUEUES, Topic.WORKERS})
"""What is about all jobs, and so nothing for those for whom some do not exist."""

_TOPICS_OF_ROLE = {
    Role.SINGLE: frozenset({Topic.JOBS}),
    Role.HEAD: frozenset({Topic.JOBS, Topic.BATCHES}),
    Role.ITEM: frozenset({Topic.ITEMS}),
    Role.INNER: frozenset({Topic.ITEMS, Topic.BATCHES}),
}
_OF_SCHEDULES = frozenset({Topic.SCHEDULES})
_OF_SETTINGS = frozenset({Topic.SETTINGS})


def topics_of(event: Event) -> AbstractSet[Topic]:
    """Under which topics an event is shown."""
    if event.type in OF_SCHEDULES:
        return _OF_SCHEDULES
    if event.type in OF_NOBODY:
        return _OF_SETTINGS
    return _TOPICS_OF_ROLE[event.role]


@dataclass(frozen=True, slots=True)
class Interest:
    """Topics, and what restricts the events and batches of them; viewers with equal ones share.

    batch: the id of a batch, its head and its items. job: the id of a job. types: of events. What
    is None or empty does not restrict. Stats, queues and workers are always the whole store's.
    within: the scope outside which nothing exists for the viewer.
    """

    topics: frozenset[Topic] = EVERY_EVENT
    batch: str | None = None
    job: str | None = None
    kind: str | None = None
    queue: str | None = None
    types: frozenset[str] = frozenset()
    within: Identity | None = None

    def of(self, viewer: Identity) -> Interest:
        """The same as far as somebody may see it; raises HTTPException if they may not at all."""
        if not viewer.scoped:
            return self
        if self.topics & _WHOLE:
            told = ", ".join(sorted(self.topics & _WHOLE))
            raise HTTPException(403, f"{told}: this needs a token without kinds and queues")
        # Without a name: those who may see the same share it.
        scope = Identity("", Access.VIEWER, kinds=viewer.kinds, queues=viewer.queues)
        return replace(self, within=scope)

    @property
    def samples(self) -> frozenset[Topic]:
        """The topics of it that are sampled."""
        return self.topics & SAMPLED

    def wants(self, event: Event) -> bool:
        """Whether an event is to be shown."""
        return (
            not self.topics.isdisjoint(topics_of(event))
            and (not self.types or event.type in self.types)
            and (self.job is None or self.job == event.job_id)
            and (self.batch is None or self.batch in (event.batch_id, event.job_id))
            and (self.kind is None or self.kind == event.kind)
            and (self.queue is None or self.queue == event.queue)
            and (self.within is None or self.within.covers(event.kind, event.queue))
        )

    def wants_batch(self, batch_id: str, kind: str, queue: str) -> bool:
        """Whether a batch's counters are to be shown."""
        return (
            Topic.BATCHES in self.topics
            and self.batch in (None, batch_id)
            and self.job in (None, batch_id)
            and self.kind in (None, kind)
            and self.queue in (None, queue)
            and (self.within is None or self.within.covers(kind, queue))
        )
