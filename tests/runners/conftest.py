"""A context for runners without a worker or a store behind it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from haulier.domain.ids import ENTROPY_BYTES, uuid7
from haulier.domain.job import Job, JobState, Role
from haulier.domain.worker import Note
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobFilter, Page
from haulier.services.context import Context, Control


class StandInReader:
    """Answers from a list of jobs, as a store's reader does."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.pages = 0

    async def get(self, job_id: str) -> Job:
        for job in self.jobs:
            if job.id == job_id:
                return job
        raise JobNotFoundError(job_id)

    async def find(
        self,
        where: JobFilter,
        *,
        limit: int = 50,
        cursor: int | None = None,
        oldest_first: bool = False,
    ) -> Page:
        self.pages += 1
        found = [
            job
            for job in sorted(self.jobs, key=lambda job: job.seq, reverse=not oldest_first)
            if (where.batch_id is None or job.batch_id == where.batch_id)
            and (where.states is None or job.state in where.states)
            and (cursor is None or (job.seq > cursor if oldest_first else job.seq < cursor))
        ]
        more = len(found) > limit
        return Page(tuple(found[:limit]), found[limit - 1].seq if more else None)


class StandInRuntime:
    """Keeps what a running job reports, and knows the payload models it was given."""

    def __init__(self, jobs: list[Job], models: dict[str, BaseModel]) -> None:
        self.reader = StandInReader(jobs)
        self.models = models
        self.notes: list[Note] = []

    def report(self, note: Note) -> None:
        self.notes.append(note)

    def payload_of(self, job: Job) -> BaseModel:
        return self.models[job.id]


MakeContext = Callable[..., Context]


@pytest.fixture
def make_context() -> MakeContext:
    """A context for `runner.expand`, `run_item` or `finish`.

    `items` are the jobs that `ctx.items(batch_id)` finds; make them with `settled`. Reach the
    switches and the reports through `ctx._control` and `ctx._runtime.notes`.
    """

    def make(
        *,
        kind: str = "test",
        payload: BaseModel | dict[str, Any] | None = None,
        items: list[Job] | None = None,
        batch_id: str | None = None,
        lease: int = 1,
        job_id: str | None = None,
    ) -> Context:
        payload = {} if payload is None else payload
        job = Job(
            id=job_id or uuid7(time.time_ns() // 1_000_000, os.urandom(ENTROPY_BYTES)),
            seq=1,
            kind=kind,
            queue="default",
            payload=to_json(payload),
            state=JobState.RUNNING,
            role=Role.SINGLE if batch_id is None else Role.ITEM,
            attempt=1,
            lease=lease,
            batch_id=batch_id,
        )
        models = {job.id: payload} if isinstance(payload, BaseModel) else {}
        return Context(job, Control(), StandInRuntime([job, *(items or [])], models))

    return make
