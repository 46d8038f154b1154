"""What jobs leave on their way, kept beside them: finished steps and log lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from haulier.domain.line import KEPT_LINES, Line
from haulier.domain.step import Step
from haulier.domain.transfer import JobRecord
from haulier.domain.worker import Note
from haulier.exceptions import JobNotFoundError
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.rows import storable, uuid_of

_STEPS = "job, lease, name, result, at"
_LINES = "job, lease, number, at, text"

SIZE = (
    "coalesce((SELECT sum(length(s.result)) FROM steps s WHERE s.job = seq), 0) + "
    "coalesce((SELECT sum(length(l.text)) FROM lines l WHERE l.job = seq), 0)"
)
"""How much is kept beside a job, as a column of its row."""


async def keep(connection: Connection, now: int | None, steps: Sequence[Step]) -> list[Step]:
    """Keep finished steps, each if its lease holds; returns the others."""
    lost = await connection.fetchval(
        "SELECT keep_steps($1, $2, $3, $4, $5)",
        now,
        [step.job_id for step in steps],
        [step.lease for step in steps],
        [step.name for step in steps],
        [step.result for step in steps],
    )
    return [steps[place - 1] for place in lost]


def said(notes: Sequence[Note]) -> list[Any]:
    """The log lines of notes, as the function `keep_lines` takes them."""
    lines = [(note, line) for note in notes for line in note.lines]
    return [
        [note.job_id for note, _ in lines],
        [note.lease for note, _ in lines],
        [line.number for _, line in lines],
        [line.ago for _, line in lines],
        [storable(line.text) for _, line in lines],
        KEPT_LINES,
    ]


async def steps(connection: Connection, job_id: str) -> list[Step]:
    """The finished steps of a job, in the order in which they were kept."""
    rows = await connection.fetch(
        "SELECT j.id::text, s.lease, s.name, s.result, s.at FROM jobs j "
        "LEFT JOIN steps s ON s.job = j.seq WHERE j.id = $1 ORDER BY s.at, s.name",
        uuid_of(job_id),
    )
    if not rows:
        raise JobNotFoundError(job_id)
    return [Step(*row) for row in rows if row[1] is not None]


async def lines(connection: Connection, job_id: str) -> list[Line]:
    """The last log lines of a job, the oldest first."""
    rows = await connection.fetch(
        "SELECT l.lease, l.number, l.at, l.text FROM jobs j "
        "LEFT JOIN lines l ON l.job = j.seq WHERE j.id = $1 ORDER BY l.lease, l.number",
        uuid_of(job_id),
    )
    if not rows:
        raise JobNotFoundError(job_id)
    return [Line(*row) for row in rows if row[0] is not None]


# ── Copies ───────────────────────────────────────────────────────────────────────────────────


async def steps_between(
    connection: Connection, first: int, last: int, ids: dict[int, str]
) -> defaultdict[int, tuple[Step, ...]]:
    """The steps of a stretch of jobs, by their seq; `ids` are those of the jobs."""
    found: defaultdict[int, tuple[Step, ...]] = defaultdict(tuple)
    for job, *step in await connection.fetch(
        f"SELECT {_STEPS} FROM steps WHERE job BETWEEN $1 AND $2 ORDER BY at, name", first, last
    ):
        found[job] += (Step(ids[job], *step),)
    return found


async def lines_between(
    connection: Connection, first: int, last: int
) -> defaultdict[int, tuple[Line, ...]]:
    """The log lines of a stretch of jobs, by their seq."""
    found: defaultdict[int, tuple[Line, ...]] = defaultdict(tuple)
    for job, *line in await connection.fetch(
        f"SELECT {_LINES} FROM lines WHERE job BETWEEN $1 AND $2 ORDER BY lease, number",
        first,
        last,
    ):
        found[job] += (Line(*line),)
    return found


async def add_copied(connection: Connection, schema: str, records: Sequence[JobRecord]) -> None:
    """Insert what the jobs of a copy have left."""
    await connection.copy_records_to_table(
        "steps",
        schema_name=schema,
        columns=_STEPS.split(", "),
        records=[
            (record.seq, step.lease, step.name, step.result, step.at)
            for record in records
            for step in record.steps
        ],
    )
    await connection.copy_records_to_table(
        "lines",
        schema_name=schema,
        columns=_LINES.split(", "),
        records=[(record.seq, *line) for record in records for line in record.lines],
    )
