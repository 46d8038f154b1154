"""A server that commands ask instead of a store: its answers as the domain's values."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from haulier.cli.desk import Origin, Queues
from haulier.client import answers, operating
from haulier.client import jobs as _jobs
from haulier.client.attempts import looks
from haulier.domain.batch import Batch, Counts
from haulier.domain.configuration import Alteration, Configuration, Setting
from haulier.domain.event import Event
from haulier.domain.flow import After, Parent
from haulier.domain.job import MICROSECOND, Job, JobError, JobState
from haulier.domain.limits import Breaker, KeyState, Limit, LimitState, Rate
from haulier.domain.line import Line
from haulier.domain.retry import RetryPolicy
from haulier.domain.routing import QueueLine, Unroutable
from haulier.domain.step import Step
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.ports import JobFilter, Page
from haulier.services.options import Unique
from haulier.services.selection import CANCELLABLE, DELETABLE, RETRYABLE

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from haulier.client import AsyncClient
    from haulier.client.jobs import Enqueue, Where
    from haulier.services.limits import LimitOptions
    from haulier.services.options import Options

LARGEST_PAGE = 500
ROWS = 200
"""Rows of an export that are handed on together."""


class ClientDesk:
    """What a server has and does, as a desk."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.delete = client.delete

    def limits(self) -> ClientLimits:
        """Its limits."""
        return ClientLimits(self._client)

    async def last_event(self) -> str:
        """Where now is: the snapshot at the beginning of a stream tells it."""
        async with contextlib.aclosing(cast("Any", self._client.events())) as stream:
            async for message in stream:
                return str(message.cursor or message.data["cursor"])
        raise AssertionError

    async def events(self, *, after: str | None) -> Sequence[Event]:
        """A page of what happened after a cursor."""
        listing = operating.history(after=after)
        return [_event(each) for each in (await self._client.ask(listing.first)).found]

    async def follow(self, after: str | None) -> AsyncGenerator[Event, None]:
        """What happened and happens after a cursor, without an end."""
        cursor = after
        while found := await self.events(after=cursor):
            for event in found:
                yield event
            cursor = found[-1].cursor
        stream = self._client.events(after=cursor)
        async with contextlib.aclosing(cast("Any", stream)) as messages:
            async for message in messages:
                if "seq" in message.data:
                    yield _event(answers.Event.model_validate(message.data))

    async def find(self, where: JobFilter, *, limit: int, cursor: int | None = None) -> Page:
        """A page of jobs, the newest first, without payloads."""
        found: list[answers.JobRecord] = []
        listing = _jobs.job_records(page=min(limit, LARGEST_PAGE), **_where(where))
        call = listing.first if cursor is None else listing.after(str(cursor))
        while True:
            page = await self._client.ask(call)
            found += page.found
            left = limit - len(found)
            if page.next is None or left <= 0:
                break
            listing = _jobs.job_records(page=min(left, LARGEST_PAGE), **_where(where))
            call = listing.after(page.next)
        following = None if page.next is None else int(page.next)
        return Page(tuple(map(_job, found)), following)

    async def get(self, job_id: str) -> Job:
        """A job."""
        return _job(await self._client.job(job_id))

    async def origin(self, job_id: str) -> Origin:
        """The schedule that a job is of."""
        job = await self._client.job(job_id)
        return Origin(job.schedule, None if job.tick is None else _micros(job.tick))

    async def errors(self, job_id: str) -> Sequence[JobError]:
        """How its attempts failed."""
        return [_error(error) for error in await self._client.errors(job_id)]

    async def steps(self, job_id: str) -> Sequence[Step]:
        """What it has finished."""
        return [
            Step(job_id, step.lease, step.name, _bytes(step.result), _micros(step.at))
            for step in await self._client.steps(job_id)
        ]

    async def lines(self, job_id: str) -> Sequence[Line]:
        """What it has said."""
        told = await self._client.lines(job_id)
        return [
            Line(line.lease, number, _micros(line.at), line.text)
            for number, line in enumerate(told)
        ]

    async def parents(self, job_id: str) -> Sequence[Parent]:
        """What it waits for."""
        return [
            Parent(
                each.id,
                each.otherwise,
                each.state,
                ended=each.ended,
                result=None if each.result is None else _bytes(each.result),
                error=None if each.error is None else _error(each.error),
            )
            for each in await self._client.parents(job_id)
        ]

    async def children(self, job_id: str, *, limit: int) -> Page:
        """What waits for it."""
        page = await self._client.ask(_jobs.children(job_id, page=limit).first)
        following = None if page.next is None else int(page.next)
        return Page(tuple(map(_job, page.found)), following)

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """Wait for the end of a job, with a progress bar on a terminal."""
        from haulier.progress import ProgressBar

        with ProgressBar() if sys.stderr.isatty() else contextlib.nullcontext() as bar:
            for pause in looks(job_id, timeout, 1.0):
                status = await self._client.status(job_id)
                if bar is not None or status.status.final:
                    job = await self.get(job_id)
                    if bar is not None:
                        bar.show(job, await self.batch(job_id) if job.role.heads else None)
                    if job.state.final:
                        return job
                await asyncio.sleep(pause)
        raise AssertionError

    async def enqueue(self, kind: str, payload: Mapping[str, Any], options: Options) -> str:
        """Enqueue a job; its id."""
        told = _options(options)
        key = options.get("idempotency_key")
        return (await self._client.enqueue(kind, payload, idempotency_key=key, **told)).id

    async def cancel(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Tell jobs to stop; the states of those that are there."""
        states: dict[str, JobState] = {}
        for job_id in job_ids:
            with contextlib.suppress(JobNotFoundError):
                states[job_id] = (await self._client.stop(job_id)).state
        return states

    async def requeue(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Make jobs pending again; the states of those that are there."""
        states: dict[str, JobState] = {}
        for job_id in job_ids:
            with contextlib.suppress(JobNotFoundError):
                try:
                    states[job_id] = (await self._client.retry(job_id)).state
                except JobStateError:
                    states[job_id] = (await self._client.status(job_id)).status
                    if states[job_id] in RETRYABLE:
                        raise
        return states

    async def cancel_all(self, where: JobFilter, *, limit: int | None) -> int:
        """How many jobs of a filter were told to stop."""
        wanted = _where(where, CANCELLABLE)
        return (await self._client.stop_jobs(limit=limit, **wanted)).count

    async def retry_all(self, where: JobFilter, *, limit: int | None) -> int:
        """How many jobs of a filter became pending again."""
        wanted = _where(where, frozenset({JobState.FAILED}))
        return (await self._client.retry_jobs(limit=limit, **wanted)).count

    async def delete_all(self, where: JobFilter, *, limit: int | None) -> int:
        """How many jobs of a filter were removed."""
        wanted = _where(where, DELETABLE)
        return (await self._client.delete_jobs(limit=limit, **wanted)).count

    async def batches(
        self, *, limit: int, cursor: str | None = None, within: str | None = None
    ) -> list[Batch]:
        """A page of batches, the newest first."""
        listing = _jobs.batches(within=within, page=limit)
        call = listing.first if cursor is None else listing.after(cursor)
        return [_batch(batch) for batch in (await self._client.ask(call)).found]

    async def batch(self, batch_id: str) -> Batch:
        """A batch."""
        return _batch(await self._client.batch(batch_id))

    async def pause(self, batch_id: str) -> None:
        """Let no more of its items start."""
        await self._client.pause(batch_id)

    async def resume(self, batch_id: str) -> None:
        """Let them start again."""
        await self._client.resume(batch_id)

    async def seal(self, batch_id: str) -> None:
        """Say that it has all its items."""
        await self._client.seal(batch_id)

    async def alter_batch(
        self, batch_id: str, changes: Mapping[str, int | None], *, by: str
    ) -> None:
        """Change its limits; the server says by whom."""
        del by
        await self._client.alter(batch_id, **cast("Any", changes))

    async def retry_failed(
        self, batch_id: str, *, error_type: str | None, limit: int | None
    ) -> int:
        """How many failed items became pending again."""
        told = await self._client.retry_failed(batch_id, error_type=error_type, limit=limit)
        return told.requeued

    async def rows(
        self, batch_id: str, states: Iterable[JobState]
    ) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        """All items of a batch as rows, many at a time."""
        rows: list[Mapping[str, Any]] = []
        exported = self._client.export(batch_id, state=[str(state) for state in states])
        async with contextlib.aclosing(cast("Any", exported)) as lines:
            async for line in lines:
                row = json.loads(line)
                del row["cursor"]
                rows.append(row)
                if len(rows) == ROWS:
                    yield rows
                    rows = []
        yield rows

    async def queues(self) -> Queues:
        """What waits where."""
        told = await self._client.queues()
        lines = [
            QueueLine(
                **line.model_dump(exclude={"unroutable"}),
                unroutable=None if line.unroutable is None else Unroutable(line.unroutable),
            )
            for line in told.queues
        ]
        return Queues(lines, told.workers, frozenset(told.paused))

    async def configuration(self) -> Configuration:
        """What is set for all workers."""
        return _configuration(await self._client.configuration())

    async def configure(
        self, values: Mapping[str, Any], *, unset: Sequence[str], by: str, expected: int | None
    ) -> Configuration:
        """Set and unset, all or none; the server says by whom."""
        del by
        told = await self._client.configure(values, unset=unset, expected=expected)
        return _configuration(told)

    async def alterations(self, limit: int) -> Sequence[Alteration]:
        """The last changes of settings."""
        return [
            Alteration(
                *(each.version, _micros(each.at), each.by, each.name),
                None if each.before is None else json.dumps(each.before),
                None if each.after is None else json.dumps(each.after),
            )
            for each in await self._client.alterations(limit=limit)
        ]


class ClientLimits:
    """The limits of a server, which knows who changes them."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def all(self) -> Sequence[LimitState]:
        """All limits by name."""
        return [
            LimitState(
                limit=Limit.from_json(each.model_dump(exclude=_NO_LIMIT)),
                changed_by=each.changed_by,
                changed_at=_micros(each.changed_at),
                declared=each.declared,
                running=each.running,
            )
            for each in await self._client.limits()
        ]

    async def set(
        self, name: str, *, by: str | None = None, **options: Unpack[LimitOptions]
    ) -> bool:
        """Set a limit; whether it is another one now."""
        del by
        words: dict[str, Any] = {
            word: asdict(value) if isinstance(value, Rate | Breaker) else value
            for word, value in options.items()
        }
        return (await self._client.set_limit(name, **words)).changed

    async def keys(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> Sequence[KeyState]:
        """How keys stand under a limit."""
        listing = operating.limit_keys(name, page=limit)
        call = listing.first if cursor is None else listing.after(cursor)
        return [
            KeyState(**each.model_dump(exclude={"ready_at"}), ready_at=_maybe(each.ready_at))
            for each in (await self._client.ask(call)).found
        ]

    async def reset(self, name: str, key: str, *, by: str | None = None) -> bool:
        """Close a breaker; whether it had counted anything."""
        del by
        return (await self._client.reset_breaker(name, key)).reset

    async def delete(self, name: str, *, by: str | None = None) -> None:
        """Take a limit away."""
        del by
        await self._client.delete_limit(name)


_NO_LIMIT = {"running", "declared", "changed_by", "changed_at"}


def _event(event: answers.Event) -> Event:
    told = event.model_dump(exclude={"cursor", "at"})
    return Event(**told, at=_micros(event.at))


def _options(options: Options) -> Enqueue:
    """Options of an enqueue as the API takes them."""
    unique, after = options.get("unique"), options.get("after") or ()
    told: dict[str, Any] = {
        name: value
        for name, value in options.items()
        if name not in ("idempotency_key", "unique", "after", "job_id", "retry")
    }
    if isinstance(unique, Unique):
        told["unique"] = {name: value for name, value in asdict(unique).items() if value}
    told["id"] = options.get("job_id")
    if after:
        told["after"] = [
            {"id": each.job_id, "otherwise": str(each.otherwise)}
            for each in after
            if isinstance(each, After)
        ]
    return cast("Enqueue", told)


def _where(where: JobFilter, states: frozenset[JobState] = frozenset()) -> Where:
    """A filter as the API takes it; `states`: those meant when it names none."""
    chosen = where.states or states
    return {
        "state": sorted(chosen),
        "kind": where.kind,
        "queue": where.queue,
        "key": where.key,
        "error_type": where.error_type,
        "batch": where.batch_id,
    }


def _micros(instant: datetime) -> int:
    return round(instant.timestamp() * MICROSECOND)


def _maybe(instant: datetime | None) -> int | None:
    return None if instant is None else _micros(instant)


def _bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _error(error: answers.Failure) -> JobError:
    if not isinstance(error, answers.FailureDetail):
        return JobError(type=error.type, message=error.message)
    told = error.model_dump(exclude={"at"})
    return JobError(**told, at=_micros(error.at))


def _job(job: answers.JobSummary) -> Job:
    full: dict[str, Any] = {}
    if isinstance(job, answers.JobRecord):
        done = job.state is JobState.COMPLETED and not job.result_expired
        full = {
            "result": _bytes(job.result) if done or job.result is not None else None,
            "baggage": json.dumps(job.baggage) if job.baggage else None,
            "retry": None if job.retry is None else RetryPolicy.from_dict(job.retry),
            **{name: getattr(job, name) for name in ("version", "lease", "lost", "worker")},
        }
    named = {
        name: getattr(job, name)
        for name in (
            *("id", "kind", "queue", "role", "state", "priority", "attempt", "key", "batch_id"),
            *("position", "message", "parked", "waiting", "unique"),
            *("cancel_requested", "cancel_heard"),
        )
    }
    return Job(
        **named,
        **full,
        seq=0,
        payload=_bytes(job.payload) if isinstance(job, answers.Job) else b"null",
        progress=None if job.progress is None else round(job.progress),
        error=None if job.error is None else _error(job.error),
        run_at=_micros(job.run_at),
        created_at=_micros(job.created_at),
        started_at=_maybe(job.started_at),
        finished_at=_maybe(job.finished_at),
    )


def _batch(batch: answers.Batch) -> Batch:
    named = {
        name: getattr(batch, name)
        for name in (
            *("id", "kind", "queue", "state", "sealed", "settled", "cancel_requested", "paused"),
            *("finish_job", "within"),
        )
    }
    return Batch(
        **named,
        **batch.limits.model_dump(),
        counts=Counts(**batch.counts.model_dump()),
        created_at=_micros(batch.created_at),
        started_at=_maybe(batch.started_at),
        finished_at=_maybe(batch.finished_at),
    )


def _configuration(told: answers.Configuration) -> Configuration:
    return Configuration(
        told.version,
        {
            name: Setting(each.value, each.version, each.changed_by, _micros(each.changed_at))
            for name, each in told.settings.items()
        },
    )
