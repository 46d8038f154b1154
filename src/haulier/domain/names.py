"""What kinds and queues are called."""

from __future__ import annotations

import re

MAX_NAME = 200

_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")


def is_dotted(name: str) -> bool:
    """Whether it is a dotted name of letters, digits and underscores, and not too long."""
    return len(name) <= MAX_NAME and _DOTTED.match(name) is not None
