"""What jobs leave on their way, kept beside them: finished steps and log lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import apsw

from haulier.domain.ids import raw_id, text_id
from haulier.domain.line import KEPT_LINES, Line
from haulier.domain.step import Step
from haulier.domain.worker import Note
from haulier.exceptions import JobNotFoundError
from haulier.stores.codes import RUNNING, key_of
from haulier.stores.sqlite.rows import fetch

_HELD = f"SELECT seq FROM jobs WHERE id = ? AND lease = ? AND state = {RUNNING}"
_KEEP = (
    "INSERT INTO steps (job, name, lease, at, result) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_SAY = (
    "INSERT INTO lines (job, lease, number, at, text) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_CUT = (
    "DELETE FROM lines WHERE job = ?1 AND (lease, number) <= (SELECT lease, number FROM lines "
    f"WHERE job = ?1 ORDER BY lease DESC, number DESC LIMIT 1 OFFSET {KEPT_LINES})"
)
_STEPS = (
    "SELECT job, lease, name, result, at FROM steps WHERE job BETWEEN ? AND ? ORDER BY at, name"
)
_LINES = (
    "SELECT job, lease, number, at, text FROM lines WHERE job BETWEEN ? AND ? "
    "ORDER BY lease, number"
)
_ADD_LINE = "INSERT INTO lines (job, lease, number, at, text) VALUES (?, ?, ?, ?, ?)"
_ADD_STEP = "INSERT INTO steps (job, lease, name, result, at) VALUES (?, ?, ?, ?, ?)"

SIZE = (
    "(SELECT coalesce(sum(length(result)), 0) FROM steps WHERE job = seq) + "
    "(SELECT coalesce(sum(length(text)), 0) FROM lines WHERE job = seq)"
)
"""How much is kept beside a job, as a column of its row."""


def keep(db: apsw.Connection, now: int, steps: Sequence[Step]) -> list[Step]:
    """Keep finished steps, each if its lease holds; returns the others."""
    lost = []
    for step in steps:
        held = fetch(db, _HELD, (raw_id(step.job_id), step.lease))
        if held:
            db.execute(_KEEP, (held[0][0], step.name, step.lease, now, step.result))
        else:
            lost.append(step)
    return lost


def say(db: apsw.Connection, now: int, notes: Iterable[Note]) -> None:
    """Record the log lines of notes whose lease holds, and let go of those too old."""
    for note in notes:
        held = fetch(db, _HELD, (raw_id(note.job_id), note.lease))
        if not held:
            continue
        ((seq,),) = held
        rows = [(seq, note.lease, each.number, now - each.ago, each.text) for each in note.lines]
        db.executemany(_SAY, rows)
        db.execute(_CUT, (seq,))


def steps(db: apsw.Connection, job_id: str) -> list[Step]:
    """The finished steps of a job, in the order in which they were kept."""
    seq = _seq(db, job_id)
    return [
        Step(text_id(key_of(job_id)), lease, name, result, at)
        for _, lease, name, result, at in fetch(db, _STEPS, (seq, seq))
    ]


def lines(db: apsw.Connection, job_id: str) -> list[Line]:
    """The last log lines of a job, the oldest first."""
    seq = _seq(db, job_id)
    return [Line(*line) for _, *line in fetch(db, _LINES, (seq, seq))]


def _seq(db: apsw.Connection, job_id: str) -> int:
    for (seq,) in fetch(db, "SELECT seq FROM jobs WHERE id = ?", (key_of(job_id),)):
        return int(seq)
    raise JobNotFoundError(job_id)


def forget(db: apsw.Connection, seq: int) -> None:
    """A job was removed: so is what it left."""
    db.execute("DELETE FROM steps WHERE job = ?", (seq,))
    db.execute("DELETE FROM lines WHERE job = ?", (seq,))


# ── Copies ───────────────────────────────────────────────────────────────────────────────────


def steps_between(
    db: apsw.Connection, first: int, last: int, ids: dict[int, str]
) -> defaultdict[int, tuple[Step, ...]]:
    """The steps of a stretch of jobs, by their seq; `ids` are those of the jobs."""
    found: defaultdict[int, tuple[Step, ...]] = defaultdict(tuple)
    for job, lease, name, result, at in fetch(db, _STEPS, (first, last)):
        found[job] += (Step(ids[job], lease, name, result, at),)
    return found


def lines_between(db: apsw.Connection, first: int, last: int) -> defaultdict[int, tuple[Line, ...]]:
    """The log lines of a stretch of jobs, by their seq."""
    found: defaultdict[int, tuple[Line, ...]] = defaultdict(tuple)
    for job, *line in fetch(db, _LINES, (first, last)):
        found[job] += (Line(*line),)
    return found


def add_copied(
    db: apsw.Connection, copied: Iterable[tuple[int, Sequence[Step], Sequence[Line]]]
) -> None:
    """Insert what the jobs of a copy have left: seq, steps and lines of each."""
    for seq, finished, said in copied:
        if finished:
            rows = [(seq, s.lease, s.name, s.result, s.at) for s in finished]
            db.executemany(_ADD_STEP, rows)
        if said:
            db.executemany(_ADD_LINE, [(seq, *line) for line in said])
