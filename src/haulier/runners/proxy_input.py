"""Proxies and check URLs as operators write them. Every bad line is named, none is echoed.

A line may hold a password in any place when it is malformed, so no reason repeats any of it.
"""

from __future__ import annotations

import csv
import ipaddress
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self
from urllib.parse import unquote, urlsplit

import pydantic
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from haulier.runners.csv_input import DELIMITERS, ProblemList
from haulier.services.secrets import Secret

COLUMNS = ("scheme", "host", "port", "username", "password")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")
_LONGEST_NAME = 253


class Scheme(StrEnum):
    """How a proxy is spoken to: HTTP (RFC 9110), the same inside TLS, or SOCKS5 (RFC 1928)."""

    HTTP = "http"
    HTTPS = "https"
    SOCKS5 = "socks5"


class ProxySpec(BaseModel):
    """One proxy. `line` is where it stood in the operator's list, counted from 1."""

    # Without hiding, pydantic's own message would print the whole input, the password with it.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    scheme: Scheme = Scheme.HTTP
    host: str
    port: int = Field(ge=1, le=65535)
    username: str | None = Field(default=None, min_length=1, max_length=255)
    password: Secret | None = None
    line: int | None = Field(default=None, ge=1)

    @field_validator("host")
    @classmethod
    def _host_syntax(cls, value: str) -> str:
        host = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if not is_host(host):
            raise PydanticCustomError("host", "is neither a host name nor an IP address")
        return host.lower()

    @field_validator("username")
    @classmethod
    def _username_syntax(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise PydanticCustomError("username", "holds control characters")
        return value

    @model_validator(mode="after")
    def _credentials_complete(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise PydanticCustomError(
                "credentials", "a user name and a password are given together or not at all"
            )
        if self.username and ":" in self.username and self.scheme is not Scheme.SOCKS5:
            # RFC 7617 section 2: the first colon ends the user name.
            raise PydanticCustomError("credentials", "an HTTP user name cannot hold a colon")
        return self

    @property
    def address(self) -> str:
        """`scheme://host:port`: what may be shown of a proxy."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def has_credentials(self) -> bool:
        """Whether a user name and a password are sent."""
        return self.username is not None


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for through the proxy, taken apart."""

    url: str
    tls: bool
    host: str
    port: int
    authority: str
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """The target of a check URL; raises ValueError with the reason for one that is none."""
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("must be ASCII without spaces; percent-encode what is not")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("is not a URL") from None
        tls = parts.scheme == "https"
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("must be an http or https URL with a host")
        if "@" in parts.netloc:
            raise ValueError("must not hold credentials")
        if not is_host(host) or port == 0:
            raise ValueError("has no valid host and port")
        bracketed = f"[{host}]" if ":" in host else host
        authority = bracketed if port is None else f"{bracketed}:{port}"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(
            url=f"{parts.scheme}://{authority}{path}",
            tls=tls,
            host=host,
            port=port or (443 if tls else 80),
            authority=authority,
            path=path,
        )


def is_host(text: str) -> bool:
    """Whether the text is an IP address without brackets or scope, or a host name (RFC 1123)."""
    if "%" in text:
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        # A last label of digits alone is a mistyped IPv4 address, never a name.
        return (
            len(text) <= _LONGEST_NAME
            and all(_LABEL.match(label) for label in labels)
            and not labels[-1].isdigit()
        )
    return True


def read_proxies(text: str) -> list[ProxySpec]:
    """The proxies of a list or a CSV table, in order.

    A list has one proxy a line: `scheme://user:password@host:port` with percent-encoded
    credentials (RFC 3986), `host:port`, or `host:port:user:password` taken literally; the scheme
    is http unless given. A table has a header with the columns scheme, host, port, username and
    password in any order, of which host and port are needed. Blank lines and lines that start
    with `#` are passed over.

    Raises ValidationError with a problem for each bad line, repeated proxies included.
    """
    lines = _significant(text.removeprefix("\ufeff"))
    problems = ProblemList(shown=sys.maxsize)
    found: list[ProxySpec] = []
    seen: dict[tuple[str, str, int, str | None], int] = {}
    for number, fields in _rows(lines, problems):
        spec = _spec(number, fields, problems)
        if spec is None:
            continue
        key = (spec.scheme, spec.host, spec.port, spec.username)
        first = seen.setdefault(key, number)
        if first == number:
            found.append(spec)
        else:
            problems.add(number, "proxy", f"is the same as on line {first}")
    if not problems and not found:
        problems.add(None, "proxies", "the list holds no proxy")
    problems.raise_if_any("the list of proxies was refused")
    return found


def _significant(text: str) -> list[tuple[int, str]]:
    """The lines that say something, with their physical numbers."""
    numbered = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
    return [
        (number, stripped)
        for number, line in numbered
        if (stripped := line.strip()) and not stripped.startswith("#")
    ]


def _rows(
    lines: list[tuple[int, str]], problems: ProblemList
) -> Iterator[tuple[int, dict[str, str]]]:
    """The given fields of each line that can be taken apart; the others become problems."""
    header = _header(lines[0][1]) if lines else None
    if header is None:
        for number, line in lines:
            try:
                yield number, _split_line(line)
            except _BadLineError as error:
                problems.add(number, error.field, error.reason)
        return
    delimiter, names = header
    faults = _header_faults(names)
    for fault in faults:
        problems.add(lines[0][0], "header", fault)
    if faults:
        return
    for number, line in lines[1:]:
        try:
            yield number, _split_row(line, delimiter, names)
        except _BadLineError as error:
            problems.add(number, error.field, error.reason)


def _spec(number: int, fields: Mapping[str, str], problems: ProblemList) -> ProxySpec | None:
    if fields.get("password") == "":
        problems.add(number, "password", "is empty")
        return None
    try:
        # As the strings they are: pydantic makes the port a number and says so if it is none.
        return ProxySpec.model_validate({**fields, "line": number})
    except pydantic.ValidationError as error:
        for item in error.errors(include_input=False, include_url=False, include_context=False):
            field = str(item["loc"][0]) if item["loc"] else "credentials"
            problems.add(number, field, item["msg"])
        return None


class _BadLineError(Exception):
    """A line that cannot be taken apart; never leaves this module."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(field, reason)


def _header(line: str) -> tuple[str, list[str]] | None:
    """The delimiter and the column names, if the line is a table's header."""
    for delimiter in DELIMITERS:
        names = [name.strip().strip('"').lower() for name in line.split(delimiter)]
        if {"host", "port"} <= set(names):
            return delimiter, names
    return None


def _header_faults(names: list[str]) -> list[str]:
    unknown = [
        f"column {number} is none of {', '.join(COLUMNS)}"
        for number, name in enumerate(names, start=1)
        if name not in COLUMNS
    ]
    return unknown + [f"has the column {name} twice" for name in COLUMNS if names.count(name) > 1]


def _split_row(line: str, delimiter: str, names: list[str]) -> dict[str, str]:
    # Each physical line is a row of its own: no field of a proxy holds a line break, and an
    # unclosed quote then spoils its own line instead of all that follow.
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        raise _BadLineError("proxy", "is not a row of CSV; a quote is not closed") from None
    if len(cells) != len(names):
        raise _BadLineError("proxy", f"has {len(cells)} values for {len(names)} columns")
    given = dict(zip(names, cells, strict=True))
    # A password keeps its spaces; around the others they are slips of the pen.
    return {
        name: value if name == "password" else value.strip()
        for name, value in given.items()
        if value.strip()
    }


def _split_line(line: str) -> dict[str, str]:
    scheme, mark, rest = line.partition("://")
    # "://" may also stand in the password of a line without a scheme.
    if mark and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum():
        return {"scheme": scheme.lower(), **_split_authority(rest)}
    host, rest = _cut_host(line)
    port, *credentials = rest.split(":", 2)
    if credentials and port.isdigit():
        if len(credentials) < 2:
            raise _BadLineError("password", "is missing")
        return {"host": host, "port": port, "username": credentials[0], "password": credentials[1]}
    return _split_authority(line)


def _split_authority(text: str) -> dict[str, str]:
    """The parts of `user:password@host:port`, its credentials percent-decoded."""
    # The last "@" counts: a password that was not percent-encoded may hold others.
    userinfo, mark, location = text.rpartition("@")
    host, port = _cut_host(location.removesuffix("/"))
    if not port:
        raise _BadLineError("port", "is missing")
    fields = {"host": host, "port": port}
    if mark:
        username, colon, password = userinfo.partition(":")
        if not colon:
            raise _BadLineError("password", "is missing")
        try:
            fields["username"] = unquote(username, errors="strict")
            fields["password"] = unquote(password, errors="strict")
        except UnicodeDecodeError:
            raise _BadLineError("credentials", "are not percent-encoded UTF-8") from None
    return fields


def _cut_host(text: str) -> tuple[str, str]:
    """The host, and what follows the colon after it; an IPv6 address stands in brackets."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if not rest.startswith(":"):
            return host, ""
        return host, rest[1:]
    host, _, rest = text.partition(":")
    return host, rest
