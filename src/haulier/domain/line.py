"""Log lines that a job has written, kept with it."""

from __future__ import annotations

from typing import NamedTuple

KEPT_LINES = 200
"""Lines that are kept of a job: the last ones."""

LONGEST_LINE = 2_000
"""Characters of a line."""


class Said(NamedTuple):
    """A line on its way to the store: the `number`th of its claim, said `ago` microseconds ago."""

    number: int
    text: str
    ago: int = 0


class Line(NamedTuple):
    """A line as the store keeps it. `at`: microseconds UTC by the store's clock.

    `lease` is the number of the claim that wrote it, `number` counts the lines of that claim. Both
    together order the lines of a job.
    """

    lease: int
    number: int
    at: int
    text: str
