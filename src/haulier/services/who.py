"""Who changes something, where nobody says so."""

from __future__ import annotations

import getpass
import os
import socket

from haulier.domain.configuration import LONGEST_BY


def who() -> str:
    """The user of this process and its host. In a container a user may have no name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = str(os.getuid())
    text = f"{user}@{socket.gethostname()}"
    return "".join(each for each in text if each.isprintable())[:LONGEST_BY]
