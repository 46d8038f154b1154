"""From what a client may ask of a bulk kind to the payload of its head job.

Clients name files below the operator's folders, and never what proxies are checked against. All
that is wrong with a request is gathered before it is refused, and then nothing is enqueued.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pydantic

from haulier.exceptions import (
    ConfigurationError,
    ForbiddenAddressError,
    Problem,
    ResourceNotAvailableError,
    ValidationError,
)
from haulier.runners.csv_input import read_accounts
from haulier.runners.media_uniq import MediaUniqStart
from haulier.runners.proxy_diagnostics import ProxyDiagnosticsStart
from haulier.runners.proxy_input import ProxySpec, read_proxies
from haulier.services.outbound import Guard
from haulier.services.payload import refused
from haulier.web.bodies import ImageWatermarkBody, MediaUniqBody, ProxyDiagnosticsBody
from haulier.web.options import WebOptions

ECHO_PATH = "/echo"

START_PATHS: Mapping[str, str] = {
    "media_uniq": "/api/v1/media-uniq/start",
    "proxy_diagnostics": "/api/v1/proxy-diagnostics/start",
}
"""Kinds whose payloads are not the client's alone to write, and where they are started."""


def refuse_started_elsewhere(kind: str) -> None:
    """Refuse a kind whose jobs a client does not describe by itself; raises ValidationError."""
    family = kind.partition(".")[0]
    if family in START_PATHS:
        raise ValidationError(
            "this kind is not enqueued directly",
            [Problem("kind", f"is started by POST {START_PATHS[family]}")],
        )


def refuse_task(kind: str, body: MediaUniqBody | ProxyDiagnosticsBody) -> None:
    """Refuse a start by the id of a task, of a kind that cannot look one up."""
    if body.task_id is not None:
        raise ResourceNotAvailableError(
            f"{kind} cannot look up a task by its id here: give the input itself"
        )


def check_enqueued(kind: str) -> None:
    """Raise ValidationError for a kind that has a start route of its own."""
    family = kind.partition(".")[0]
    if family in START_PATHS:
        raise ValidationError(
            "this kind is not enqueued directly",
            [Problem("kind", f"is started by POST {START_PATHS[family]}")],
        )


def media_uniq_start(body: MediaUniqBody, options: WebOptions) -> MediaUniqStart:
    """The payload of a `media_uniq` job; raises ValidationError. Looks at files, so it blocks."""
    problems: list[Problem] = []
    given: dict[str, Any] = {"sources": [], "spec": body.spec}
    with _gathered(problems):
        given["accounts"] = _accounts(body)
    if not body.sources:
        problems.append(Problem("sources", "name at least one picture or folder"))
    for number, source in enumerate(body.sources):
        with _gathered(problems):
            given["sources"].append(_existing(options.media_root, source, f"sources.{number}"))
    with _gathered(problems):
        if body.output is None:
            raise _fault("output", "name a folder")
        given["output"] = _folder(options.output_root, body.output, "output")
    with _gathered(problems):
        given["watermark"] = _watermark(body, options.media_root)
    if problems:
        raise ValidationError("media_uniq: the request was refused", problems)
    try:
        return MediaUniqStart.model_validate(given)
    except pydantic.ValidationError as error:
        raise refused("media_uniq", error) from None


def proxy_diagnostics_start(
    body: ProxyDiagnosticsBody, check_url: str, guard: Guard
) -> ProxyDiagnosticsStart:
    """The payload of a `proxy_diagnostics` job; raises ValidationError.

    Names are looked up only by the worker, whose own guard counts: this refuses at once what can
    be seen to be forbidden.
    """
    proxies = _proxies(body)
    problems = list(_forbidden(proxies, guard))
    if problems:
        raise ValidationError("the list of proxies was refused", problems)
    try:
        return ProxyDiagnosticsStart(
            proxies=proxies, check_url=check_url, tries=body.tries, timeout=body.timeout
        )
    except pydantic.ValidationError as error:
        raise refused("proxy_diagnostics", error) from None


def own_echo_url(server: tuple[str, int | None] | None) -> str:
    """The URL of this server's echo, from the address that a connection came in at (ASGI).

    Raises ConfigurationError for a server that proxies on this machine could not call.
    """
    host, port = server or ("", None)
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigurationError("this server is not on a loopback address: set a check URL")
    return f"http://{f'[{host}]' if ':' in host else host}:{port or 80}{ECHO_PATH}"


@contextmanager
def _gathered(problems: list[Problem]) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        problems.extend(error.problems)


def _fault(field: str, reason: str) -> ValidationError:
    return ValidationError("the request was refused", [Problem(field, reason)])


def _check_one_given(field: str, listed: list[str] | None, text: str | None) -> None:
    if (listed is None) == (text is None):
        raise _fault(field, f"give either {field} or {field}_csv")


def _accounts(body: MediaUniqBody) -> list[str]:
    _check_one_given("accounts", body.accounts, body.accounts_csv)
    return read_accounts(body.accounts_csv or "") if body.accounts is None else body.accounts


def _proxies(body: ProxyDiagnosticsBody) -> list[ProxySpec]:
    _check_one_given("proxies", body.proxies, body.proxies_csv)
    if body.proxies is None:
        return read_proxies(body.proxies_csv or "")
    for number, line in enumerate(body.proxies, start=1):
        if "\n" in line or "\r" in line:
            raise ValidationError(
                "the list of proxies was refused", [Problem("proxy", "holds a line break", number)]
            )
    return read_proxies("\n".join(body.proxies))


def _forbidden(proxies: list[ProxySpec], guard: Guard) -> Iterator[Problem]:
    for proxy in proxies:
        try:
            guard.check_host(proxy.host, proxy.port)
        except ForbiddenAddressError as error:
            yield Problem("host", str(error), proxy.line)


def _watermark(body: MediaUniqBody, root: Path) -> dict[str, Any] | None:
    mark = body.watermark
    if mark is None:
        return None
    given = mark.model_dump()
    field = "image" if isinstance(mark, ImageWatermarkBody) else "font"
    if given[field] is not None:
        given[field] = _existing(root, given[field], f"watermark.{field}")
    return given


def _existing(root: Path, given: str, field: str) -> str:
    """A file or folder below the root, without links; raises ValidationError."""
    path = _inside(root, given, field)
    try:
        if not path.exists():
            raise _fault(field, "there is no such file or folder")
        # A worker reads what it finds in a folder, so the links in it count as well.
        links = [entry for entry in path.iterdir() if entry.is_symlink()] if path.is_dir() else []
    except OSError as error:
        raise _fault(field, f"cannot be read: {error.strerror}") from None
    for link in links:
        _inside(root, str(link.relative_to(root.resolve())), field)
    return str(path)


def _folder(root: Path, given: str, field: str) -> str:
    """A folder below the root that exists or can be made; raises ValidationError."""
    path = _inside(root, given, field)
    try:
        if path.exists() and not path.is_dir():
            raise _fault(field, "is not a folder")
    except OSError as error:
        raise _fault(field, f"cannot be used: {error.strerror}") from None
    return str(path)


def _inside(root: Path, given: str, field: str) -> Path:
    """The real path of what is given relative to the root; raises ValidationError."""
    if Path(given).is_absolute():
        raise _fault(field, "must be relative to the server's folder")
    if ".." in Path(given).parts:
        raise _fault(field, "must not lead upwards with '..'")
    try:
        real, base = (root / given).resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError):
        raise _fault(field, "is not a usable path") from None
    if not real.is_relative_to(base):
        raise _fault(field, "leads out of the server's folder")
    return real
