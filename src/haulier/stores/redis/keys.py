"""The key map: every key of a store, and of what type it is. docs/stores.md shows it."""

from __future__ import annotations

import re
from typing import NamedTuple


class Key(NamedTuple):
    """One family of keys, behind the prefix: its pattern, its type, and what it holds."""

    pattern: str
    type: str
    holds: str


KEYS = (
    Key("history", "hash", "the epoch, and the numbers of the last job and the last event"),
    Key("job:<id>", "hash", "one job; fields that have their default are left out"),
    Key("errors:<id>", "hash", "a job's errors by lease, as JSON"),
    Key("steps:<id>", "hash", "a job's finished steps by name: when, lease and result"),
    Key("lines:<id>", "hash", "its log lines by lease and number: when and text"),
    Key("payload:<id>", "string", "its payload, when that is longer than 64 bytes"),
    Key("top", "zset", "all jobs but items by number"),
    Key("below", "zset", "all items by number"),
    Key("dead", "zset", "failed jobs by number"),
    Key("ready:<queue>:<kind>", "zset", "the line of one kind in one queue, by rank"),
    Key(
        "lane:<queue>:<kind>:<batch>:<key>",
        "zset",
        "the same of a limited line: the jobs of one key and batch, or its heads",
    ),
    Key("open:<queue>:<kind>", "zset", "the lanes of a line that claims take from, in turn"),
    Key("waits", "zset", "lanes that wait for room of their key, by until when if that is known"),
    Key("again", "zset", "those of them that are to be opened, since a limit was changed"),
    Key("held", "hash", "all of these by key"),
    Key("shut:<id>", "zset", "lanes that wait for room in their batch"),
    Key("turns", "hash", "when each lane was served last"),
    Key("limits", "hash", "limits by name, as JSON; empty for one that was dropped"),
    Key("limit:<name>", "hash", "who changed a limit and when, and what was declared"),
    Key("used:<name>", "hash", "running jobs that count against a limit, by key"),
    Key(
        "rest:<name>",
        "zset",
        "keys by when they are at rest: bucket full, window empty; open breakers above all",
    ),
    Key("circuit:<name>", "hash", "how a breaker stands, by key"),
    Key("scheduled", "zset", "pending jobs that are not due, by when they are"),
    Key("alone", "zset", "jobs to be run alone, by when they are due"),
    Key("batch:<id>", "hash", "one batch: counters, policy, what is done to it"),
    Key("batches", "zset", "the ids of all batches that lie within no other"),
    Key("inner:<id>", "zset", "the ids of those that lie within one"),
    Key("nested", "zset", "the ids of all those that lie within another"),
    Key("items:<id>", "zset", "the items of a batch by number"),
    Key("active:<id>", "zset", "those that run"),
    Key("failed:<id>", "zset", "those that failed"),
    Key("parked:<id>", "zset", "those that wait to be let in, by rank"),
    Key("gated", "set", "batches that are paused or limited"),
    Key("draining", "set", "batches with slices to be done"),
    Key("running:<id>", "zset", "what a worker runs, by number"),
    Key("cancels:<id>", "set", "jobs among these that were asked to stop"),
    Key("edges:<id>", "hash", "what a job waits for: place, rule and outcome by parent"),
    Key("children:<id>", "zset", "those that wait or waited for a job, by number"),
    Key("untold:<id>", "zset", "those among them that were not told of its end"),
    Key("end:<id>", "hash", "what a job came to that others waited for"),
    Key("telling", "zset", "jobs that ended and whose children are being told"),
    Key("reviving", "zset", "jobs that were requeued and whose children come back"),
    Key("finished:<state>:<kind>", "zset", "ended jobs but items by when they ended"),
    Key("results:<kind>", "zset", "single jobs with a result by when they ended"),
    Key("counts", "hash", "how many jobs there are per queue, kind, role and state"),
    Key("uniques", "hash", "unique names and who holds them"),
    Key("periods", "zset", "names that are held for a time, by its end"),
    Key("worker:<id>", "hash", "one worker incarnation"),
    Key("worker:health:<id>", "string", "there as long as the worker lives (it expires)"),
    Key("workers", "zset", "worker incarnations by when they started"),
    Key("alive", "zset", "those that live by when they expire"),
    Key("ended", "zset", "those that ended by when"),
    Key("events", "stream", "what happened; alike events share an entry"),
    Key("schedule:<name>", "hash", "one schedule"),
    Key("schedules", "zset", "the names of all schedules"),
    Key("ticking", "zset", "those that are not paused, by their next tick"),
    Key("ticks:<name>", "zset", "the ticks of a schedule"),
    Key("ticked", "hash", "jobs that were enqueued for a tick, and which"),
    Key("settings", "hash", "what operators have set: version, when, by whom, and the value"),
    Key("alterations", "list", "their last changes, the latest first, as JSON"),
    Key("names", "zset", "unique names in order, while a copy reads them"),
    Key("inbox:<queue>", "list", "jobs that producers of any language push, as JSON"),
    Key("rejected", "list", "what was refused of an inbox, with the reason"),
)

CHANNELS = ("events", "wake:ready", "wake:settled")

_ID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_PARTS = {
    "id": _ID,
    "state": "[234]",
    "queue": "[^:]+",
    "kind": "[^:]+",
    "batch": f"(?:{_ID}|head|)",
    "key": "(?s:.*)",
    "name": "(?:[^:]+|[A-Za-z0-9_.:/-]+)",
}


_FAMILIES = [
    (re.compile(re.sub("<([a-z]+)>", lambda part: _PARTS[part[1]], family.pattern)), family)
    for family in KEYS
]


def family_of(key: str) -> Key | None:
    """The family that a key without its prefix belongs to; None for one that is not ours."""
    for pattern, family in _FAMILIES:
        if pattern.fullmatch(key):
            return family
    return None


def escaped(name: str) -> str:
    """A queue or kind as it is spelt in keys."""
    return name.replace("%", "%25").replace(":", "%3A")


def unescaped(name: str) -> str:
    """A queue or kind as keys spell it."""
    return name.replace("%3A", ":").replace("%25", "%")
