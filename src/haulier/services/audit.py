"""The audit log as data: what an entry says, and how entries are chained.

Each entry's digest covers the one before it, so that an entry which was changed, removed or put in
between breaks the chain. Whoever can rewrite the whole database can also make a new chain: what is
kept elsewhere of `seq` and `digest` at some time shows that too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

FIRST = bytes(32)
"""What stands for the digest before the first entry."""

LONGEST_TEXT = 500


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: a name, by what they were recognised, from where, in which request."""

    who: str
    credential: str
    source: str
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that somebody did. `at` is microseconds, UTC; `status` that of an HTTP answer."""

    actor: Actor
    action: str
    target: Mapping[str, Any] = field(default_factory=dict)
    status: int | None = None
    at: int = field(default_factory=lambda: time.time_ns() // 1000)

    def row(self) -> dict[str, Any]:
        """As it is stored, but for its place in the chain."""
        return {
            "at": self.at,
            "who": storable(self.actor.who),
            "credential": storable(self.actor.credential),
            "source": storable(self.actor.source),
            "action": storable(self.action),
            "target": json.dumps(self.target, separators=(",", ":"), sort_keys=True),
            "status": self.status,
            "request": self.actor.request,
        }


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry in its place in the log."""

    seq: int
    entry: Entry
    digest: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at the whole chain has found: None as `fault`, or what is wrong.

    `seq` and `digest` are those of the last entry of the part that is sound.
    """

    seq: int
    digest: bytes
    fault: str | None = None


def chained(previous: bytes, seq: int, row: Mapping[str, Any]) -> bytes:
    """The digest of an entry that follows the one with the digest `previous`."""
    said = [
        seq,
        *(row[name] for name in ("at", "who", "credential", "source", "action", "target")),
        *(row[name] for name in ("status", "request")),
    ]
    text = json.dumps(said, separators=(",", ":"))
    return sha256(previous + text.encode("ascii")).digest()


def storable(text: str) -> str:
    """What every database takes, and no more of it than can be read."""
    if len(text) <= LONGEST_TEXT and text.isprintable():
        return text
    return "".join(each if each.isprintable() else "?" for each in text[:LONGEST_TEXT])
