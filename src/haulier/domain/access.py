"""Who asks, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LONGEST_NAME = 200
MOST_IN_SCOPE = 100
"""Kinds, or queues, that one token may be limited to."""


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
    """Somebody who was recognised: a name for the audit log, and what they may do.

    `credential` says by what: `token:ID`, `session:ID`, or `local`. `kinds` and `queues`, where
    they are not None, are the only ones whose jobs exist for them.
    """

    name: str
    access: Access
    credential: str = "local"
    kinds: frozenset[str] | None = None
    queues: frozenset[str] | None = None

    @property
    def scoped(self) -> bool:
        """Whether some jobs do not exist for them."""
        return self.kinds is not None or self.queues is not None

    def covers(self, kind: str, queue: str) -> bool:
        """Whether such jobs exist for them. A kind stands for those below it too."""
        return self.covers_kind(kind) and (self.queues is None or queue in self.queues)

    def covers_kind(self, kind: str) -> bool:
        """Whether jobs of this kind can exist for them."""
        if self.kinds is None:
            return True
        return any(kind == each or kind.startswith(f"{each}.") for each in self.kinds)


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token, which is not the token. Instants are microseconds, UTC."""

    id: str
    name: str
    access: Access
    kinds: frozenset[str] | None
    queues: frozenset[str] | None
    created_at: int
    created_by: str
    expires_at: int | None
    last_used_at: int | None = None
    revoked_at: int | None = None
    revoked_by: str | None = None

    def state(self, now: int) -> str:
        """`active`, `expired` or `revoked`, at an instant."""
        return _state(self.revoked_at, self.expires_at, now)

    def identity(self) -> Identity:
        """Whoever shows this token."""
        return Identity(self.name, self.access, f"token:{self.id}", self.kinds, self.queues)


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in. `source` is the address that it signed in from."""

    id: str
    name: str
    access: Access
    source: str
    created_at: int
    expires_at: int
    last_used_at: int | None = None
    revoked_at: int | None = None
    revoked_by: str | None = None

    def state(self, now: int) -> str:
        """`active`, `expired` or `revoked`, at an instant."""
        return _state(self.revoked_at, self.expires_at, now)

    def identity(self) -> Identity:
        """Whoever shows this session's cookie."""
        return Identity(self.name, self.access, f"session:{self.id}")


def _state(revoked_at: int | None, expires_at: int | None, now: int) -> str:
    if revoked_at is not None:
        return "revoked"
    return "expired" if expires_at is not None and expires_at <= now else "active"
