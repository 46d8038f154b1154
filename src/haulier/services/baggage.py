"""Baggage: values that jobs carry from their enqueue to their run, and on to what they enqueue.

The name is that of W3C Baggage and OpenTelemetry; here it stays between haulier's own jobs. In the
store it is a small JSON object of texts, numbers and booleans.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from structlog.contextvars import bind_contextvars, bound_contextvars

from haulier.exceptions import Problem, ValidationError

LONGEST_BAGGAGE = 2048
"""Characters of its JSON."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")

RESERVED = frozenset(
    {"attempt", "event", "exc_info", "exception", "job", "kind", "lease", "level", "logger"}
    | {"self", "stack", "stack_info", "timestamp"}
)
"""What log events say of themselves."""

Value = str | int | float | bool

_carried: ContextVar[str | None] = ContextVar("haulier_baggage", default=None)


@contextmanager
def baggage(**values: Value | None) -> Iterator[None]:
    """Within the block, whatever is enqueued carries these values, beside those of outer blocks.

    None takes a value of an outer block out. Raises ValidationError for values that are no texts,
    numbers or booleans, for names that log events have themselves, and if all together are more
    than 2048 characters of JSON.
    """
    merged = {**baggage_of(_carried.get()), **values}
    text = baggage_text({name: value for name, value in merged.items() if value is not None})
    token = _carried.set(text)
    try:
        yield
    finally:
        _carried.reset(token)


def baggage_text(values: Mapping[str, Any]) -> str | None:
    """Baggage as it is stored, None for none; raises ValidationError."""
    problems = [
        Problem(f"baggage.{name}"[:100], reason)
        for name, value in values.items()
        if (reason := _reason(name, value)) is not None
    ]
    # In ASCII, as which any store can keep it, lone surrogates and zeros too.
    text = "" if problems else json.dumps(values, separators=(",", ":"))
    if len(text) > LONGEST_BAGGAGE:
        reason = (
            f"is {len(text):,} characters long as JSON, at most {LONGEST_BAGGAGE:,} are allowed"
        )
        problems.append(Problem("baggage", reason))
    if problems:
        raise ValidationError("the baggage was refused", problems)
    return text if values else None


def _reason(name: str, value: Any) -> str | None:
    if not NAME.match(name):
        return "is not a name of at most 64 letters, digits and underscores"
    if name in RESERVED:
        return "is what log events have themselves"
    if not isinstance(value, Value):
        return f"must be a text, a number or a boolean, not a {type(value).__name__}"
    if isinstance(value, float) and value - value != 0:
        return "is NaN or Infinity, which JSON cannot carry"
    return None


def baggage_of(text: str | None) -> dict[str, Any]:
    """The values behind what is stored."""
    return {} if text is None else dict(json.loads(text))


def carried() -> str | None:
    """What a job that is enqueued here and now carries, as it is stored."""
    return _carried.get()


def carry(text: str) -> None:
    """Let the rest of this asyncio task carry what its job does; also in its log events."""
    _carried.set(text)
    bind_contextvars(**loggable(text))


@contextmanager
def carrying(text: str | None) -> Iterator[None]:
    """The same within a block, and exactly that: nothing of what is around it."""
    token = _carried.set(text)
    try:
        with bound_contextvars(**loggable(text)):
            yield
    finally:
        _carried.reset(token)


def loggable(text: str | None) -> dict[str, Any]:
    """The values of stored baggage as fields of log events; other producers may name any."""
    return {name: value for name, value in baggage_of(text).items() if name not in RESERVED}
