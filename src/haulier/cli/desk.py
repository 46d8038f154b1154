"""What commands look at and act on: a store that is opened here, or a server that has one.

Commands are written once, against `Desk`. `place_options` says which of the two is meant.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from haulier.cli.output import existing_store, store_option
from haulier.domain.routing import lines_of
from haulier.services import nesting, selection
from haulier.services.export import item_pages, row_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from haulier.cli.remote import ClientDesk
    from haulier.domain.batch import Batch
    from haulier.domain.configuration import Alteration, Configuration
    from haulier.domain.event import Event
    from haulier.domain.flow import Parent
    from haulier.domain.job import Job, JobError, JobState
    from haulier.domain.limits import KeyState, LimitState
    from haulier.domain.line import Line
    from haulier.domain.routing import QueueLine
    from haulier.domain.step import Step
    from haulier.ports import JobFilter, JobStore, Page
    from haulier.services.limits import LimitOptions

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Queues:
    """What waits where, how many workers live, and which queues are paused."""

    lines: list[QueueLine]
    alive: int
    paused: frozenset[str]


@dataclass(frozen=True, slots=True)
class Origin:
    """The schedule that has enqueued a job, and for which tick."""

    schedule: str | None = None
    tick: int | None = None


class Desk(Protocol):
    """What commands ask for and have done. Errors are those of the store and its services."""

    async def find(self, where: JobFilter, *, limit: int, cursor: int | None = None) -> Page: ...
    async def get(self, job_id: str) -> Job: ...
    async def origin(self, job_id: str) -> Origin: ...
    async def errors(self, job_id: str) -> Sequence[JobError]: ...
    async def steps(self, job_id: str) -> Sequence[Step]: ...
    async def lines(self, job_id: str) -> Sequence[Line]: ...
    async def parents(self, job_id: str) -> Sequence[Parent]: ...
    async def children(self, job_id: str, *, limit: int) -> Page: ...
    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job: ...
    async def cancel(self, job_ids: Sequence[str]) -> dict[str, JobState]: ...
    async def requeue(self, job_ids: Sequence[str]) -> dict[str, JobState]: ...
    async def delete(self, job_id: str) -> None: ...
    async def cancel_all(self, where: JobFilter, *, limit: int | None) -> int: ...
    async def retry_all(self, where: JobFilter, *, limit: int | None) -> int: ...
    async def delete_all(self, where: JobFilter, *, limit: int | None) -> int: ...
    async def batches(
        self, *, limit: int, cursor: str | None = None, within: str | None = None
    ) -> list[Batch]: ...
    async def batch(self, batch_id: str) -> Batch: ...
    async def pause(self, batch_id: str) -> None: ...
    async def resume(self, batch_id: str) -> None: ...
    async def seal(self, batch_id: str) -> None: ...
    async def alter_batch(
        self, batch_id: str, changes: Mapping[str, int | None], *, by: str
    ) -> None: ...
    async def retry_failed(
        self, batch_id: str, *, error_type: str | None, limit: int | None
    ) -> int: ...
    def rows(
        self, batch_id: str, states: Iterable[JobState]
    ) -> AsyncIterator[Sequence[Mapping[str, Any]]]: ...
    async def queues(self) -> Queues: ...
    async def configuration(self) -> Configuration: ...
    async def configure(
        self, values: Mapping[str, Any], *, unset: Sequence[str], by: str, expected: int | None
    ) -> Configuration: ...
    async def alterations(self, limit: int) -> Sequence[Alteration]: ...
    async def last_event(self) -> str: ...
    async def events(self, *, after: str | None) -> Sequence[Event]: ...
    def follow(self, after: str | None) -> AsyncGenerator[Event, None]: ...
    def limits(self) -> LimitDesk: ...


class LimitDesk(Protocol):
    """Limits, as `services.limits.Limits` has them."""

    async def all(self) -> Sequence[LimitState]: ...
    async def set(
        self, name: str, *, by: str | None = None, **options: Unpack[LimitOptions]
    ) -> bool: ...
    async def keys(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> Sequence[KeyState]: ...
    async def reset(self, name: str, key: str, *, by: str | None = None) -> bool: ...
    async def delete(self, name: str, *, by: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where the jobs of a command are: the URL of a store, or that of a server."""

    store: str | None = None
    server: str | None = None


def place_options(function: F) -> F:
    """`--store` and `--server`; the command gets a `place`.

    What is written on the command line comes before the environment, of which HAULIER_SERVER comes
    first.
    """

    @functools.wraps(function)
    def run(*args: Any, store: str | None, server: str | None, **kwargs: Any) -> Any:
        context = click.get_current_context()
        typed = {
            name
            for name in ("store", "server")
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        }
        if len(typed) == 2:
            raise click.UsageError("give --store or --server, not both")
        place = Place(store=store) if not server or "store" in typed else Place(server=server)
        named = any("--by" in option.opts for option in context.command.params)
        if place.server and named and kwargs["by"] is not None:
            raise click.UsageError("--by goes with a store: a server knows who asks")
        return function(*args, place=place, **kwargs)

    remote = click.option(
        "--server",
        metavar="URL",
        envvar="HAULIER_SERVER",
        help="A server that has the jobs, instead of a store; the token is taken from "
        "HAULIER_TOKEN.  [env: HAULIER_SERVER]",
    )
    return store_option(remote(run))  # type: ignore[return-value]


@asynccontextmanager
async def opened_desk(place: Place) -> AsyncIterator[Desk]:
    """The desk of a place, for as long as the block lasts."""
    if place.server is not None:
        async with opened_server(place.server) as desk:
            yield desk
        return
    async with existing_store(place.store) as store:
        yield StoreDesk(store)


@asynccontextmanager
async def opened_server(url: str) -> AsyncIterator[ClientDesk]:
    """A server's desk, which also takes new jobs. Only this loads the HTTP client."""
    from haulier.cli.remote import ClientDesk
    from haulier.client import AsyncClient

    async with AsyncClient(url) as client:
        yield ClientDesk(client)


class StoreDesk:
    """A store that is open here."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.get, self.errors = store.get, store.errors
        self.steps, self.lines = store.steps, store.lines
        self.parents, self.children = store.parents, store.children
        self.cancel, self.delete = store.cancel, store.delete
        self.batch, self.batches = store.batch, store.batches
        self.pause, self.resume, self.seal = store.pause, store.resume, store.seal
        self.last_event = store.last_event

    def limits(self) -> LimitDesk:
        """Its limits."""
        from haulier.services.limits import Limits

        return Limits(self._store)

    async def events(self, *, after: str | None) -> Sequence[Event]:
        """A page of what happened after a cursor."""
        return await self._store.events(after=after)

    def follow(self, after: str | None) -> AsyncGenerator[Event, None]:
        """What happened and happens after a cursor, without an end."""
        from haulier.services.following import follow

        return follow(self._store, after)

    async def find(self, where: JobFilter, *, limit: int, cursor: int | None = None) -> Page:
        """A page of jobs, the newest first, without payloads."""
        return await self._store.find(where, limit=limit, cursor=cursor, payloads=False)

    async def origin(self, job_id: str) -> Origin:
        """The schedule that a job is of."""
        tick = await self._store.schedules().tick_of(job_id)
        return Origin() if tick is None else Origin(tick.schedule, tick.tick)

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """Wait for the end of a job, with a progress bar on a terminal."""
        from haulier.app import App

        return await App(self._store).wait(job_id, timeout=timeout)

    async def requeue(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Jobs made pending again, and the states of those asked for."""
        return await self._store.requeue(job_ids)

    async def cancel_all(self, where: JobFilter, *, limit: int | None) -> int:
        """How many jobs of a filter were told to stop."""
        return await selection.cancel_all(self._store, where, limit=limit)

    async def retry_all(self, where: JobFilter, *, limit: int | None) -> int:
        """How many jobs of a filter became pending again."""
        return await selection.retry_all(self._store, where, limit=limit)

    async def delete_all(self, where: JobFilter, *, limit: int | None) -> int:
        """How many jobs of a filter were removed."""
        return await selection.delete_all(self._store, where, limit=limit)

    async def alter_batch(
        self, batch_id: str, changes: Mapping[str, int | None], *, by: str
    ) -> None:
        """Change limits of a batch."""
        await self._store.alter_batch(batch_id, changes, by=by)

    async def retry_failed(
        self, batch_id: str, *, error_type: str | None, limit: int | None
    ) -> int:
        """How many failed items became pending again."""
        return await nesting.retry_failed(self._store, batch_id, error_type=error_type, limit=limit)

    async def rows(
        self, batch_id: str, states: Iterable[JobState]
    ) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        """All items of a batch as rows, many at a time."""
        async for page in item_pages(self._store, batch_id, states=states):
            yield [row_of(job) for job in page]

    async def queues(self) -> Queues:
        """What waits where."""
        counts, workers = await self._store.counts(), await self._store.workers()
        now = await self.configuration()
        alive = sum(worker.alive for worker in workers)
        return Queues(lines_of(counts, workers, now), alive, now.paused)

    async def configuration(self) -> Configuration:
        """What is set for all workers."""
        return await self._store.configurable().configuration()

    async def configure(
        self, values: Mapping[str, Any], *, unset: Sequence[str], by: str, expected: int | None
    ) -> Configuration:
        """Set and unset, all or none."""
        return await self._store.configurable().configure(
            values, unset=unset, by=by, expected=expected
        )

    async def alterations(self, limit: int) -> Sequence[Alteration]:
        """The last changes of settings."""
        return await self._store.configurable().history(limit)
