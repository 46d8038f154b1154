"""What the operator decides about the HTTP API."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from haulier.exceptions import ConfigurationError
from haulier.runners.proxy_input import Target
from haulier.services.outbound import Guard
from haulier.web.live.options import LiveOptions

MAX_BODY = 20 * 1024 * 1024
"""Bytes of a request: room for the largest start payload (16 MiB) as a CSV in JSON's escapes."""


DEADLINE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """Settings of the HTTP API; raises ConfigurationError for a `check_url` that is none.

    Requests name pictures below `media_root` and folders below `output_root`, nothing else.
    `check_url` is what proxies are checked against; None means this server's own `/echo`. A store
    that does not answer a call within `deadline` seconds is told the client as unavailable.
    `guard` says which URLs and proxies clients may name.
    """

    media_root: Path
    output_root: Path
    version: str
    check_url: str | None = None
    max_body: int = MAX_BODY
    deadline: float = DEADLINE
    guard: Guard = field(default_factory=Guard)
    live: LiveOptions = field(default_factory=LiveOptions)

    def __post_init__(self) -> None:
        if self.check_url is not None:
            try:
                Target.parse(self.check_url)
            except ValueError as error:
                raise ConfigurationError(f"check_url: {error}") from None
