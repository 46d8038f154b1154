"""`haulier serve`: the HTTP API and one embedded worker, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.echo import address_of, http_server, listen
from haulier.cli.output import allow_option, command_body, store_option
from haulier.cli.worker import leave_abandoned, start_logging, stopped_by_signals
from haulier.exceptions import ConfigurationError
from haulier.services.urls import shown

if TYPE_CHECKING:
    from haulier.config import Settings


@click.command()
@click.argument("user_app", metavar="[MODULE:APP]", required=False, envvar="HAULIER_APP")
@click.option("--host", help="A loopback address.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="0 takes any free port.  [default: 8470]")
@click.option("--media-root", help="The folder that requests may name pictures in.")
@click.option("--output-root", help="The folder that requests may have renditions written to.")
@click.option("--check-url", help="What proxies are checked against.  [default: this server]")
@click.option(
    "--api-deadline", type=float, help="Seconds that the API waits for the store.  [default: 2]"
)
@allow_option
@click.option("--streams", type=int, help="Live streams at once.  [default: 1000]")
@click.option(
    "--streams-per-caller", type=int, help="Live streams of one caller at once.  [default: 100]"
)
@click.option(
    "--heartbeat", type=float, help="Seconds of silence until a stream shows a sign of life."
)
@click.option("--concurrency", type=int, help="Coroutine jobs at once.")
@click.option("--threads", type=int, help="Plain-function jobs at once.")
@click.option("--children", type=int, help="Jobs in processes of their own at once.")
@click.option("--grace", type=float, help="Seconds that running jobs get to finish on a stop.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["console", "json"]))
@store_option
@command_body
async def serve(user_app: str | None, allowed_hosts: tuple[str, ...], **flags: Any) -> None:
    """Serve the HTTP API on a loopback address, with one worker beside it."""
    from haulier.config import read_settings
    from haulier.container import build_app, worker_options
    from haulier.web.app import create_app
    from haulier.web.live.socket import SOCKETS

    settings = read_settings(**flags, allowed_hosts=allowed_hosts or None)
    start_logging(settings)
    listener = listen(_check_loopback(settings.host), settings.port)
    with contextlib.closing(listener):
        app = build_app(settings, user_app)
        async with app:
            api = create_app(jobs=app.jobs, options=_web_options(settings))
            server = http_server(api, ending=api.state.live.close, **SOCKETS)
            running = app.worker(worker_options(settings))

            def stop(times: int) -> None:
                server.should_exit = True
                running.stop(now=times > 1)

            where = f"{address_of(listener)}  (store {shown(settings.store)})"
            click.echo(f"haulier serves {where}", err=True)
            with stopped_by_signals(stop):
                async with asyncio.TaskGroup() as group:
                    group.create_task(server.serve(sockets=[listener]))
                    group.create_task(running.run())
    leave_abandoned(running)


def _check_loopback(host: str) -> str:
    """The address to listen on; raises ConfigurationError for one that others could reach."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ConfigurationError(f"host: {host!r} is not an IP address") from None
    if not address.is_loopback:
        raise ConfigurationError(
            f"host: {host} is not a loopback address, and this API asks nobody for a token yet"
        )
    return str(address)


def _web_options(settings: Settings) -> Any:
    from importlib.metadata import version

    from haulier.container import guard_of
    from haulier.web.app import WebOptions
    from haulier.web.live.options import LiveOptions

    return WebOptions(
        media_root=settings.media_root,
        output_root=settings.output_root,
        check_url=settings.check_url,
        guard=guard_of(settings),
        version=version("haulier"),
        deadline=settings.api_deadline,
        live=LiveOptions(
            most=settings.streams,
            per_caller=settings.streams_per_caller,
            heartbeat=settings.heartbeat,
        ),
    )
