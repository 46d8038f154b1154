"""What happened to jobs, one numbered event per transition."""

from __future__ import annotations

from typing import NamedTuple

from haulier.domain.job import Role

INSERTED = "insert"
CANCEL_REQUESTED = "cancel_requested"
CANCEL_HEARD = "cancel_heard"
PAUSED = "pause"
RESUMED = "resume"
DELETED = "delete"
ALTERED = "alter"
SCHEDULE_SET = "schedule_set"
SCHEDULE_PAUSED = "schedule_pause"
SCHEDULE_RESUMED = "schedule_resume"
SCHEDULE_DELETED = "schedule_delete"
CONFIGURED = "configured"
LIMIT_CHANGED = "limit_changed"
LIMIT_DELETED = "limit_delete"
BREAKER_RESET = "breaker_reset"
RESET = "reset"
"""Events that no move of `RULES` names. `reset`: what lies between the reader's place and the next
event is no longer kept; look at the jobs anew. Those of a schedule have its id in the place of the
job's, and the kind and queue of the jobs it enqueues."""

OF_NOBODY = frozenset({CONFIGURED, LIMIT_CHANGED, LIMIT_DELETED, BREAKER_RESET})
"""Events that are no job's: `setting` tells what was changed."""

OF_SCHEDULES = frozenset({SCHEDULE_SET, SCHEDULE_PAUSED, SCHEDULE_RESUMED, SCHEDULE_DELETED})


class Event(NamedTuple):
    """One thing that happened to one job; `type` is the name of a move, or one of those above.

    `seq` rises by one from event to event; `epoch` names the history that it counts in, which
    changes when a store was restored to an earlier state. `at`: microseconds UTC by the store's
    clock. `worker`: the incarnation that did it. `error_type`: the class of the error it recorded.
    Of an `alter`, `setting` tells what was changed and `by` who did it; an event of a schedule has
    `by` alone. Those OF_NOBODY are no job's: `setting` names what was changed, `by` who did it.
    """

    epoch: str
    seq: int
    at: int
    type: str
    job_id: str = ""
    kind: str = ""
    queue: str = ""
    role: Role = Role.SINGLE
    batch_id: str | None = None
    attempt: int = 0
    lease: int = 0
    worker: str | None = None
    error_type: str | None = None
    setting: str | None = None
    by: str | None = None

    @property
    def cursor(self) -> str:
        """Where to go on after this event: give it to `events(after=…)`."""
        return f"{self.epoch}:{self.seq}"
