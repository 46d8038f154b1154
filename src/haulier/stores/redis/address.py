"""Store URLs of Redis: where the server is, who we are there, and what of the URL is ours."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)

from haulier.exceptions import ConfigurationError
from haulier.services.urls import own_options, shown

DEFAULT_PREFIX = "haulier:"
DURABILITIES = ("aof", "none")
OUR_OPTIONS = frozenset({"prefix", "durability", "connections", "sentinel_tls"})
TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
}
SENTINEL_PORT = 26379
CONNECT_SECONDS = 5.0

_SCHEMES = {
    "redis": Connection,
    "rediss": SSLConnection,
    "unix": UnixDomainSocketConnection,
    "redis+unix": UnixDomainSocketConnection,
    "redis+sentinel": Connection,
    "rediss+sentinel": SSLConnection,
}
SCHEMES = frozenset(_SCHEMES)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is. `arguments` may hold the password: never show them; show `text`.

    `sentinel_tls`: how Sentinels are spoken to by TLS; None: in clear text.
    """

    text: str
    connection: type[AbstractConnection]
    arguments: dict[str, Any] = field(repr=False)
    prefix: str = DEFAULT_PREFIX
    durability: str = "aof"
    connections: int = 16
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str | None = None
    sentinel_tls: dict[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str) -> Address:
        """The address that a URL names; raises ConfigurationError."""
        theirs, ours = own_options(url, OUR_OPTIONS)
        scheme = urlsplit(theirs).scheme
        if scheme == "redis+cluster":
            raise ConfigurationError(
                "Redis Cluster: give the URL of one node, redis://host:port/?prefix={haulier}: — "
                "with a hash tag in it, all keys of the store lie in one slot of that node"
            )
        if scheme not in _SCHEMES:
            raise ConfigurationError(f"{shown(url)} is not a Redis URL")
        try:
            return cls._read(url, theirs, ours)
        except ValueError as error:
            raise ConfigurationError(f"{shown(url)}: {error}") from None

    @classmethod
    def _read(cls, url: str, theirs: str, ours: dict[str, str]) -> Address:
        parts = urlsplit(theirs)
        kind = _SCHEMES[parts.scheme]
        arguments = _common()
        arguments |= _credentials(parts.netloc)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        place, path = parts.netloc.rpartition("@")[2], parts.path
        service: str | None = None
        sentinels: tuple[tuple[str, int], ...] = ()
        if kind is UnixDomainSocketConnection:
            arguments["path"] = unquote(path)
            arguments["db"] = _database(options.pop("db", ""))
        elif parts.scheme.endswith("+sentinel"):
            _, service, *rest = (*path.split("/"), "")
            if not service:
                raise ValueError(
                    "a Sentinel URL ends with its service: redis+sentinel://host:26379/name/0"
                )
            service = unquote(service)
            arguments["db"] = _database(rest[0])
            sentinels = tuple(_host_and_port(each, SENTINEL_PORT) for each in place.split(","))
        else:
            arguments["host"], arguments["port"] = _host_and_port(place, 6379)
            arguments["db"] = _database(options.pop("db", "") or path.strip("/"))
        tls = _tls(options) if kind is SSLConnection else None
        arguments |= tls or {}
        if options:
            raise ValueError(f"unknown options {', '.join(sorted(options))}")
        durability = ours.get("durability", "aof")
        if durability not in DURABILITIES:
            raise ValueError(f"durability is one of {', '.join(DURABILITIES)}")
        connections = ours.get("connections", "16")
        if not connections.isascii() or not connections.isdigit() or int(connections) < 2:
            raise ValueError("connections is a number, 2 or more")
        return cls(
            text=shown(url),
            connection=kind,
            arguments=arguments,
            prefix=ours.get("prefix", DEFAULT_PREFIX),
            durability=durability,
            connections=int(connections),
            sentinels=sentinels,
            service=service,
            sentinel_tls=tls if _by_tls(parts.scheme, ours.get("sentinel_tls")) else None,
        )


def _tls(options: dict[str, str]) -> dict[str, Any]:
    """Takes the options of TLS out, as the driver has them."""
    found: dict[str, Any] = {name: options.pop(name) for name in TLS_OPTIONS & options.keys()}
    if "ssl_check_hostname" in found:
        found["ssl_check_hostname"] = found["ssl_check_hostname"] != "false"
    return found


def _by_tls(scheme: str, said: str | None) -> bool:
    """Whether Sentinels are asked by TLS: like the server that they lead to, unless told."""
    if said is not None and scheme != "rediss+sentinel":
        raise ValueError("sentinel_tls is for rediss+sentinel://")
    if said not in (None, "yes", "no"):
        raise ValueError("sentinel_tls is yes or no")
    return said != "no"


def _common() -> dict[str, Any]:
    # Deadlines are ours, for whole calls; the driver must neither wait nor try again by itself.
    arguments: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_SECONDS,
        "health_check_interval": 0,
    }
    # So that the driver does not introduce itself, which a limited user may not do.
    known = inspect.signature(AbstractConnection.__init__).parameters
    if "driver_info" in known:
        arguments["driver_info"] = None
    else:
        arguments |= {"lib_name": None, "lib_version": None}
    return arguments


def _credentials(netloc: str) -> dict[str, Any]:
    user, at, _ = netloc.rpartition("@")
    if not at:
        return {}
    name, colon, password = user.partition(":")
    found = {"username": unquote(name) or None}
    if colon:
        found["password"] = unquote(password)
    return found


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("the database is a number")
    return int(text or 0)


def _host_and_port(place: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    try:
        port = parts.port
    except ValueError:
        # Its own text quotes what may be a password.
        raise ValueError("the port is a number; in a password, / ? # @ are escaped") from None
    return parts.hostname or "localhost", port or default
