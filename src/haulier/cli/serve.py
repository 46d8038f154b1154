"""`haulier serve`: the HTTP API and one embedded worker, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.echo import address_of, http_server, listen
from haulier.cli.output import allow_option, command_body
from haulier.cli.recorded import records_options
from haulier.cli.worker import leave_abandoned, start_logging, stopped_by_signals
from haulier.exceptions import ConfigurationError
from haulier.services.urls import shown

if TYPE_CHECKING:
    from haulier.config import Settings
    from haulier.records.database import Records

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@click.command()
@click.argument("user_app", metavar="[MODULE:APP]", required=False, envvar="HAULIER_APP")
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="0 takes any free port.  [default: 8470]")
@click.option(
    "--no-token",
    is_flag=True,
    help="Whoever reaches this loopback address is an admin: for one user's machine.",
)
@click.option(
    "--public-host",
    "public_hosts",
    multiple=True,
    help="A name that the server may be asked for by, besides loopback ones; several times.",
)
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
@records_options
@command_body
async def serve(
    user_app: str | None,
    no_token: bool,
    public_hosts: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    **flags: Any,
) -> None:
    """Serve the HTTP API, with one worker beside it.

    Whoever asks has to show a token (haulier token create), unless --no-token is given.
    """
    from haulier.config import read_settings
    from haulier.container import build_app, records_url, worker_options
    from haulier.records import open_records
    from haulier.web.app import create_app
    from haulier.web.live.socket import SOCKETS
    from haulier.worker.telling import Teller

    lists = {"public_hosts": public_hosts or None, "allowed_hosts": allowed_hosts or None}
    settings = read_settings(**lists, **flags)
    start_logging(settings)
    address = _address(settings.host, no_token=no_token)
    app = build_app(settings, user_app)
    async with open_records(records_url(settings, app)) as records:
        await _check_tokens(records, address, no_token=no_token)
        with contextlib.closing(listen(str(address), settings.port)) as listener:
            async with app:
                options = _web_options(settings, no_token=no_token)
                api = create_app(jobs=app.jobs, options=options, records=records)
                server = http_server(api, ending=api.state.live.close, **SOCKETS)
                running = app.worker(worker_options(settings))
                teller = Teller(api.state.webhooks, turn=settings.ttl)

                def stop(times: int) -> None:
                    server.should_exit = True
                    teller.stop()
                    running.stop(now=times > 1)

                where = f"{address_of(listener)}  (store {shown(settings.store)})"
                click.echo(f"haulier serves {where}", err=True)
                try:
                    with stopped_by_signals(stop):
                        async with asyncio.TaskGroup() as group:
                            group.create_task(server.serve(sockets=[listener]))
                            group.create_task(running.run())
                            group.create_task(teller.run())
                finally:
                    # The lifespan has done so, unless something broke.
                    await api.state.diary.close()
    leave_abandoned(running)


def _address(host: str, *, no_token: bool) -> Address:
    """The address to listen on; raises ConfigurationError for one that must not be without tokens.

    Listening where others could get in as admins is a mistake that is made only once.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ConfigurationError(f"host: {host!r} is not an IP address") from None
    if no_token and not address.is_loopback:
        raise ConfigurationError(
            f"host: {host} is not a loopback address, and --no-token lets everybody in who can "
            "reach it: make tokens instead, by haulier token create"
        )
    return address


async def _check_tokens(records: Records, address: Address, *, no_token: bool) -> None:
    """Say so when nobody could be let in; raises ConfigurationError where others could try."""
    if no_token:
        return
    from haulier.records.credentials import Credentials

    _, live = await Credentials(records).live()
    if live:
        return
    make = "haulier token create --role admin"
    if not address.is_loopback:
        raise ConfigurationError(
            f"host: {address} is not a loopback address, and there is no token yet: "
            f"make one first, by {make}"
        )
    click.echo(
        f"There is no token yet, so nobody is let in. Make one:  {make}\n"
        "or a link for the browser:  haulier token link\n"
        "or, on a machine that is yours alone, start with --no-token.",
        err=True,
    )


def _web_options(settings: Settings, *, no_token: bool) -> Any:
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
        no_token=no_token,
        public_hosts=settings.public_hosts,
        live=LiveOptions(
            most=settings.streams,
            per_caller=settings.streams_per_caller,
            heartbeat=settings.heartbeat,
        ),
    )
