"""The audit log in the records: appended to, read, verified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from haulier.records.database import Records
from haulier.records.tables import audit, audit_head
from haulier.services.audit import FIRST, Actor, Entry, Logged, Verdict, chained

_PAGE = 1000


async def append(db: AsyncConnection, entries: Sequence[Entry]) -> None:
    """Put entries at the end of the log, within a transaction that writes."""
    if not entries:
        return
    # The lock on this row is what makes one chain of the entries of all processes.
    head = (await db.execute(select(audit_head).with_for_update())).one()
    seq, digest, rows = head.seq, head.digest, []
    for entry in entries:
        row = entry.row()
        seq, digest = seq + 1, chained(digest, seq + 1, row)
        rows.append({"seq": seq, "digest": digest, **row})
    await db.execute(audit.insert(), rows)
    await db.execute(update(audit_head).values(seq=seq, digest=digest))


class AuditLog:
    """Who did what, in its order."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at the end, in one transaction."""
        await self._records.write(lambda db: append(db, entries))

    async def latest(self, limit: int, before: int | None = None) -> list[Logged]:
        """The last entries, the latest first; with `before` those below that number."""
        asked = select(audit).order_by(audit.c.seq.desc()).limit(limit)
        if before is not None:
            asked = asked.where(audit.c.seq < before)

        async def work(db: AsyncConnection) -> list[Logged]:
            return [_logged(dict(row)) for row in (await db.execute(asked)).mappings()]

        return await self._records.read(work)

    async def verify(self, expected: tuple[int, bytes] | None = None) -> Verdict:
        """Look at every entry; reads the log page by page while others go on appending.

        `expected` is the number and the digest of an entry as they were at some earlier time.
        """
        chain = _Chain(expected)
        while True:
            head, rows = await self._records.read(partial(_page, after=chain.seq))
            for row in rows:
                fault = chain.fault_of(row)
                if fault is not None:
                    return chain.verdict(fault)
            if len(rows) < _PAGE:
                return chain.verdict(chain.fault_at_end(head))


class _Chain:
    """How far a look at the log has come."""

    def __init__(self, expected: tuple[int, bytes] | None) -> None:
        self.seq = 0
        self._digest = FIRST
        self._expected = expected

    def verdict(self, fault: str | None) -> Verdict:
        return Verdict(self.seq, self._digest, fault)

    def fault_of(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with the next entry, or the place where it should be."""
        seq = self.seq + 1
        if row["seq"] != seq:
            return f"entry {seq} is missing"
        if chained(self._digest, seq, row) != row["digest"]:
            return f"entry {seq} was changed, or the one before it"
        if self._expected is not None and self._expected[0] == seq:
            if self._expected[1] != row["digest"]:
                return f"entry {seq} is not the one that was expected"
            self._expected = None
        self.seq, self._digest = seq, row["digest"]
        return None

    def fault_at_end(self, head: Mapping[str, Any]) -> str | None:
        """What is missing behind the last entry."""
        if self._expected is not None and self._expected[0] > 0:
            return f"the log ends with entry {self.seq}, it should have {self._expected[0]}"
        if head["seq"] != self.seq:
            return f"the log ends with entry {self.seq}, it should with {head['seq']}"
        return None if head["digest"] == self._digest else "the mark of its end was changed"


async def _page(
    db: AsyncConnection, after: int
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    # The head first: what is appended between the two reads is not missed by it.
    asked = select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(_PAGE)
    head = (await db.execute(select(audit_head))).mappings().one()
    rows = (await db.execute(asked)).mappings().all()
    # A read that began before the last append sees its entries, but an older head.
    if rows and rows[-1]["seq"] > head["seq"] and len(rows) < _PAGE:
        rows = [row for row in rows if row["seq"] <= head["seq"]]
    return dict(head), [dict(row) for row in rows]


def _logged(row: Mapping[str, Any]) -> Logged:
    actor = Actor(row["who"], row["credential"], row["source"], row["request"])
    entry = Entry(actor, row["action"], json.loads(row["target"]), row["status"], row["at"])
    return Logged(row["seq"], entry, row["digest"])
