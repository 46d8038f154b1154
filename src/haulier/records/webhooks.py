"""Webhooks in the records."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import CursorResult, Row, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from haulier.domain.ids import text_id_of
from haulier.domain.webhook import Webhook
from haulier.exceptions import WebhookNotFoundError
from haulier.records.database import Records
from haulier.records.tables import webhook_turn, webhooks

LONGEST_ERROR = 300

_SHOWN = [column for column in webhooks.columns if column.name != "secret"]


class WebhookRecords:
    """The webhooks, their sealed secrets, and whose turn it is to tell them."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def add(self, webhook: Webhook, sealed: str) -> None:
        """Keep a new webhook with its sealed secret."""
        row = {
            name: getattr(webhook, name)
            for name in (column.name for column in webhooks.columns)
            if name != "secret"
        }
        row |= {"types": json.dumps(webhook.types), "secret": sealed}

        async def work(db: AsyncConnection) -> None:
            await db.execute(webhooks.insert().values(**row))

        await self._records.write(work)

    async def all(self) -> list[Webhook]:
        """All webhooks, the oldest first."""
        asked = select(*_SHOWN).order_by(webhooks.c.created_at, webhooks.c.id)

        async def work(db: AsyncConnection) -> list[Webhook]:
            return [_webhook(row) for row in await db.execute(asked)]

        return await self._records.read(work)

    async def get(self, webhook_id: str) -> Webhook:
        """One webhook; raises WebhookNotFoundError."""
        asked = select(*_SHOWN).where(webhooks.c.id == _known(webhook_id))

        async def work(db: AsyncConnection) -> Row[Any] | None:
            return (await db.execute(asked)).first()

        found = await self._records.read(work)
        if found is None:
            raise WebhookNotFoundError(webhook_id)
        return _webhook(found)

    async def sealed_secret(self, webhook_id: str) -> str:
        """Its secret as it was sealed; raises WebhookNotFoundError."""
        asked = select(webhooks.c.secret).where(webhooks.c.id == _known(webhook_id))

        async def work(db: AsyncConnection) -> str | None:
            found: str | None = (await db.execute(asked)).scalar()
            return found

        found = await self._records.read(work)
        if found is None:
            raise WebhookNotFoundError(webhook_id)
        return found

    async def change(self, webhook_id: str, values: Mapping[str, Any]) -> Webhook:
        """Set fields of a webhook (and `secret`, sealed); raises WebhookNotFoundError."""
        row = dict(values)
        if "types" in row:
            row["types"] = json.dumps(row["types"])
        if row:
            await self._update(webhook_id, row)
        return await self.get(webhook_id)

    async def remove(self, webhook_id: str) -> None:
        """Forget a webhook and its secret; raises WebhookNotFoundError."""
        asked = webhooks.delete().where(webhooks.c.id == _known(webhook_id))

        async def work(db: AsyncConnection) -> int:
            return _count(await db.execute(asked))

        if not await self._records.write(work):
            raise WebhookNotFoundError(webhook_id)

    async def move_on(self, cursors: Mapping[str, str]) -> None:
        """Put the cursors of webhooks forward, by their ids."""

        async def work(db: AsyncConnection) -> None:
            for webhook_id, cursor in cursors.items():
                asked = update(webhooks).where(webhooks.c.id == webhook_id)
                await db.execute(asked.values(after=cursor))

        await self._records.write(work)

    async def succeeded(self, webhook_id: str) -> None:
        """A message has arrived: what failed before is over."""
        now = _now()
        row = {"succeeded_at": now, "failures": 0, "failing_since": None, "error": None}
        await self._update(webhook_id, row, strict=False)

    async def failed(self, webhook_id: str, error: str) -> Webhook:
        """A message has not arrived; how it stands now. Raises WebhookNotFoundError."""
        now, columns = _now(), webhooks.c
        asked = (
            update(webhooks)
            .where(columns.id == webhook_id)
            .values(
                failures=columns.failures + 1,
                failed_at=now,
                error=error[:LONGEST_ERROR],
            )
        )
        began = (
            update(webhooks)
            .where(columns.id == webhook_id, columns.failing_since.is_(None))
            .values(failing_since=now)
        )

        async def work(db: AsyncConnection) -> None:
            await db.execute(asked)
            await db.execute(began)

        await self._records.write(work)
        return await self.get(webhook_id)

    async def disable(self, webhook_id: str, why: str) -> None:
        """Tell it nothing more, unless it is disabled already."""
        asked = (
            update(webhooks)
            .where(webhooks.c.id == webhook_id, webhooks.c.disabled.is_(None))
            .values(disabled=why[:LONGEST_ERROR])
        )

        async def work(db: AsyncConnection) -> None:
            await db.execute(asked)

        await self._records.write(work)

    async def take_turn(self, owner: str, seconds: float) -> bool:
        """Whether it is this one's turn to tell webhooks, for so many seconds from now.

        By the clocks of the servers: if these differ, two may think so. Then each enqueues the same
        deliveries, which are the same jobs.
        """
        now = _now()
        asked = (
            update(webhook_turn)
            .where(or_(webhook_turn.c.owner == owner, webhook_turn.c.until < now))
            .values(owner=owner, until=now + int(seconds * 1_000_000))
        )

        async def work(db: AsyncConnection) -> int:
            return _count(await db.execute(asked))

        return await self._records.write(work) > 0

    async def end_turn(self, owner: str) -> None:
        """Let another one go on at once."""
        asked = update(webhook_turn).where(webhook_turn.c.owner == owner).values(until=0)

        async def work(db: AsyncConnection) -> None:
            await db.execute(asked)

        await self._records.write(work)

    async def _update(
        self, webhook_id: str, row: Mapping[str, Any], *, strict: bool = True
    ) -> None:
        asked = update(webhooks).where(webhooks.c.id == _known(webhook_id)).values(**row)

        async def work(db: AsyncConnection) -> int:
            return _count(await db.execute(asked))

        if not await self._records.write(work) and strict:
            raise WebhookNotFoundError(webhook_id)


def _known(webhook_id: str) -> str:
    """The id, if it can be one: not every database takes every text."""
    try:
        return text_id_of(webhook_id)
    except ValueError:
        raise WebhookNotFoundError(webhook_id) from None


def _now() -> int:
    return time.time_ns() // 1000


def _count(result: CursorResult[Any]) -> int:
    return result.rowcount


def _webhook(row: Row[Any]) -> Webhook:
    values = dict(row._mapping)  # noqa: SLF001 - the documented way to a row's names
    values["types"] = tuple(json.loads(values["types"]))
    return Webhook(**values)
