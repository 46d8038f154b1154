"""`haulier run`: a bulk kind over an input file, from start to report."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from haulier.cli.output import (
    EXIT_CODES,
    allow_option,
    batch_options,
    command_body,
    emit_json,
    job_document,
    json_option,
    store_option,
)
from haulier.domain.job import JobState
from haulier.exceptions import Problem, ValidationError

if TYPE_CHECKING:
    from haulier.app import App
    from haulier.config import Settings
    from haulier.domain.job import Job
    from haulier.services.options import Options

F = TypeVar("F", bound=Callable[..., Any])
Report = Callable[["App", str], Awaitable[None]]

MOST_SLOTS = 10_000


@click.group()
def run() -> None:
    """Run a bulk kind over an input file.

    By default this process works on it until it is done. With --detach it only enqueues, and any
    `haulier worker` on the same store does the work.
    """


def running_options(function: F) -> F:
    """The options that every bulk kind has in common."""
    for decorate in (
        click.option("--detach", is_flag=True, help="Only enqueue; print the batch's id."),
        click.option("--threads", type=int, help="Plain-function items at once, in this process."),
        batch_options,
        store_option,
        json_option,
    ):
        function = decorate(function)
    return function


@run.command("media-uniq")
@click.option(
    "--accounts",
    required=True,
    type=click.Path(path_type=Path),
    help="CSV with a column 'account'.",
)
@click.option(
    "--media", multiple=True, required=True, help="A picture, or a folder of them; may be repeated."
)
@click.option("--out", required=True, help="The folder for the renditions and their manifest.")
@click.option("--spec", default="square", show_default=True, help="The platform's picture spec.")
@click.option("--watermark", help="A text in the corner; {account} stands for the account.")
@click.option("--watermark-image", help="A picture in the corner.")
@running_options
@command_body
async def media_uniq(
    accounts: Path,
    media: tuple[str, ...],
    out: str,
    spec: str,
    watermark: str | None,
    watermark_image: str | None,
    detach: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Make one rendition of each picture for each account."""
    from haulier.cli.report import show_renditions
    from haulier.runners.csv_input import read_accounts

    settings, limits = _read(flags)
    start: dict[str, Any] = {
        "accounts": read_accounts(_existing(accounts, "--accounts")),
        "sources": list(media),
        "output": out,
        "spec": spec,
    }
    if watermark is not None and watermark_image is not None:
        raise ValidationError(
            "choose one watermark", [Problem("--watermark-image", "is given beside --watermark")]
        )
    if watermark is not None:
        start["watermark"] = {"text": watermark}
    if watermark_image is not None:
        start["watermark"] = {"image": watermark_image}
    async with _app(settings) as app:
        batch_id = await app.enqueue("media_uniq", start, **limits)
        return await _run(app, settings, batch_id, show_renditions, detach=detach, as_json=as_json)


@run.command("proxy-diagnostics")
@click.option(
    "--proxies",
    required=True,
    type=click.Path(path_type=Path),
    help="One scheme://user:password@host:port a line, or CSV.",
)
@click.option(
    "--check-url", help="What to reach through them.  [default: an echo server on this machine]"
)
@click.option("--tries", default=5, show_default=True, type=click.IntRange(1, 50))
@click.option("--timeout", default=5.0, show_default=True, type=click.FloatRange(0.1, 60))
@click.option("--ca-file", help="Certificates to trust besides the system's.")
@click.option("--insecure", is_flag=True, help="Do not verify certificates.")
@allow_option
@running_options
@command_body
async def proxy_diagnostics(
    proxies: Path,
    check_url: str | None,
    tries: int,
    timeout: float,
    ca_file: str | None,
    insecure: bool,
    allowed_hosts: tuple[str, ...],
    detach: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Check every proxy of a list: reachable, how fast, where it exits, what it reveals."""
    from haulier.cli.echo import local_echo
    from haulier.cli.report import show_proxies
    from haulier.runners.proxy_input import read_proxies

    settings, limits = _read(flags, check_url=check_url, allowed_hosts=allowed_hosts or None)
    text = _existing(proxies, "--proxies").read_bytes().decode("utf-8-sig", "replace")
    specs = read_proxies(text)
    if detach and settings.check_url is None:
        raise ValidationError(
            "a detached run needs a check URL", [Problem("--check-url", "is missing")]
        )
    async with contextlib.AsyncExitStack() as stack:
        target = settings.check_url or await stack.enter_async_context(local_echo())
        app = await stack.enter_async_context(_app(settings))
        start = {
            "proxies": specs,
            "check_url": target,
            "tries": tries,
            "timeout": timeout,
            "verify_tls": not insecure,
            "ca_file": ca_file,
        }
        batch_id = await app.enqueue("proxy_diagnostics", start, **limits)
        return await _run(app, settings, batch_id, show_proxies, detach=detach, as_json=as_json)


def _read(flags: dict[str, Any], **more: Any) -> tuple[Settings, Options]:
    """The settings, and the limits of the batch, of a command's options."""
    from haulier.config import read_settings

    limits: Options = {
        "concurrency": flags.pop("concurrency"),
        "batch_size": flags.pop("batch_size"),
        "max_failures": flags.pop("max_failures"),
    }
    settings = read_settings(**flags, **more)
    at_once = limits["concurrency"] or 0
    if at_once > settings.concurrency:
        # The batch may use that many slots, so this process has them.
        settings = settings.model_copy(update={"concurrency": min(at_once, MOST_SLOTS)})
    return settings, limits


def _existing(path: Path, option: str) -> Path:
    if not path.is_file():
        raise ValidationError("an input file is missing", [Problem(option, f"{path} is no file")])
    return path


@asynccontextmanager
async def _app(settings: Settings) -> AsyncIterator[App]:
    from haulier.cli.worker import start_logging
    from haulier.container import build_app

    start_logging(settings)
    async with build_app(settings) as app:
        yield app


async def _run(
    app: App,
    settings: Settings,
    batch_id: str,
    report: Report,
    *,
    detach: bool,
    as_json: bool,
) -> int:
    """Work on a batch until it is done, and tell what came of it."""
    from haulier.cli.report import run_document

    if detach:
        emit_json({"id": batch_id}) if as_json else click.echo(batch_id)
        return EXIT_CODES["ok"]
    job = await work_until_done(app, settings, batch_id)
    if job is None:
        there = f"--store {settings.store}"
        click.echo(
            f"\nInterrupted; nothing is lost. Go on with:  haulier worker {there}\n"
            f"and look with:  haulier batches watch {batch_id} {there}",
            err=True,
        )
        return EXIT_CODES["interrupted"]
    failed = job.state is JobState.FAILED
    if failed and not (await app.batch(batch_id)).counts.done:
        return _tell_failure(job, as_json=as_json)
    if as_json:
        emit_json(await run_document(app, batch_id))
    else:
        await report(app, batch_id)
        if failed and job.error is not None:
            click.secho(f"\nThe batch failed: {job.error.message}", fg="red", err=True)
    some_failed = failed or (job.value and job.value.get("failed"))
    return EXIT_CODES["unsuccessful" if some_failed else "ok"]


def _tell_failure(head: Job, *, as_json: bool) -> int:
    """The head itself failed: the input could not be worked on."""
    if as_json:
        emit_json(job_document(head))
    else:
        error = head.error
        click.secho(f"Error: {error.message if error else 'the batch failed'}", fg="red", err=True)
    return EXIT_CODES["unsuccessful"]


async def work_until_done(app: App, settings: Settings, job_id: str) -> Job | None:
    """Work on the store until a job is done; None if a signal came first."""
    from haulier.cli.worker import stopped_by_signals
    from haulier.container import worker_options

    worker = app.worker(worker_options(settings))
    with stopped_by_signals(lambda _: worker.stop(now=True)):
        async with asyncio.TaskGroup() as group:
            working = group.create_task(worker.run())
            waiting = group.create_task(app.wait(job_id))
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            worker.stop()
            if not waiting.done():
                waiting.cancel()
                return None
    return waiting.result()
