"""What the operator decides about the HTTP API."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from haulier.exceptions import ConfigurationError
from haulier.runners.proxy_input import Target
from haulier.services.outbound import Guard
from haulier.web.live.options import LiveOptions

MAX_BODY = 20 * 1024 * 1024
"""Bytes of a request: room for the largest start payload (16 MiB) as a CSV in JSON's escapes."""

MAX_LINES = 1024 * 1024 * 1024
"""Bytes of a body that is read line by line, packed and unpacked."""

MAX_STREAMS = 8
"""Bodies of lines, and exports, that one caller may have under way at the same time."""

DEADLINE = 2.0

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """Settings of the HTTP API; raises ConfigurationError for a `check_url` that is none.

    Requests name pictures below `media_root` and folders below `output_root`, nothing else.
    `check_url` is what proxies are checked against; None means this server's own `/echo`. A store
    that does not answer a call within `deadline` seconds is told the client as unavailable. At most
    `max_body` bytes of a body are taken, `max_lines` of one that is read line by line, and each
    caller has at most `max_streams` of those, or exports, at the same time.
    `guard` says which URLs and proxies clients may name.
    `no_token`: whoever reaches a loopback address by a loopback name is an admin. `public_hosts`
    are the other names that this server may be asked for by.
    """

    media_root: Path
    output_root: Path
    version: str
    check_url: str | None = None
    max_body: int = MAX_BODY
    max_lines: int = MAX_LINES
    max_streams: int = MAX_STREAMS
    deadline: float = DEADLINE
    guard: Guard = field(default_factory=Guard)
    live: LiveOptions = field(default_factory=LiveOptions)
    no_token: bool = False
    public_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.public_hosts:
            if not _HOST.fullmatch(name):
                raise ConfigurationError(
                    f"public_hosts: {name[:200]!r} is not the name of a host, without port or path"
                )
        if self.check_url is not None:
            try:
                Target.parse(self.check_url)
            except ValueError as error:
                raise ConfigurationError(f"check_url: {error}") from None
