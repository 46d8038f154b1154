"""New jobs on their way to the server: columns of values, so that one call carries many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import asyncpg
import asyncpg.pool

from haulier.domain import flow
from haulier.domain.batch import BatchPolicy
from haulier.domain.ids import derived_id
from haulier.domain.job import NewJob
from haulier.exceptions import ConfigurationError
from haulier.ports import Fence, Inserted
from haulier.stores.codes import (
    CONFLICT_CODE,
    ON_LOST_CODE,
    PENDING,
    ROLE_CODE,
    SCOPE_CODE,
    retry_to_text,
)
from haulier.stores.postgres import bulk, flows
from haulier.stores.postgres.connection import Connection
from haulier.stores.watching import Change

ROUNDS = 16
"""Finish callbacks of one batch whose ids are known beforehand; later ones have random ids."""


_ARGUMENTS = 33
_INSERT = (
    "SELECT new, jobs::text[], instead::text[] FROM {schema}insert_jobs("
    f"{', '.join(f'${n}' for n in range(1, _ARGUMENTS + 1))})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """Jobs to be inserted, and what there is to know of it beside them."""

    jobs: Sequence[NewJob]
    now: int | None
    fence: Fence | None = None
    policy: BatchPolicy | None = None
    state: int = PENDING
    own_expander: bool = True
    schema: str = ""
    """Before each name of the store: `"its schema".` on a connection that is not the store's."""


async def insert(connection: Connection, what: Insertion) -> Inserted:
    """Insert jobs, all or none of them."""
    if not any(job.after for job in what.jobs):
        return await _insert(connection, what)
    flow.check(what.jobs)
    add = partial(_insert, connection, what)
    if what.schema:
        return await flows.insert(connection, what.jobs, add, schema=what.schema)
    async with connection.transaction():
        return await flows.insert(connection, what.jobs, add)


async def _insert(connection: Connection, what: Insertion) -> Inserted:
    jobs, fence = what.jobs, what.fence
    # Not in a transaction of somebody else, who may have begun it in a way the driver knows not.
    plain = not what.schema and what.state == PENDING and bulk.fit(jobs)
    if plain and await bulk.insert(connection, what.now, jobs, fence):
        return Inserted(len(jobs))
    new, refused, instead = await connection.fetchrow(
        _INSERT.format(schema=what.schema),
        what.now,
        *_columns(jobs),
        *_names(jobs),
        what.state,
        *_rules(jobs, what.policy or BatchPolicy(), what.own_expander),
        fence and fence.job_id,
        fence and fence.lease,
        [job.baggage for job in jobs],
    )
    return Inserted(new, dict(zip(refused, instead, strict=True)))


async def insert_within(connection: object, schema: str, what: Insertion) -> Inserted:
    """Insert jobs in the transaction that the caller has open; workers hear of its commit."""
    driver = await _driver_of(connection)
    inserted = await insert(driver, replace(what, schema=f'"{schema}".'))
    await driver.execute(
        "SELECT pg_notify($1, $2)", schema, str((Change.READY | Change.EVENTS).value)
    )
    return inserted


async def _driver_of(connection: object) -> Connection:
    """The asyncpg connection behind what the caller has."""
    if isinstance(connection, (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy)):
        return connection
    if hasattr(connection, "sync_session"):
        # A session of SQLAlchemy.
        connection = await connection.connection()  # type: ignore[attr-defined]
    if hasattr(connection, "get_raw_connection") and hasattr(connection, "exec_driver_sql"):
        # One of SQLAlchemy begins its transaction with its first statement, which this may be.
        await connection.exec_driver_sql("SELECT 1")
        driver = (await connection.get_raw_connection()).driver_connection
        if isinstance(driver, asyncpg.Connection):
            return driver
    raise ConfigurationError(
        "connection must be one of asyncpg, or an async one of SQLAlchemy over asyncpg, "
        f"not {type(connection).__module__}.{type(connection).__qualname__}"
    )


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
        [SCOPE_CODE[name.scope] for _, name in names],
        [CONFLICT_CODE[name.conflict] for _, name in names],
        [name.period for _, name in names],
        [name.digest for _, name in names],
    )


def _rules(jobs: Sequence[NewJob], policy: BatchPolicy, own_expander: bool) -> tuple[Any, ...]:
    finish = policy.finish
    heads = [job.id for job in jobs if job.role.heads] if finish else []
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
