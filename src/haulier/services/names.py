"""What the names of kinds and queues look like."""

from __future__ import annotations

import re

from haulier.exceptions import ConfigurationError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")
"""A dotted name."""

MAX_NAME = 200


def check_name(what: str, name: str) -> None:
    """Refuse a kind or queue name that is not a dotted name of at most 200 characters."""
    if len(name) > MAX_NAME or not NAME.match(name):
        raise ConfigurationError(
            f"{what} {name[:60]!r} is not a dotted name of letters, digits and underscores"
        )
