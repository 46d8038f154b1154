"""Which addresses a user may have us call: rules for hosts, names and IP addresses.

Whoever can name a URL could otherwise have the server ask its own network for things (server-side
request forgery). Everything here is refused unless it is plainly a public host: a deny list of
notations would always miss one, so only one notation of each address is understood at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Self
from urllib.parse import urlsplit

from haulier.exceptions import ConfigurationError, ForbiddenAddressError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_URL = 2_000
LONGEST_NAME = 253
PORTS = {"http": 80, "https": 443}
"""The schemes of a URL that may be called, each with the port that it means."""

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_NUMBER = re.compile(r"([0-9]+|0x[0-9a-f]*)\Z")
"""A last label that makes a browser read the whole host as an IPv4 address (WHATWG URL, "ends in
a number checker"); so do most C libraries, in octal, hexadecimal and with fewer than four parts."""

_SPECIAL_V4 = {
    IPv4Network(network): why
    for network, why in {
        "0.0.0.0/8": "an unspecified address",
        "10.0.0.0/8": "a private address",
        "100.64.0.0/10": "an address of a carrier's network",
        "127.0.0.0/8": "a loopback address",
        "168.63.129.16/32": "a cloud's metadata address",
        "169.254.0.0/16": "a link-local address",
        "172.16.0.0/12": "a private address",
        "192.0.0.0/24": "a reserved address",
        "192.0.2.0/24": "an address for documentation",
        "192.31.196.0/24": "a reserved address",
        "192.52.193.0/24": "a reserved address",
        "192.88.99.0/24": "an address of a 6to4 relay",
        "192.168.0.0/16": "a private address",
        "192.175.48.0/24": "a reserved address",
        "198.18.0.0/15": "an address for benchmarks",
        "198.51.100.0/24": "an address for documentation",
        "203.0.113.0/24": "an address for documentation",
        "224.0.0.0/4": "a multicast address",
        "240.0.0.0/4": "a reserved address",
    }.items()
}
_SPECIAL_V6 = {
    IPv6Network(network): why
    for network, why in {
        "::/128": "an unspecified address",
        "::1/128": "a loopback address",
        "::ffff:0:0/96": "an IPv4 address in IPv6's clothes",
        "::ffff:0:0:0/96": "an IPv4 address in IPv6's clothes",
        "::/96": "an IPv4 address in IPv6's clothes",
        "64:ff9b::/96": "an address of NAT64",
        "64:ff9b:1::/48": "an address of NAT64",
        "2001::/32": "an address of Teredo",
        "2001::/23": "a reserved address",
        "2001:db8::/32": "an address for documentation",
        "2002::/16": "an address of 6to4",
        "3fff::/20": "an address for documentation",
        "fc00::/7": "a private address",
        "fe80::/10": "a link-local address",
        "fec0::/10": "a private address",
        "ff00::/8": "a multicast address",
    }.items()
}
"""What is not public: the registries of special-purpose addresses of IANA (RFC 6890 and its
successors), and what carries an IPv4 address within an IPv6 one (RFC 4291, 6052, 3056, 4380)."""

_PUBLIC_V6 = IPv6Network("2000::/3")
"""All that has been given out as global unicast (RFC 4291 section 2.4)."""

_ISATAP = (0x00005EFE, 0x02005EFE)
"""The third quarter of an interface identifier that embeds an IPv4 address (RFC 5214)."""

_PRIVATE_NAMES = (
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "home.arpa",
    "onion",
    "alt",
)
"""Names, with all below them, that are no public ones (RFC 6761, 6762, 8375, ICANN's list)."""

_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "instance-data"})


def special(address: Address) -> str | None:
    """What kind of address this is, if it is no public one."""
    if isinstance(address, IPv4Address):
        return next((why for network, why in _SPECIAL_V4.items() if address in network), None)
    if address.scope_id is not None:
        return "an address with a scope"
    for network, why in _SPECIAL_V6.items():
        if address in network:
            return why
    if address not in _PUBLIC_V6:
        return "a reserved address"
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return "an IPv4 address in IPv6's clothes"
    return None


def private_name(name: str) -> str | None:
    """Why a host name is not a public one, if it is not."""
    if name in _METADATA_NAMES:
        return "is a cloud's metadata name"
    if any(name == private or name.endswith(f".{private}") for private in _PRIVATE_NAMES):
        return "is a name of a private network"
    if "." not in name:
        return "has no dot, so it is a name of a private network"
    return None


def read_host(text: str) -> Address | str:
    """The address, or the name in lower case, that a host is; raises ForbiddenAddressError.

    IPv6 stands with or without brackets. Every other spelling than the usual one is refused, since
    libraries disagree on what it means: IPv4 in octal, hexadecimal or with fewer parts, a final
    dot, a scope, and characters beyond ASCII, some of which count as digits and dots.
    """
    if not text or not text.isascii() or not text.isprintable():
        raise ForbiddenAddressError(
            "the host must be ASCII; an international name is written with xn--"
        )
    host = text.lower()
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if ":" in host or bracketed:
        try:
            return IPv6Address(host)
        except ValueError:
            raise ForbiddenAddressError("the host is no IPv6 address") from None
    labels = host.split(".")
    if _NUMBER.match(labels[-1]) or (not labels[-1] and len(labels) > 1):
        try:
            return IPv4Address(host)
        except ValueError:
            raise ForbiddenAddressError(
                "the host is an IP address in an unusual notation, or ends with a dot"
            ) from None
    if len(host) > LONGEST_NAME or not all(_LABEL.match(label) for label in labels):
        raise ForbiddenAddressError("the host is neither a name nor an IP address")
    return host


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a URL leads: `host` is the address or the lower-case name."""

    scheme: str
    host: Address | str
    port: int


def read_url(url: str) -> Destination:
    """Where an http or https URL leads; raises ForbiddenAddressError for one that is none.

    Only what every library reads alike is a URL here: no credentials, no backslashes, nothing but
    printable ASCII.
    """
    if len(url) > LONGEST_URL:
        raise ForbiddenAddressError(f"the URL is longer than {LONGEST_URL:,} characters")
    if not url.isascii() or not url.isprintable() or set(url) & set(' \\"<>^`{|}'):
        raise ForbiddenAddressError("the URL must be ASCII; percent-encode what is not")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ForbiddenAddressError("the URL cannot be read") from None
    if parts.scheme not in PORTS or not url.lower().startswith(f"{parts.scheme}://"):
        raise ForbiddenAddressError("the URL must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ForbiddenAddressError("the URL must not hold credentials")
    if port == 0 or parts.netloc.endswith(":"):
        raise ForbiddenAddressError("the URL has no valid port")
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    return Destination(parts.scheme, read_host(host), port or PORTS[parts.scheme])


@dataclass(frozen=True, slots=True)
class AllowList:
    """What an operator lets be called although it is not public.

    Each name and network stands with a port, or with None for all ports.
    """

    names: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[tuple[Network, int | None], ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """Each entry is a host name, an address or a network, if need be with `:port` after it.

        IPv6 with a port is written `[::1]:8080`. Raises ConfigurationError that names the entry.
        """
        names: set[tuple[str, int | None]] = set()
        networks: list[tuple[Network, int | None]] = []
        for entry in entries:
            host, port = _split_port(entry)
            try:
                networks.append((ip_network(host), port))
            except ValueError:
                try:
                    name = read_host(host)
                except ForbiddenAddressError:
                    name = ""
                if not isinstance(name, str) or not name:
                    raise _no_entry(entry) from None
                names.add((name, port))
        return cls(frozenset(names), tuple(networks))

    def has_name(self, name: str, port: int) -> bool:
        """Whether a host may be called by this name, wherever it leads."""
        return (name, None) in self.names or (name, port) in self.names

    def has_address(self, address: Address, port: int, *, exactly: bool = False) -> bool:
        """Whether an address may be called; `exactly`: by an entry with this very port."""
        wanted = {port} if exactly else {port, None}
        return any(
            at in wanted and network.version == address.version and address in network
            for network, at in self.networks
        )


def _split_port(entry: str) -> tuple[str, int | None]:
    text = entry.strip()
    host, port = text, ""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise _no_entry(entry)
        port = rest[1:]
        if rest and not port:
            raise _no_entry(entry)
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not port:
            raise _no_entry(entry)
    if not port:
        return host, None
    if not (port.isascii() and port.isdecimal() and 0 < int(port) <= 65_535):
        raise _no_entry(entry)
    return host, int(port)


def _no_entry(entry: str) -> ConfigurationError:
    return ConfigurationError(
        f"allowed_hosts: {entry[:100]!r} is no host, address or network, with or without a port"
    )


def aliases(interfaces: Mapping[str, Iterable[str]]) -> frozenset[Address]:
    """The addresses of a machine's own interfaces, as `interface: texts`; scopes are left out."""
    found: set[Address] = set()
    for texts in interfaces.values():
        for text in texts:
            try:
                found.add(ip_address(text.partition("%")[0]))
            except ValueError:
                continue
    return frozenset(found)
