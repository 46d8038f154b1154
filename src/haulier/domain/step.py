"""A durable step: a part of a job that is done once, however often the job is tried."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_NAME = 200
"""Characters of a step's name."""


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step of a job. `result` is JSON, `lease` the number of the claim that finished it.

    `at` (microseconds UTC) is filled in by the store when it keeps the step.
    """

    job_id: str
    lease: int
    name: str
    result: bytes
    at: int = 0


def complaint_about(name: object) -> str | None:
    """What is wrong with the name of a step; None for a good one."""
    if not isinstance(name, str):
        return f"must be a text, not {type(name).__name__}"
    if not name.strip():
        return "must not be empty"
    if len(name) > LONGEST_NAME:
        return f"has {len(name)} characters, at most {LONGEST_NAME} are allowed"
    if not name.isprintable():
        # Also half characters, which no store could keep.
        return "must have none but printable characters"
    return None
