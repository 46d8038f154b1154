"""Between rows and the neutral records of a copy: each section read page by page, and inserted."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apsw

from haulier.domain.ids import raw_id, text_id
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
    raw_once,
    retry_from_text,
    retry_to_text,
    text_once,
)
from haulier.stores.marks import PAGE_BYTES, PAGE_RECORDS
from haulier.stores.packed import ENTRY
from haulier.stores.sqlite import configuring, flows, kept, limits, schedule_records
from haulier.stores.sqlite.lanes import Lanes
from haulier.stores.sqlite.rows import Row, fetch
from haulier.stores.sqlite.rules import rules_of

# ── Jobs ─────────────────────────────────────────────────────────────────────────────────────

_JOB = (
    "seq, id, kind, queue, role, version, payload, state, rank, gate, priority, run_at, attempt, "
    "lease, lost, cancel, key, batch, position, retry, uniq, on_lost, created_at, started_at, "
    "finished_at, progress, message, result, error, baggage, children"
)
_READ_JOBS = (
    f"SELECT {_JOB}, {kept.SIZE} FROM jobs WHERE seq > ? ORDER BY seq LIMIT {PAGE_RECORDS + 1}"
)
_READ_ERRORS = (
    "SELECT job, lease, attempt, at, worker, type, message, traceback FROM errors "
    "WHERE job BETWEEN ? AND ? ORDER BY job, lease"
)
_INSERT_JOB = f"INSERT INTO jobs ({_JOB}) VALUES ({', '.join('?' * len(_JOB.split(', ')))})"
_INSERT_ERROR = (
    "INSERT INTO errors (job, lease, attempt, at, worker, type, message, traceback) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_ADD_COUNT = (
    "INSERT INTO counts (queue, kind, role, state, n) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT DO UPDATE SET n = n + excluded.n"
)


def _read_jobs(db: apsw.Connection, after: str | None) -> Records:
    rows: list[Row] = []
    size, more = 0, False
    for row in db.execute(_READ_JOBS, (int(after or 0),)):
        if len(rows) == PAGE_RECORDS or size > PAGE_BYTES:
            more = True
            break
        rows.append(row)
        size += len(row[6]) + len(row[27] or b"") + row[31]
    if not rows:
        return Records(())
    errors: defaultdict[int, list[JobError]] = defaultdict(list)
    stretch = rows[0][0], rows[-1][0]
    for job, *error in fetch(db, _READ_ERRORS, stretch):
        errors[job].append(_error(error))
    steps = kept.steps_between(db, *stretch, {row[0]: text_id(row[1]) for row in rows})
    lines = kept.lines_between(db, *stretch)
    edges = flows.edges_between(db, *stretch)
    records = tuple(
        _job_record(row, tuple(errors.get(row[0], ())))._replace(
            steps=steps.get(row[0], ()),
            lines=lines.get(row[0], ()),
            edges=edges.get(row[0], ()),
        )
        for row in rows
    )
    return Records(records, str(rows[-1][0]) if more else None)


def _error(row: Sequence[Any]) -> JobError:
    lease, attempt, at, worker, kind, message, traceback = row
    return JobError(
        type=kind,
        message=message,
        traceback=traceback,
        attempt=attempt,
        at=at,
        lease=lease,
        worker=worker and text_once(worker),
    )


def _job_record(row: Row, errors: tuple[JobError, ...]) -> JobRecord:
    return JobRecord._make(
        (
            row[0],
            text_id(row[1]),
            *row[2:4],
            ROLES[row[4]],
            *row[5:7],
            STATES[row[7]],
            # A job that was claimed keeps its place in the line, which then says nothing.
            row[7] == PENDING and row[8] is not None,
            GATES[row[9] or 0] if row[7] == PENDING else None,
            *row[10:15],
            row[15] if row[7] == RUNNING else 0,
            row[16],
            row[17] and text_once(row[17]),
            row[18],
            row[19] and retry_from_text(row[19]),
            None if row[20] is None else tuple(json.loads(row[20])),
            ON_LOST[row[21]],
            *row[22:28],
            row[28] and error_from_text(row[28]),
            row[29],
            errors,
            (),
            (),
            (),
            row[30],
        )
    )


def _insert_jobs(db: apsw.Connection, records: Sequence[JobRecord]) -> None:
    db.executemany(_INSERT_JOB, [_job_row(record) for record in records])
    _put_into_lanes(db, records)
    db.executemany(
        _INSERT_ERROR,
        [
            (
                *(record.seq, error.lease, error.attempt, error.at),
                error.worker and raw_once(error.worker),
                *(error.type, error.message, error.traceback),
            )
            for record in records
            for error in record.errors
        ],
    )
    kept.add_copied(db, ((record.seq, record.steps, record.lines) for record in records))
    flows.add_copied(db, ((record.seq, record.edges) for record in records))
    counts = Counter((r.queue, r.kind, ROLE_CODE[r.role], STATE_CODE[r.state]) for r in records)
    db.executemany(_ADD_COUNT, [(*key, n) for key, n in counts.items()])


def _put_into_lanes(db: apsw.Connection, records: Sequence[JobRecord]) -> None:
    """Lanes are made anew for jobs of limited kinds, each with its turn in the order of these."""
    rules = rules_of(db)
    if rules is None:
        return
    lanes = Lanes(db, 0, rules)
    rows = []
    for r in records:
        if r.ready and r.gate is None and lanes.limited(r.queue, r.kind):
            batch = r.batch_id and raw_once(r.batch_id)
            lane = lanes.of(r.queue, r.kind, r.key, batch or None, ROLE_CODE[r.role])
            rows.append((lanes.ready(lane, r.priority), r.seq))
    db.executemany("UPDATE jobs SET lane = ? WHERE seq = ?", rows)
    lanes.open()


def _job_row(record: JobRecord) -> Row:
    error = record.error
    return (
        record.seq,
        raw_id(record.id),
        record.kind,
        record.queue,
        ROLE_CODE[record.role],
        record.version,
        record.payload,
        STATE_CODE[record.state],
        rank_of(record.run_at, record.priority) if record.ready else None,
        GATE_CODE[record.gate],
        *record[10:17],
        record.batch_id and raw_once(record.batch_id),
        record.position,
        record.retry and retry_to_text(record.retry),
        None if record.names is None else json.dumps(record.names),
        ON_LOST_CODE[record.on_lost],
        *record[22:28],
        error and error_to_text(error, error.at, lease=error.lease, worker=error.worker),
        record.baggage,
        record.children,
    )


# ── Batches ──────────────────────────────────────────────────────────────────────────────────

_BATCH = (
    "id, own_expander, sealed, cancel, paused, gated, owed, leases, total, pending, "
    "running, completed, failed, cancelled, started_at, concurrency, batch_size, max_failures, "
    "finish_kind, finish_queue, finish_job, within"
)
_READ_BATCHES = f"SELECT {_BATCH} FROM batches WHERE id > ? ORDER BY id LIMIT {PAGE_RECORDS + 1}"
_INSERT_BATCH = f"INSERT INTO batches ({_BATCH}) VALUES ({', '.join('?' * 22)})"


def _read_batches(db: apsw.Connection, after: str | None) -> Records:
    rows = fetch(db, _READ_BATCHES, (raw_id(after) if after else b"",))
    records = tuple(
        BatchRecord._make(
            (
                text_id(row[0]),
                *map(bool, row[1:3]),
                *row[3:5],
                *map(bool, row[5:7]),
                *row[7:20],
                row[20] and text_id(row[20]),
                row[21] and text_id(row[21]),
            )
        )
        for row in rows[:PAGE_RECORDS]
    )
    return Records(records, records[-1].id if len(rows) > PAGE_RECORDS else None)


def _insert_batches(db: apsw.Connection, records: Sequence[BatchRecord]) -> None:
    rows = [
        (
            raw_id(record.id),
            *record[1:20],
            record.finish_job and raw_id(record.finish_job),
            record.within and raw_id(record.within),
        )
        for record in records
    ]
    db.executemany(_INSERT_BATCH, rows)


# ── Names ────────────────────────────────────────────────────────────────────────────────────

_READ_NAMES = (
    "SELECT name, job, scope, until, digest FROM uniques WHERE name > ? ORDER BY name "
    f"LIMIT {PAGE_RECORDS + 1}"
)


def _read_names(db: apsw.Connection, after: str | None) -> Records:
    # No name is empty, so that all of them follow the empty text.
    rows = fetch(db, _READ_NAMES, (after or "",))
    records = tuple(
        NameRecord(name, text_id(job), SCOPES[scope], until, digest)
        for name, job, scope, until, digest in rows[:PAGE_RECORDS]
    )
    return Records(records, records[-1].name if len(rows) > PAGE_RECORDS else None)


def _insert_names(db: apsw.Connection, records: Sequence[NameRecord]) -> None:
    db.executemany(
        "INSERT INTO uniques (name, job, scope, until, digest) VALUES (?, ?, ?, ?, ?)",
        [(r.name, raw_id(r.job_id), SCOPE_CODE[r.scope], r.until, r.digest) for r in records],
    )


# ── Events ───────────────────────────────────────────────────────────────────────────────────

_EVENT = "seq, at, type, kind, queue, role, batch, worker, error, body"
_READ_EVENTS = f"SELECT {_EVENT} FROM events WHERE seq > ? ORDER BY seq LIMIT {PAGE_RECORDS + 1}"
_INSERT_EVENTS = f"INSERT INTO events ({_EVENT}, n) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def _read_events(db: apsw.Connection, after: str | None) -> Records:
    records: list[EventRecord] = []
    size = 0
    for row in db.execute(_READ_EVENTS, (int(after or 0),)):
        # What is packed here takes ten times as much as records.
        if len(records) == PAGE_RECORDS or size > PAGE_BYTES // 10:
            return Records(tuple(records), str(records[-1].seq))
        size += len(row[9])
        records.append(
            EventRecord._make(
                (
                    *row[:5],
                    ROLES[row[5]],
                    row[6] and text_once(row[6]),
                    row[7] and text_once(row[7]),
                    row[8],
                    tuple((text_id(job), *rest) for job, *rest in ENTRY.iter_unpack(row[9])),
                )
            )
        )
    return Records(tuple(records))


def _insert_events(db: apsw.Connection, records: Sequence[EventRecord]) -> None:
    rows = [
        (
            *record[:5],
            ROLE_CODE[record.role],
            record.batch_id and raw_once(record.batch_id),
            record.worker and raw_once(record.worker),
            record.error_type,
            b"".join(
                ENTRY.pack(raw_id(job), attempt, lease) for job, attempt, lease in record.jobs
            ),
            len(record.jobs),
        )
        for record in records
    ]
    db.executemany(_INSERT_EVENTS, rows)


READ: Mapping[Section, Callable[[apsw.Connection, str | None], Records]] = {
    Section.LIMITS: limits.read_limits,
    Section.METERS: limits.read_meters,
    Section.BATCHES: _read_batches,
    Section.JOBS: _read_jobs,
    Section.NAMES: _read_names,
    Section.SCHEDULES: schedule_records.read_schedules,
    Section.TICKS: schedule_records.read_ticks,
    Section.CONFIGURATION: configuring.read_copied,
    Section.EVENTS: _read_events,
}
INSERT: Mapping[Section, Callable[[apsw.Connection, Sequence[Any]], None]] = {
    Section.LIMITS: limits.insert_limits,
    Section.METERS: limits.insert_meters,
    Section.BATCHES: _insert_batches,
    Section.JOBS: _insert_jobs,
    Section.NAMES: _insert_names,
    Section.SCHEDULES: schedule_records.insert_schedules,
    Section.TICKS: schedule_records.insert_ticks,
    Section.CONFIGURATION: configuring.insert_copied,
    Section.EVENTS: _insert_events,
}
