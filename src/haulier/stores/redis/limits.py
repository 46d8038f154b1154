"""The part of a Redis store that is told of limits."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from haulier.domain.job import MICROSECOND
from haulier.domain.limits import Circuit, KeyState, Limit, LimitState
from haulier.exceptions import JobStateError, LimitNotFoundError
from haulier.stores.redis.history import History
from haulier.stores.watching import Change


class RedisLimits:
    """Limits of one store; `time` tells that of its server."""

    def __init__(
        self,
        history: History,
        tell: Callable[[Change], None],
        time: Callable[[], Awaitable[int]],
    ) -> None:
        self._history = history
        self._tell = tell
        self._time = time

    async def put(self, limit: Limit, *, by: str, declared: bool = False) -> bool:
        return await self._change("put_limit", limit.name, limit.to_text(), by, int(declared))

    async def drop(self, name: str, *, by: str) -> bool:
        return await self._change("drop_limit", name, by)

    async def keys(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> list[KeyState]:
        told = await self._limit(name)
        if not told.per_key:
            return []
        now = await self._time()
        running, rests, circuits = await self._history.pipeline(
            [
                ("HGETALL", self._key(f"used:{name}")),
                ("ZRANGEBYSCORE", self._key(f"rest:{name}"), f"({now}", "+inf", "WITHSCORES"),
                ("HGETALL", self._key(f"circuit:{name}")),
            ]
        )
        used, until, kept = _pairs(running), _pairs(rests), _pairs(circuits)
        found = sorted(key for key in used.keys() | until.keys() if key > (cursor or ""))
        states = []
        for key in found[:limit]:
            state: dict[str, Any] = {"key": key, "running": int(used.get(key, 0))}
            if told.rate is not None:
                state |= _of_rate(told, int(until.get(key, 0)), now)
            elif told.breaker is not None:
                state |= _of_breaker(told, kept if key in until else {}, key, now)
            states.append(KeyState(**state))
        return states

    async def reset(self, name: str, key: str, *, by: str) -> bool:
        if (await self._limit(name)).breaker is None:
            raise JobStateError(f"limit {name} is no circuit breaker")
        return await self._change("reset_breaker", name, key, by)

    async def list(self) -> list[LimitState]:
        rows = await self._history.script("list_limits")
        return sorted(map(_state, rows), key=lambda state: state.limit.name)

    async def _change(self, verb: str, *args: Any) -> bool:
        done = await self._history.script(verb, *args)
        if done:
            self._tell(Change.ANY)
        return bool(done)

    async def _limit(self, name: str) -> Limit:
        text = await self._history.call("HGET", self._key("limits"), name)
        if not text:
            raise LimitNotFoundError(name)
        return Limit.from_json(json.loads(text))

    def _key(self, name: str) -> str:
        return self._history.key(name)


def _pairs(flat: list[bytes]) -> dict[str, bytes]:
    return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _state(row: list[Any]) -> LimitState:
    text, by, at, declared, running = row
    limit = Limit.from_json(json.loads(text))
    return LimitState(
        limit=limit,
        changed_by=by.decode(),
        changed_at=int(at),
        declared=bool(int(declared)),
        running=int(running) if limit.concurrency is not None and not limit.per_key else 0,
    )


def _of_rate(limit: Limit, full_at: int, now: int) -> dict[str, Any]:
    rate = limit.rate
    assert rate is not None
    # A rate that was changed may find instants of a slower one.
    full_at = min(full_at, now + rate.depth * rate.interval)
    return {"ready_at": None if rate.tokens(full_at, now) else rate.next_token(full_at)}


def _of_breaker(limit: Limit, circuits: Mapping[str, bytes], key: str, now: int) -> dict[str, Any]:
    breaker = limit.breaker
    assert breaker is not None
    if key not in circuits:
        return {"circuit": Circuit.CLOSED}
    till, half, good, bad, good_before, bad_before = circuits[key].split(b" ")
    ago = int(now // (breaker.window * MICROSECOND / 2)) - int(half)
    succeeded, failed = (int(good), int(bad)) if ago in (0, 1) else (0, 0)
    if ago == 0:
        succeeded, failed = succeeded + int(good_before), failed + int(bad_before)
    told: dict[str, Any] = {"succeeded": succeeded, "failed": failed}
    if not till:
        return {**told, "circuit": Circuit.CLOSED}
    if now < int(till):
        return {**told, "circuit": Circuit.OPEN, "ready_at": int(till)}
    return {**told, "circuit": Circuit.HALF_OPEN}
