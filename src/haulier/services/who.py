"""Who changes something."""

from __future__ import annotations

import getpass
import os
import socket

from haulier.domain.configuration import LONGEST_BY
from haulier.exceptions import Problem, ValidationError


def who(by: str | None = None) -> str:
    """Who does it: `by`, or where nobody says so, the user of this process and its host.

    Raises ValidationError for what cannot be kept.
    """
    if by is None:
        return _this_user()
    if not isinstance(by, str) or not 1 <= len(by) <= LONGEST_BY or not by.isprintable():
        reason = f"must be a text of 1 to {LONGEST_BY} printable characters"
        raise ValidationError("the change was refused", [Problem("by", reason)])
    return by


def _this_user() -> str:
    """In a container a user may have no name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = str(os.getuid())
    text = f"{user}@{socket.gethostname()}"
    return "".join(each for each in text if each.isprintable())[:LONGEST_BY]
