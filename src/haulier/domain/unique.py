"""Names that only one job may hold at a time: unique jobs, and idempotency keys."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Scope(StrEnum):
    """How long a job holds a unique name.

    pending: until a worker first claims it. active: until it is completed, failed or cancelled.
    period: for a fixed time after it was enqueued, whatever becomes of it; retention does not end
    it, only somebody who deletes the job.
    """

    PENDING = "pending"
    ACTIVE = "active"
    PERIOD = "period"


class Conflict(StrEnum):
    """What happens to a new job whose name another one holds.

    skip: it is not inserted, its producer gets the other's id. reject: DuplicateJobError. replace:
    the other gives way: one that is pending is cancelled, one that is done has left only its name;
    one that is running, or a batch with items, cannot give way: DuplicateJobError. match: the name
    is an idempotency key: as skip if the digests agree, else IdempotencyConflictError.
    """

    SKIP = "skip"
    REPLACE = "replace"
    REJECT = "reject"
    MATCH = "match"


class Uniqueness(NamedTuple):
    """One name that a job is to hold. `period` is in microseconds, for the scope of that name.

    `digest` tells one request from another under the same idempotency key.
    """

    name: str
    scope: Scope = Scope.ACTIVE
    conflict: Conflict = Conflict.SKIP
    period: int = 0
    digest: bytes = b""
