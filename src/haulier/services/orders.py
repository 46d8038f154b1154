"""Jobs of several kinds, each with options of its own, that one call of the store takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pydantic import BaseModel

from haulier.domain.job import NewJob
from haulier.domain.unique import Uniqueness
from haulier.exceptions import Problem, ValidationError
from haulier.services.jobs import JobManager
from haulier.services.options import Options, Plan, plan_of
from haulier.services.registry import TaskDefinition


class Order(NamedTuple):
    """A job that is to be enqueued: its payload is checked, and so are its options."""

    definition: TaskDefinition
    plan: Plan
    job_id: str
    payload: BaseModel


def plan_among_others(definition: TaskDefinition, options: Options) -> Plan:
    """The plan of a job that is enqueued with others; raises ValidationError.

    A bulk kind is refused: one call of the store has room for the limits of one batch only.
    """
    if definition.expand:
        raise ValidationError(
            f"{definition.kind}: the job was refused",
            [Problem("kind", "is a bulk kind: enqueue it by itself")],
        )
    return plan_of(definition, options, batch=False)


def made(jobs: JobManager, orders: Sequence[Order]) -> list[NewJob]:
    """The jobs, in order. Raises ValidationError for what cannot be written as JSON."""
    found: list[NewJob] = []
    begin = 0
    for end in range(1, len(orders) + 1):
        first = orders[begin]
        # Those that follow each other with the same plan are made at a stretch: twice as fast.
        if (
            end == len(orders)
            or orders[end].plan is not first.plan
            or orders[end].definition is not first.definition
        ):
            group = orders[begin:end]
            found += jobs.new_jobs(
                first.definition,
                first.plan,
                [order.job_id for order in group],
                [order.payload for order in group],
            )
            begin = end
    return found


def name_of(order: Order, key: str, number: int) -> Uniqueness:
    """What holds the place of the `number`th job, from 1, under an idempotency key.

    The first one holds the name of the key itself, so that a single job cannot have it as well.
    """
    plan = replace(order.plan, idempotency_key=key)
    name = plan.names(order.definition, order.payload)[0]
    return name if number == 1 else name._replace(name=f"idempotency-line:{number}:{key}")


def named(job: NewJob, name: Uniqueness) -> NewJob:
    """The job, with one more name that it holds."""
    return job._replace(unique=(name, *job.unique))


async def enqueue_together(
    jobs: JobManager, orders: Sequence[Order], *, idempotency_key: str | None = None
) -> list[str]:
    """Insert all in one transaction, or none; returns their ids, in order.

    With a key that was used for the same within a day: the ids of the first time, whatever became
    of those jobs. Raises IdempotencyConflictError if anything has changed since, DuplicateJobError
    if one of the jobs may not be there because of another.
    """
    found = made(jobs, orders)
    if idempotency_key is not None:
        names = [
            name_of(order, idempotency_key, number) for number, order in enumerate(orders, start=1)
        ]
        # Each vouches for all: with one job more or less it is another request.
        whole = hashlib.sha256(b"".join(name.digest for name in names)).digest()
        found = [
            named(job, name._replace(digest=whole)) for job, name in zip(found, names, strict=True)
        ]
    instead = (await jobs.store.insert(found)).instead
    return [instead.get(job.id, job.id) for job in found]
