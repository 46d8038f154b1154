"""The part of a Redis store that is told of limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from haulier.domain.limits import KeyState, Limit, LimitState
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.stores.redis.history import History
from haulier.stores.watching import Change


class RedisLimits:
    """Limits of one store."""

    def __init__(
        self,
        history: History,
        tell: Callable[[Change], None],
        time: Callable[[], Any],
    ) -> None:
        self._history = history
        self._tell = tell
        self._time = time

    async def put(self, limit: Limit, *, by: str, declared: bool = False) -> bool:
        done = await self._history.script("put_limit", limit.name, _text(limit), by, int(declared))
        if done:
            self._tell(Change.ANY)
        return bool(done)

    async def drop(self, name: str, *, by: str) -> bool:
        done = await self._history.script("drop_limit", name, by)
        if done:
            self._tell(Change.ANY)
        return bool(done)

    async def list(self) -> list[LimitState]:
        rows = await self._history.script("list_limits")
        return sorted(map(_state, rows), key=lambda state: state.limit.name)

    async def keys(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> list[KeyState]:
        told = await self._limit(name)
        if not told.per_key:
            return []
        now = await self._time()
        used, full = await self._history.pipeline(
            [
                ("HGETALL", self._history.key(f"used:{name}")),
                (
                    *("ZRANGEBYSCORE", self._history.key(f"full:{name}")),
                    *(f"({now}", "+inf", "WITHSCORES"),
                ),
            ]
        )
        running = {key.decode(): int(n) for key, n in zip(used[::2], used[1::2], strict=True)}
        until = {key.decode(): int(at) for key, at in zip(full[::2], full[1::2], strict=True)}
        found = sorted(key for key in running.keys() | until.keys() if key > (cursor or ""))
        return [
            KeyState(
                key=key,
                running=running.get(key, 0),
                ready_at=_ready_at(told, until.get(key, 0), now),
            )
            for key in found[:limit]
        ]

    async def reset(self, name: str, key: str, *, by: str) -> bool:
        told = await self._limit(name)
        if told.breaker is None:
            raise JobStateError(f"limit {name} is no breaker")
        raise NotImplementedError

    async def _limit(self, name: str) -> Limit:
        text = await self._history.call("HGET", self._history.key("limits"), name)
        if not text:
            raise JobNotFoundError(name)
        return Limit.from_json(json.loads(text))


def _text(limit: Limit) -> str:
    return json.dumps(limit.as_json(), separators=(",", ":"), sort_keys=True)


def _state(row: list[Any]) -> LimitState:
    text, by, at, declared, running = row
    return LimitState(
        limit=Limit.from_json(json.loads(text)),
        changed_by=by.decode(),
        changed_at=int(at),
        declared=bool(int(declared)),
        running=int(running),
    )


def _ready_at(limit: Limit, full_at: int, now: int) -> int | None:
    if limit.rate is None or limit.rate.tokens(full_at, now):
        return None
    return limit.rate.next_token(full_at)
