"""Limits, and how keys stand under them, as the neutral records of a copy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from haulier.domain.limits import Limit
from haulier.domain.transfer import LimitRecord, MeterRecord, Records
from haulier.stores.marks import PAGE_RECORDS
from haulier.stores.redis.history import History
from haulier.stores.redis.records import Writer
from haulier.stores.redis.scripts import CONSTANTS

OPEN = CONSTANTS["OPEN"]


async def read_limits(history: History, after: str | None) -> Records:
    """A page of limits, with those that were dropped."""
    flat = await history.call("HGETALL", history.key("limits"))
    texts = {name.decode(): text.decode() for name, text in zip(flat[::2], flat[1::2], strict=True)}
    names = sorted(name for name in texts if name > (after or ""))
    page = names[:PAGE_RECORDS]
    looks: list[tuple[Any, ...]] = []
    for name in page:
        looks.append(("HMGET", history.key(f"limit:{name}"), "declared", "own", "by", "at"))
        looks.append(("ZSCORE", history.key(f"rest:{name}"), ""))
    answers = await history.pipeline(looks) if looks else []
    records = tuple(
        LimitRecord(
            name=name,
            told=texts[name] or None,
            declared=declared and declared.decode(),
            by_code=own == b"1",
            changed_by=by.decode(),
            changed_at=int(at),
            full_at=int(full_at or 0),
        )
        for name, (declared, own, by, at), full_at in zip(
            page, answers[::2], answers[1::2], strict=True
        )
    )
    return Records(records, page[-1] if len(names) > PAGE_RECORDS else None)


async def read_meters(history: History, limits: Sequence[Limit], after: str | None) -> Records:
    """A page of one limit's keys, in the order of when they are at rest."""
    metered = sorted(each.name for each in limits if each.per_key and each.concurrency is None)
    breakers = {each.name for each in limits if each.breaker is not None}
    name, start = json.loads(after) if after else ("", 0)
    for limit in (each for each in metered if each >= name):
        start = start if limit == name else 0
        least = OPEN if limit in breakers else "-inf"
        flat = await history.call(
            *("ZRANGEBYSCORE", history.key(f"rest:{limit}"), least, "+inf", "WITHSCORES"),
            *("LIMIT", start, PAGE_RECORDS),
        )
        if not flat:
            continue
        keys = flat[::2]
        untils: list[int | None] = [None] * len(keys)
        if limit in breakers:
            kept = await history.call("HMGET", history.key(f"circuit:{limit}"), *keys)
            untils = [int(text.split(b" ")[0]) for text in kept]
        records = tuple(
            MeterRecord(limit, key.decode(), 0 if until is not None else int(rest), until)
            for key, rest, until in zip(keys, flat[1::2], untils, strict=True)
        )
        return Records(records, json.dumps([limit, start + len(keys)]))
    return Records(())


def write_limits(writer: Writer, records: Sequence[LimitRecord]) -> None:
    for record in records:
        writer.add("HSET", "limits", record.name, record.told or "")
        fields = {"by": record.changed_by, "at": record.changed_at, "own": int(record.by_code)}
        if record.declared is not None:
            fields["declared"] = record.declared
        writer.hash(f"limit:{record.name}", fields)
        if record.full_at:
            writer.rank(f"rest:{record.name}", record.full_at, "")


def write_meters(writer: Writer, records: Sequence[MeterRecord]) -> None:
    for record in records:
        if record.open_until is None:
            writer.rank(f"rest:{record.limit}", record.full_at, record.key)
        else:
            circuit = f"{record.open_until} 0 0 0 0 0"
            writer.add("HSET", f"circuit:{record.limit}", record.key, circuit)
            writer.rank(f"rest:{record.limit}", OPEN + record.open_until, record.key)
