"""What all stores write alike: codes of states, roles and gates, ranks, and values as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache

from haulier.domain.flow import Otherwise
from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import RANK_PER_PRIORITY, JobError, JobState, OnLost, Role
from haulier.domain.retry import RetryPolicy
from haulier.domain.transfer import Gate
from haulier.domain.unique import Conflict, Scope
from haulier.exceptions import JobNotFoundError

STATES = (
    JobState.PENDING,
    JobState.RUNNING,
    JobState.COMPLETED,
    JobState.FAILED,
    JobState.CANCELLED,
)
STATE_CODE: Mapping[JobState, int] = {state: code for code, state in enumerate(STATES)}
PENDING, RUNNING, COMPLETED, FAILED, CANCELLED = range(5)

ROLES = (Role.SINGLE, Role.HEAD, Role.ITEM, Role.INNER)
ROLE_CODE: Mapping[Role, int] = {role: code for code, role in enumerate(ROLES)}
SINGLE, HEAD, ITEM, INNER = range(4)
HEADS = (HEAD, INNER)
"""Those that have batches. From ITEM on they are items themselves."""

REQUESTED, HEARD = 1, 2
"""How far the cancel of a running job is."""

PARKED, LET_IN, ALONE, IN_LANE = 1, 2, 3, 4
"""The gates of jobs that have to pass one: parked by their batch, let in by it, to be run alone,
in a lane because of limits."""

WAITING = 6
"""The gate of jobs that wait for other jobs."""

GATES: Mapping[int, Gate | None] = {
    0: None,
    PARKED: Gate.PARKED,
    LET_IN: Gate.LET_IN,
    ALONE: Gate.ALONE,
    WAITING: Gate.WAITING,
}
"""What a copy says of each gate. Lanes are not copied: the other store makes its own."""

GATE_CODE: Mapping[Gate | None, int | None] = {gate: code or None for code, gate in GATES.items()}

SCOPES = (Scope.PENDING, Scope.ACTIVE, Scope.PERIOD)
SCOPE_CODE: Mapping[Scope, int] = {scope: code for code, scope in enumerate(SCOPES)}

CONFLICT_CODE: Mapping[Conflict, int] = {
    Conflict.SKIP: 0,
    Conflict.REPLACE: 1,
    Conflict.REJECT: 2,
    Conflict.MATCH: 3,
}

OTHERWISE = (Otherwise.CANCEL, Otherwise.RUN)
OTHERWISE_CODE: Mapping[Otherwise, int] = {what: code for code, what in enumerate(OTHERWISE)}

ON_LOST = (OnLost.RETRY, OnLost.FAIL)
ON_LOST_CODE: Mapping[OnLost, int] = {what: code for code, what in enumerate(ON_LOST)}


def rank_of(run_at: int, priority: int) -> int:
    """A ready job's place in its queue: lower comes first (see RANK_PER_PRIORITY)."""
    return run_at - priority * RANK_PER_PRIORITY


def key_of(job_id: str) -> bytes:
    """The 16 bytes of an id; JobNotFoundError for a text that is no id at all."""
    try:
        return raw_id(job_id)
    except ValueError:
        raise JobNotFoundError(job_id) from None


@lru_cache(maxsize=4096)
def raw_once(text: str) -> bytes:
    """The bytes of an id that many jobs share: a batch's, a worker's."""
    return raw_id(text)


@lru_cache(maxsize=1024)
def text_once(raw: bytes) -> str:
    """The text of an id that many jobs share."""
    return text_id(raw)


@lru_cache(maxsize=256)
def retry_from_text(text: str) -> RetryPolicy:
    return RetryPolicy.from_dict(json.loads(text))


@lru_cache(maxsize=256)
def retry_to_text(policy: RetryPolicy) -> str:
    return json.dumps(policy.as_dict(), separators=(",", ":"))


_ERROR = tuple(field.name for field in fields(JobError))


def error_to_text(error: JobError, now: int, *, lease: int = 0, worker: str | None = None) -> str:
    """The error as the job's row keeps it, with what only the store knows of it."""
    values = {name: getattr(error, name) for name in _ERROR}
    values |= {"at": now, "lease": lease, "worker": worker}
    return json.dumps(values, separators=(",", ":"))


def error_from_text(text: str) -> JobError:
    return JobError(**json.loads(text))
