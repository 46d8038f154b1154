"""What can be asked about who may do what: tokens, sessions, and the log of what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from haulier.client import call as make
from haulier.client.answers import Answer
from haulier.client.call import Call, Listing
from haulier.domain.access import Access


class Me(Answer):
    """Who the server takes you for, and by what."""

    name: str
    role: Access
    credential: str
    kinds: tuple[str, ...] | None
    queues: tuple[str, ...] | None


class Token(Answer):
    """What is known of a token, which is not the token."""

    id: str
    name: str
    role: Access
    state: str
    kinds: tuple[str, ...] | None
    queues: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None


class NewToken(Token):
    """A new token. `token` itself is told this once, and not shown."""

    token: str = Field(repr=False)


class Session(Answer):
    """A browser that is signed in, or was."""

    id: str
    name: str
    role: Access
    state: str
    source: str
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None


class Entry(Answer):
    """One thing that somebody did. `status` is that of the answer, `digest` chains the log."""

    seq: int
    at: datetime
    who: str
    credential: str
    source: str
    action: str
    target: Mapping[str, Any]
    status: int | None
    request: str | None
    digest: str


def me() -> Call[Me]:
    """Who the server takes you for."""
    return make.get("/session", Me)


def tokens() -> Call[tuple[Token, ...]]:
    """All tokens that ever were, the newest first."""
    return make.whole("/tokens", "tokens", Token)


def create_token(
    role: Access | str,
    name: str,
    *,
    expires: str = "90d",
    kinds: Sequence[str] | None = None,
    queues: Sequence[str] | None = None,
) -> Call[NewToken]:
    """Make a token, named for whose it is, good for so long (`12h`, `30d`, `never`)."""
    scope = make.given_of({"kinds": kinds, "queues": queues})
    body = {"role": str(role), "name": name, "expires": expires, **scope}
    return make.post("/tokens", NewToken, body, repeatable=False)


def revoke(token_id: str) -> Call[None]:
    """Revoke a token or a session, for good, within 5 s also on open streams."""
    return make.remove(f"/tokens/{make.segment(token_id)}", token_id)


def sessions() -> Call[tuple[Session, ...]]:
    """Browsers that are signed in, and those that were."""
    return make.whole("/sessions", "sessions", Session)


def audit(*, page: int = 100) -> Listing[Entry]:
    """Who did what, the latest first."""
    return make.listing("/audit", "entries", Entry, {"limit": page}, by="before")
