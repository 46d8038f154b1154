"""The tables of the records, as they are now. Instants are microseconds since 1970, UTC."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

HEAD = "0002"
"""The newest migration: records that are there need no look at the migrations themselves."""

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

access_version = Table(
    "access_version",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
)
"""One row, whose version changes with every token and session: servers look at it often."""

tokens = Table(
    "tokens",
    METADATA,
    Column("id", String(32), primary_key=True),
    # SHA-256 of the whole token: the token itself is nowhere.
    Column("digest", LargeBinary(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("access", String(16), nullable=False),
    # JSON lists; none: all of them.
    Column("kinds", Text),
    Column("queues", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", BigInteger),
    Column("last_used_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("revoked_by", Text),
)

links = Table(
    "links",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("access", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    # How long the session that it opens lasts, in microseconds.
    Column("lasting", BigInteger, nullable=False),
)
"""One-time links to sign a browser in with."""

sessions = Table(
    "sessions",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("access", String(16), nullable=False),
    Column("link", String(32), ForeignKey("links.id"), nullable=False),
    Column("source", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("revoked_by", Text),
)
"""Browsers that are signed in."""

audit = Table(
    "audit",
    METADATA,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    # By what they were recognised: `token:…`, `session:…`, or how they reached us without one.
    Column("credential", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("action", Text, nullable=False),
    # JSON: the ids and other facts of what was done.
    Column("target", Text, nullable=False),
    Column("status", SmallInteger),
    Column("request", Text),
    # Of this entry and the digest of the one before it.
    Column("digest", LargeBinary(32), nullable=False),
    Index("ix_audit_at", "at"),
)
"""Who did what. Triggers refuse to change or remove a row."""

audit_head = Table(
    "audit_head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
)
"""One row: the last entry of the log. Whoever appends locks it, so that the chain is one."""

webhooks = Table(
    "webhooks",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("url", Text, nullable=False),
    # A JSON list.
    Column("types", Text, nullable=False),
    Column("kind", Text),
    Column("queue", Text),
    Column("batch_id", String(36)),
    Column("description", Text, nullable=False),
    # Sealed; whoever has the key file can open it.
    Column("secret", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    # The cursor of the last event that was looked at for it.
    Column("after", Text, nullable=False),
    Column("disabled", Text),
    Column("failures", Integer, nullable=False),
    Column("failing_since", BigInteger),
    Column("succeeded_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("error", Text),
)

webhook_turn = Table(
    "webhook_turn",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("owner", String(36), nullable=False),
    Column("until", BigInteger, nullable=False),
)
"""One row: which server turns events into deliveries, and until when unless it goes on."""
