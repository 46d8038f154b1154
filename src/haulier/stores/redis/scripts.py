"""The Lua scripts: put together from the files of the schema, under the domain's tables."""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

from haulier.domain.batch import DEEPEST
from haulier.domain.job import RANK_PER_PRIORITY, Job, JobState, OnLost
from haulier.domain.limits import BREAKER_KEPT
from haulier.domain.line import KEPT_LINES
from haulier.domain.moves import ALONE_AFTER, MAX_LOST, RULES, after_loss
from haulier.domain.tick import KEPT_TICKS, TICK_STATES, TickState
from haulier.domain.unique import Scope
from haulier.stores import codes
from haulier.stores.configuring import NOBODY
from haulier.stores.redis.rows import BATCH_FIELDS, JOB_FIELDS

SCHEMA = 3
"""The form of the data; a store of a later one is refused. 2 has steps and log lines, which a
haulier that knows only 1 would leave behind when it removes their jobs. 3 has schedules, limits,
jobs that wait for others, batches within batches, whose heads have a role that one that knows only
2 would not understand, and a configuration: it would go past limits, and take jobs of paused
queues."""

GENERATION = 1_000_000
"""Leases of one generation. After a loss of history a new one begins, so that none comes again."""

COMPACT = 64
"""Bytes of the longest payload that stands in its job's hash."""

CODES = {
    "PENDING": codes.PENDING,
    "RUNNING": codes.RUNNING,
    "COMPLETED": codes.COMPLETED,
    "FAILED": codes.FAILED,
    "CANCELLED": codes.CANCELLED,
    "SINGLE": codes.SINGLE,
    "HEAD": codes.HEAD,
    "ITEM": codes.ITEM,
    "INNER": codes.INNER,
    "REQUESTED": codes.REQUESTED,
    "HEARD": codes.HEARD,
    "PARKED": codes.PARKED,
    "LET_IN": codes.LET_IN,
    "ALONE": codes.ALONE,
    "WAITING": codes.WAITING,
}

CONSTANTS: dict[str, int] = {
    **CODES,
    "ACTIVE": codes.SCOPE_CODE[Scope.ACTIVE],
    "PERIOD": codes.SCOPE_CODE[Scope.PERIOD],
    **{conflict.name: code for conflict, code in codes.CONFLICT_CODE.items()},
    # What is done to all items of a batch, slice by slice.
    "CANCELLING": 1,
    "RETRYING": 2,
    "DELETING": 3,
    "PAUSING": 4,
    "RESUMING": 5,
    "PRUNING": 6,
    "RESTARTING": 7,
    "LIMITING": 8,
    # When running items of a cancelled batch are told: of its pending ones' end.
    "BEFORE": 1,
    "AFTER": 2,
    # Why a batch ends before its time.
    "BY_REQUEST": 1,
    "CUT_SHORT": 2,
    # `children` of a job that others wait for: to be told of its end, and told.
    "TO_TELL": 1,
    "TOLD": 2,
    "POINT": RANK_PER_PRIORITY,
    "DEEPEST": DEEPEST,
    "ALONE_AFTER": ALONE_AFTER,
    "GENERATION": GENERATION,
    # Claims of one job whose errors are kept.
    "KEPT_ERRORS": 100,
    "KEPT_LINES": KEPT_LINES,
    # Jobs that one slice moves, removes or looks at: a few milliseconds each.
    "SLICE": 500,
    "TOLD_AT_ONCE": 300,
    "LOST_AT_ONCE": 200,
    "DELETED_AT_ONCE": 250,
    "LOOKED_AT": 2000,
    "LOOKED_THROUGH": 500,
    "LONERS_AT_ONCE": 100,
    "FOUND_AT_ONCE": 500,
    # Jobs that are promoted or let in by one claim.
    "AT_ONCE": 1000,
    # Jobs that one claim moves from the plain line to their lanes, lanes that it opens, and lanes
    # that it looks at: some milliseconds in all.
    "STRAGGLERS": 300,
    "LANES_AT_ONCE": 500,
    "LANES_LOOKED_AT": 1000,
    # When a lane is looked at again that waits for the end of a run: a number that scores can hold.
    "FAR": 9_000_000_000_000_000,
    # Above all instants that windows of closed breakers end at: plus its instant, the rest of an
    # open one.
    "OPEN": 4_000_000_000_000_000,
    "BREAKER_KEPT": BREAKER_KEPT,
    # Ended incarnations are listed for a day; events are kept for a day, at most a million.
    "FORGET_AFTER": 24 * 3600 * 1_000_000,
    "EVENTS_AGE": 24 * 3600 * 1_000_000,
    "EVENTS_KEPT": 1_000_000,
    "EVENT_ROWS": 50,
    # A longer field would take a hash out of the compact form that Redis keeps small ones in
    # (hash-max-listpack-value), which doubles what a job takes.
    "COMPACT": COMPACT,
    # Fields that are read or written together from which on that form of a hash is the slower one.
    "WIDE": 64,
    # Overlap policies and states of ticks.
    "ALLOW_OVERLAP": 0,
    "SKIP_OVERLAP": 1,
    "FIRED": TICK_STATES.index(TickState.FIRED),
    "MANUAL": TICK_STATES.index(TickState.MANUAL),
    "MISSED": TICK_STATES.index(TickState.MISSED),
    "OVERLAPPED": TICK_STATES.index(TickState.OVERLAP),
    "KEPT_TICKS": KEPT_TICKS,
    # Entries of inboxes that were refused.
    "REJECTED_KEPT": 1000,
    **{f"F_{name.upper()}": number for number, name in enumerate(JOB_FIELDS, start=1)},
}

_LANES = ("base", "ledger", "limits", "slots", "lanes")
_CORE = (*_LANES, "uniques", "lines", "settling", "nesting", "slices", "flows")
_TRANSFER = ("base", "ledger", "transfer")
_SCHEDULES = ("base", "ledger", "schedules")
_MOVING = (*_CORE, "moving")
_LIMITING = (*_LANES, "announcing", "limiting")

PARTS: dict[str, tuple[str, ...]] = {
    "exchange": (*_MOVING, "serving", "claiming"),
    "insert": (*_CORE, "inserts"),
    "open_batch": (*_CORE, "inserts"),
    "inbox": (*_CORE, "inserts"),
    "seal": _CORE,
    "cancel": (*_CORE, "cancelling"),
    "requeue": _CORE,
    "delete": _CORE,
    "switch": _CORE,
    "alter": _CORE,
    "retry": _CORE,
    "drain": _CORE,
    "follow": _CORE,
    "retire": (*_MOVING, "incarnations"),
    "sweep": (*_MOVING, "incarnations"),
    "prune": _CORE,
    "note": ("base", "ledger"),
    "keep": ("base", "ledger"),
    "configure": ("base", "ledger", "announcing", "configuring"),
    "configuration": ("base", "ledger"),
    "enlist": ("base", "ledger"),
    "renew": ("base", "ledger"),
    "open": ("base", "ledger"),
    "regress": ("base", "ledger"),
    "find": (*_LANES, "indexes"),
    "parked": _LANES,
    "errors": ("base", "ledger"),
    "beside": ("base", "ledger"),
    "parents": ("base", "ledger"),
    "children": ("base", "ledger"),
    "batches": ("base", "ledger"),
    "workers": ("base", "ledger"),
    "events": ("base", "ledger"),
    "schedule_find": _SCHEDULES,
    "schedule_due": _SCHEDULES,
    "schedule_put": _SCHEDULES,
    "schedule_delete": _SCHEDULES,
    "schedule_fire": (*_CORE, "inserts", "cancelling", "schedules"),
    "schedule_ticks": _SCHEDULES,
    "schedule_tick_of": _SCHEDULES,
    "standing": _TRANSFER,
    "freeze": _TRANSFER,
    "receive": _TRANSFER,
    "advance": _TRANSFER,
    "thaw": _TRANSFER,
    "read_jobs": (*_TRANSFER, "limits", "slots", "lanes", "indexes"),
    "read_events": _TRANSFER,
    "put_limit": _LIMITING,
    "drop_limit": _LIMITING,
    "reset_breaker": (*_LANES, "announcing"),
    "recount": _LIMITING,
    "list_limits": ("base", "ledger"),
    "look": ("base", "ledger"),
    "fronts": ("base", "ledger"),
    "probe": ("base", "ledger"),
}
"""Every verb's script, and what it is built on."""


OPEN_ONLY = frozenset(
    {
        *("insert", "open_batch", "inbox", "seal", "cancel", "requeue", "delete", "switch"),
        "alter",
        *("retry", "prune", "enlist", "configure", "put_limit", "drop_limit", "reset_breaker"),
        *("schedule_put", "schedule_delete", "schedule_fire"),
    }
)
"""Verbs that a store refuses while a copy lets nothing of it change."""


class Script(NamedTuple):
    """A script as the server keeps it."""

    name: str
    source: bytes
    sha: str


@lru_cache(maxsize=64)
def script(verb: str) -> Script:
    """The script of a verb."""
    files = resources.files("haulier.stores.schema").joinpath("redis")
    guard = ("open_only",) if verb in OPEN_ONLY else ()
    parts = (*PARTS[verb], *guard, verb)
    bodies = [_body(part, files.joinpath(f"{part}.lua").read_text("utf-8")) for part in parts]
    text = _tables() + "\n".join(bodies)
    source = _CONSTANT.sub(lambda found: str(CONSTANTS[found.group()]), text).encode()
    return Script(verb, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


_CONSTANT = re.compile(rf"\b(?:{'|'.join(sorted(CONSTANTS, key=len, reverse=True))})\b")
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)


WHEN_LIMITED = frozenset({"slots", "lanes", "serving"})
"""Parts that are made only in stores that have limits: to make a function takes time each time."""


def _body(part: str, text: str) -> str:
    text = _without_comments(text)
    if part not in WHEN_LIMITED:
        return text
    return f"limits.parts[#limits.parts + 1] = function()\n{text}\nend"


def _without_comments(text: str) -> str:
    """Only whole lines; they stay as empty ones, so that the server's line numbers are right."""
    return _COMMENT.sub("", text)


@lru_cache(maxsize=1)
def _tables() -> str:
    """What the domain decides and the scripts obey, as Lua tables."""
    rules = {
        move.value: {
            "target": codes.STATE_CODE[rule.target],
            "attempt": rule.attempt,
            "lost": rule.lost,
            "lease": rule.lease,
            "yields_to_cancel": rule.yields_to_cancel,
            "records": rule.records,
        }
        for move, rule in RULES.items()
    }
    losses = [[_loss(lost, on_lost) for lost in range(MAX_LOST + 1)] for on_lost in codes.ON_LOST]
    tables = {
        "RULES": rules,
        "LOSSES": losses,
        "STATES": [state.value for state in codes.STATES],
        "ROLES": [role.value for role in codes.ROLES],
        "JOB_FIELDS": {name: number for number, name in enumerate(JOB_FIELDS, start=1)},
        "BATCH_FIELDS": list(BATCH_FIELDS),
        "NOBODY": NOBODY,
    }
    lines = [f"local {name} = {_lua(value)}" for name, value in tables.items()]
    nothing = ", ".join(["false"] * len(JOB_FIELDS))
    lines.append(f"local function NO_FIELDS() return {{{nothing}}} end")
    return " ".join(lines) + "\n"


def _loss(lost: int, on_lost: OnLost) -> dict[str, Any]:
    """What losing its worker comes to for a job that has lost so many before."""
    job = Job("", 0, "", "", b"", JobState.RUNNING, lost=lost, on_lost=on_lost)
    transition = after_loss(job)
    assert transition.error is not None
    loss: dict[str, Any] = {"move": transition.move.value, "message": transition.error.message}
    if transition.delay is not None:
        loss["delay"] = transition.delay
    return loss


def _lua(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_lua(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(_lua, value)) + "}"
    return json.dumps(value)
