"""What the operator decides about live streams."""

from __future__ import annotations

from dataclasses import dataclass

HEARTBEAT = 15.0
RING = 5000
GATHER = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How many streams there may be in all and of one caller, and how they behave.

    heartbeat: seconds of silence after which a sign of life is sent. ring: how many events a viewer
    may lie behind before it gets a snapshot instead of them. gather: seconds for which events are
    gathered after something was sent, so that many a second cost little, while one after a pause is
    told at once.
    """

    most: int = 1000
    per_caller: int = 100
    heartbeat: float = HEARTBEAT
    ring: int = RING
    gather: float = GATHER
