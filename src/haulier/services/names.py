"""What the names of kinds and queues look like."""

from __future__ import annotations

from haulier.domain.names import is_dotted
from haulier.exceptions import ConfigurationError


def check_name(what: str, name: str) -> None:
    """Refuse a kind or queue name that is not a dotted name of at most 200 characters."""
    if not is_dotted(name):
        raise ConfigurationError(
            f"{what} {name[:60]!r} is not a dotted name of letters, digits and underscores"
        )
