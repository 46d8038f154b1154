"""Store URLs: read, and shown to people without what is secret in them."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from haulier.exceptions import ConfigurationError

MASK = "***"

_SECRET_OPTIONS = frozenset({"passfile", "sslkey"})


def shown(url: str) -> str:
    """The URL with the password masked, for messages, tables and logs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _beginning(url)
    if _is_torn(parts):
        return _beginning(url)
    place = parts.netloc
    user, at, host = place.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        place = f"{name}{colon and ':' + MASK}@{host}"
    options = [
        (name, MASK if name in _SECRET_OPTIONS or "password" in name else value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    query = urlencode(options, safe="*{}/:,")
    return _joined(parts, place, query)


def _is_torn(parts: SplitResult) -> bool:
    """Whether a password with a bare `/`, `?` or `#` in it has ended the place too early."""
    place = parts.netloc
    host, colon, port = place.rpartition(":")
    if "@" in place or not colon or place.endswith("]"):
        return False
    if "@" in parts.path or "@" in parts.fragment:
        return True
    return "@" in parts.query and not (host and port.isascii() and port.isdigit())


def _beginning(url: str) -> str:
    _, at, tail = url.rpartition("@")
    return f"{url.partition('://')[0]}://{MASK}{at and at + tail}"


def own_options(url: str, names: frozenset[str]) -> tuple[str, dict[str, str]]:
    """The URL for the driver, and the options in its query that are ours.

    Raises ConfigurationError for one that is given twice or has no value.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"{shown(url)} is no URL: {error}") from None
    theirs: list[tuple[str, str]] = []
    ours: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in names:
            theirs.append((name, value))
        elif name in ours or not value:
            raise ConfigurationError(f"the store URL's option {name} needs exactly one value")
        else:
            ours[name] = value
    query = urlencode(theirs)
    return _joined(parts, parts.netloc, query), ours


def _joined(parts: SplitResult, place: str, query: str) -> str:
    """The URL again. urlunsplit would drop the empty place of `sqlite:////folder/file`."""
    tail = f"?{query}" if query else ""
    if parts.fragment:
        tail += f"#{parts.fragment}"
    return f"{parts.scheme}://{place}{parts.path}{tail}" if parts.scheme else parts.path + tail


def positive_int(options: dict[str, str], name: str, default: int) -> int:
    """An option that is a whole number, 1 or more; raises ConfigurationError."""
    text = options.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigurationError(f"the store URL's option {name} is a number, 1 or more")
    return int(text)
