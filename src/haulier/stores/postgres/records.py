"""Between rows and the neutral records of a copy: each section read page by page, and inserted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from haulier.domain.ids import derived_id, raw_id, text_id
from haulier.domain.job import JobError
from haulier.domain.transfer import (
    BatchRecord,
    EventRecord,
    JobRecord,
    NameRecord,
    Records,
    Section,
)
from haulier.stores.codes import (
    GATE_CODE,
    GATES,
    IN_LANE,
    ON_LOST,
    ON_LOST_CODE,
    PENDING,
    ROLE_CODE,
    ROLES,
    RUNNING,
    SCOPE_CODE,
    SCOPES,
    STATE_CODE,
    STATES,
    error_from_text,
    error_to_text,
    rank_of,
    retry_from_text,
    retry_to_text,
)
from haulier.stores.marks import PAGE_BYTES, PAGE_RECORDS
from haulier.stores.packed import ENTRY
from haulier.stores.postgres import configuring, flows, kept, limiting, schedule_records
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.inserting import ROUNDS
from haulier.stores.postgres.rows import BATCH_TABLES, Row, storable

MORE = PAGE_RECORDS + 1
"""One more row than a page has tells whether there is a following page."""

# ── Jobs ─────────────────────────────────────────────────────────────────────────────────────

_JOB = (
    *("seq", "id", "kind", "queue", "role", "version", "payload", "state", "rank", "gate"),
    *("priority", "run_at", "attempt", "lease", "lost", "cancel", "key", "batch", "position"),
    *("retry", "uniq", "on_lost", "created_at", "started_at", "finished_at", "progress"),
    *("message", "result", "error", "error_at", "error_type", "baggage"),
    "children",
)
_READ_JOBS = (
    (f"SELECT {', '.join(_JOB)} FROM jobs WHERE seq > $1 AND seq <= $2 ORDER BY seq")
    .replace(" id,", " id::text,")
    .replace(" batch,", " batch::text,")
)
_JOB_SIZES = (
    f"SELECT seq, length(payload) + coalesce(length(result), 0) + {kept.SIZE} FROM jobs "
    f"WHERE seq > $1 ORDER BY seq LIMIT {MORE}"
)
_READ_ERRORS = "SELECT job, error, at FROM errors WHERE job BETWEEN $1 AND $2 ORDER BY job, lease"


async def _stretch(
    connection: Connection, sizes: str, after: str | None, most: int
) -> tuple[int, int, bool]:
    """Where a page begins and ends, and whether there is more behind it.

    Looked at first: what is in the rows themselves may be large.
    """
    start = end = int(after or 0)
    total = 0
    rows = await connection.fetch(sizes, start)
    for place, (seq, size) in enumerate(rows):
        if place == PAGE_RECORDS or total > most:
            return start, end, True
        end = seq
        total += size
    return start, end, False


async def _read_jobs(connection: Connection, after: str | None) -> Records:
    start, end, more = await _stretch(connection, _JOB_SIZES, after, PAGE_BYTES)
    rows = await connection.fetch(_READ_JOBS, start, end)
    errors: defaultdict[int, list[JobError]] = defaultdict(list)
    for job, text, at in await connection.fetch(_READ_ERRORS, start + 1, end):
        errors[job].append(replace(error_from_text(text), at=at))
    steps = await kept.steps_between(connection, start + 1, end, {row[0]: row[1] for row in rows})
    lines = await kept.lines_between(connection, start + 1, end)
    edges = await flows.edges_between(connection, start + 1, end)
    records = tuple(
        _job_record(row, tuple(errors.get(row[0], ())))._replace(
            steps=steps.get(row[0], ()),
            lines=lines.get(row[0], ()),
            edges=edges.get(row[0], ()),
        )
        for row in rows
    )
    return Records(records, str(end) if more else None)


def _job_record(row: Row, errors: tuple[JobError, ...]) -> JobRecord:
    (
        *first, state, rank, gate, priority, run_at, attempt, lease, lost, cancel, key, batch,
        position, retry, uniq, on_lost, created, started, finished, progress, message, result,
        error, error_at, _, baggage, children,
    ) = row  # fmt: skip
    seq, job_id, kind, queue, role, version, payload = first
    return JobRecord(
        seq=seq,
        id=job_id,
        kind=kind,
        queue=queue,
        role=ROLES[role],
        version=version,
        payload=payload,
        state=STATES[state],
        # A job in a lane is simply in the line: its lane is made anew where it comes to.
        ready=state == PENDING and (rank is not None or gate == IN_LANE),
        gate=GATES[gate or 0] if state == PENDING and gate != IN_LANE else None,
        priority=priority,
        run_at=run_at,
        attempt=attempt,
        lease=lease,
        lost=lost,
        cancel=cancel if state == RUNNING else 0,
        key=key,
        batch_id=batch,
        position=position,
        retry=None if retry is None else retry_from_text(retry),
        names=None if uniq is None else tuple(uniq),
        on_lost=ON_LOST[on_lost],
        created_at=created,
        started_at=started,
        finished_at=finished,
        progress=progress,
        message=message,
        result=result,
        error=None if error is None else replace(error_from_text(error), at=error_at or 0),
        baggage=baggage,
        errors=errors,
        steps=(),
        lines=(),
        children=children,
    )


async def _insert_jobs(connection: Connection, schema: str, records: Sequence[JobRecord]) -> None:
    await connection.copy_records_to_table(
        "all_jobs", schema_name=schema, columns=_JOB, records=[_job_row(each) for each in records]
    )
    await connection.copy_records_to_table(
        "errors",
        schema_name=schema,
        columns=("job", "lease", "at", "error"),
        records=[
            (record.seq, error.lease, error.at, _error_text(error))
            for record in records
            for error in record.errors
        ],
    )
    await kept.add_copied(connection, schema, records)
    await flows.add_copied(connection, schema, records)
    counts = Counter((r.queue, r.kind, ROLE_CODE[r.role], STATE_CODE[r.state]) for r in records)
    await connection.executemany(
        "INSERT INTO counts (queue, kind, role, state, n) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT (queue, kind, role, state) DO UPDATE SET n = counts.n + excluded.n",
        [(*line, n) for line, n in sorted(counts.items())],
    )


def _error_text(error: JobError) -> str:
    # Its time stands in a column of its own.
    return error_to_text(error, 0, lease=error.lease, worker=error.worker)


def _job_row(record: JobRecord) -> tuple[Any, ...]:
    error = record.error
    return (
        record.seq,
        record.id,
        record.kind,
        record.queue,
        ROLE_CODE[record.role],
        record.version,
        record.payload,
        STATE_CODE[record.state],
        rank_of(record.run_at, record.priority) if record.ready else None,
        GATE_CODE[record.gate],
        record.priority,
        record.run_at,
        record.attempt,
        record.lease,
        record.lost,
        record.cancel,
        record.key,
        record.batch_id,
        record.position,
        None if record.retry is None else retry_to_text(record.retry),
        record.names,
        ON_LOST_CODE[record.on_lost],
        record.created_at,
        record.started_at,
        record.finished_at,
        record.progress,
        record.message,
        record.result,
        error and _error_text(error),
        error and error.at,
        error and storable(error.type),
        record.baggage,
        record.children,
    )


# ── Batches ──────────────────────────────────────────────────────────────────────────────────

_BATCH = (
    *("id", "own_expander", "sealed", "cancel", "pauses", "gated", "owed", "leases", "total"),
    *("pending", "running", "completed", "failed", "cancelled", "started_at", "concurrency"),
    *("batch_size", "max_failures", "finish_kind", "finish_queue", "finish_job"),
    "within",
)
"""In the order of BatchRecord's fields."""

_DELTAS = frozenset({"total", "pending", "running", "completed", "failed", "cancelled"})
_UUIDS = frozenset({"id", "finish_job", "within"})


def _read(column: str) -> str:
    if column in _DELTAS:
        return f"b.{column} + d.{column}"
    if column == "started_at":
        return "coalesce(b.started_at, d.started_at)"
    return f"b.{column}::text" if column in _UUIDS else f"b.{column}"


_READ_BATCHES = (
    f"SELECT {', '.join(map(_read, _BATCH))} FROM {BATCH_TABLES} "
    f"WHERE $1::uuid IS NULL OR b.id > $1 ORDER BY b.id LIMIT {MORE}"
)


async def _read_batches(connection: Connection, after: str | None) -> Records:
    rows = await connection.fetch(_READ_BATCHES, after)
    records = tuple(BatchRecord._make(row) for row in rows[:PAGE_RECORDS])
    return Records(records, records[-1].id if len(rows) == MORE else None)


async def _insert_batches(
    connection: Connection, schema: str, records: Sequence[BatchRecord]
) -> None:
    await connection.copy_records_to_table(
        "batches",
        schema_name=schema,
        columns=(*_BATCH, "finish_ids", "paused"),
        records=[(*record, _finish_ids(record), record.paused > 0) for record in records],
    )


def _finish_ids(record: BatchRecord) -> list[str]:
    """The ids of its callbacks; those that are there already are passed over."""
    if record.finish_kind is None:
        return []
    return [derived_id(record.id, f"finish/{number}") for number in range(ROUNDS)]


# ── Names ────────────────────────────────────────────────────────────────────────────────────

_READ_NAMES = (
    "SELECT name, job::text, scope, until, digest FROM uniques WHERE name > $1 ORDER BY name "
    f"LIMIT {MORE}"
)


async def _read_names(connection: Connection, after: str | None) -> Records:
    rows = await connection.fetch(_READ_NAMES, after or "")
    records = tuple(
        NameRecord(name, job, SCOPES[scope], until, digest)
        for name, job, scope, until, digest in rows[:PAGE_RECORDS]
    )
    return Records(records, records[-1].name if len(rows) == MORE else None)


async def _insert_names(connection: Connection, schema: str, records: Sequence[NameRecord]) -> None:
    await connection.copy_records_to_table(
        "uniques",
        schema_name=schema,
        columns=("name", "job", "scope", "until", "digest"),
        records=[(r.name, r.job_id, SCOPE_CODE[r.scope], r.until, r.digest) for r in records],
    )


# ── Events ───────────────────────────────────────────────────────────────────────────────────

_EVENT = ("seq", "at", "type", "kind", "queue", "role", "batch", "worker", "error", "body")
_READ_EVENTS = (
    f"SELECT {', '.join(_EVENT)} FROM events WHERE seq > $1 AND seq <= $2 ORDER BY seq"
).replace(" batch, worker,", " batch::text, worker::text,")
_EVENT_SIZES = f"SELECT seq, length(body) FROM events WHERE seq > $1 ORDER BY seq LIMIT {MORE}"


async def _read_events(connection: Connection, after: str | None) -> Records:
    # What is packed here takes ten times as much as records.
    start, end, more = await _stretch(connection, _EVENT_SIZES, after, PAGE_BYTES // 10)
    records = tuple(
        EventRecord(
            seq=seq,
            at=at,
            type=event,
            kind=kind,
            queue=queue,
            role=ROLES[role],
            batch_id=batch,
            worker=worker,
            error_type=error,
            jobs=tuple(
                (text_id(job), attempt, lease) for job, attempt, lease in ENTRY.iter_unpack(body)
            ),
        )
        for seq, at, event, kind, queue, role, batch, worker, error, body in (
            await connection.fetch(_READ_EVENTS, start, end)
        )
    )
    return Records(records, str(end) if more else None)


async def _insert_events(
    connection: Connection, schema: str, records: Sequence[EventRecord]
) -> None:
    rows = [
        (
            *record[:5],
            ROLE_CODE[record.role],
            *record[6:9],
            b"".join(
                ENTRY.pack(raw_id(job), attempt, lease) for job, attempt, lease in record.jobs
            ),
            len(record.jobs),
        )
        for record in records
    ]
    await connection.copy_records_to_table(
        "events", schema_name=schema, columns=(*_EVENT, "n"), records=rows
    )


READ: Mapping[Section, Callable[[Connection, str | None], Awaitable[Records]]] = {
    Section.LIMITS: limiting.read_limits,
    Section.METERS: limiting.read_meters,
    Section.JOBS: _read_jobs,
    Section.BATCHES: _read_batches,
    Section.NAMES: _read_names,
    Section.SCHEDULES: schedule_records.read_schedules,
    Section.TICKS: schedule_records.read_ticks,
    Section.CONFIGURATION: configuring.read_copied,
    Section.EVENTS: _read_events,
}
INSERT: Mapping[Section, Callable[[Connection, str, Sequence[Any]], Awaitable[None]]] = {
    Section.LIMITS: limiting.insert_limits,
    Section.METERS: limiting.insert_meters,
    Section.JOBS: _insert_jobs,
    Section.BATCHES: _insert_batches,
    Section.NAMES: _insert_names,
    Section.SCHEDULES: schedule_records.insert_schedules,
    Section.TICKS: schedule_records.insert_ticks,
    Section.CONFIGURATION: configuring.insert_copied,
    Section.EVENTS: _insert_events,
}
