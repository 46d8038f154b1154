"""Copies from and into an SQLite file: the mark, and what the verbs of a copy do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import apsw

from haulier.domain.transfer import Mark, Numbers, Record, Records, Section, Stage, Standing
from haulier.stores.codes import RUNNING
from haulier.stores.marks import CLOSED, check_replaced, may_freeze, refusal
from haulier.stores.sqlite import flows
from haulier.stores.sqlite import records as rows
from haulier.stores.sqlite.rows import fetch
from haulier.stores.watching import Change

T = TypeVar("T")

_STAGE = "SELECT stage, mark FROM transfer"


# ── The mark ─────────────────────────────────────────────────────────────────────────────────


def check_open(db: apsw.Connection) -> None:
    """Raises StoreFrozenError while nothing of the store may change."""
    for stage, text in db.execute(_STAGE):
        if stage in CLOSED:
            raise refusal(text)


def gives_jobs(db: apsw.Connection) -> bool:
    """Whether workers may have jobs; raises StoreFrozenError when they are in the wrong store."""
    for stage, text in db.execute(_STAGE):
        if stage in (Stage.MOVED, Stage.RECEIVING):
            raise refusal(text)
        return bool(stage == Stage.RECEIVED)
    return True


def mark_of(db: apsw.Connection) -> Mark | None:
    for _, text in fetch(db, _STAGE):
        return Mark.from_text(text)
    return None


def _set_mark(db: apsw.Connection, mark: Mark | None) -> None:
    db.execute("DELETE FROM transfer")
    if mark is not None:
        db.execute("INSERT INTO transfer VALUES (?, ?)", (mark.stage, mark.to_text()))


# ── Steps ────────────────────────────────────────────────────────────────────────────────────

_TABLES = {
    Section.LIMITS: "limits",
    # As `limits.read_meters` does.
    Section.METERS: "meters WHERE open_until IS NOT NULL OR half = 0",
    Section.BATCHES: "batches",
    Section.JOBS: "jobs",
    Section.NAMES: "uniques",
    Section.SCHEDULES: "schedules",
    Section.TICKS: "ticks",
    Section.CONFIGURATION: "configuration",
    Section.EVENTS: "events",
}


def standing(db: apsw.Connection) -> Standing:
    ((epoch, last),) = fetch(db, "SELECT epoch, last FROM history")
    seqs = fetch(db, "SELECT seq FROM sqlite_sequence WHERE name = 'jobs'")
    ((running,),) = fetch(
        db, f"SELECT count(*) FROM jobs WHERE state = {RUNNING} AND worker IS NOT NULL"
    )
    ((under_way,),) = fetch(db, "SELECT count(*) FROM batches WHERE draining > 0")
    under_way += flows.work_left(db)
    return Standing(
        mark=mark_of(db),
        numbers=Numbers(epoch, last, seqs[0][0] if seqs else 0),
        running=running,
        under_way=under_way,
        totals={
            section: fetch(db, f"SELECT count(*) FROM {table}")[0][0]
            for section, table in _TABLES.items()
        },
    )


def freeze(db: apsw.Connection, mark: Mark) -> Standing:
    before = standing(db)
    if may_freeze(before.mark) and (mark.stage is Stage.DRAINING or before.idle):
        _set_mark(db, mark)
    return standing(db)


def receive(db: apsw.Connection, mark: Mark) -> Standing:
    before = standing(db)
    if before.empty and (before.mark is None or before.mark.stage is Stage.RECEIVED):
        _set_mark(db, mark)
    return standing(db)


def advance(
    db: apsw.Connection, was: Mark, now: Mark, records: Sequence[Record], numbers: Numbers | None
) -> None:
    if not check_replaced(mark_of(db), was, now):
        return
    if records:
        assert was.section is not None
        rows.INSERT[was.section](db, records)
    if numbers is not None:
        db.execute("UPDATE history SET epoch = ?, last = ?", (numbers.epoch, numbers.last_event))
        db.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
        db.execute("INSERT INTO sqlite_sequence VALUES ('jobs', ?)", (numbers.last_seq,))
    _set_mark(db, now)


EMPTIED_AT_ONCE = 1000

_KEYS = {
    "lanes": "id",
    "meters": "name, key",
    "limits": "name",
    "errors": "job, lease",
    "steps": "job, name",
    "lines": "job, lease, number",
    "edges": "child, nth",
    "ends": "parent",
    "events": "seq",
    "uniques": "name",
    "schedules": "name",
    "ticks": "schedule, tick",
    "configuration": "version",
    "settings": "name",
    "alterations": "version, name",
    "jobs": "seq",
    "batches": "id",
}


def empty_slice(db: apsw.Connection) -> bool:
    """Remove a part of what an unfinished copy has brought; whether there is more of it."""
    mark = mark_of(db)
    if mark is None or mark.stage is not Stage.RECEIVING:
        return False
    # From here on nobody can go on with that copy, also when this stops half-way.
    _set_mark(db, replace(mark, token=""))
    for table, key in _KEYS.items():
        db.execute(
            f"DELETE FROM {table} WHERE ({key}) IN "
            f"(SELECT {key} FROM {table} LIMIT {EMPTIED_AT_ONCE})"
        )
        if db.changes():
            return True
    db.execute("DELETE FROM counts; DELETE FROM sqlite_sequence WHERE name = 'jobs'")
    return False


def open_again(db: apsw.Connection) -> None:
    """Take the mark away. A store that was read gets a new epoch: its history has a twin."""
    mark = mark_of(db)
    if mark is not None and mark.stage in (Stage.FROZEN, Stage.MOVED):
        db.execute("UPDATE history SET epoch = lower(hex(randomblob(4)))")
    _set_mark(db, None)


# ── The verbs ────────────────────────────────────────────────────────────────────────────────


class _Read(Protocol):
    def __call__(self, run: Callable[[apsw.Connection], T], /) -> Awaitable[T]: ...


class _Write(Protocol):
    def __call__(self, run: Callable[[apsw.Connection], T], change: Change, /) -> Awaitable[T]: ...


class SqliteTransfer:
    """The part of an SQLite store that copies speak to; it runs on the threads of its store."""

    def __init__(self, read: _Read, write: _Write) -> None:
        self._read = read
        self._write = write

    async def standing(self) -> Standing:
        return await self._read(standing)

    async def freeze(self, mark: Mark) -> Standing:
        return await self._write(lambda db: freeze(db, mark), Change.NOTHING)

    async def receive(self, mark: Mark) -> Standing:
        return await self._write(lambda db: receive(db, mark), Change.NOTHING)

    async def read(self, section: Section, after: str | None = None) -> Records:
        return await self._read(lambda db: rows.READ[section](db, after))

    async def advance(
        self,
        was: Mark,
        now: Mark,
        records: Sequence[Record] = (),
        *,
        numbers: Numbers | None = None,
    ) -> None:
        change = Change.NOTHING if now.stage is Stage.RECEIVING else Change.ANY
        await self._write(lambda db: advance(db, was, now, records, numbers), change)

    async def thaw(self) -> None:
        while await self._write(empty_slice, Change.NOTHING):
            pass
        await self._write(open_again, Change.ANY)
