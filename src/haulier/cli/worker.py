"""`haulier worker`: claim and run jobs until stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import structlog

from haulier.cli.output import allow_option, command_body, run_coroutine, store_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from haulier.config import Settings
    from haulier.worker.worker import Worker

_log = structlog.get_logger("haulier.cli")


@click.command()
@click.argument("user_app", metavar="[MODULE:APP]", required=False, envvar="HAULIER_APP")
@click.option(
    "--queue",
    "queues",
    multiple=True,
    help="Listen to this queue; may be repeated; name=5 gives it a weight.",
)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 256))
@click.option("--concurrency", type=int, help="Coroutine jobs at once, per process.")
@click.option("--threads", type=int, help="Plain-function jobs at once, per process.")
@click.option("--children", type=int, help="Jobs in processes of their own at once, per process.")
@click.option("--grace", type=float, help="Seconds that running jobs get to finish on a stop.")
@allow_option
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["console", "json"]))
@store_option
@command_body
async def worker(
    user_app: str | None,
    processes: int,
    queues: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    **flags: Any,
) -> None:
    """Run workers until SIGTERM or Ctrl-C.

    The first signal stops claiming and lets running jobs finish within the grace time; the rest is
    given back without costing them an attempt. A second signal gives everything back at once.
    """
    from haulier.config import read_settings
    from haulier.container import build_app
    from haulier.worker.processes import WorkerProcesses

    settings = read_settings(**flags, queues=queues or None, allowed_hosts=allowed_hosts or None)
    start_logging(settings)
    if processes == 1:
        await run_worker(settings, user_app)
        return
    app = build_app(settings, user_app)
    async with app:
        parent = WorkerProcesses(
            app.store,
            partial(run_child, settings.model_dump(exclude_unset=True), user_app),
            processes,
            grace=settings.grace,
        )
        with stopped_by_signals(lambda _: parent.stop()):
            await parent.run()


def start_logging(settings: Settings) -> None:
    """Log as the settings say, without secrets."""
    from haulier.services.secrets import scrub_all
    from haulier.telemetry import configure_logging

    configure_logging(settings.log_level, settings.log_format, scrub_all)


def run_child(settings: dict[str, Any], user_app: str | None, worker_id: str) -> None:
    """The whole life of one spawned worker process."""
    from haulier.config import Settings

    # Ctrl-C reaches every process of the terminal; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own = Settings(**settings)
    start_logging(own)
    run_coroutine(run_worker(own, user_app, worker_id, signals=(signal.SIGTERM,)))


async def run_worker(
    settings: Settings,
    user_app: str | None,
    worker_id: str | None = None,
    *,
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
) -> None:
    """Run one worker in this process until a signal, or until its parent is gone."""
    from haulier.container import build_app, worker_options
    from haulier.worker.processes import on_parent_death

    app = build_app(settings, user_app)
    async with app:
        running = app.worker(worker_options(settings), worker_id=worker_id)
        loop = asyncio.get_running_loop()
        on_parent_death(lambda: loop.call_soon_threadsafe(running.stop))

        def stop(times: int) -> None:
            _log.info("worker stopping", grace=settings.grace if times == 1 else 0)
            running.stop(now=times > 1)

        with stopped_by_signals(stop, signals):
            await running.run()
    leave_abandoned(running)


def leave_abandoned(worker: Worker) -> None:
    """End the process here and now if jobs go on that did not heed their cancellation.

    The event loop would wait for them for ever. All that matters was stored before.
    """
    if worker.abandoned:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class stopped_by_signals:  # noqa: N801 - reads as a phrase: with stopped_by_signals(…)
    """Within the block, call `stop(n)` at the n-th signal that asks this process to end."""

    def __init__(
        self,
        stop: Callable[[int], object],
        signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
    ) -> None:
        self._stop = stop
        self._signals = signals
        self._times = 0

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for each in self._signals:
            loop.add_signal_handler(each, self._received)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for each in self._signals:
            loop.remove_signal_handler(each)

    def _received(self) -> None:
        self._times += 1
        self._stop(self._times)
