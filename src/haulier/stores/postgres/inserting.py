"""New jobs on their way to the server: columns of values, so that one call carries many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haulier.domain.batch import BatchPolicy
from haulier.domain.ids import derived_id
from haulier.domain.job import NewJob, Role
from haulier.domain.unique import Conflict, Scope
from haulier.ports import Fence, Inserted
from haulier.stores.codes import ON_LOST_CODE, PENDING, ROLE_CODE, retry_to_text
from haulier.stores.postgres.connection import Connection

ROUNDS = 16
"""Finish callbacks of one batch whose ids are known beforehand; later ones have random ids."""

_SCOPES = {Scope.PENDING: 0, Scope.ACTIVE: 1, Scope.PERIOD: 2}
_CONFLICTS = {Conflict.SKIP: 0, Conflict.REPLACE: 1, Conflict.REJECT: 2, Conflict.MATCH: 3}

_ARGUMENTS = 32
_INSERT = (
    f"SELECT new, jobs::text[], instead::text[] FROM insert_jobs("
    f"{', '.join(f'${n}' for n in range(1, _ARGUMENTS + 1))})"
)


async def insert(
    connection: Connection,
    now: int | None,
    jobs: Sequence[NewJob],
    *,
    fence: Fence | None = None,
    policy: BatchPolicy | None = None,
    state: int = PENDING,
    own_expander: bool = True,
) -> Inserted:
    """Insert jobs in one call of one function."""
    new, refused, instead = await connection.fetchrow(
        _INSERT,
        now,
        *_columns(jobs),
        *_names(jobs),
        state,
        *_rules(jobs, policy or BatchPolicy(), own_expander),
        fence and fence.job_id,
        fence and fence.lease,
    )
    return Inserted(new, dict(zip(refused, instead, strict=True)))


def _columns(jobs: Sequence[NewJob]) -> tuple[list[Any], ...]:
    return (
        [job.id for job in jobs],
        [job.kind for job in jobs],
        [job.queue for job in jobs],
        [ROLE_CODE[job.role] for job in jobs],
        [job.version for job in jobs],
        [job.payload for job in jobs],
        [job.priority for job in jobs],
        [job.run_at for job in jobs],
        [job.delay for job in jobs],
        [job.key for job in jobs],
        [job.batch_id for job in jobs],
        [job.position for job in jobs],
        [None if job.retry is None else retry_to_text(job.retry) for job in jobs],
        [ON_LOST_CODE[job.on_lost] for job in jobs],
    )


def _names(jobs: Sequence[NewJob]) -> tuple[list[Any], ...]:
    names = [(place, name) for place, job in enumerate(jobs, start=1) for name in job.unique]
    return (
        [place for place, _ in names],
        [name.name for _, name in names],
        [_SCOPES[name.scope] for _, name in names],
        [_CONFLICTS[name.conflict] for _, name in names],
        [name.period for _, name in names],
        [name.digest for _, name in names],
    )


def _rules(jobs: Sequence[NewJob], policy: BatchPolicy, own_expander: bool) -> tuple[Any, ...]:
    finish = policy.finish
    heads = [job.id for job in jobs if job.role is Role.HEAD] if finish else []
    return (
        own_expander,
        finish and finish.kind,
        finish and finish.queue,
        policy.concurrency,
        policy.batch_size,
        policy.max_failures,
        [head for head in heads for _ in range(ROUNDS)],
        [derived_id(head, f"finish/{number}") for head in heads for number in range(ROUNDS)],
    )
