"""The guard before every connection to an address that a user gave.

A name is resolved once, all its addresses are checked, and what is connected to is one of those:
a name that leads elsewhere a moment later (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address

from haulier.domain.addresses import (
    Address,
    AllowList,
    Destination,
    aliases,
    private_name,
    read_host,
    read_url,
    special,
)
from haulier.exceptions import ForbiddenAddressError

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a name and a port to all its addresses, as texts; raises OSError."""

_FRESH = 10.0
"""Seconds for which this machine's own addresses are not asked for again."""


async def system_resolve(host: str, port: int) -> list[str]:
    """All addresses of a name by the system's resolver; raises OSError."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "the name cannot be looked up") from error
    # The order is the system's choice (RFC 6724).
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def system_aliases() -> frozenset[Address]:
    """The addresses of this machine's own network interfaces."""
    import psutil

    return aliases(
        {
            name: [address.address for address in addresses]
            for name, addresses in psutil.net_if_addrs().items()
        }
    )


class Guard:
    """Says where connections may be made for users: to what is public, or the operator allows.

    `allowed` has the operator's entries (see `AllowList.parse`); raises ConfigurationError for a
    bad one. `own_ports` are those of haulier's own servers: on this machine they are reached only
    by an entry that names the port.
    """

    def __init__(
        self,
        allowed: Iterable[str] = (),
        *,
        own_ports: Iterable[int] = (),
        resolve: Resolve = system_resolve,
        own_addresses: Callable[[], frozenset[Address]] = system_aliases,
    ) -> None:
        self._allowed = AllowList.parse(allowed)
        self._own_ports = frozenset(own_ports)
        self._resolve = resolve
        self._ask_own_addresses = own_addresses
        self._own: tuple[float, frozenset[Address]] = (float("-inf"), frozenset())

    def check_url(self, url: str) -> Destination:
        """Where an http(s) URL leads, as far as can be told without asking for its addresses.

        Raises ForbiddenAddressError. A name that passes is checked again when it is connected to.
        """
        where = read_url(url)
        self._check(where.host, where.port)
        return where

    def check_host(self, host: str, port: int) -> None:
        """The same for the host and the port of a proxy."""
        self._check(read_host(host), port)

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses that may be connected to for a host, in the order to try them.

        Raises ForbiddenAddressError when any of them is forbidden: who has one public address
        beside a private one is up to something. Raises OSError for a name without addresses.
        """
        where = read_host(host)
        self._check(where, port)
        if not isinstance(where, str):
            return [str(where)]
        found = [ip_address(text) for text in await self._resolve(where, port)]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        # Whoever is allowed by its name may stand anywhere.
        if not self._allowed.has_name(where, port):
            for address in found:
                self._check_address(address, port, "the host's name leads to")
        return [str(address) for address in found]

    def _own_addresses(self) -> frozenset[Address]:
        now = time.monotonic()
        if now - self._own[0] > _FRESH:
            self._own = now, self._ask_own_addresses()
        return self._own[1]

    def _check(self, host: Address | str, port: int) -> None:
        if not isinstance(host, str):
            self._check_address(host, port, "the host is")
        elif not self._allowed.has_name(host, port):
            why = private_name(host)
            if why is not None:
                raise ForbiddenAddressError(f"the host {why}, which is not allowed here")

    def _check_address(self, address: Address, port: int, how: str) -> None:
        # The reason tells the class and not the address: who asks would else learn our network.
        why = special(address)
        own = why == "a loopback address" or address in self._own_addresses()
        if own and port in self._own_ports:
            if not self._allowed.has_address(address, port, exactly=True):
                raise ForbiddenAddressError(f"{how} a port of haulier itself")
            return
        if own and why is None:
            why = "an address of this machine"
        if why is not None and not self._allowed.has_address(address, port):
            raise ForbiddenAddressError(f"{how} {why}, which is not allowed here")
