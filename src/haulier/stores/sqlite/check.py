"""A look at the health of an SQLite file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import apsw

from haulier.domain.finding import Finding
from haulier.domain.job import MICROSECOND
from haulier.domain.transfer import Section
from haulier.stores.checking import (
    copying,
    counters,
    ok,
    problem,
    skew,
    slots,
    under_way,
    waiting,
    warning,
)
from haulier.stores.codes import HEAD, PENDING, RUNNING
from haulier.stores.sqlite import queries, transfer
from haulier.stores.sqlite.connection import (
    MEMORY,
    OLDEST_SQLITE,
    SCHEMA_STEP,
    check_library,
    connect,
    prepare,
    snapshot,
    translated,
)
from haulier.stores.sqlite.lanes import used
from haulier.stores.sqlite.limits import listed
from haulier.stores.sqlite.rows import fetch

OVER_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs"})

LONG_WAL = 256 << 20
"""Bytes; we let it shrink to 64 MiB whenever nobody reads."""

LITTLE_SPACE = 1 << 30
NO_SPACE = 64 << 20

WASTE = 64 << 20
"""Bytes of free pages in the file that are worth a word, if they are half of it."""

_OLDEST = f"""
SELECT min(at) FROM (
    SELECT min(run_at) AS at FROM jobs
    WHERE state = {PENDING} AND rank IS NOT NULL AND lane IS NULL
    UNION ALL
    SELECT min(run_at) FROM jobs
    WHERE state = {PENDING} AND rank IS NOT NULL AND lane IS NOT NULL
    UNION ALL
    SELECT min(run_at) FROM jobs
    WHERE state = {PENDING} AND rank IS NULL AND gate IS NULL AND run_at <= ?)
"""
_IN_LANES = f"""
SELECT lane, count(*) FROM jobs
WHERE state = {RUNNING} AND role <> {HEAD} AND lane IS NOT NULL GROUP BY lane
"""
_OBJECTS = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"


def look_at_file(path: str, now: int, boot: tuple[str, int]) -> list[Finding]:
    """All findings, on a connection of their own: to read a large file takes a while."""
    with translated(path):
        db = connect(path, readonly=True)
        try:
            with snapshot(db):
                return [_place(path), _rights(path), *_look(db, path, now, boot), _space(path)]
        finally:
            db.close()


def look_at_memory(db: apsw.Connection, now: int, boot: tuple[str, int]) -> list[Finding]:
    """The findings that a store in memory has."""
    what = "in the memory of this process: gone when it ends"
    return [ok("connection", what), *_look(db, MEMORY, now, boot)]


def _look(db: apsw.Connection, path: str, now: int, boot: tuple[str, int]) -> list[Finding]:
    standing = transfer.standing(db)
    ((oldest,),) = fetch(db, _OLDEST, (now,))
    counts = queries.counts(db)
    return [
        _version(),
        _schema(db),
        _durability(db, path),
        _integrity(db),
        _indexes(db),
        _bloat(db, path),
        _clock(db, now),
        counters(counts, standing.totals[Section.JOBS]),
        _slots(db),
        *waiting(counts, oldest, queries.workers(db, boot), now),
        under_way(standing.under_way),
        copying(standing.mark),
    ]


def touch(db: apsw.Connection) -> None:
    """A commit that changes nothing, to see how long one takes."""
    db.execute("UPDATE history SET last = last")


# ── The file ─────────────────────────────────────────────────────────────────────────────────


def _place(path: str) -> Finding:
    kind = _file_system(Path(path).resolve())
    if kind is None:
        return ok("connection", "a file of this machine")
    if kind in OVER_NETWORK or kind.startswith("fuse."):
        advice = "SQLite's locks do not work over a network: move the file to a disk of its own"
        return problem("connection", f"a file on {kind}", advice)
    return ok("connection", f"a file of this machine, on {kind}")


def _file_system(path: Path) -> str | None:
    """The type of the file system that holds a path; None where the system does not tell."""
    try:
        lines = Path("/proc/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    for line in lines:
        _, mount, its_kind, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        # Of two mounts in one place the later one is seen.
        if path.is_relative_to(mount) and len(mount) >= best:
            best, kind = len(mount), its_kind
    return kind


def _rights(path: str) -> Finding:
    others = [
        file.name
        for file in (Path(path), Path(f"{path}-wal"), Path(f"{path}-shm"))
        if file.exists() and file.stat().st_mode & 0o077
    ]
    if not others:
        return ok("rights", "only the file's owner may read and write it")
    what = f"other users of this machine may reach {', '.join(others)}"
    return warning("rights", what, f"chmod go= {' '.join(others)}")


def _space(path: str) -> Finding:
    free = shutil.disk_usage(Path(path).resolve().parent).free
    what = f"{_bytes(free)} free"
    if free >= LITTLE_SPACE:
        return ok("space", what)
    advice = "make room: a full disk refuses new jobs"
    return (problem if free < NO_SPACE else warning)("space", what, advice)


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


# ── The database ─────────────────────────────────────────────────────────────────────────────


def _version() -> Finding:
    check_library()
    oldest = ".".join(map(str, OLDEST_SQLITE))
    return ok("version", f"SQLite {apsw.sqlite_lib_version()}, {oldest} or later is needed")


def _schema(db: apsw.Connection) -> Finding:
    # An older one was brought up to date, and a newer one refused, when the store was opened.
    return ok("schema", f"step {_pragma(db, 'user_version')} of {SCHEMA_STEP}")


def _durability(db: apsw.Connection, path: str) -> Finding:
    if path == MEMORY:
        return ok("durability", "none: in memory")
    mode, level = _pragma(db, "journal_mode"), _pragma(db, "synchronous")
    if mode == "wal" and level >= 2:
        return ok("durability", "WAL, synchronous=FULL: what was acknowledged is on the disk")
    return problem(
        "durability",
        f"journal_mode={mode}, synchronous={level}",
        "somebody has changed it: PRAGMA journal_mode=WAL",
    )


def _integrity(db: apsw.Connection) -> Finding:
    said = [row[0] for row in fetch(db, "PRAGMA quick_check(3)")]
    if said == ["ok"]:
        return ok("integrity", "quick_check finds nothing wrong")
    return problem("integrity", "; ".join(said), "stop all workers and restore a backup")


def _indexes(db: apsw.Connection) -> Finding:
    new = prepare(MEMORY, create=True)
    try:
        meant = dict(new.execute(_OBJECTS))
    finally:
        new.close()
    there = dict(db.execute(_OBJECTS))
    missing = sorted(name for name, sql in meant.items() if there.get(name) != sql)
    if not missing:
        return ok("indexes", f"all {len(meant)} are there")
    advice = "somebody has changed the schema: copy the store into a new one"
    return problem("indexes", f"missing or changed: {', '.join(missing)}", advice)


def _bloat(db: apsw.Connection, path: str) -> Finding:
    size, free, page = (_pragma(db, name) for name in ("page_count", "freelist_count", "page_size"))
    what = f"{_bytes(size * page)}, of which {_bytes(free * page)} free"
    wal = Path(f"{path}-wal")
    log = wal.stat().st_size if path != MEMORY and wal.exists() else 0
    if log:
        what += f"; WAL {_bytes(log)}"
    if log > LONG_WAL:
        return warning("bloat", what, "a reader holds an old snapshot: close it, then all shrinks")
    if free * page > WASTE and free * 2 > size:
        return warning("bloat", what, "VACUUM while no worker runs gives the space back")
    return ok("bloat", what)


def _slots(db: apsw.Connection) -> Finding:
    there: dict[int, int] = dict(fetch(db, _IN_LANES))
    counted: dict[int, int] = dict(fetch(db, "SELECT id, running FROM lanes WHERE running <> 0"))
    wrong = sum(there.get(lane) != counted.get(lane) for lane in there.keys() | counted.keys())
    limits = listed(db)
    wrong += sum(
        used(db, each.limit) != each.running
        for each in limits
        if each.limit.concurrency is not None and not each.limit.per_key
    )
    return slots(len(limits), sum(there.values()), wrong)


def _clock(db: apsw.Connection, now: int) -> Finding:
    ((latest,),) = fetch(
        db, "SELECT max(at) FROM (SELECT at FROM events ORDER BY seq DESC LIMIT 1)"
    )
    if latest is None or latest <= now:
        return ok("clock", "this machine's own")
    return skew((latest - now) / MICROSECOND)


def _pragma(db: apsw.Connection, name: str) -> Any:
    return fetch(db, f"PRAGMA {name}")[0][0]
