"""Jobs that wait for others: their edges on the way to the server, and what is asked of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from haulier.domain.flow import Parent
from haulier.domain.job import NewJob
from haulier.domain.transfer import EdgeRecord, JobRecord
from haulier.exceptions import JobNotFoundError
from haulier.ports import Inserted, Page
from haulier.stores.codes import (
    CANCELLED,
    COMPLETED,
    OTHERWISE,
    OTHERWISE_CODE,
    STATE_CODE,
    STATES,
    error_from_text,
    error_to_text,
)
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.rows import WITHOUT_PAYLOAD, Row, job_from_row, storable, uuid_of

_PARENTS = (
    "SELECT e.parent::text, e.otherwise, e.state, n.state, n.result, n.error, n.error_at, p.state "
    "FROM edges e LEFT JOIN ends n ON n.parent = e.parent LEFT JOIN jobs p ON p.id = e.parent "
    "WHERE e.child = $1 ORDER BY e.nth"
)
_CHILDREN = (
    f"SELECT {WITHOUT_PAYLOAD} FROM jobs WHERE seq = ANY (ARRAY(SELECT child FROM edges "
    "WHERE parent = $1 AND child > $2 ORDER BY child LIMIT $3)) ORDER BY seq"
)


async def insert(
    connection: Connection,
    jobs: Sequence[NewJob],
    add: Callable[[], Awaitable[Inserted]],
    *,
    schema: str = "",
) -> Inserted:
    """Insert jobs by `add`, and let those that name others wait for these; in one transaction."""
    waiting = {job.id: job for job in jobs if job.after}
    named = {each.job_id for job in waiting.values() for each in job.after}
    await connection.execute(f"SELECT {schema}lock_parents($1)", list(named))
    rows = await connection.fetch(
        f"SELECT id::text FROM {schema}jobs WHERE id = ANY ($1::uuid[])", list(waiting)
    )
    inserted = await add()
    for job_id in [*(row[0] for row in rows), *inserted.instead]:
        waiting.pop(job_id, None)
    edges = [
        (job.id, nth, inserted.instead.get(each.job_id, each.job_id), each.otherwise)
        for job in waiting.values()
        for nth, each in enumerate(job.after)
    ]
    await connection.execute(
        f"SELECT {schema}add_edges($1, $2, $3, $4)",
        [edge[0] for edge in edges],
        [edge[1] for edge in edges],
        [edge[2] for edge in edges],
        [OTHERWISE_CODE[edge[3]] for edge in edges],
    )
    return inserted


async def parents(connection: Connection, job_id: str) -> list[Parent]:
    """The parents of a job, in the order in which it named them."""
    seq = await connection.fetchval("SELECT seq FROM jobs WHERE id = $1", uuid_of(job_id))
    if seq is None:
        raise JobNotFoundError(job_id)
    return [_parent(row) for row in await connection.fetch(_PARENTS, seq)]


def _parent(row: Row) -> Parent:
    parent, otherwise, told, end, result, error, at, present = row
    if told is None:
        # One that was removed, and of which the job is told in a moment.
        state = STATES[CANCELLED if present is None else present]
        return Parent(parent, OTHERWISE[otherwise], state, ended=False)
    known = error_from_text(error) if error and told == end else None
    return Parent(
        parent,
        OTHERWISE[otherwise],
        STATES[told],
        ended=True,
        result=result if told == end == COMPLETED else None,
        error=known and replace(known, at=at or 0),
    )


async def children(connection: Connection, job_id: str, limit: int, cursor: int | None) -> Page:
    """A page of the children of a job."""
    job = uuid_of(job_id)
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM jobs WHERE id = $1)", job):
        raise JobNotFoundError(job_id)
    rows = await connection.fetch(_CHILDREN, job, cursor or 0, limit + 1)
    jobs = tuple(job_from_row(row) for row in rows[:limit])
    return Page(jobs, jobs[-1].seq if len(rows) > limit else None)


# ── Copies ───────────────────────────────────────────────────────────────────────────────────

_EDGES = (
    "SELECT e.child, e.parent::text, e.otherwise, e.state, n.state, n.result, n.error, n.error_at "
    "FROM edges e LEFT JOIN ends n ON n.parent = e.parent "
    "WHERE e.child BETWEEN $1 AND $2 ORDER BY e.child, e.nth"
)
_COPY_END = (
    "INSERT INTO ends (parent, state, result, error, error_at, error_type, work) "
    "VALUES ($1, $2, $3, $4, $5, $6, 0) ON CONFLICT (parent) DO NOTHING"
)


async def edges_between(
    connection: Connection, first: int, last: int
) -> defaultdict[int, tuple[EdgeRecord, ...]]:
    """What a stretch of jobs waits for or has waited for, by their seq."""
    found: defaultdict[int, tuple[EdgeRecord, ...]] = defaultdict(tuple)
    rows = await connection.fetch(_EDGES, first, last)
    for child, parent, otherwise, told, end, result, error, at in rows:
        same = told is not None and told == end
        edge = EdgeRecord(
            parent,
            OTHERWISE[otherwise],
            None if told is None else STATES[told],
            result if same and told == COMPLETED else None,
            replace(error_from_text(error), at=at or 0) if same and error else None,
        )
        found[child] += (edge,)
    return found


async def add_copied(connection: Connection, schema: str, records: Sequence[JobRecord]) -> None:
    """Insert what the jobs of a copy wait for or have waited for."""
    edges = [(record.seq, nth, edge) for record in records for nth, edge in enumerate(record.edges)]
    await connection.copy_records_to_table(
        "edges",
        schema_name=schema,
        columns=("child", "nth", "parent", "otherwise", "state"),
        records=[
            (seq, nth, edge.parent_id, OTHERWISE_CODE[edge.otherwise], _code(edge))
            for seq, nth, edge in edges
        ],
    )
    ended = [(edge, edge.error) for _, _, edge in edges if edge.state is not None]
    await connection.executemany(
        _COPY_END,
        [
            (
                *(edge.parent_id, _code(edge), edge.result),
                error and error_to_text(error, 0, lease=error.lease, worker=error.worker),
                *(error and error.at, error and storable(error.type)),
            )
            for edge, error in ended
        ],
    )


def _code(edge: EdgeRecord) -> int | None:
    return None if edge.state is None else STATE_CODE[edge.state]
