"""`haulier echo`: the server that tells a caller how its request arrived."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import click

from haulier.cli.output import command_body
from haulier.exceptions import ConfigurationError

STREAMS_END = 5
"""Seconds that open requests get to finish when a server stops."""

UNREAD = 60.0
"""Seconds after which a connection ends whose client takes nothing of what it was sent."""

NO_FAULTS = (
    "ASGI callable returned without completing handshake.",
    "ASGI callable returned without completing response.",
)
"""What uvicorn logs as errors of a WebSocket that was refused, and of a stream that was cut off."""

PATIENCE = 0.5
"""Seconds for which a client may take nothing of a complete answer when a server stops."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8471, show_default=True, type=click.IntRange(0, 65_535))
@command_body
async def echo(host: str, port: int) -> None:
    """Serve what proxies are checked against, where they can reach it.

    Answers any GET with the caller's address and headers, and nothing else.
    """
    from haulier.cli.worker import stopped_by_signals

    with contextlib.closing(listen(host, port)) as listener:
        server = http_server(_echo_app())
        click.echo(f"haulier echo answers on {address_of(listener)}", err=True)
        with stopped_by_signals(lambda _: setattr(server, "should_exit", True)):
            await server.serve(sockets=[listener])


@asynccontextmanager
async def local_echo() -> AsyncIterator[str]:
    """An echo server on a free loopback port for as long as the block lasts; yields its URL."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        server = http_server(_echo_app())
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            try:
                yield f"{address_of(listener)}/echo"
            finally:
                server.should_exit = True


def _echo_app() -> Any:
    from haulier.runners import echo as echo_server

    return echo_server.app


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigurationError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigurationError(
            f"port: cannot listen on {host}:{port}: {error.strerror}"
        ) from None
    # Accepted sockets inherit it. asyncio sets it only where the protocol was named, which is not
    # so here: an answer in two parts would wait up to 40 ms for the client's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Accepted sockets inherit it. A client that takes nothing would keep its connection, and
        # what it was sent, for as long as it likes.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD * 1000))
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def http_server(
    asgi: Any, *, ending: Callable[[], Awaitable[None]] | None = None, **options: Any
) -> Any:
    """A uvicorn server for an ASGI application, ended by its `should_exit`.

    `ending` ends the streams of the application, which would never end by themselves; `options` are
    more of uvicorn's.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to us: they must stop more than the server."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if ending is not None:
                await ending()
            kept = {each: each.transport.get_write_buffer_size() for each in self._connections()}
            asyncio.get_running_loop().call_later(PATIENCE, self._drop, kept)
            await super().shutdown(sockets)

        def _connections(self) -> list[Any]:
            return list(self.server_state.connections)

        def _drop(self, kept: dict[Any, int]) -> None:
            """End the connections of those who read nothing: they would keep us."""
            for each in self._connections():
                size = each.transport.get_write_buffer_size()
                if each.transport.is_closing() and size and size == kept.get(each):
                    each.transport.abort()

    logging.getLogger("uvicorn.error").addFilter(_is_a_fault)
    return Server(
        uvicorn.Config(
            asgi,
            log_config=None,
            access_log=False,
            # The echo server must report what the socket says, not what a proxy claims.
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=STREAMS_END,
            **{"ws": "none"} | options,
        )
    )


def _is_a_fault(record: logging.LogRecord) -> bool:
    return record.msg not in NO_FAULTS
