"""Limits: what operators and definitions of tasks ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from haulier.domain.job import MICROSECOND
from haulier.domain.limits import Circuit, KeyState, Limit, LimitState
from haulier.ports import Clock
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
        del by
        done = await self._pool.run(
            lambda db: db.fetchval("SELECT reset_circuit($1, $2, $3)", self._now, name, key)
        )
        if done:
            self._tell(Change.ANY)
        return bool(done)

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
        json.dumps(limit.as_json(), sort_keys=True),
    ]


async def prune_some(connection: Connection, now: int | None) -> int:
    """Remove one slice of what is at rest; how many rows went."""
    removed: int = await connection.fetchval("SELECT prune_lanes($1)", now)
    return removed
