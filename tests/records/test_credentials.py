"""Tokens, links and sessions in the records, and what is left of them in the log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from haulier.domain.access import Access
from haulier.exceptions import TokenNotFoundError
from haulier.records import open_records
from haulier.records.auditing import AuditLog
from haulier.records.credentials import Credentials, now
from haulier.services.audit import Actor
from haulier.services.tokens import What, mint, presented

ANN = Actor("ann", "local", "command line")
DAY = 86_400_000_000


@pytest.fixture
def credentials(records):
    return Credentials(records)


@pytest.fixture
def log(records):
    return AuditLog(records)


async def told(log):
    return [(each.entry.actor.who, each.entry.action) for each in reversed(await log.latest(100))]


async def live(credentials):
    return {each.identity.credential: each for each in (await credentials.live())[1]}


class TestTokens:
    async def test_a_new_one_is_live_until_it_is_revoked(self, credentials, log):
        token, minted = await credentials.create_token(
            ANN, "ci", Access.OPERATOR, DAY, kinds=frozenset({"add"})
        )
        found = (await live(credentials))[f"token:{token.id}"]
        assert found.digest == minted.digest
        assert found.identity.access is Access.OPERATOR
        assert found.identity.kinds == {"add"}
        assert found.identity.queues is None
        assert found.expires_at == token.expires_at
        assert await credentials.tokens() == [token]
        assert await credentials.revoke(ANN, token.id) == ("token", True)
        assert await live(credentials) == {}
        [revoked] = await credentials.tokens()
        assert revoked.state(now()) == "revoked"
        assert revoked.revoked_by == "ann"
        assert await told(log) == [("ann", "token.create"), ("ann", "token.revoke")]

    async def test_revoking_twice_is_told_once_and_keeps_the_first_time(self, credentials, log):
        token, _ = await credentials.create_token(ANN, "ci", Access.VIEWER, None)
        await credentials.revoke(ANN, token.id)
        [first] = await credentials.tokens()
        bob = Actor("bob", "local", "x")
        assert await credentials.revoke(bob, token.id) == ("token", False)
        assert await credentials.tokens() == [first]
        assert len(await told(log)) == 2

    async def test_one_that_has_expired_is_live_no_longer(self, credentials):
        token, _ = await credentials.create_token(ANN, "ci", Access.VIEWER, 1)
        assert await live(credentials) == {}
        assert token.state(now()) == "expired"

    async def test_every_change_is_a_new_version(self, credentials):
        versions = [await credentials.version()]
        token, _ = await credentials.create_token(ANN, "ci", Access.VIEWER, None)
        versions.append(await credentials.version())
        await credentials.revoke(ANN, token.id)
        versions.append(await credentials.version())
        assert sorted(set(versions)) == versions
        await credentials.mark_used({f"token:{token.id}": now()})
        assert await credentials.version() == versions[-1]

    async def test_the_last_use_only_ever_rises(self, credentials):
        token, _ = await credentials.create_token(ANN, "ci", Access.VIEWER, None)
        for at in (5, 9, 7):
            await credentials.mark_used({f"token:{token.id}": at})
        assert (await credentials.tokens())[0].last_used_at == 9

    async def test_one_that_is_not_there_is_not_revoked(self, credentials, log):
        with pytest.raises(TokenNotFoundError):
            await credentials.revoke(ANN, "nobody")
        assert await told(log) == []


class TestLinks:
    async def test_a_link_opens_one_session(self, credentials, log):
        link = await credentials.create_link(ANN, "ann", Access.ADMIN)
        shown = presented(What.LINK, link.text)
        browser = Actor("?", "?", "192.0.2.7", "r-1")
        session, minted = await credentials.redeem(shown, browser)
        assert (session.name, session.access, session.source) == ("ann", "admin", "192.0.2.7")
        assert (await live(credentials))[f"session:{session.id}"].digest == minted.digest
        assert await credentials.redeem(shown, browser) is None
        assert await credentials.sessions() == [session]
        assert await credentials.revoke(ANN, session.id) == ("session", True)
        assert await live(credentials) == {}
        actions = [("ann", "link.create"), ("ann", "session.open"), ("ann", "session.revoke")]
        assert await told(log) == actions

    async def test_of_many_that_show_it_at_once_one_gets_in(self, shared_url):
        async with open_records(shared_url) as one, open_records(shared_url) as other:
            link = await Credentials(one).create_link(ANN, "ann", Access.ADMIN)
            shown = presented(What.LINK, link.text)
            opened = await asyncio.gather(
                *(Credentials(each).redeem(shown, ANN) for each in (one, other) * 4)
            )
            assert len([each for each in opened if each is not None]) == 1

    async def test_one_that_has_expired_or_is_another_opens_nothing(self, credentials, log):
        link = await credentials.create_link(ANN, "ann", Access.ADMIN, lasting=1)
        stranger = presented(What.LINK, mint(What.LINK).text)
        assert await credentials.redeem(presented(What.LINK, link.text), ANN) is None
        assert await credentials.redeem(stranger, ANN) is None
        assert await credentials.sessions() == []
        assert await told(log) == [("ann", "link.create")]

    async def test_the_right_id_with_another_secret_opens_nothing(self, credentials):
        link = await credentials.create_link(ANN, "ann", Access.ADMIN)
        other = presented(What.LINK, mint(What.LINK).text)
        forged = type(other)(link.id, other.digest)
        assert await credentials.redeem(forged, ANN) is None


async def test_nothing_in_the_records_is_a_usable_token(records, credentials):
    """All rows of all tables, and for a file its bytes, as a thief of the database has them."""
    _, token = await credentials.create_token(ANN, "ci", Access.ADMIN, None)
    link = await credentials.create_link(ANN, "ann", Access.ADMIN)
    _, cookie = await credentials.redeem(presented(What.LINK, link.text), ANN)

    async def dump(db):
        names = ("tokens", "links", "sessions", "audit", "audit_head", "access_version")
        rows = [(await db.execute(text(f"SELECT * FROM {name}"))).all() for name in names]
        return repr(rows)

    dumped = (await records.read(dump)).encode()
    path = getattr(records.place, "path", ":memory:")
    if path != ":memory:":
        dumped += await asyncio.to_thread(Path(path).read_bytes)
    for minted in (token, link, cookie):
        assert minted.id.encode() in dumped
        for part in minted.text.split("_")[2:]:
            assert part.encode() not in dumped
