"""What every command shares: options, output as a table or as JSON, errors and exit codes."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from haulier.domain.batch import Batch
from haulier.domain.flow import Parent
from haulier.domain.job import MICROSECOND, Job, JobError, JobState
from haulier.domain.redaction import shown, without_credentials
from haulier.exceptions import (
    AuthenticationError,
    ConfigurationError,
    DuplicateJobError,
    HaulierError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    LimitNotFoundError,
    ScheduleNotFoundError,
    StoreError,
    TokenNotFoundError,
    ValidationError,
    WebhookNotFoundError,
)
from haulier.services.instants import iso

if TYPE_CHECKING:
    from haulier.domain.line import Line
    from haulier.domain.step import Step
    from haulier.ports import JobStore

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

EXIT_CODES = {
    "ok": 0,
    "failed": 1,
    "usage": 2,
    "not found": 3,
    "conflict": 4,
    "auth": 5,
    "unreachable": 6,
    "timeout": 7,
    "unsuccessful": 8,
    "interrupted": 130,
}
"""`unsuccessful`: the command did its work, and the work it ran or waited for failed in part."""

_CODE_OF_ERROR: tuple[tuple[type[HaulierError], str], ...] = (
    (JobNotFoundError, "not found"),
    (ScheduleNotFoundError, "not found"),
    (LimitNotFoundError, "not found"),
    (TokenNotFoundError, "not found"),
    (WebhookNotFoundError, "not found"),
    (JobStateError, "conflict"),
    (DuplicateJobError, "conflict"),
    (AuthenticationError, "auth"),
    (StoreError, "unreachable"),
    (JobTimeoutError, "timeout"),
    (ValidationError, "usage"),
    (ConfigurationError, "usage"),
)

YOUNG_OBJECTS = 20_000
"""Allocations between two runs of Python's garbage collector. Its own 700 are a hundred jobs or
two, and to look through them that often takes a tenth of a busy process's time."""

DEFAULT_STORE = "sqlite:///haulier.db"


class Failure(click.ClickException):
    """One of our errors on its way out of a command."""

    def __init__(self, error: HaulierError, *, json_output: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.json_output = json_output


def complain(error: HaulierError, *, json_output: bool) -> int:
    """Say what went wrong on standard error; returns the exit code."""
    name = next((name for kind, name in _CODE_OF_ERROR if isinstance(error, kind)), "failed")
    if json_output:
        problems = [
            {
                key: value
                for key, value in (("line", p.line), ("field", p.field), ("reason", p.reason))
                if value is not None
            }
            for p in getattr(error, "problems", ())
        ]
        message = without_credentials(getattr(error, "message", str(error)))
        document = {"error": name, "type": type(error).__name__, "message": message}
        if isinstance(error, DuplicateJobError):
            document["job_id"] = error.job_id
        click.echo(json.dumps({**document, "problems": problems}), err=True)
    else:
        text = without_credentials(str(error))
        if isinstance(error, DuplicateJobError) and error.job_id not in text:
            text = f"{text} (job {error.job_id})"
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {text}", err=True)
    return EXIT_CODES[name]


# ── Options ──────────────────────────────────────────────────────────────────────────────────


def store_option(function: F) -> F:
    """`--store URL`, or HAULIER_STORE; without both the user's app's, or haulier.db."""
    return click.option(
        "--store",
        metavar="URL",
        envvar="HAULIER_STORE",
        help="Where the jobs live.  [env: HAULIER_STORE; default: your app's, "
        f"without one {DEFAULT_STORE}]",
    )(function)


def allow_option(function: F) -> F:
    """`--allow-host HOST`, or HAULIER_ALLOWED_HOSTS."""
    return click.option(
        "--allow-host",
        "allowed_hosts",
        multiple=True,
        metavar="HOST",
        help="Let users name this host, address or network (or host:port) although it is not "
        "public; may be repeated.  [env: HAULIER_ALLOWED_HOSTS]",
    )(function)


def json_option(function: F) -> F:
    """`--json`: one JSON document on standard output instead of a table."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


class Text(click.types.StringParamType):
    """A text that can be stored: what is no UTF-8 reaches us as half characters."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text; fails for half a character."""
        text = str(value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.fail("is no UTF-8", param, ctx)
        return text


TEXT = Text()

by_option = click.option(
    "--by", type=TEXT, metavar="NAME", help="Who changes it.  [default: this user on this host]"
)

payload_option = click.option(
    "--payload",
    default="{}",
    help="The payload as a JSON object; '-' reads it from standard input.",
)


def line_options(function: F) -> F:
    """Which line a new job stands in, and where."""
    for decorate in (
        click.option(
            "--priority",
            metavar="NAME|N",
            help="low, normal, high, urgent, or a number; higher first.",
        ),
        click.option("--queue", help="Another queue than the task's own."),
    ):
        function = decorate(function)
    return function


def batch_options(function: F) -> F:
    """How a batch is worked on: see `domain.batch.BatchPolicy`."""
    for decorate in (
        click.option(
            "--max-failures",
            type=int,
            metavar="N",
            help="When more than N items have failed, cancel the rest and fail.",
        ),
        click.option(
            "--batch-size", type=int, metavar="N", help="At most N items are claimed at a time."
        ),
        click.option(
            "--concurrency",
            type=int,
            metavar="N",
            help="At most N items run at once, over all workers.",
        ),
    ):
        function = decorate(function)
    return function


def command_body(function: Callable[..., Awaitable[int | None]]) -> Callable[..., int]:
    """Run a command's coroutine; our errors leave as Failure, Ctrl-C as Abort."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> int:
        as_json = bool(kwargs.get("as_json"))
        try:
            return run_coroutine(function(*args, **kwargs)) or 0
        except HaulierError as error:
            raise Failure(error, json_output=as_json) from error
        except ExceptionGroup as group:
            inner = sole_error(group)
            if isinstance(inner, HaulierError):
                raise Failure(inner, json_output=as_json) from group
            raise
        except KeyboardInterrupt:
            raise click.Abort from None

    return run


def run_coroutine(coroutine: Awaitable[T]) -> T:
    """Run to the end on a new event loop: uvloop's where the extra `speed` brought it."""

    async def body() -> T:
        return await coroutine

    gc.set_threshold(YOUNG_OBJECTS)
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(body())


def sole_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a task group really met: its only error, or the group itself if there are several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def existing_store(url: str | None) -> AsyncIterator[JobStore]:
    """The store, open; a command that only looks does not create one by a typing mistake."""
    from haulier.stores import open_store

    store = open_store(url or DEFAULT_STORE, create=False)
    if getattr(store, "path", None) == ":memory:":
        raise ConfigurationError("a store in memory cannot be shared with another process")
    async with store:
        yield store


# ── Output ───────────────────────────────────────────────────────────────────────────────────


def emit_json(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, indent=None if not sys.stdout.isatty() else 2))


def emit_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns on standard output; plain enough for a pipe, fast enough for a glance."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.secho(text.rstrip(), bold=number == 0)


def emit_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """One line per field that has a value."""
    known = [(name, str(value)) for name, value in fields if value not in (None, "")]
    width = max(len(name) for name, _ in known)
    for name, value in known:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


instant = iso


def ago(microseconds: int | None) -> str:
    """How long ago an instant was, in one unit."""
    if microseconds is None:
        return "-"
    seconds = datetime.now(UTC).timestamp() - microseconds / MICROSECOND
    return "in " + duration(-seconds) if seconds < -1 else duration(max(seconds, 0)) + " ago"


def duration(seconds: float | None) -> str:
    """A length of time in one unit."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def job_document(job: Job, unroutable: str | None = None) -> dict[str, Any]:
    """A job as JSON; its secrets are masked."""
    return {
        "id": job.id,
        "kind": job.kind,
        "queue": job.queue,
        "role": job.role,
        "state": job.state,
        "view": view_of(job, unroutable),
        "unroutable": unroutable,
        "priority": job.priority,
        "attempt": job.attempt,
        "lost": job.lost,
        "lease": job.lease,
        "key": job.key,
        "batch_id": job.batch_id,
        "position": job.position,
        "progress": job.progress,
        "message": job.message,
        "worker": job.worker,
        "baggage": None if job.baggage is None else json.loads(job.baggage),
        "unique": job.unique,
        "parked": job.parked,
        "waiting": job.waiting,
        "cancel_requested": job.cancel_requested,
        "cancel_heard": job.cancel_heard,
        "payload": shown(json.loads(job.payload)),
        "result": job.value,
        "result_expired": job.result_expired,
        "error": None if job.error is None else error_document(job.error),
        "run_at": instant(job.run_at),
        "created_at": instant(job.created_at),
        "started_at": instant(job.started_at),
        "finished_at": instant(job.finished_at),
    }


def error_document(error: JobError) -> dict[str, Any]:
    """The error of an attempt as JSON."""
    return {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "attempt": error.attempt,
        "lease": error.lease,
        "worker": error.worker,
        "at": instant(error.at),
    }


def parent_document(parent: Parent) -> dict[str, Any]:
    """What a job waits for or has waited for, as JSON."""
    return {
        "id": parent.job_id,
        "otherwise": parent.otherwise,
        "state": parent.state,
        "ended": parent.ended,
        "result": parent.value,
        "error": None if parent.error is None else error_document(parent.error),
    }


def step_document(step: Step) -> dict[str, Any]:
    """A finished step as JSON."""
    return {
        "name": step.name,
        "result": json.loads(step.result),
        "lease": step.lease,
        "at": instant(step.at),
    }


def line_document(line: Line) -> dict[str, Any]:
    """A log line of a job as JSON."""
    return {"at": instant(line.at), "lease": line.lease, "text": line.text}


def view_of(job: Job, unroutable: str | None = None) -> str:
    """The state as people see it: pending and running have views of their own."""
    if job.state is JobState.RUNNING and job.cancel_requested:
        return "stopping"
    if job.state is not JobState.PENDING:
        return job.state
    if job.waiting:
        return "waiting"
    if unroutable:
        return "unroutable"
    if job.parked:
        return "parked"
    if job.attempt:
        return "retrying"
    return "scheduled" if job.run_at > _now() else job.state


def _now() -> int:
    return round(datetime.now(UTC).timestamp() * MICROSECOND)


def batch_document(batch: Batch, unroutable: str | None = None) -> dict[str, Any]:
    """A batch as JSON, with its rate (items a second) and ETA (seconds)."""
    counts, now = batch.counts, _now()
    return {
        "id": batch.id,
        "kind": batch.kind,
        "queue": batch.queue,
        "state": batch.state,
        "sealed": batch.sealed,
        "cancel_requested": batch.cancel_requested,
        "paused": batch.paused,
        "unroutable": unroutable,
        "concurrency": batch.concurrency,
        "batch_size": batch.batch_size,
        "max_failures": batch.max_failures,
        "total": counts.total,
        "pending": counts.pending,
        "running": counts.running,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "progress": round(batch.progress, 2),
        "rate": batch.rate(now),
        "eta": batch.eta(now),
        "created_at": instant(batch.created_at),
        "started_at": instant(batch.started_at),
        "finished_at": instant(batch.finished_at),
        "finish_job": batch.finish_job,
        "within": batch.within,
    }


def tell_batch(batch: Batch, done: str, *, as_json: bool) -> None:
    """What has been done to a batch, on standard output: in words, or how it is now."""
    if as_json:
        emit_json(batch_document(batch))
    else:
        click.echo(f"{batch.id}  {done}")


def states_of(names: Sequence[str]) -> frozenset[JobState] | None:
    """The states named on a command line."""
    return frozenset(JobState(name) for name in names) or None


STATE_NAMES = [str(state) for state in JobState]
