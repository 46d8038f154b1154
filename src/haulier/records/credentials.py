"""Tokens, one-time links and sessions in the records. What is done to them is told in the log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Table, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from haulier.domain.access import Access, Identity, Session, Token
from haulier.exceptions import TokenNotFoundError
from haulier.records.auditing import append
from haulier.records.database import Records
from haulier.records.tables import access_version, links, sessions, tokens
from haulier.services.audit import Actor, Entry
from haulier.services.tokens import Minted, Presented, What, mint

LINK_LASTS = 600_000_000
SESSION_LASTS = 12 * 3_600_000_000
"""Microseconds that a link may wait to be used, and that a session lasts unless told."""


@dataclass(frozen=True, slots=True)
class Live:
    """A credential that is good now: by what it is recognised, whose it is, until when."""

    digest: bytes
    identity: Identity
    expires_at: int | None


class Revoked(NamedTuple):
    """What was ended, a `token` or a `session`, and whether it was just now."""

    what: str
    now: bool


def now() -> int:
    """The present instant in microseconds, UTC."""
    return time.time_ns() // 1000


class Credentials:
    """Who may ask, and by what they are recognised."""

    def __init__(self, records: Records) -> None:
        self._records = records

    # ── Tokens ───────────────────────────────────────────────────────────────────────────────

    async def create_token(
        self,
        actor: Actor,
        name: str,
        access: Access,
        lasting: int | None,
        *,
        kinds: frozenset[str] | None = None,
        queues: frozenset[str] | None = None,
    ) -> tuple[Token, Minted]:
        """A new token, and its text, which is nowhere else. `lasting` is microseconds."""
        minted, at = mint(What.TOKEN), now()
        expires = None if lasting is None else at + lasting
        token = Token(minted.id, name, access, kinds, queues, at, actor.who, expires)
        target = {
            "id": token.id,
            "name": name,
            "role": str(access),
            "expires_at": expires,
            "kinds": _listed(kinds),
            "queues": _listed(queues),
        }
        row = {
            "id": token.id,
            "digest": minted.digest,
            "name": name,
            "access": str(access),
            "kinds": _stored(kinds),
            "queues": _stored(queues),
            "created_at": at,
            "created_by": actor.who,
            "expires_at": expires,
        }

        async def work(db: AsyncConnection) -> None:
            await db.execute(tokens.insert().values(**row))
            await _changed(db)
            await append(db, [Entry(actor, "token.create", target, at=at)])

        await self._records.write(work)
        return token, minted

    async def tokens(self) -> list[Token]:
        """All tokens that ever were, the newest first."""
        asked = select(tokens).order_by(tokens.c.created_at.desc(), tokens.c.id)

        async def work(db: AsyncConnection) -> list[Token]:
            return [_token(dict(row)) for row in (await db.execute(asked)).mappings()]

        return await self._records.read(work)

    async def sessions(self) -> list[Session]:
        """All sessions that ever were, the newest first."""
        asked = select(sessions).order_by(sessions.c.created_at.desc(), sessions.c.id)

        async def work(db: AsyncConnection) -> list[Session]:
            return [_session(dict(row)) for row in (await db.execute(asked)).mappings()]

        return await self._records.read(work)

    async def revoke(self, actor: Actor, public_id: str) -> Revoked:
        """End a token or a session for good; one that was ended before stays as it is.

        Raises TokenNotFoundError.
        """

        async def work(db: AsyncConnection) -> Revoked:
            for table, what in ((tokens, "token"), (sessions, "session")):
                found = (
                    await db.execute(
                        select(table.c.name, table.c.revoked_at)
                        .where(table.c.id == public_id)
                        .with_for_update()
                    )
                ).first()
                if found is None:
                    continue
                if found.revoked_at is None:
                    await _revoke(db, table, public_id, actor)
                    target = {"id": public_id, "name": found.name}
                    await append(db, [Entry(actor, f"{what}.revoke", target)])
                return Revoked(what, found.revoked_at is None)
            raise TokenNotFoundError(public_id)

        return await self._records.write(work)

    # ── Links and sessions ───────────────────────────────────────────────────────────────────

    async def create_link(
        self,
        actor: Actor,
        name: str,
        access: Access,
        *,
        lasting: int = LINK_LASTS,
        session_lasting: int = SESSION_LASTS,
    ) -> Minted:
        """A link that signs one browser in, once."""
        minted, at = mint(What.LINK), now()
        row = {
            "id": minted.id,
            "digest": minted.digest,
            "name": name,
            "access": str(access),
            "created_at": at,
            "created_by": actor.who,
            "expires_at": at + lasting,
            "lasting": session_lasting,
        }
        target = {"id": minted.id, "name": name, "role": str(access)}

        async def work(db: AsyncConnection) -> None:
            await db.execute(links.insert().values(**row))
            await append(db, [Entry(actor, "link.create", target, at=at)])

        await self._records.write(work)
        return minted

    async def redeem(self, shown: Presented, actor: Actor) -> tuple[Session, Minted] | None:
        """The session that a link opens, and its cookie's text; None if the link is not good.

        Of several that show the same link at once, one gets a session. The actor's name and
        credential are put right: they are the session's.
        """
        minted, at = mint(What.SESSION), now()

        asked = select(links).where(
            links.c.id == shown.id, links.c.used_at.is_(None), links.c.expires_at > at
        )

        async def look(db: AsyncConnection) -> bool:
            link = (await db.execute(asked)).first()
            return link is not None and shown.matches(link.digest)

        async def work(db: AsyncConnection) -> Session | None:
            link = (await db.execute(asked.with_for_update())).first()
            if link is None:
                return None
            session = Session(
                minted.id, link.name, Access(link.access), actor.source, at, at + link.lasting
            )
            await db.execute(update(links).where(links.c.id == link.id).values(used_at=at))
            await db.execute(
                sessions.insert().values(
                    id=minted.id,
                    digest=minted.digest,
                    name=link.name,
                    access=link.access,
                    link=link.id,
                    source=actor.source,
                    created_at=at,
                    expires_at=session.expires_at,
                )
            )
            await _changed(db)
            signed_in = Actor(link.name, f"session:{minted.id}", actor.source, actor.request)
            target = {"id": minted.id, "link": link.id, "role": link.access}
            await append(db, [Entry(signed_in, "session.open", target, at=at)])
            return session

        # Whoever guesses shall not get to write.
        session = await self._records.write(work) if await self._records.read(look) else None
        return None if session is None else (session, minted)

    # ── What servers look at ─────────────────────────────────────────────────────────────────

    async def version(self) -> int:
        """A number that changes with every token and session."""

        async def work(db: AsyncConnection) -> int:
            return int((await db.execute(select(access_version.c.version))).scalar_one())

        return await self._records.read(work)

    async def live(self) -> tuple[int, list[Live]]:
        """The version, and all tokens and sessions that are good now."""
        at = now()

        async def work(db: AsyncConnection) -> tuple[int, list[Live]]:
            # The version first: what changes in between is then looked at again.
            version = int((await db.execute(select(access_version.c.version))).scalar_one())
            found = []
            for table, read in ((tokens, _token), (sessions, _session)):
                asked = select(table).where(
                    table.c.revoked_at.is_(None),
                    or_(table.c.expires_at.is_(None), table.c.expires_at > at),
                )
                for row in (await db.execute(asked)).mappings():
                    identity = read(dict(row)).identity()
                    found.append(Live(row["digest"], identity, row["expires_at"]))
            return version, found

        return await self._records.read(work)

    async def mark_used(self, used: Mapping[str, int]) -> None:
        """Write down when credentials (`token:ID`, `session:ID`) were last used."""

        async def work(db: AsyncConnection) -> None:
            for credential, at in sorted(used.items()):
                what, _, public_id = credential.partition(":")
                table = tokens if what == "token" else sessions
                older = or_(table.c.last_used_at.is_(None), table.c.last_used_at < at)
                await db.execute(
                    update(table).where(table.c.id == public_id, older).values(last_used_at=at)
                )

        await self._records.write(work)


async def _revoke(db: AsyncConnection, table: Table, public_id: str, actor: Actor) -> None:
    await db.execute(
        update(table).where(table.c.id == public_id).values(revoked_at=now(), revoked_by=actor.who)
    )
    await _changed(db)


async def _changed(db: AsyncConnection) -> None:
    await db.execute(update(access_version).values(version=access_version.c.version + 1))


def _token(row: Mapping[str, Any]) -> Token:
    return Token(
        row["id"],
        row["name"],
        Access(row["access"]),
        _read(row["kinds"]),
        _read(row["queues"]),
        row["created_at"],
        row["created_by"],
        row["expires_at"],
        row["last_used_at"],
        row["revoked_at"],
        row["revoked_by"],
    )


def _session(row: Mapping[str, Any]) -> Session:
    return Session(
        row["id"],
        row["name"],
        Access(row["access"]),
        row["source"],
        row["created_at"],
        row["expires_at"],
        row["last_used_at"],
        row["revoked_at"],
        row["revoked_by"],
    )


def _listed(names: Iterable[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


def _stored(names: Iterable[str] | None) -> str | None:
    return None if names is None else json.dumps(sorted(names))


def _read(stored: str | None) -> frozenset[str] | None:
    return None if stored is None else frozenset(json.loads(stored))
