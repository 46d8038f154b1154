"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar

import httpx
from pydantic import BaseModel
from typing_extensions import Unpack

from haulier.client import access as _access
from haulier.client import jobs as _jobs
from haulier.client import operating as _operating
from haulier.client import webhooks as _webhooks
from haulier.client.answers import JobStatus, Message, StreamTaken
from haulier.client.attempts import Attempts, looks, request_of, unreachable
from haulier.client.call import Call, Listing, as_method, line_of
from haulier.client.faults import Told
from haulier.client.live import Following
from haulier.client.server import Server

P = ParamSpec("P")
T = TypeVar("T")

Document = Mapping[str, Any] | BaseModel
Documents = Iterable[Document] | AsyncIterable[Document]


async def _lines(documents: Documents) -> AsyncIterator[bytes]:
    if isinstance(documents, AsyncIterable):
        async for document in documents:
            yield line_of(document)
    else:
        for document in documents:
            yield line_of(document)


def _asked(
    call: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """A method that makes a call and gives its answer."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.ask(call(*args, **kwargs))

    return as_method(method, call)


def _read(
    listing: Callable[P, Listing[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]:
    """A method that gives a list, read page by page as it is wanted."""

    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self.pages(listing(*args, **kwargs))

    return as_method(method, listing)


class AsyncClient:
    """A server's API, each thing that one can ask of it as a method.

    url: where the server is, else HAULIER_SERVER, else this machine's port 8470. token: else
    HAULIER_TOKEN. options: those of `Server`. Use it as a context manager, or close it.
    Leave an iterator before its end only within `contextlib.aclosing`.

    Errors are those of the library (`haulier.exceptions`): a job that is not there is a
    JobNotFoundError, refused input a ValidationError with the fields, a server that cannot be
    reached a StoreUnavailableError, a missing or bad token an AuthenticationError. What was not
    answered is asked again, a few times, where that can do no harm.
    """

    def __init__(self, url: str | None = None, *, token: str | None = None, **options: Any) -> None:
        self.server = Server.of(url, token, **options)
        self._http = httpx.AsyncClient(**self.server.settings())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def ask(self, call: Call[T]) -> T:
        """The answer to any call; the methods below are made of this."""
        attempts = Attempts(self.server, call)
        while True:
            try:
                reply = await self._http.request(**attempts.request())
            except httpx.TransportError as error:
                await asyncio.sleep(attempts.pause_after_error(error))
                continue
            if attempts.done(reply):
                return attempts.value(reply)
            await asyncio.sleep(attempts.pause_after_refusal(reply))

    async def pages(self, listing: Listing[T]) -> AsyncIterator[T]:
        """All that a list has, read as it is wanted."""
        page = await self.ask(listing.first)
        for each in page.found:
            yield each
        while page.next is not None:
            page = await self.ask(listing.after(page.next))
            for each in page.found:
                yield each

    enqueue = _asked(_jobs.enqueue)
    enqueue_many = _asked(_jobs.enqueue_many)
    start = _asked(_jobs.start)
    jobs = _read(_jobs.jobs)
    job_records = _read(_jobs.job_records)
    job = _asked(_jobs.job)
    status = _asked(_jobs.status)
    errors = _asked(_jobs.errors)
    steps = _asked(_jobs.steps)
    lines = _asked(_jobs.lines)
    parents = _asked(_jobs.parents)
    children = _read(_jobs.children)
    stop = _asked(_jobs.stop)
    retry = _asked(_jobs.retry)
    delete = _asked(_jobs.delete)
    stop_jobs = _asked(_jobs.stop_jobs)
    retry_jobs = _asked(_jobs.retry_jobs)
    delete_jobs = _asked(_jobs.delete_jobs)

    open_batch = _asked(_jobs.open_batch)
    batches = _read(_jobs.batches)
    batch = _asked(_jobs.batch)
    items = _read(_jobs.items)
    seal = _asked(_jobs.seal)
    cancel_batch = _asked(_jobs.cancel_batch)
    pause = _asked(_jobs.pause)
    resume = _asked(_jobs.resume)
    retry_failed = _asked(_jobs.retry_failed)
    alter = _asked(_jobs.alter)

    queues = _asked(_operating.queues)
    pause_queue = _asked(_operating.pause_queue)
    resume_queue = _asked(_operating.resume_queue)
    weigh_queue = _asked(_operating.weigh_queue)
    workers = _asked(_operating.workers)
    limits = _asked(_operating.limits)
    set_limit = _asked(_operating.set_limit)
    delete_limit = _asked(_operating.delete_limit)
    limit_keys = _read(_operating.limit_keys)
    reset_breaker = _asked(_operating.reset_breaker)
    schedules = _read(_operating.schedules)
    schedule = _asked(_operating.schedule)
    set_schedule = _asked(_operating.set_schedule)
    delete_schedule = _asked(_operating.delete_schedule)
    pause_schedule = _asked(_operating.pause_schedule)
    resume_schedule = _asked(_operating.resume_schedule)
    run_schedule = _asked(_operating.run_schedule)
    ticks = _asked(_operating.ticks)
    configuration = _asked(_operating.configuration)
    configure = _asked(_operating.configure)
    alterations = _asked(_operating.alterations)
    history = _read(_operating.history)
    health = _asked(_operating.health)
    metrics = _asked(_operating.metrics)
    prometheus = _asked(_operating.prometheus)

    me = _asked(_access.me)
    tokens = _asked(_access.tokens)
    create_token = _asked(_access.create_token)
    revoke = _asked(_access.revoke)
    sessions = _asked(_access.sessions)
    audit = _read(_access.audit)

    webhooks = _asked(_webhooks.webhooks)
    webhook = _asked(_webhooks.webhook)
    add_webhook = _asked(_webhooks.add_webhook)
    change_webhook = _asked(_webhooks.change_webhook)
    delete_webhook = _asked(_webhooks.delete_webhook)
    rotate_secret = _asked(_webhooks.rotate_secret)
    try_webhook = _asked(_webhooks.try_webhook)
    deliveries = _read(_webhooks.deliveries)

    async def wait(
        self, job_id: str, *, timeout: float | None = None, longest_pause: float = 1.0
    ) -> JobStatus:
        """The status of a job or batch once it is done, whatever came of it.

        It is looked at often at first, then every `longest_pause` seconds. Raises JobTimeoutError
        after `timeout` seconds.
        """
        for pause in looks(job_id, timeout, longest_pause):
            status = await self.status(job_id)
            if status.status.final:
                return status
            await asyncio.sleep(pause)
        raise AssertionError

    async def stream_jobs(
        self,
        jobs: Documents,
        *,
        on_bad: Literal["stop", "skip"] = "stop",
        idempotency_key: str | None = None,
    ) -> StreamTaken:
        """Enqueue any number of jobs, each as `{"kind": …, "payload": {…}, …}`.

        They are sent as they are made, and run while the rest still comes. After a broken
        connection send the same from the beginning with the same `idempotency_key`: nothing is
        doubled. A list, or what else can be gone through again, is sent again by itself.
        """
        return await self._send(_jobs.jobs_stream(), jobs, on_bad, idempotency_key)

    async def add_items(
        self,
        batch_id: str,
        items: Documents,
        *,
        on_bad: Literal["stop", "skip"] = "stop",
        idempotency_key: str | None = None,
    ) -> StreamTaken:
        """Add items to an open batch, each by its payload; as `stream_jobs`."""
        return await self._send(_jobs.items_stream(batch_id), items, on_bad, idempotency_key)

    async def _send(
        self,
        path: str,
        documents: Documents,
        on_bad: Literal["stop", "skip"],
        key: str | None,
    ) -> StreamTaken:
        again = not isinstance(documents, AsyncIterable) and iter(documents) is not documents
        call = _jobs.stream(path, on_bad=on_bad, key=key, again=again)
        attempts = Attempts(self.server, call)
        while True:
            request = attempts.lines(_lines(documents))
            try:
                reply = await self._http.request(**request)
            except httpx.TransportError as error:
                await asyncio.sleep(attempts.pause_after_error(error))
                continue
            if attempts.done(reply):
                return attempts.value(reply)
            await asyncio.sleep(attempts.pause_after_refusal(reply))

    async def export(
        self,
        batch_id: str,
        *,
        form: Literal["ndjson", "csv"] = "ndjson",
        state: Sequence[str] = (),
        cursor: str | None = None,
    ) -> AsyncIterator[str]:
        """All items of a batch, a line of text each, in their order; secrets are masked.

        After a broken download go on with the `cursor` of the last row.
        """
        call = _jobs.export(batch_id, form=form, state=state, cursor=cursor)
        try:
            async with self._http.stream(**request_of(self.server, call)) as reply:
                if not reply.is_success:
                    await reply.aread()
                    raise Told(reply, batch_id).error()
                async for line in reply.aiter_lines():
                    yield line
        except httpx.TransportError as error:
            raise unreachable(self.server, error) from None

    async def events(
        self, *, after: str | None = None, **watching: Unpack[_jobs.Watching]
    ) -> AsyncIterator[Message]:
        """What happens, as it happens, without an end.

        A broken connection is made again and goes on behind the last event that was seen. A
        `snapshot` tells of events that are missing, by its reason. `after`: a cursor to begin at.
        """
        following = Following(self.server, _jobs.live(**watching), after)
        while True:
            try:
                async with self._http.stream(**following.request()) as reply:
                    if reply.is_success:
                        async for line in reply.aiter_lines():
                            message = following.take(line)
                            if message is not None:
                                yield message
                        pause = following.pause_after_end()
                    else:
                        await reply.aread()
                        pause = following.pause_after_refusal(reply)
            except httpx.TransportError as error:
                pause = following.pause_after_end(error)
            await asyncio.sleep(pause)
