"""What a store holds, in words that every store understands: for copying one into another.

A copy goes section by section and page by page. How far it has come is the `Mark` of the store
that receives it, replaced in the transaction that inserts a page, so that nothing is inserted
twice, however often the copy is broken off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import NamedTuple, Self

from haulier.domain.configuration import Alteration
from haulier.domain.flow import Otherwise
from haulier.domain.job import JobError, JobState, OnLost, Role
from haulier.domain.line import Line
from haulier.domain.retry import RetryPolicy
from haulier.domain.step import Step
from haulier.domain.unique import Scope


class Section(StrEnum):
    """The parts of a store, in the order in which they are copied: limits before their jobs."""

    LIMITS = "limits"
    METERS = "meters"
    JOBS = "jobs"
    BATCHES = "batches"
    NAMES = "names"
    SCHEDULES = "schedules"
    TICKS = "ticks"
    CONFIGURATION = "configuration"
    EVENTS = "events"

    @property
    def following(self) -> Section | None:
        """The section that is copied after this one."""
        order = tuple(Section)
        place = order.index(self) + 1
        return order[place] if place < len(order) else None


class Gate(StrEnum):
    """Why a pending job is not simply in the line or scheduled.

    parked: its batch keeps it back. let_in: its batch has let it into the line. alone: it is to be
    run alone, because it was running when workers were lost. waiting: for other jobs.
    """

    PARKED = "parked"
    LET_IN = "let_in"
    ALONE = "alone"
    WAITING = "waiting"


class EdgeRecord(NamedTuple):
    """A job that another one waits for or has waited for, beside the one that does.

    `state`: what it came to, None while it has not ended; `result` and `error` as they were then.
    """

    parent_id: str
    otherwise: Otherwise
    state: JobState | None
    result: bytes | None
    error: JobError | None


class LimitRecord(NamedTuple):
    """A limit, or the trace of one that was deleted: then `told` is None.

    `told` and `declared` (what code has declared last) are JSON texts as `Limit.to_text` makes
    them. `by_code`: it is as it was declared. `full_at`: when the bucket of a rate that is not per
    key is full.
    """

    name: str
    told: str | None
    declared: str | None
    by_code: bool
    changed_by: str
    changed_at: int
    full_at: int


class MeterRecord(NamedTuple):
    """How a key stands under a limit that is per key: a rate, or a breaker that is not closed.

    `open_until`: when the breaker lets probes through, or since when it does. What closed breakers
    have counted is no part of a copy.
    """

    limit: str
    key: str
    full_at: int
    open_until: int | None


class JobRecord(NamedTuple):
    """A job with all that is kept beside it. Its fields are those of `Job`, and some more.

    `ready`: pending and in the line. `cancel`: 0, 1 requested, 2 heard. `names`: the unique names
    that a requeue takes back; None if it never had any. `errors`: those of its attempts, by lease.
    `steps`, `lines` and `edges` in their order. `children`: None if no others wait for it, 1 if
    they are to be told when it ends, 2 if they were told. No worker holds it, since workers are
    drained before a store is copied.
    """

    seq: int
    id: str
    kind: str
    queue: str
    role: Role
    version: int
    payload: bytes
    state: JobState
    ready: bool
    gate: Gate | None
    priority: int
    run_at: int
    attempt: int
    lease: int
    lost: int
    cancel: int
    key: str | None
    batch_id: str | None
    position: int | None
    retry: RetryPolicy | None
    names: tuple[str, ...] | None
    on_lost: OnLost
    created_at: int
    started_at: int | None
    finished_at: int | None
    progress: int | None
    message: str | None
    result: bytes | None
    error: JobError | None
    baggage: str | None
    errors: tuple[JobError, ...]
    steps: tuple[Step, ...]
    lines: tuple[Line, ...]
    edges: tuple[EdgeRecord, ...] = ()
    children: int | None = None


class BatchRecord(NamedTuple):
    """A batch beside its head job. Its fields are those of `Batch`, and some more.

    `own_expander`: a worker runs the head to make the items. `cancel`: 0, 1 by request, 2 cut
    short. `paused`: 0, 1 by itself, 2 by the batch around it, 3 both.
    `gated`: paused or limited, and not settled. `owed`: not settled in this round.
    `leases`: those of its items begin above this.
    """

    id: str
    own_expander: bool
    sealed: bool
    cancel: int
    paused: int
    gated: bool
    owed: bool
    leases: int
    total: int
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int
    started_at: int | None
    concurrency: int | None
    batch_size: int | None
    max_failures: int | None
    finish_kind: str | None
    finish_queue: str | None
    finish_job: str | None
    within: str | None


class NameRecord(NamedTuple):
    """A unique name and who holds it; `until` (microseconds UTC) when its scope is a period."""

    name: str
    job_id: str
    scope: Scope
    until: int | None
    digest: bytes


class ScheduleRecord(NamedTuple):
    """A schedule. Its fields are those of `Schedule`; `body` is what stores need not understand."""

    name: str
    id: str
    revision: int
    next: int | None
    last_job: str | None
    kind: str
    queue: str
    body: str
    changed_by: str
    changed_at: int


class TickRecord(NamedTuple):
    """A tick of a schedule. Its fields are those of `Tick`, `state` is one of its words."""

    schedule: str
    tick: int
    at: int
    state: str
    job: str | None
    since: int | None


class ConfigurationRecord(NamedTuple):
    """What operators have set; a store has at most one.

    `settings` are each its name, its JSON text, the version that set it, who and when.
    `alterations` are the last ones, the latest first.
    """

    version: int
    settings: tuple[tuple[str, str, int, str, int], ...]
    alterations: tuple[Alteration, ...]


class EventRecord(NamedTuple):
    """Events of one transaction that differ only in `jobs`: id, attempt and lease of each.

    `seq` is the number of the last of them.
    """

    seq: int
    at: int
    type: str
    kind: str
    queue: str
    role: Role
    batch_id: str | None
    worker: str | None
    error_type: str | None
    jobs: tuple[tuple[str, int, int], ...]


Record = (
    LimitRecord
    | MeterRecord
    | JobRecord
    | BatchRecord
    | NameRecord
    | ScheduleRecord
    | TickRecord
    | ConfigurationRecord
    | EventRecord
)


@dataclass(frozen=True, slots=True)
class Records:
    """A page of one section; `next` is the cursor of the following one, None at the end."""

    records: tuple[Record, ...]
    next: str | None = None


# ── Digests ──────────────────────────────────────────────────────────────────────────────────

_MODULUS = 1 << 256


@dataclass(frozen=True, slots=True)
class Tally:
    """How many records, and the sum of their digests.

    A sum, because stores give some sections in an order of their own. It guards against mistakes
    and damage, not against somebody who makes records up.
    """

    count: int = 0
    digest: int = 0

    def plus(self, records: Iterable[Record]) -> Self:
        """The tally of these records too."""
        count, digest = self.count, self.digest
        for record in records:
            count += 1
            digest += int.from_bytes(hashlib.blake2b(canonical(record), digest_size=32).digest())
        return replace(self, count=count, digest=digest % _MODULUS)


def canonical(record: Record) -> bytes:
    """The one text of a record, as what is digested."""
    return _ENCODER.encode(record).encode()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, RetryPolicy):
        return value.as_dict()
    if isinstance(value, JobError | Step):
        return [getattr(value, each.name) for each in fields(value)]
    raise TypeError(f"{type(value).__name__} is no part of a record")


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain)


# ── Where a copy stands ──────────────────────────────────────────────────────────────────────


class Stage(StrEnum):
    """What a copy has made of a store; without any, it is open for everything.

    draining: it gives no more jobs to workers. frozen: nothing of it changes. moved: its jobs are
    in another store now. receiving: it is being filled. received: it was filled, and is open.
    """

    DRAINING = "draining"
    FROZEN = "frozen"
    MOVED = "moved"
    RECEIVING = "receiving"
    RECEIVED = "received"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a store keeps of the copy it takes part in.

    `token` names the copy and is the same on both sides; `peer` is the other store, as people may
    see it; `source` is the epoch of the store that is copied. Of a store that receives: `section`
    and `cursor` are where to go on, `tallies` what was inserted; no section is left at the end.
    """

    stage: Stage
    token: str
    peer: str
    source: str
    section: Section | None = None
    cursor: str | None = None
    tallies: Mapping[Section, Tally] = field(default_factory=dict)

    def to_text(self) -> str:
        """The mark as a store keeps it."""
        return json.dumps(
            {
                **{name: getattr(self, name) for name in _TEXTS},
                "tallies": {
                    section: [tally.count, f"{tally.digest:064x}"]
                    for section, tally in self.tallies.items()
                },
            },
            separators=(",", ":"),
            sort_keys=True,
        )

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The mark that a store keeps."""
        values = json.loads(text)
        section = values["section"]
        tallies = {
            Section(name): Tally(count, int(digest, 16))
            for name, (count, digest) in values["tallies"].items()
        }
        return cls(
            **{name: values[name] for name in _TEXTS}
            | {
                "stage": Stage(values["stage"]),
                "section": None if section is None else Section(section),
                "tallies": tallies,
            }
        )


_TEXTS = ("stage", "token", "peer", "source", "section", "cursor")


@dataclass(frozen=True, slots=True)
class Numbers:
    """Where the numbers of a store have come to: of events (with their epoch) and of jobs."""

    epoch: str
    last_event: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a store stands before, during and after a copy.

    `running`: jobs that workers hold. `under_way`: batches with a cancel, retry, pause or delete
    that is not done yet. `totals`: records of each section.
    """

    mark: Mark | None
    numbers: Numbers
    running: int
    under_way: int
    totals: Mapping[Section, int]

    @property
    def empty(self) -> bool:
        """Whether nothing has ever happened here."""
        return not self.numbers.last_event and not any(self.totals.values())

    @property
    def idle(self) -> bool:
        """Whether nothing would change if no one asked for anything new."""
        return not self.running and not self.under_way
