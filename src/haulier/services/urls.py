"""Store URLs: read, and shown to people without what is secret in them."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from haulier.exceptions import ConfigurationError

MASK = "***"

_SECRET_OPTIONS = frozenset({"passfile", "sslkey"})


def shown(url: str) -> str:
    """The URL with the password masked, for messages, tables and logs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _hidden(url)
    place = parts.netloc
    if place and "@" not in place and "@" in unquote(f"{parts.path}{parts.query}{parts.fragment}"):
        # A password with a / ? or # that was not encoded: what is before the @ is no host.
        return _hidden(url)
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


def _hidden(url: str) -> str:
    """Of a URL that nobody can read: nothing of what may be a password."""
    return f"{url.partition('://')[0]}://{MASK}"


def sqlite_url(path: str) -> str:
    """The URL of an SQLite file; all but what would mean something in a URL as people wrote it."""
    quoted = "".join(f"%{ord(each):02X}" if each in "%?#" else each for each in path)
    return f"sqlite:///{quoted}"


def nothing_at(where: str) -> ConfigurationError:
    """What is raised where a store was to be opened, not made, and there is none."""
    return ConfigurationError(
        f"there is no haulier store at {where}; look whether the URL is right, or enqueue "
        "something first"
    )


def own_options(url: str, names: frozenset[str]) -> tuple[str, dict[str, str]]:
    """The URL for the driver, and the options in its query that are ours.

    Raises ConfigurationError for one that is given twice or has no value, or for what is no URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"the store URL {_hidden(url)} cannot be read") from None
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
