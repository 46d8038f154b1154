"""Tokens, sessions and the audit log, as the API takes and shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from haulier.domain.access import Access, Identity, Session, Token
from haulier.domain.job import MICROSECOND
from haulier.services.audit import Logged
from haulier.services.tokens import LONGEST

State = Literal["active", "expired", "revoked"]


class _Taken(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class TokenBody(_Taken):
    """A token that is to be made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"role": "operator", "name": "deploys", "expires": "30d"}],
        }
    )

    role: Access
    name: str = Field(min_length=1, max_length=200, description="Whose it is, for the audit log.")
    expires: str = Field(
        "90d", max_length=20, description="How long it is good: 15min, 12h, 30d, 2w, or never."
    )
    kinds: list[str] | None = Field(
        None, min_length=1, max_length=100, description="The only kinds whose jobs exist for it."
    )
    queues: list[str] | None = Field(
        None, min_length=1, max_length=100, description="The only queues whose jobs exist for it."
    )


class LinkBody(_Taken):
    """The one-time code of a link that signs in: what stands behind its `#`."""

    model_config = ConfigDict(json_schema_extra={"example": {"link": "hlk_…"}})

    link: str = Field(min_length=1, max_length=LONGEST)


class TokenView(BaseModel):
    """What is known of a token, which is not the token."""

    id: str
    name: str
    role: Access
    state: State
    kinds: list[str] | None
    queues: list[str] | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute or so.")
    revoked_at: datetime | None
    revoked_by: str | None

    @classmethod
    def of(cls, token: Token, now: int) -> Self:
        """A token as it is at an instant."""
        return cls.model_validate(_told(token, now))


class NewToken(TokenView):
    """A new token. `token` is shown this once."""

    token: str

    @classmethod
    def made(cls, token: Token, text: str, now: int) -> Self:
        """The answer to whoever made it."""
        return cls.model_validate({**_told(token, now), "token": text})


class TokenList(BaseModel):
    """All tokens that ever were, the newest first."""

    tokens: list[TokenView]


class SessionView(BaseModel):
    """A browser that is signed in, or was. `source` is the address that it signed in from."""

    id: str
    name: str
    role: Access
    state: State
    source: str
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None

    @classmethod
    def of(cls, session: Session, now: int) -> Self:
        """A session as it is at an instant."""
        return cls(
            id=session.id,
            name=session.name,
            role=session.access,
            state=session.state(now),
            source=session.source,
            created_at=_at(session.created_at),
            expires_at=_at(session.expires_at),
            last_used_at=_maybe(session.last_used_at),
            revoked_at=_maybe(session.revoked_at),
            revoked_by=session.revoked_by,
        )


class SessionList(BaseModel):
    """All sessions that ever were, the newest first."""

    sessions: list[SessionView]


class Me(BaseModel):
    """Who the server takes you for."""

    name: str
    role: Access
    credential: str = Field(description="By what: `token:ID`, `session:ID`, or `local`.")
    kinds: list[str] | None
    queues: list[str] | None

    @classmethod
    def of(cls, identity: Identity) -> Self:
        """Somebody who was recognised."""
        return cls(
            name=identity.name,
            role=identity.access,
            credential=identity.credential,
            kinds=None if identity.kinds is None else sorted(identity.kinds),
            queues=None if identity.queues is None else sorted(identity.queues),
        )


class AuditQuery(_Taken):
    """Which entries: the latest, or those before the `next` of a page."""

    limit: int = Field(50, ge=1, le=500, description="At most so many.")
    before: int | None = Field(
        None,
        ge=1,
        lt=2**63,
        description="Only entries with a lower `seq`: the `next` of the page before.",
    )


class AuditEntry(BaseModel):
    """One thing that somebody did. `status` is that of the answer, `digest` chains the log."""

    seq: int
    at: datetime
    who: str
    credential: str
    source: str
    action: str
    target: dict[str, Any]
    status: int | None
    request: str | None
    digest: str

    @classmethod
    def of(cls, logged: Logged) -> Self:
        """An entry of the log."""
        entry = logged.entry
        return cls(
            seq=logged.seq,
            at=_at(entry.at),
            who=entry.actor.who,
            credential=entry.actor.credential,
            source=entry.actor.source,
            action=entry.action,
            target=dict(entry.target),
            status=entry.status,
            request=entry.actor.request,
            digest=logged.digest.hex(),
        )


class AuditPage(BaseModel):
    """Entries, the latest first. `next` is the `before` of the following page, null at the end."""

    entries: list[AuditEntry]
    next: int | None


def _told(token: Token, now: int) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.access,
        "state": token.state(now),
        "kinds": None if token.kinds is None else sorted(token.kinds),
        "queues": None if token.queues is None else sorted(token.queues),
        "created_at": _at(token.created_at),
        "created_by": token.created_by,
        "expires_at": _maybe(token.expires_at),
        "last_used_at": _maybe(token.last_used_at),
        "revoked_at": _maybe(token.revoked_at),
        "revoked_by": token.revoked_by,
    }


def _at(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / MICROSECOND, UTC)


def _maybe(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _at(microseconds)
