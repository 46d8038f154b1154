"""How long another system asked us to wait, read from the exception that told of it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

LONGEST_RETRY_AFTER = 86_400.0
"""A day. Whoever asks for more gets no more: a header must not put a job off for years."""


def retry_after(error: BaseException, now: datetime) -> float | None:
    """Seconds that the error asks to wait, at most a day; None when it does not say.

    Read from its attribute `retry_after` (seconds or a timedelta), or from a Retry-After header
    (RFC 9110, section 10.2.3) in its `headers` or its `response.headers`, as the exceptions of
    httpx, requests and aiohttp have it.
    """
    try:
        for told in _told(error):
            seconds = _seconds(told, now)
            if seconds is not None:
                return min(seconds, LONGEST_RETRY_AFTER)
    except Exception:  # noqa: BLE001 - attributes of a foreign object may do anything
        return None
    return None


def _told(error: BaseException) -> list[Any]:
    response = getattr(error, "response", None)
    found = [getattr(error, "retry_after", None)]
    for headers in (getattr(error, "headers", None), getattr(response, "headers", None)):
        if headers is not None and hasattr(headers, "get"):
            found += [headers.get("Retry-After"), headers.get("retry-after")]
    return found


def _seconds(told: Any, now: datetime) -> float | None:
    if isinstance(told, timedelta):
        told = told.total_seconds()
    if isinstance(told, int | float) and not isinstance(told, bool):
        return float(told) if math.isfinite(told) and told >= 0 else None
    return _from_header(told.strip(), now) if isinstance(told, str) else None


def _from_header(text: str, now: datetime) -> float | None:
    """Delta-seconds, or an HTTP-date; one that has passed means now."""
    if text.isascii() and text.isdecimal():
        # Longer numbers are no less nonsense than what they would be cut to.
        return float(text[:12])
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max((when - now).total_seconds(), 0.0)
