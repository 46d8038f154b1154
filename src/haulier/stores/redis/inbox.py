"""Inboxes: where producers of any language push jobs as JSON, with one RPUSH.

An entry is judged here and moved by a script, which does so only if the inbox still begins with
what was judged: so none is lost and none comes twice, however many workers look at one inbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from haulier.domain.ids import raw_id
from haulier.domain.job import LONGEST_DELAY, MICROSECOND, NewJob, OnLost
from haulier.domain.names import is_dotted
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import ValidationError
from haulier.services.baggage import baggage_text
from haulier.services.options import LONGEST_KEY
from haulier.services.payload import MAX_DEPTH
from haulier.services.registry import MAX_PAYLOAD
from haulier.stores.redis.history import History
from haulier.stores.redis.packing import Arg, pack_jobs

AT_ONCE = 100
MAX_ENTRY = 512 * 1024
SHOWN = 2000
"""Characters of a refused entry that are kept."""


class RefusedError(ValueError):
    """Why an entry is no job."""


async def queues(history: History) -> set[str]:
    """The queues that have an inbox with anything in it; looks at all keys of the server."""
    found: set[str] = set()
    start, cursor = len(history.key("inbox:").encode()), 0
    while True:
        cursor, keys = await history.call(
            "SCAN", cursor, "MATCH", history.pattern("inbox:"), "COUNT", 1000
        )
        # What is no text is no queue of ours.
        found |= {key[start:].decode("utf-8", "ignore") for key in keys}
        if not int(cursor):
            return found


async def waiting(history: History) -> int:
    """How many entries wait in all inboxes, those of queues included that nobody listens to."""
    looks = [("LLEN", history.key(f"inbox:{queue}")) for queue in await queues(history)]
    return sum(await history.pipeline(looks)) if looks else 0


async def move(history: History, queue: str, new_id: Callable[[], str], now: int) -> int:
    """Move what stands in the inbox of a queue, a slice at a time; how many entries that were."""
    total = 0
    while raw := await history.call("LRANGE", history.key(f"inbox:{queue}"), 0, AT_ONCE - 1):
        packed: list[Arg] = [queue, len(raw)]
        jobs, refused = [], []
        for entry in raw:
            try:
                jobs.append(read(entry, queue, new_id))
                packed += (entry, "")
            except RefusedError as error:
                refused.append(str(error))
                packed += (entry, _kept(entry, queue, str(error), now))
        moved = await history.script("inbox", *packed, *pack_jobs(jobs))
        total += moved
        if moved and refused:
            _log(history, queue, refused)
        if not moved and len(raw) < AT_ONCE:
            break
    return total


def read(entry: bytes, queue: str, new_id: Callable[[], str]) -> NewJob:
    """The job that an entry describes; raises RefusedError."""
    if len(entry) > MAX_ENTRY:
        raise RefusedError(f"is {len(entry):,} bytes long")
    try:
        fields = json.loads(entry, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RefusedError("is not JSON") from None
    if not isinstance(fields, dict):
        raise RefusedError("is not an object")
    unknown = fields.keys() - _READERS.keys()
    if unknown:
        raise RefusedError(f"unknown fields: {', '.join(sorted(unknown))[:200]}")
    if "kind" not in fields or "payload" not in fields:
        raise RefusedError("needs a kind and a payload")
    if "delay" in fields and "run_at" in fields:
        raise RefusedError("delay and run_at cannot be given together")
    values = {name: _READERS[name](name, value) for name, value in fields.items()}
    return NewJob(**{"id": new_id(), "queue": queue, **values})


def _no_constant(name: str) -> Any:
    raise ValueError(name)


# ── One reader per field ─────────────────────────────────────────────────────────────────────


def _kind(name: str, value: Any) -> str:
    if not isinstance(value, str) or not is_dotted(value):
        raise RefusedError(f"{name}: is not a dotted name of letters, digits and underscores")
    return value


def _payload(name: str, value: Any) -> bytes:
    if not isinstance(value, dict):
        raise RefusedError(f"{name}: is not an object")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
    if level:
        raise RefusedError(f"{name}: is nested more than {MAX_DEPTH} levels deep")
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError:
        # 1e999 is read as infinity, which JSON cannot say.
        raise RefusedError(f"{name}: holds a number that is too large") from None
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{name}: holds half a character (a lone surrogate)") from None
    if len(data) > MAX_PAYLOAD:
        raise RefusedError(f"{name}: is {len(data):,} bytes long")
    return data


def _id(name: str, value: Any) -> str:
    try:
        raw_id(value)
    except (ValueError, TypeError, AttributeError):
        raise RefusedError(f"{name}: is not a UUID") from None
    return str(value)


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise RefusedError(f"{name}: is not a whole number from {least:,} to {most:,}")
        return int(value)

    return check


def _delay(name: str, value: Any) -> int:
    seconds = isinstance(value, int | float) and not isinstance(value, bool)
    # False for NaN too. A whole number may have hundreds of digits, so it is compared first.
    if not seconds or not 0 <= value <= LONGEST_DELAY:
        raise RefusedError(f"{name}: is not a number of seconds from 0 up to ten years")
    micros: int = round(value * MICROSECOND)
    return micros


def _run_at(name: str, value: Any) -> int:
    try:
        instant = datetime.fromisoformat(value)
    except (ValueError, TypeError):
        instant = None
    if instant is None or instant.tzinfo is None:
        raise RefusedError(f"{name}: is not a date and time with its zone (RFC 3339)")
    return round(instant.timestamp() * MICROSECOND)


def _key(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_KEY:
        raise RefusedError(f"{name}: is not a text of 1 to {LONGEST_KEY} characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RefusedError(f"{name}: holds half a character (a lone surrogate)")
    return value


def _retry(name: str, value: Any) -> RetryPolicy:
    try:
        policy = RetryPolicy.from_dict(value)
        policy.as_dict()
    except (ValueError, TypeError, AttributeError) as error:
        raise RefusedError(f"{name}: {error}"[:300]) from None
    return policy


def _on_lost(name: str, value: Any) -> OnLost:
    try:
        return OnLost(value)
    except ValueError:
        raise RefusedError(f"{name}: is neither retry nor fail") from None


def _baggage(name: str, value: Any) -> str | None:
    if not isinstance(value, dict):
        raise RefusedError(f"{name}: is not an object")
    try:
        return baggage_text(value)
    except ValidationError as error:
        raise RefusedError(str(error.problems[0])) from None


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "kind": _kind,
    "payload": _payload,
    "id": _id,
    "version": _whole(1, 1_000_000),
    "priority": _whole(-10_000, 10_000),
    "delay": _delay,
    "run_at": _run_at,
    "key": _key,
    "retry": _retry,
    "on_lost": _on_lost,
    "baggage": _baggage,
}


def _kept(entry: bytes, queue: str, reason: str, now: int) -> str:
    text = entry[:SHOWN].decode("utf-8", "replace")
    values = {"queue": queue, "reason": reason, "at": now, "entry": text}
    return json.dumps(values, separators=(",", ":"))


def _log(history: History, queue: str, reasons: list[str]) -> None:
    import structlog

    # Without the entries: what is in them may be secret.
    structlog.get_logger("haulier.store").warning(
        "entries of an inbox were refused",
        store=history.address.text,
        queue=queue,
        entries=len(reasons),
        first=reasons[0],
    )
