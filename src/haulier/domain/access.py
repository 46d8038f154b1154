"""Who asks, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Access(StrEnum):
    """What somebody may do, each more than the one before.

    viewer: look. operator: also start, stop, retry and delete work. admin: also change who may, and
    what holds for everybody.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def allows(self, needed: Access) -> bool:
        """Whether it is enough for what needs the other."""
        ranks = list(Access)
        return ranks.index(self) >= ranks.index(needed)


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who was recognised: a name for the audit log, and what they may do."""

    name: str
    access: Access
