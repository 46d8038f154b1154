"""What operators change while everything runs: kept, counted, and looked at by every exchange."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import apsw

from haulier.domain.configuration import KEPT_CHANGES, Alteration, Configuration, checked
from haulier.domain.event import CONFIGURED
from haulier.domain.transfer import ConfigurationRecord, Records
from haulier.domain.worker import Demand
from haulier.stores.configuring import (
    Kept,
    alterations,
    configuration_of,
    paused_text,
)
from haulier.stores.sqlite.ledger import say_of_nobody
from haulier.stores.sqlite.rows import fetch
from haulier.stores.watching import Change

T = TypeVar("T")

_VERSION = "SELECT coalesce((SELECT version FROM configuration), 0)"
_SETTINGS = "SELECT name, value, version, changed_by, changed_at FROM settings"
_PUT = "INSERT INTO settings (name, value, version, changed_by, changed_at) VALUES (?, ?, ?, ?, ?)"
_PUT_ALTERATION = (
    "INSERT INTO alterations (version, at, by, name, before, after) VALUES (?, ?, ?, ?, ?, ?)"
)


def read(db: apsw.Connection) -> Configuration:
    """What is set now."""
    ((version,),) = fetch(db, _VERSION)
    return configuration_of(version, map(Kept._make, db.execute(_SETTINGS)))


def change(
    db: apsw.Connection,
    now: int,
    texts: Mapping[str, str | None],
    by: str,
    expected: int | None,
) -> Configuration:
    """Set and unset settings, unless another version is there than was expected."""
    before = {row[0]: row[1] for row in fetch(db, _SETTINGS)}
    ((there,),) = fetch(db, _VERSION)
    altered = alterations(before, there, texts, expected)
    if altered:
        version = announce(db, now, by, [each.name for each in altered])
        names = [(each.name,) for each in altered]
        db.executemany("DELETE FROM settings WHERE name = ?", names)
        db.executemany(
            _PUT,
            [(name, text, version, by, now) for name, _, text in altered if text is not None],
        )
        db.executemany(_PUT_ALTERATION, [(version, now, by, *each) for each in altered])
        db.execute(
            "DELETE FROM alterations WHERE (version, name) IN (SELECT version, name "
            "FROM alterations ORDER BY version DESC, name LIMIT -1 OFFSET ?)",
            (KEPT_CHANGES,),
        )
        note_paused(db)
    return read(db)


def announce(db: apsw.Connection, now: int, by: str, names: Iterable[str]) -> int:
    """Make a new version, which all workers will hear of, and an event for each thing that changed.

    For all that is changed while workers run, also where it is kept elsewhere.
    """
    ((version,),) = fetch(db, _VERSION)
    if version:
        db.execute("UPDATE configuration SET version = version + 1")
    else:
        db.execute("INSERT INTO configuration (version) VALUES (1)")
    say_of_nobody(db, now, CONFIGURED, names, by)
    return int(version) + 1


def note_paused(db: apsw.Connection) -> None:
    """Put the paused queues where exchanges look for them."""
    paused = paused_text(row[0] for row in db.execute("SELECT name FROM settings"))
    db.execute("UPDATE configuration SET paused = ?", (paused,))


def history(db: apsw.Connection, limit: int) -> list[Alteration]:
    """The last changes, the latest first."""
    return [
        Alteration._make(row)
        for row in db.execute(
            "SELECT version, at, by, name, before, after FROM alterations "
            "ORDER BY version DESC, name LIMIT ?",
            (limit,),
        )
    ]


def read_copied(db: apsw.Connection, after: str | None) -> Records:
    """The configuration as a copy takes it."""
    del after
    rows = fetch(db, "SELECT version FROM configuration")
    settings = tuple(fetch(db, f"{_SETTINGS} ORDER BY name"))
    return Records(
        tuple(
            ConfigurationRecord(version, settings, tuple(history(db, KEPT_CHANGES)))
            for (version,) in rows
        )
    )


def insert_copied(db: apsw.Connection, records: Sequence[ConfigurationRecord]) -> None:
    for record in records:
        db.execute("INSERT INTO configuration (version) VALUES (?)", (record.version,))
        db.executemany(_PUT, record.settings)
        db.executemany(_PUT_ALTERATION, record.alterations)
    note_paused(db)


def open_demands(demands: Sequence[Demand], paused: str | None) -> Sequence[Demand]:
    """What is asked for of queues that are not paused."""
    if paused is None:
        return demands
    queues = frozenset(json.loads(paused))
    left = (demand.without(queues) for demand in demands)
    return [demand for demand in left if demand is not None]


class _Read(Protocol):
    def __call__(self, run: Callable[[apsw.Connection], T], /) -> Awaitable[T]: ...


class _Change(Protocol):
    def __call__(self, run: Callable[[apsw.Connection], T], change: Change, /) -> Awaitable[T]: ...


class SqliteConfigurable:
    """The part of an SQLite store that keeps its configuration; it runs on the store's threads."""

    def __init__(self, read: _Read, change: _Change, now: Callable[[], int]) -> None:
        self._read = read
        self._change = change
        self._now = now

    async def configuration(self) -> Configuration:
        return await self._read(read)

    async def configure(
        self,
        values: Mapping[str, Any],
        *,
        unset: Iterable[str] = (),
        by: str,
        expected: int | None = None,
    ) -> Configuration:
        texts = checked(values, unset, by)
        # All workers are woken: a queue may go on, and each is to hear of the new version.
        return await self._change(
            lambda db: change(db, self._now(), texts, by, expected), Change.READY
        )

    async def noted(self) -> list[str]:
        """The paused queues as exchanges see them."""
        rows = await self._read(lambda db: fetch(db, "SELECT paused FROM configuration"))
        return [queue for (paused,) in rows if paused for queue in json.loads(paused)]

    async def history(self, limit: int = 50) -> list[Alteration]:
        return await self._read(lambda db: history(db, limit))
