"""Copies from and into Redis: what the verbs of a copy do."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from haulier.domain.transfer import (
    Mark,
    NameRecord,
    Numbers,
    Record,
    Records,
    Section,
    Stage,
    Standing,
)
from haulier.stores.marks import PAGE_BYTES, PAGE_RECORDS, check_replaced, may_freeze
from haulier.stores.redis import configuring, schedule_records
from haulier.stores.redis import records as rows
from haulier.stores.redis.history import History
from haulier.stores.watching import Change

KEPT = ("history", "inbox:", "rejected", "worker", "alive", "ended")
"""What stays when a store is emptied: what a copy has not brought."""


_NESTED = "+"
"""Before a cursor: of batches that lie within others."""


class RedisTransfer:
    """The part of a Redis store that copies speak to."""

    def __init__(
        self,
        history: History,
        tell: Callable[[Change], None],
        take_inboxes: Callable[[], Awaitable[None]],
    ) -> None:
        self._history = history
        self._tell = tell
        self._take_inboxes = take_inboxes

    async def standing(self) -> Standing:
        text, epoch, last, seq, running, draining, totals = await self._history.script("standing")
        return Standing(
            mark=Mark.from_text(text) if text else None,
            numbers=Numbers(epoch.decode(), int(last), int(seq)),
            running=running,
            under_way=draining,
            totals=dict(zip(Section, totals, strict=True)),
        )

    async def freeze(self, mark: Mark) -> Standing:
        there = (await self.standing()).mark
        if may_freeze(there):
            await self._take_inboxes()
        await self._history.script("freeze", mark.stage, mark.to_text())
        return await self.standing()

    async def receive(self, mark: Mark) -> Standing:
        await self._history.script("receive", mark.stage, mark.to_text())
        return await self.standing()

    async def thaw(self) -> None:
        mark = (await self.standing()).mark
        if mark is not None and mark.stage is Stage.RECEIVING:
            # From here on nobody can go on with that copy, also when this stops half-way.
            given_up = replace(mark, token="")
            await self._history.script("thaw", given_up.stage, given_up.to_text(), "")
            await self._empty()
        await self._history.call("DEL", self._key("names"))
        was_read = mark is not None and mark.stage in (Stage.FROZEN, Stage.MOVED)
        await self._history.script("thaw", "", "", secrets.token_hex(4) if was_read else "")
        self._tell(Change.ANY)

    async def advance(
        self,
        was: Mark,
        now: Mark,
        records: Sequence[Record] = (),
        *,
        numbers: Numbers | None = None,
    ) -> None:
        writer = rows.Writer(self._history.address.prefix)
        if records:
            assert was.section is not None
            await self._write(writer, was.section, records)
        if now.stage is not Stage.RECEIVING:
            # What a reader that was killed may have left.
            writer.add("DEL", "names")
        known = (
            ("", "", "")
            if numbers is None
            else (numbers.epoch, numbers.last_event, numbers.last_seq)
        )
        done = await self._history.script(
            "advance", was.to_text(), now.stage, now.to_text(), *known, *writer.packed()
        )
        if done < 0:
            check_replaced((await self.standing()).mark, was, now)
        if now.stage is not Stage.RECEIVING:
            self._tell(Change.ANY)

    async def _write(self, writer: rows.Writer, section: Section, records: Sequence[Any]) -> None:
        match section:
            case Section.BATCHES:
                rows.write_batches(writer, records)
            case Section.JOBS:
                rows.write_jobs(writer, records)
            case Section.NAMES:
                rows.write_names(writer, records, await self._held(records))
            case Section.SCHEDULES:
                schedule_records.write_schedules(writer, records)
            case Section.TICKS:
                schedule_records.write_ticks(writer, records)
            case Section.CONFIGURATION:
                configuring.write_copied(writer, records)
            case Section.EVENTS:
                rows.write_events(writer, records)

    async def _held(self, records: Sequence[NameRecord]) -> dict[str, bytes | None]:
        holders = list(dict.fromkeys(record.job_id for record in records))
        looks = [("HGET", self._key(f"job:{job_id}"), "uniq") for job_id in holders]
        return dict(zip(holders, await self._history.pipeline(looks), strict=True))

    # ── Reading ──────────────────────────────────────────────────────────────────────────────

    async def read(self, section: Section, after: str | None = None) -> Records:
        match section:
            case Section.BATCHES:
                return await self._read_batches(after)
            case Section.JOBS:
                return await self._read_jobs(after)
            case Section.NAMES:
                return await self._read_names(after)
            case Section.SCHEDULES:
                return await schedule_records.read_schedules(self._history, after)
            case Section.TICKS:
                return await schedule_records.read_ticks(self._history, after)
            case Section.CONFIGURATION:
                return await configuring.read_copied(self._history)
            case Section.EVENTS:
                return await self._read_events(after)

    async def _read_jobs(self, after: str | None) -> Records:
        page, following = await self._history.script(
            "read_jobs", after or "0", PAGE_RECORDS, PAGE_BYTES
        )
        return Records(tuple(map(rows.job_record, page)), _text(following))

    async def _read_batches(self, after: str | None) -> Records:
        # Those that lie within others after all those that do not.
        nested = after is not None and after.startswith(_NESTED)
        start = (after or "").removeprefix(_NESTED) or None
        found = await self._members("nested" if nested else "batches", start)
        ids = [raw.decode() for raw in found]
        page = ids[:PAGE_RECORDS]
        looks: list[tuple[Any, ...]] = [
            ("HMGET", self._key(f"batch:{batch}"), *rows.BATCH_FIELDS) for batch in page
        ]
        looks += [("SISMEMBER", self._key("gated"), batch) for batch in page]
        answers = await self._history.pipeline(looks) if looks else []
        records = tuple(
            rows.batch_record(batch, fields, gated=bool(gated))
            for batch, fields, gated in zip(
                page, answers[: len(page)], answers[len(page) :], strict=True
            )
        )
        if len(ids) > PAGE_RECORDS:
            return Records(records, f"{_NESTED if nested else ''}{page[-1]}")
        return Records(records, None if nested else _NESTED)

    async def _read_names(self, after: str | None) -> Records:
        """Names in order: a hash has none that stays the same, so that one is made first."""
        if after is None or not await self._history.call("EXISTS", self._key("names")):
            await self._line_up_names()
        names = await self._members("names", after)
        page = names[:PAGE_RECORDS]
        found = await self._history.call("HMGET", self._key("uniques"), *page) if page else []
        records = tuple(
            rows.name_record(name.decode(), value) for name, value in zip(page, found, strict=True)
        )
        if len(names) > PAGE_RECORDS:
            return Records(records, page[-1].decode())
        await self._history.call("DEL", self._key("names"))
        return Records(records)

    async def _line_up_names(self) -> None:
        await self._history.call("DEL", self._key("names"))
        cursor: Any = 0
        while True:
            cursor, pairs = await self._history.call(
                "HSCAN", self._key("uniques"), cursor, "COUNT", PAGE_RECORDS
            )
            scored = [each for name in pairs[::2] for each in (0, name)]
            for start in range(0, len(scored), 2 * PAGE_RECORDS):
                part = scored[start : start + 2 * PAGE_RECORDS]
                await self._history.call("ZADD", self._key("names"), *part)
            if not int(cursor):
                return

    async def _members(self, name: str, after: str | None) -> list[bytes]:
        """The members of a sorted set without scores that follow one of them, in order."""
        start = "-" if after is None else f"({after}"
        found: list[bytes] = await self._history.call(
            "ZRANGEBYLEX", self._key(name), start, "+", "LIMIT", 0, PAGE_RECORDS + 1
        )
        return found

    async def _read_events(self, after: str | None) -> Records:
        # What is packed here takes ten times as much as records.
        page, following = await self._history.script(
            "read_events", after or "0", PAGE_RECORDS, PAGE_BYTES // 10
        )
        return Records(tuple(map(rows.event_record, page)), _text(following))

    # ── Emptying ─────────────────────────────────────────────────────────────────────────────

    async def _empty(self) -> None:
        """Remove what a copy has brought."""
        await self._history.call("HDEL", self._key("history"), "configured", "paused")
        prefix = self._history.address.prefix
        pattern = self._history.pattern("")
        cursor: Any = 0
        while True:
            cursor, keys = await self._history.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            gone = [key for key in keys if not key.decode()[len(prefix) :].startswith(KEPT)]
            if gone:
                await self._history.call("UNLINK", *gone)
            if not int(cursor):
                return

    def _key(self, name: str) -> str:
        return self._history.key(name)


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()
