"""What a look at a store's health has found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters.

    ok: as it should be. warning: it works, and somebody should know. problem: work or jobs are in
    danger.
    """

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `what` was found, and what to do about it (`advice`)."""

    name: str
    level: Level
    what: str
    advice: str = ""
