"""Connections: opened, checked, brought to the newest schema; and SQLite's errors made ours."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import apsw

from haulier.exceptions import (
    ConfigurationError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from haulier.services.urls import nothing_at

MEMORY = ":memory:"

APPLICATION_ID = 0x4841554C
"""Marks our files in SQLite's own header field: the letters HAUL."""

SCHEMA_STEP = 6
"""The newest of the numbered files that make the schema; a new store runs them all."""

OLDEST_SQLITE = (3, 51, 3)
"""Before it, two connections that checkpoint and write at once can corrupt a WAL database
(sqlite.org/wal.html, "the WAL-reset bug"); several workers on one file do just that."""

BUSY_SECONDS = 8.0


def check_library() -> None:
    """Refuse an SQLite library with the WAL corruption bug."""
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < OLDEST_SQLITE:
        raise ConfigurationError(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a database that several processes "
            "write to; install apsw 3.54 or later, which brings a sound one"
        )


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """The one place where SQLite's errors become ours."""
    try:
        yield
    except apsw.FullError as error:
        raise StoreFullError(f"no space left for the store {path}") from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise StoreCorruptError(f"{path} is damaged or not a haulier store: {error}") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreUnavailableError(
            f"the store {path} stayed locked for {BUSY_SECONDS:g} s"
        ) from error
    except apsw.ReadOnlyError as error:
        raise StoreUnavailableError(f"the store {path} cannot be written") from error
    except apsw.CantOpenError as error:
        raise StoreUnavailableError(f"the store {path} cannot be opened: {error}") from error
    except apsw.Error as error:
        raise StoreError(f"the store {path} failed: {error}") from error


def connect(path: str, *, readonly: bool = False) -> apsw.Connection:
    """A configured connection; the file must exist unless it is in memory."""
    flags = apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE
    if path == MEMORY:
        flags |= apsw.SQLITE_OPEN_CREATE
    db = apsw.Connection(path, flags=flags)
    db.set_busy_handler(_patience())
    db.execute("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16000")
    return db


def _patience() -> Callable[[int], bool]:
    """A busy handler with short, jittered waits: SQLite's own waits up to 100 ms at a time."""
    began = 0.0

    def wait(tries: int) -> bool:
        nonlocal began
        if tries == 0:
            began = time.monotonic()
        if time.monotonic() - began > BUSY_SECONDS:
            return False
        time.sleep(random.uniform(0.2, 1.0) * min(0.0005 * 2 ** min(tries, 5), 0.01))
        return True

    return wait


def prepare(path: str, *, create: bool) -> apsw.Connection:
    """Open the store for writing, creating or upgrading its schema.

    Without `create`, where there is none, it raises ConfigurationError and changes nothing.
    """
    if not create and not Path(path).exists():
        raise nothing_at(path)
    if path != MEMORY and create:
        _touch(Path(path))
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        db = connect(path)
        try:
            _set_up(db, path, create=create)
            return db
        except BaseException as error:
            db.close()
            # The switch to WAL does not ask the busy handler: when several open a new file at once,
            # all but one have to come again.
            if not isinstance(error, apsw.BusyError) or time.monotonic() > give_up:
                raise
        time.sleep(random.uniform(0.001, 0.01))


def _set_up(db: apsw.Connection, path: str, *, create: bool) -> None:
    # Looked at before anything is changed: it may be somebody else's database. In one snapshot, or
    # a store that another process is just creating would look like one.
    with snapshot(db):
        if not _is_ours(db, path) and not create:
            raise nothing_at(path)
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("PRAGMA journal_size_limit = 67108864")
    with transaction(db):
        _migrate(db, path)


def _touch(path: Path) -> None:
    """Create the file for its owner alone, before SQLite would create it for everybody."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreUnavailableError(
            f"the store {path} cannot be opened: {error.strerror}"
        ) from error


def _is_ours(db: apsw.Connection, path: str) -> bool:
    """Whether it is a store of ours, false for an empty file; raises for any other database."""
    application, step = _number(db, "application_id"), _number(db, "user_version")
    if application == APPLICATION_ID:
        if step > SCHEMA_STEP:
            raise ConfigurationError(
                f"the store {path} has schema step {step}, this haulier knows up to {SCHEMA_STEP}: "
                "upgrade haulier"
            )
        return True
    if db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall():
        raise StoreCorruptError(f"{path} is an SQLite database of some other program")
    return False


def _number(db: apsw.Connection, pragma: str) -> int:
    rows: list[tuple[Any, ...]] = db.execute(f"PRAGMA {pragma}").fetchall()
    return int(rows[0][0])


def _migrate(db: apsw.Connection, path: str) -> None:
    """Run the steps that this store has not seen, all in one transaction."""
    _is_ours(db, path)
    step = _number(db, "user_version")
    if step == SCHEMA_STEP:
        return
    files = resources.files("haulier.stores.schema")
    for number in range(step + 1, SCHEMA_STEP + 1):
        db.execute(files.joinpath(f"sqlite_{number}.sql").read_text("utf-8"))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_STEP}")


@contextlib.contextmanager
def transaction(db: apsw.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        raise


def _roll_back(db: apsw.Connection) -> None:
    # A full disk or an I/O error may have rolled back already.
    if db.in_transaction:
        db.execute("ROLLBACK")


@contextlib.contextmanager
def snapshot(db: apsw.Connection) -> Iterator[None]:
    """Several reads of one operation see one state of the store."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        _roll_back(db)
