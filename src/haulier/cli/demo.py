"""`haulier demo`: two real batches, run here and now, with nothing set up before."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.output import EXIT_CODES, command_body, emit_json, json_option
from haulier.domain.job import JobState
from haulier.exceptions import ConfigurationError, Problem, ValidationError

if TYPE_CHECKING:
    from haulier.app import App
    from haulier.config import Settings
    from haulier.domain.job import Job

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png")
"""Photographs inside scikit-image's package: a portrait, a cat, a cup."""

TRIES = 5
TRY_SECONDS = 2.0


@click.command()
@click.option("--accounts", default=200, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--media", type=click.Path(path_type=Path), help="A folder of your own pictures.")
@click.option("--proxies", default=40, show_default=True, type=click.IntRange(1, 500))
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1, 64))
@click.option("--out", default="haulier-demo", show_default=True, type=click.Path(path_type=Path))
@json_option
@command_body
async def demo(
    accounts: int, media: Path | None, proxies: int, processes: int, out: Path, as_json: bool
) -> int:
    """Make renditions of real photographs for many accounts, and check a fleet of proxies.

    Everything stays on this machine: the proxies are started here, some of them dead, slow, or
    refusing their password. Files go to the folder --out; run it again and it goes on from there.
    """
    from haulier.cli.worker import start_logging
    from haulier.config import Settings
    from haulier.container import build_app

    sources = _pictures(media)
    _make(out)
    # Its proxies are on this machine, where users may otherwise send nobody.
    settings = Settings(
        store=f"sqlite:///{out}/demo.db", log_level="warning", allowed_hosts=("127.0.0.0/8",)
    )
    start_logging(settings)
    began = time.monotonic()
    async with build_app(settings) as app:
        heads = await _run_both(
            app, settings, _media_start(sources, accounts, out), proxies, processes
        )
        if heads is None:
            click.echo("\nInterrupted; nothing is lost: run the demo again.", err=True)
            return EXIT_CODES["interrupted"]
        await _tell(app, heads, out, time.monotonic() - began, as_json=as_json)
    return EXIT_CODES["ok" if all(_went_well(head) for head in heads) else "unsuccessful"]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--out: cannot make {folder}: {error.strerror}") from None


def _pictures(media: Path | None) -> list[str]:
    """The user's folder, or photographs that an installed package brings."""
    if media is not None:
        if not media.exists():
            raise ValidationError("no pictures", [Problem("--media", f"{media} does not exist")])
        return [str(media)]
    # Found without importing it, which would take longer than the rest of the start.
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise ConfigurationError(
            "the demo's photographs come with scikit-image: pip install 'haulier[demo]', "
            "or give a folder of your own with --media"
        )
    folder = Path(package.submodule_search_locations[0]) / "data"
    return [str(folder / name) for name in PHOTOGRAPHS]


def _media_start(sources: list[str], accounts: int, out: Path) -> dict[str, Any]:
    return {
        "accounts": [f"account-{number:04d}" for number in range(1, accounts + 1)],
        "sources": sources,
        "output": str(out / "renditions"),
        "spec": "square",
        "watermark": {"text": "@{account}"},
    }


async def _run_both(
    app: App, settings: Settings, media_start: dict[str, Any], proxies: int, processes: int
) -> list[Job] | None:
    """Start the proxies and the workers, enqueue both batches, and watch them to their end."""
    from haulier.cli.demo_proxies import demo_fleet
    from haulier.cli.echo import local_echo
    from haulier.cli.worker import run_child, stopped_by_signals
    from haulier.runners.proxy_input import read_proxies
    from haulier.worker.processes import WorkerProcesses

    async with contextlib.AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(demo_fleet(proxies))
        check_url = await stack.enter_async_context(local_echo())
        proxy_start = {
            "proxies": read_proxies(fleet.as_text()),
            "check_url": check_url,
            "tries": TRIES,
            "timeout": TRY_SECONDS,
        }
        heads = [
            await app.enqueue("media_uniq", media_start),
            await app.enqueue("proxy_diagnostics", proxy_start),
        ]
        workers = WorkerProcesses(
            app.store,
            partial(run_child, settings.model_dump(exclude_unset=True), None),
            processes,
            grace=settings.grace,
        )
        with stopped_by_signals(lambda _: workers.stop()):
            async with asyncio.TaskGroup() as group:
                working = group.create_task(workers.run())
                watching = group.create_task(_watch(app, heads))
                await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
                workers.stop()
                if not watching.done():
                    watching.cancel()
                    return None
        return watching.result()


async def _watch(app: App, heads: list[str]) -> list[Job]:
    from haulier.progress import ProgressBar

    with ProgressBar() as bar:
        return list(
            await asyncio.gather(*(app.jobs.wait(head, on_change=bar.show) for head in heads))
        )


def _went_well(head: Job) -> bool:
    return head.state is JobState.COMPLETED and not head.value["failed"]


async def _tell(app: App, heads: list[Job], out: Path, seconds: float, *, as_json: bool) -> None:
    from haulier.cli.report import run_document, show_proxies, show_renditions

    media, proxies = heads
    if as_json:
        emit_json(
            {
                "media_uniq": await run_document(app, media.id),
                "proxy_diagnostics": await run_document(app, proxies.id),
                "seconds": round(seconds, 1),
            }
        )
        return
    for head, show in ((media, show_renditions), (proxies, show_proxies)):
        if head.state is JobState.COMPLETED:
            await show(app, head.id)
        else:
            why = head.error.message if head.error else ""
            click.secho(f"\n{head.kind} {head.state}: {why}", fg="red")
    store = f"--store sqlite:///{out}/demo.db"
    click.secho(f"\nDone in {seconds:.1f} s. What next:", bold=True)
    for text, command in (
        ("look at the pictures", f"ls {out}/renditions/account-0001"),
        ("the batches", f"haulier batches list {store}"),
        ("every proxy as CSV", f"haulier batches export {proxies.id} --format csv {store}"),
        ("your own accounts", "haulier run media-uniq --help"),
        ("the HTTP API", "haulier serve --no-token"),
    ):
        click.echo(f"  {text:<22} {command}")
