"""Instants as text."""

from __future__ import annotations

from datetime import UTC, datetime

from haulier.domain.job import MICROSECOND


def iso(microseconds: int | None) -> str | None:
    """An instant as ISO 8601 in UTC."""
    if microseconds is None:
        return None
    stamp = datetime.fromtimestamp(microseconds / MICROSECOND, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
