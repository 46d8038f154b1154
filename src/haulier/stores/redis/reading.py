"""Questions: scripts and commands that change nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from haulier.domain.batch import Batch
from haulier.domain.event import OF_NOBODY, RESET, Event
from haulier.domain.flow import Parent
from haulier.domain.job import MICROSECOND, Job, JobError, JobState, Role
from haulier.domain.line import Line
from haulier.domain.retention import Retention
from haulier.domain.step import Step
from haulier.domain.worker import WorkerRow
from haulier.exceptions import JobNotFoundError
from haulier.ports import JobFilter, Page
from haulier.stores.codes import (
    PARKED,
    PENDING,
    ROLE_CODE,
    ROLES,
    STATE_CODE,
    STATES,
    error_from_text,
)
from haulier.stores.packed import of_nobody, parsed_cursor, said_by
from haulier.stores.redis.history import History
from haulier.stores.redis.keys import unescaped
from haulier.stores.redis.packing import Arg, canonical, known_id, optional
from haulier.stores.redis.rows import (
    JOB_FIELDS,
    batch_from_row,
    job_from_row,
    lines_from,
    parent_from_row,
    steps_from,
    text_of,
    worker_from_row,
)

_PAYLOAD = JOB_FIELDS.index("payload")
_STATE = JOB_FIELDS.index("state")
_GATE = JOB_FIELDS.index("gate")
_TOP = frozenset({Role.SINGLE, Role.HEAD})
_FAILED = frozenset({JobState.FAILED})
_RUNNING = frozenset({JobState.RUNNING})


async def get(history: History, job_id: str) -> Job:
    known = known_id(job_id)
    row, limited = await history.pipeline(
        [
            ("HMGET", history.key(f"job:{known}"), *JOB_FIELDS),
            ("EXISTS", history.key("limits")),
        ]
    )
    if row[_PAYLOAD] is None:
        row[_PAYLOAD] = await history.call("GET", history.key(f"payload:{known}"))
    if row[_PAYLOAD] is None:
        # Never there, or removed just now.
        raise JobNotFoundError(job_id)
    if limited and row[_STATE] == b"%d" % PENDING and row[_GATE] is None:
        row[_GATE] = PARKED if await history.script("parked", known) else None
    return job_from_row([*row, known.encode()])


async def errors(history: History, job_id: str) -> list[JobError]:
    """The errors of a job's attempts, the latest first."""
    texts = await history.script("errors", known_id(job_id))
    found = map(error_from_text, texts)
    return sorted(found, key=lambda error: error.lease, reverse=True)


async def steps(history: History, job_id: str) -> list[Step]:
    """The finished steps of a job, in the order in which they were kept."""
    known = known_id(job_id)
    return steps_from(known, await history.script("beside", "steps", known))


async def lines(history: History, job_id: str) -> list[Line]:
    """The last log lines of a job, the oldest first."""
    return lines_from(await history.script("beside", "lines", known_id(job_id)))


async def parents(history: History, job_id: str) -> list[Parent]:
    """The parents of a job, in the order in which it named them."""
    rows = await history.script("parents", known_id(job_id))
    return [parent for _, parent in sorted(map(parent_from_row, rows), key=itemgetter(0))]


async def children(history: History, job_id: str, limit: int, cursor: int | None) -> Page:
    """A page of the children of a job."""
    rows = await history.script("children", known_id(job_id), cursor or 0, limit + 1)
    jobs = tuple(map(job_from_row, rows[:limit]))
    return Page(jobs, jobs[-1].seq if len(rows) > limit else None)


async def find(
    history: History,
    where: JobFilter,
    limit: int,
    cursor: int | None,
    *,
    oldest_first: bool,
    payloads: bool,
) -> Page:
    """Stretch by stretch of an index, until the page is full and one more job tells of a next."""
    (index, second), filters = _index(where), _filters(where)
    found: list[Job] = []
    at: Arg = optional(cursor)
    more = 1
    while more and len(found) <= limit:
        rows, following, more = await history.script(
            "find",
            *(
                index,
                second,
                at,
                int(oldest_first),
                limit + 1 - len(found),
                int(payloads),
                *filters,
            ),
        )
        found.extend(map(job_from_row, rows))
        at = following or at
    jobs = tuple(found[:limit])
    return Page(jobs, jobs[-1].seq if len(found) > limit else None)


def _index(where: JobFilter) -> tuple[str, str]:
    """The index that holds the fewest jobs beside those that are asked for; or two together."""
    if where.worker is not None:
        return f"running:{known_id(where.worker)}", ""
    if where.batch_id is not None:
        batch = known_id(where.batch_id)
        if where.states == _FAILED:
            return f"failed:{batch}", ""
        return f"active:{batch}" if where.states == _RUNNING else f"items:{batch}", ""
    if where.states == _FAILED:
        return "dead", ""
    if where.roles is not None and where.roles <= _TOP:
        return "top", ""
    return "top", "below"


def _filters(where: JobFilter) -> list[Arg]:
    def codes(of: Mapping[Any, int], chosen: frozenset[Any] | None) -> str:
        if chosen is None:
            return ""
        # Of no state at all is no job, and a script takes an empty text for no filter.
        return "".join(str(of[each]) for each in chosen) or "-"

    return [
        codes(STATE_CODE, where.states),
        optional(where.kind),
        optional(where.queue),
        codes(ROLE_CODE, where.roles),
        "" if where.key is None else f"={where.key}",
        "" if where.worker is None else known_id(where.worker),
        "" if where.batch_id is None else known_id(where.batch_id),
        "" if where.error_type is None else f'{{"type":{json.dumps(where.error_type)},',
    ]


async def batch(history: History, batch_id: str) -> Batch:
    rows = await history.script("batches", known_id(batch_id), 1, "", "")
    if not rows:
        raise JobNotFoundError(batch_id)
    return batch_from_row(rows[0])


async def batches(
    history: History, limit: int, cursor: str | None, within: str | None
) -> list[Batch]:
    after = "" if cursor is None else canonical(cursor)
    outer = "" if within is None else known_id(within)
    rows = await history.script("batches", "", limit, after, outer)
    return [batch_from_row(row) for row in rows]


async def counts(history: History) -> dict[tuple[str, str, Role, JobState], int]:
    return counted(await history.call("HGETALL", history.key("counts")))


def counted(flat: Sequence[bytes]) -> dict[tuple[str, str, Role, JobState], int]:
    """The counters behind the fields and values of their hash."""
    found = {}
    for field, n in zip(flat[::2], flat[1::2], strict=True):
        queue, kind, role, state = field.decode().split(":")
        line = (unescaped(queue), unescaped(kind), ROLES[int(role)], STATES[int(state)])
        found[line] = int(n)
    return found


async def fronts(history: History) -> dict[str, int]:
    """Since when the first job of each queue has been due."""
    flat = await history.script("fronts")
    found: dict[str, int] = {}
    for name, at in zip(flat[::2], flat[1::2], strict=True):
        queue = unescaped(name.decode())
        found[queue] = min(int(at), found.get(queue, int(at)))
    return found


async def workers(history: History) -> list[WorkerRow]:
    return [worker_from_row(row) for row in await history.script("workers")]


# ── Events ───────────────────────────────────────────────────────────────────────────────────


async def last_event(history: History) -> str:
    epoch, last = await history.call("HMGET", history.key("history"), "epoch", "last")
    return f"{epoch.decode()}:{int(last or 0)}"


async def events(history: History, after: str | None, limit: int) -> list[Event]:
    """Events after a cursor; a `reset` for one that cannot be gone on from."""
    of, seen = ("", 0) if after is None else parsed_cursor(after)
    epoch, seen, at, rows = await history.script("events", of, seen, limit)
    epoch = epoch.decode()
    if rows is None:
        return [Event(epoch, seen, at, RESET)]
    found: list[Event] = []
    for row in rows:
        found.extend(_unpacked(epoch, row, seen))
    return found[:limit]


def _unpacked(epoch: str, row: list[Any], seen: int) -> list[Event]:
    last = int(row[0].partition(b"-")[0])
    # Names and values in turn, in the order in which the ledger writes them.
    n, at, event, kind, queue, role, batch, worker, error, jobs = row[1][1::2]
    at, event, kind, queue = int(at), text_of(event), text_of(kind), text_of(queue)
    batch_id = text_of(batch) if batch else None
    worker_id = text_of(worker) if worker else None
    error_type = error.decode() if error else None
    if event in OF_NOBODY:
        return [of_nobody(epoch, last, at, event, kind, error_type)]
    said = said_by(event, error_type)
    found = []
    for seq, entry in enumerate(jobs.decode().split(";"), start=last - int(n) + 1):
        if seq > seen:
            job_id, attempt, lease = entry.split(",")
            found.append(
                Event(
                    *(epoch, seq, at, event, job_id, kind, queue, ROLES[int(role)], batch_id),
                    *(int(attempt), int(lease), worker_id, *said),
                )
            )
    return found


# ── Retention ────────────────────────────────────────────────────────────────────────────────


def pack_rules(rules: Mapping[str, Retention], now: int) -> list[Arg]:
    packed: list[Arg] = [len(rules)]
    for kind, rule in rules.items():
        ttl = rule.result_ttl
        packed += (kind, "" if ttl is None else now - round(ttl * MICROSECOND))
        for _, keep in rule.by_state():
            packed += (
                "" if keep.age is None else now - round(keep.age * MICROSECOND),
                optional(keep.count),
            )
    return packed
