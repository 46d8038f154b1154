"""Where a server is, and how it is spoken to."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from haulier.exceptions import ConfigurationError

TOKEN_VARIABLE = "HAULIER_TOKEN"  # noqa: S105 - the name of a variable
SERVER_VARIABLE = "HAULIER_SERVER"
DEFAULT_SERVER = "http://127.0.0.1:8470"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The address of a server, who asks it, and for how long.

    url: with https, certificates are verified; `ca_file` names those of a private authority.
    token: never shown. timeout: seconds for each answer. retries: how often a request that is safe
    to repeat is repeated, and patience: the longest that a server may ask to wait before that.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    retries: int = 4
    patience: float = 10.0
    ca_file: Path | str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("the server's address must begin with http:// or https://")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError("the server's address holds more than a host and a path")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigurationError("the token holds characters that no token has")

    @classmethod
    def of(cls, url: str | None, token: str | None, **options: Any) -> Server:
        """As given, else as HAULIER_SERVER and HAULIER_TOKEN say."""
        url = url or os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER
        token = token or os.environ.get(TOKEN_VARIABLE) or None
        return cls(url=url.rstrip("/"), token=token, **options)

    def settings(self) -> dict[str, Any]:
        """The settings of an HTTP client. It follows no redirect, which may lead anywhere."""
        headers = {
            "Accept": "application/json",
            "User-Agent": f"haulier/{version('haulier')}",
        }
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        verify = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True
        return {
            "headers": headers,
            "timeout": httpx.Timeout(self.timeout),
            "verify": verify,
            "trust_env": False,
            "follow_redirects": False,
        }
