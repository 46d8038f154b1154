"""Limits: what operators and definitions of tasks ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from haulier.domain.job import MICROSECOND
from haulier.domain.limits import Circuit, KeyState, Limit, LimitState
from haulier.domain.transfer import LimitRecord, MeterRecord, Records
from haulier.ports import Clock
from haulier.stores.marks import PAGE_RECORDS
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.pool import Pool
from haulier.stores.watching import Change

_PUT = f"SELECT put_limit({', '.join(f'${n}' for n in range(1, 17))})"
_LIST = """
SELECT l.spec, l.changed_by, l.changed_at, l.declared, CASE WHEN l.concurrency IS NULL THEN 0 ELSE
    (coalesce(s.used, 0) - (SELECT coalesce(sum(freed), 0) FROM slot_deltas d WHERE d.name = l.name)
    )::integer END
FROM limits l LEFT JOIN slots s ON s.name = l.name WHERE NOT l.deleted ORDER BY l.name
"""
_KEYS = "SELECT key, running, ready_at, circuit, succeeded, failed FROM limit_keys($1, $2, $3, $4)"


class PostgresLimits:
    """The part of a PostgreSQL store that is told of limits."""

    def __init__(self, pool: Pool, clock: Clock | None, tell: Callable[[Change], None]) -> None:
        self._pool = pool
        self._clock = clock
        self._tell = tell

    async def put(self, limit: Limit, *, by: str, declared: bool = False) -> bool:
        values = limit_values(limit)
        changed = await self._pool.run(
            lambda db: db.fetchval(_PUT, self._now, *values, by, declared)
        )
        if changed:
            self._tell(Change.ANY)
        return bool(changed)

    async def drop(self, name: str, *, by: str) -> bool:
        dropped = await self._pool.run(
            lambda db: db.fetchval("SELECT drop_limit($1, $2, $3)", self._now, name, by)
        )
        if dropped:
            self._tell(Change.ANY)
        return bool(dropped)

    async def keys(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> list[KeyState]:
        rows = await self._pool.run(lambda db: db.fetch(_KEYS, self._now, name, limit, cursor))
        return [
            KeyState(
                key=key,
                running=running,
                ready_at=ready_at,
                circuit=None if circuit is None else _CIRCUITS[circuit],
                succeeded=succeeded,
                failed=failed,
            )
            for key, running, ready_at, circuit, succeeded, failed in rows
        ]

    async def reset(self, name: str, key: str, *, by: str) -> bool:
        done = await self._pool.run(
            lambda db: db.fetchval("SELECT reset_circuit($1, $2, $3, $4)", self._now, name, key, by)
        )
        if done:
            self._tell(Change.ANY)
        return bool(done)

    async def list(self) -> list[LimitState]:
        rows = await self._pool.run(lambda db: db.fetch(_LIST))
        return [
            LimitState(
                limit=Limit.from_json(json.loads(spec)),
                changed_by=by,
                changed_at=at,
                declared=declared,
                running=running,
            )
            for spec, by, at, declared, running in rows
        ]

    @property
    def _now(self) -> int | None:
        """None: the server's own clock."""
        return None if self._clock is None else self._clock.now()


_CIRCUITS = (Circuit.CLOSED, Circuit.OPEN, Circuit.HALF_OPEN)


def limit_values(limit: Limit) -> list[Any]:
    """A limit as the function `put_limit` takes it."""
    rate, breaker = limit.rate, limit.breaker
    return [
        limit.name,
        limit.queue,
        limit.kind,
        limit.per_key,
        limit.concurrency,
        rate and rate.interval,
        rate and rate.depth,
        breaker and float(breaker.failures),
        breaker and breaker.least,
        breaker and round(breaker.window * MICROSECOND),
        breaker and round(breaker.pause * MICROSECOND),
        breaker and breaker.probes,
        limit.to_text(),
    ]


async def prune_some(connection: Connection, now: int | None) -> int:
    """Remove one slice of what is at rest; how many rows went."""
    removed: int = await connection.fetchval("SELECT prune_lanes($1)", now)
    return removed


# ── Copies ───────────────────────────────────────────────────────────────────────────────────

METERS = "key_states WHERE circuit = 1 OR full_at > 0"
"""What is copied of how keys stand; what closed breakers have counted is not."""

_COLUMNS = (
    *("name", "queue", "kind", "per_key", "concurrency", "gap", "depth", "failures", "least"),
    *("span", "pause", "probes", "spec", "deleted", "was", "declared", "changed_by", "changed_at"),
)
_READ_LIMITS = f"""
SELECT l.name, CASE WHEN NOT l.deleted THEN l.spec END, l.was, l.declared, l.changed_by,
    l.changed_at, coalesce(s.full_at, 0)
FROM limits l LEFT JOIN slots s ON s.name = l.name
WHERE l.name > $1 ORDER BY l.name LIMIT {PAGE_RECORDS + 1}
"""
_READ_METERS = f"""
SELECT name, key, CASE WHEN circuit = 1 THEN 0 ELSE full_at END,
    CASE WHEN circuit = 1 THEN opens_at END
FROM (SELECT * FROM {METERS}) k
WHERE (name, key) > ($1, $2) ORDER BY name, key LIMIT {PAGE_RECORDS + 1}
"""


async def read_limits(connection: Connection, after: str | None) -> Records:
    """A page of limits, with those that were deleted."""
    rows = await connection.fetch(_READ_LIMITS, after or "")
    records = tuple(LimitRecord(*row) for row in rows[:PAGE_RECORDS])
    return Records(records, records[-1].name if len(rows) > PAGE_RECORDS else None)


async def read_meters(connection: Connection, after: str | None) -> Records:
    """A page of the states of keys."""
    name, key = json.loads(after) if after else ("", "")
    rows = await connection.fetch(_READ_METERS, name, key)
    records = tuple(MeterRecord(*row) for row in rows[:PAGE_RECORDS])
    last = json.dumps(records[-1][:2]) if len(rows) > PAGE_RECORDS else None
    return Records(records, last)


async def insert_limits(
    connection: Connection, schema: str, records: Sequence[LimitRecord]
) -> None:
    """Insert a page of a copy."""
    await connection.copy_records_to_table(
        "limits", schema_name=schema, columns=_COLUMNS, records=[_limit_row(r) for r in records]
    )
    await connection.executemany(
        "INSERT INTO slots (name, full_at) SELECT $1, $2 FROM limits "
        "WHERE name = $1 AND NOT per_key AND NOT deleted",
        [(r.name, r.full_at) for r in records],
    )


def _limit_row(record: LimitRecord) -> tuple[Any, ...]:
    text = record.told or record.declared
    limit = Limit.from_json(json.loads(text)) if text else Limit(name=record.name, concurrency=1)
    return (
        *limit_values(limit),
        record.told is None,
        record.declared,
        record.by_code,
        record.changed_by,
        record.changed_at,
    )


async def insert_meters(
    connection: Connection, schema: str, records: Sequence[MeterRecord]
) -> None:
    """Insert a page of a copy."""
    await connection.copy_records_to_table(
        "key_states",
        schema_name=schema,
        columns=("name", "key", "full_at", "circuit", "opens_at"),
        records=[
            (r.limit, r.key, r.full_at, int(r.open_until is not None), r.open_until or 0)
            for r in records
        ],
    )
