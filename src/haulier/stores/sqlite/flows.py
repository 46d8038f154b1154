"""Jobs that wait for others: told when these end, cancelled with them, and brought back with them.

Whoever ends a job writes nothing for this: an index holds the parents that have ended and whose
children were not told. `follow` tells them, slice by slice, the first one in the transaction that
ended the parent. What is left is gone on with by whoever began it, or by the next sweep.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apsw

from haulier.domain import flow
from haulier.domain.flow import Otherwise, Parent
from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import JobError, NewJob
from haulier.domain.moves import Move
from haulier.domain.transfer import EdgeRecord
from haulier.exceptions import JobNotFoundError
from haulier.ports import Page
from haulier.stores.codes import (
    CANCELLED,
    COMPLETED,
    FAILED,
    HEAD,
    OTHERWISE,
    OTHERWISE_CODE,
    PENDING,
    STATE_CODE,
    STATES,
    WAITING,
    error_from_text,
    error_to_text,
    key_of,
)
from haulier.stores.sqlite import uniques
from haulier.stores.sqlite.ledger import Ledger, Subject
from haulier.stores.sqlite.rows import WITHOUT_PAYLOAD, Row, fetch, job_from_row
from haulier.stores.sqlite.settling import CANCELLED_BY_REQUEST, begin_cancel, settle_done

SLICE = 500
"""Edges that one transaction follows: a few milliseconds."""

LEVELS = 50
"""And from children to their children at most so often."""

TO_TELL, TOLD, TO_REVIVE = 1, 2, 3
"""`children` of a job that others wait for."""

TELLING, REVIVING = 1, 2
"""What is under way with the children of a parent."""


# In these words the first two are the condition of an index.
_ENDED = f"children IN (1, 3) AND children = {TO_TELL} AND state > 1"
_REQUEUED = f"children IN (1, 3) AND children = {TO_REVIVE}"
# The items of a head that failed or was cancelled may still be stopping; and who was requeued
# brings its children back before it ends again.
_READY = (
    "NOT EXISTS (SELECT 1 FROM ends e WHERE e.parent = j.id AND e.work = 2) AND "
    "NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = j.id AND b.owed = 1)"
)
_ANYTHING = (
    f"SELECT 1 FROM jobs j INDEXED BY jobs_parents WHERE {_ENDED} AND {_READY} "
    f"UNION ALL SELECT 1 FROM jobs INDEXED BY jobs_parents WHERE {_REQUEUED} "
    "UNION ALL SELECT 1 FROM ends WHERE work > 0 LIMIT 1"
)

_BEGIN_TELLING = (
    f"INSERT INTO ends (parent, state, result, error, work) SELECT j.id, state, result, error, "
    f"{TELLING} FROM jobs j INDEXED BY jobs_parents WHERE {_ENDED} AND {_READY} LIMIT {SLICE} "
    "ON CONFLICT (parent) DO UPDATE SET state = excluded.state, error = excluded.error, "
    "result = coalesce(excluded.result, result), work = excluded.work RETURNING parent"
)
_BEGIN_REVIVING = (
    f"INSERT INTO ends (parent, state, work) SELECT id, state, {REVIVING} "
    f"FROM jobs INDEXED BY jobs_parents WHERE {_REQUEUED} LIMIT {SLICE} "
    "ON CONFLICT (parent) DO UPDATE SET work = excluded.work, done = 0 RETURNING parent"
)
_SET_CHILDREN = "UPDATE jobs SET children = ? WHERE id = ?"

_TO_TELL = f"""
SELECT e.child, e.nth, e.otherwise, n.parent, n.state, n.error, j.state, j.gate, j.run_at, j.id,
       j.attempt, j.lease, j.queue, j.kind, j.role, j.batch
FROM ends n JOIN edges e ON e.parent = n.parent AND e.state IS NULL
LEFT JOIN jobs j ON j.seq = e.child
WHERE n.work = {TELLING} AND n.work > 0 LIMIT ?
"""
_WILL_TELL = (
    f"UPDATE jobs SET children = iif(children = {TO_REVIVE}, {TO_REVIVE}, {TO_TELL}) WHERE id = ?"
)
_ADD_EDGE = "INSERT INTO edges (child, nth, parent, otherwise) VALUES (?, ?, ?, ?)"
_TELL = "UPDATE edges SET state = ? WHERE child = ? AND nth = ?"
_ALL_TOLD = (
    f"UPDATE ends SET work = 0 WHERE work = {TELLING} AND work > 0 AND NOT EXISTS "
    "(SELECT 1 FROM edges e WHERE e.parent = ends.parent AND e.state IS NULL)"
)
_OF_NOBODY = (
    f"DELETE FROM ends WHERE work = {TELLING} AND work > 0 AND NOT EXISTS "
    "(SELECT 1 FROM edges e WHERE e.parent = ends.parent)"
)
_REOPEN = (
    "UPDATE edges SET state = NULL WHERE child = ? AND state IS NOT NULL "
    "AND EXISTS (SELECT 1 FROM jobs p WHERE p.id = edges.parent AND p.state < 2) RETURNING parent"
)
_FORGIVE = (
    "UPDATE jobs SET error = NULL "
    f"WHERE seq = ? AND state = {CANCELLED} AND error ->> 'type' = '{flow.PARENT_FAILED}'"
)
_IS_LEFT = "SELECT 1 FROM edges WHERE child = ? AND state IS NULL LIMIT 1"
# Like a job whose time has come: the next claim puts it where jobs of its kind stand.
_RELEASE = f"UPDATE jobs SET gate = NULL, run_at = ? WHERE seq = ? AND gate = {WAITING}"
_DROP = f"""
UPDATE jobs SET state = {CANCELLED}, gate = NULL, finished_at = ?, error = ?
WHERE seq = ? AND state = {PENDING} AND gate = {WAITING}
"""

_TO_REVIVE = f"""
SELECT e.child, e.nth, j.run_at, j.uniq, j.state = {PENDING} AND j.gate IS {WAITING},
       j.state = {CANCELLED} AND j.error ->> 'type' = '{flow.PARENT_FAILED}',
       j.id, j.attempt, j.lease, j.queue, j.kind, j.role, j.batch
FROM ends n JOIN edges e ON e.parent = n.parent AND e.child > n.done JOIN jobs j ON j.seq = e.child
WHERE n.parent = ? ORDER BY e.child LIMIT ?
"""
_STILL_BARRED = (
    f"SELECT 1 FROM edges WHERE child = ? AND otherwise = 0 AND state IN ({FAILED}, {CANCELLED})"
)
_BACK = f"""
UPDATE jobs SET state = {PENDING}, attempt = 0, lost = 0, finished_at = NULL, cancel = 0,
    rank = NULL, gate = {WAITING}, lane = NULL, children = iif(children IS NULL, NULL, {TO_REVIVE}),
    error = NULL
WHERE seq = ?
"""
_BACK_BATCH = (
    "UPDATE batches SET sealed = 0, cancel = 0, owed = 1, started_at = NULL, finish_job = NULL, "
    "gated = paused OR concurrency IS NOT NULL OR batch_size IS NOT NULL "
    "WHERE id = ? AND draining = 0"
)


@dataclass(slots=True)
class Followed:
    """Whether anything was done, and whether there is more."""

    anything: bool = False
    more: bool = False


# ── New jobs ─────────────────────────────────────────────────────────────────────────────────


def add(
    db: apsw.Connection, jobs: Iterable[NewJob], there: frozenset[str], instead: Mapping[str, str]
) -> None:
    """Let jobs that were inserted wait for those that they name, unless they were `there` before.

    `instead` of some there are others, which are waited for in their place. Raises ValidationError
    for a parent that is absent.
    """
    waiting = {job.id: job for job in jobs if job.after and job.id not in there | instead.keys()}
    parents: set[bytes] = set()
    for job in waiting.values():
        ((seq,),) = fetch(
            db,
            f"UPDATE jobs SET gate = {WAITING}, rank = NULL, lane = NULL WHERE id = ? "
            "RETURNING seq",
            (raw_id(job.id),),
        )
        ids = [raw_id(instead.get(each.job_id, each.job_id)) for each in job.after]
        parents.update(ids)
        edges = [
            (seq, nth, parent, OTHERWISE_CODE[each.otherwise])
            for nth, (parent, each) in enumerate(zip(ids, job.after, strict=True))
        ]
        db.executemany(_ADD_EDGE, edges)
    # They tell their children when they end, or at once if they have.
    before = db.total_changes()
    db.executemany(_WILL_TELL, [(parent,) for parent in parents])
    if db.total_changes() - before < len(parents):
        known = "SELECT 1 FROM jobs WHERE id = ?"
        raise flow.absent(text_id(each) for each in parents if not fetch(db, known, (each,)))


def those_there(db: apsw.Connection, jobs: Iterable[NewJob]) -> frozenset[str]:
    """The jobs among these that are to wait and were inserted before."""
    return frozenset(
        job.id
        for job in jobs
        if job.after and fetch(db, "SELECT 1 FROM jobs WHERE id = ?", (raw_id(job.id),))
    )


# ── What ended, and what came back ───────────────────────────────────────────────────────────


def follow(db: apsw.Connection, now: int) -> Followed:
    """One slice of what follows from parents that ended or were requeued."""
    result = Followed()
    room = SLICE
    for _ in range(LEVELS):
        if not fetch(db, _ANYTHING):
            return result
        done = _begin(db, _BEGIN_REVIVING, TO_TELL) + _begin(db, _BEGIN_TELLING, TOLD)
        done += _revive(db, now, room) or _tell(db, now, room)
        if not done:
            return result
        result.anything = True
        room -= done
        if room <= 0:
            break
    result.more = bool(fetch(db, _ANYTHING))
    return result


def work_left(db: apsw.Connection) -> bool:
    """Whether there is anything to follow."""
    return bool(fetch(db, _ANYTHING))


def _begin(db: apsw.Connection, statement: str, children: int) -> int:
    begun = fetch(db, statement)
    db.executemany(_SET_CHILDREN, [(children, parent) for (parent,) in begun])
    return len(begun)


def _tell(db: apsw.Connection, now: int, room: int) -> int:
    """Tell children what their parents came to; how many."""
    rows = fetch(db, _TO_TELL, (room,))
    db.executemany(_TELL, [(row[4], row[0], row[1]) for row in rows])
    barred: dict[int, Row] = {}
    free: dict[int, int] = {}
    for row in rows:
        child, _, otherwise, _, state, _, child_state, gate, run_at, *_ = row
        if child_state != PENDING or gate != WAITING:
            continue
        if state == COMPLETED or OTHERWISE[otherwise] is Otherwise.RUN:
            free[child] = run_at
        else:
            barred.setdefault(child, row)
    db.executemany(
        _RELEASE,
        [
            (max(run_at, now), child)
            for child, run_at in free.items()
            if child not in barred and not fetch(db, _IS_LEFT, (child,))
        ],
    )
    if barred:
        _drop(db, now, barred)
    db.execute(_OF_NOBODY)
    db.execute(_ALL_TOLD)
    return max(len(rows), 1)


def _drop(db: apsw.Connection, now: int, barred: Mapping[int, Row]) -> None:
    """Cancel children because of their parents."""
    ledger = Ledger()
    why = ((error_to_text(_why(*row[3:6]), now), child) for child, row in barred.items())
    db.executemany(_DROP, [(now, *each) for each in why])
    for row in barred.values():
        job = Subject(*row[9:])
        uniques.release_ended(db, job.id)
        if job.role == HEAD:
            begin_cancel(db, now, job.id, CANCELLED_BY_REQUEST)
        ledger.moved(Move.DROP, job, PENDING, CANCELLED, error=flow.PARENT_FAILED)
    ledger.write(db, now)
    for row in barred.values():
        if row[14] == HEAD:
            # Usually it has no items, since it makes them when it runs; others are left to a sweep.
            db.execute("UPDATE batches SET draining = 0 WHERE id = ? AND total = 0", (row[9],))
            settle_done(db, now, row[9])


def _why(parent: bytes, state: int, error: str | None) -> JobError:
    known = error_from_text(error) if error and state != COMPLETED else None
    what = None if known is None else (known.type, known.message)
    message = flow.error_text(text_id(parent), STATES[state], what)
    return JobError(type=flow.PARENT_FAILED, message=message)


def _revive(db: apsw.Connection, now: int, room: int) -> int:
    """Bring back children that were cancelled because of a parent which was requeued; how many."""
    for (parent,) in fetch(db, f"SELECT parent FROM ends WHERE work = {REVIVING} LIMIT 1"):
        rows = fetch(db, _TO_REVIVE, (parent, room))
        for row in rows:
            if row[4] or row[5]:
                # Open again: one that comes back for another parent waits for this one too.
                db.execute(_TELL, (None, *row[:2]))
            if row[5]:
                _bring_back(db, now, row)
        if len(rows) < room:
            db.execute("UPDATE ends SET work = 0, done = 0 WHERE parent = ?", (parent,))
        else:
            db.execute("UPDATE ends SET done = ? WHERE parent = ?", (rows[-1][0], parent))
        return max(len(rows), 1)
    return 0


def _bring_back(db: apsw.Connection, now: int, row: Row) -> None:
    child, _, _, uniq, _, _, *subject = row
    job = Subject(*subject)
    if fetch(db, _STILL_BARRED, (child,)) or not uniques.retake(db, now, job.id, uniq):
        return
    if job.role == HEAD:
        db.execute(_BACK_BATCH, (job.id,))
        if not db.changes():
            return
    db.execute(_BACK, (child,))
    ledger = Ledger()
    ledger.moved(Move.REQUEUE, job._replace(attempt=0), CANCELLED, PENDING)
    ledger.write(db, now)


def wait_again(db: apsw.Connection, seq: int) -> bool:
    """Whether a requeued job waits for others: who was requeued before is waited for anew."""
    # Nobody is to think later that it was cancelled because of a parent.
    db.execute(_FORGIVE, (seq,))
    # An item that its head made anew knows of no children.
    db.executemany(_WILL_TELL, fetch(db, _REOPEN, (seq,)))
    return bool(fetch(db, _IS_LEFT, (seq,)))


def forget(db: apsw.Connection, seq: int, job: bytes, state: int, children: int | None) -> None:
    """A job was removed: what it waited for is forgotten, and who waits for it is told."""
    gone = fetch(db, "DELETE FROM edges WHERE child = ? RETURNING parent", (seq,))
    db.executemany(
        "DELETE FROM ends WHERE parent = ?1 AND work = 0 "
        "AND NOT EXISTS (SELECT 1 FROM edges WHERE parent = ?1)",
        gone,
    )
    if children in (TO_TELL, TO_REVIVE):
        ended = state if state > COMPLETED else CANCELLED
        error = error_to_text(flow.DELETED_PARENT, 0)
        db.execute(
            "INSERT INTO ends (parent, state, error, work) VALUES (?, ?, ?, 1) "
            "ON CONFLICT (parent) DO UPDATE SET state = excluded.state, result = NULL, "
            "error = excluded.error, work = 1",
            (job, ended, error),
        )


# ── Questions ────────────────────────────────────────────────────────────────────────────────

_PARENTS = (
    "SELECT e.parent, e.otherwise, e.state, n.state, n.result, n.error, j.state "
    "FROM edges e LEFT JOIN ends n ON n.parent = e.parent LEFT JOIN jobs j ON j.id = e.parent "
    "WHERE e.child = ? ORDER BY e.nth"
)
_CHILDREN = (
    f"SELECT {WITHOUT_PAYLOAD} "
    "FROM jobs WHERE seq IN (SELECT child FROM edges WHERE parent = ? AND child > ? "
    "ORDER BY child LIMIT ?) ORDER BY seq"
)


def parents(db: apsw.Connection, job_id: str) -> list[Parent]:
    """The parents of a job, in the order in which it named them."""
    found = fetch(db, "SELECT seq FROM jobs WHERE id = ?", (key_of(job_id),))
    if not found:
        raise JobNotFoundError(job_id)
    return [_parent(row) for row in fetch(db, _PARENTS, found[0])]


def _parent(row: Row) -> Parent:
    parent, otherwise, told, end, result, error, present = row
    if told is None:
        # One that was removed, and of which the job is told in a moment.
        state = STATES[CANCELLED if present is None else present]
        return Parent(text_id(parent), OTHERWISE[otherwise], state, ended=False)
    return Parent(
        text_id(parent),
        OTHERWISE[otherwise],
        STATES[told],
        ended=True,
        result=result if told == end == COMPLETED else None,
        error=error_from_text(error) if error and told == end else None,
    )


def children(db: apsw.Connection, job_id: str, limit: int, cursor: int | None) -> Page:
    """A page of the children of a job."""
    job = key_of(job_id)
    if not fetch(db, "SELECT 1 FROM jobs WHERE id = ?", (job,)):
        raise JobNotFoundError(job_id)
    rows = fetch(db, _CHILDREN, (job, cursor or 0, limit + 1))
    jobs = tuple(job_from_row(row) for row in rows[:limit])
    return Page(jobs, jobs[-1].seq if len(rows) > limit else None)


# ── Copies ───────────────────────────────────────────────────────────────────────────────────

_EDGES = (
    "SELECT e.child, e.parent, e.otherwise, e.state, n.state, n.result, n.error "
    "FROM edges e LEFT JOIN ends n ON n.parent = e.parent "
    "WHERE e.child BETWEEN ? AND ? ORDER BY e.child, e.nth"
)
_COPY_EDGE = "INSERT INTO edges (child, nth, parent, otherwise, state) VALUES (?, ?, ?, ?, ?)"
_COPY_END = (
    "INSERT INTO ends (parent, state, result, error, work) VALUES (?, ?, ?, ?, 0) "
    "ON CONFLICT DO NOTHING"
)


def edges_between(
    db: apsw.Connection, first: int, last: int
) -> defaultdict[int, tuple[EdgeRecord, ...]]:
    """What a stretch of jobs waits for or has waited for, by their seq."""
    found: defaultdict[int, tuple[EdgeRecord, ...]] = defaultdict(tuple)
    for child, parent, otherwise, told, end, result, error in fetch(db, _EDGES, (first, last)):
        same = told is not None and told == end
        edge = EdgeRecord(
            text_id(parent),
            OTHERWISE[otherwise],
            None if told is None else STATES[told],
            result if same and told == COMPLETED else None,
            error_from_text(error) if same and error else None,
        )
        found[child] += (edge,)
    return found


def add_copied(db: apsw.Connection, copied: Iterable[tuple[int, Sequence[EdgeRecord]]]) -> None:
    """Insert what the jobs of a copy wait for or have waited for: seq and edges of each."""
    for seq, edges in copied:
        for nth, edge in enumerate(edges):
            parent, state = raw_id(edge.parent_id), edge.state
            code = None if state is None else STATE_CODE[state]
            otherwise = OTHERWISE_CODE[edge.otherwise]
            db.execute(_COPY_EDGE, (seq, nth, parent, otherwise, code))
            if code is not None:
                error = edge.error and error_to_text(
                    edge.error, edge.error.at, lease=edge.error.lease, worker=edge.error.worker
                )
                db.execute(_COPY_END, (parent, code, edge.result, error))
