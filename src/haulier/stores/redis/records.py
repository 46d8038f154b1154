"""Between keys and the neutral records of a copy: read from rows, written by commands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from haulier.domain.job import JobError, JobState
from haulier.domain.limits import Limit
from haulier.domain.transfer import (
    BatchRecord,
    EdgeRecord,
    EventRecord,
    Gate,
    JobRecord,
    NameRecord,
)
from haulier.stores.codes import (
    FAILED,
    GATE_CODE,
    GATES,
    ITEM,
    ON_LOST,
    ON_LOST_CODE,
    OTHERWISE,
    PENDING,
    ROLE_CODE,
    ROLES,
    RUNNING,
    SCOPE_CODE,
    SCOPES,
    SINGLE,
    STATE_CODE,
    STATES,
    error_from_text,
    error_to_text,
    rank_of,
    retry_from_text,
    retry_to_text,
)
from haulier.stores.redis.keys import escaped
from haulier.stores.redis.rows import (
    Row,
    lines_from,
    parent_from_row,
    steps_from,
    text_of,
)
from haulier.stores.redis.scripts import COMPACT

Command = tuple[Any, ...]

ACTIVE = 1

AT_ONCE = 500
"""Pairs of one command: scripts can pass on some thousand values at a time."""


def _int(raw: bytes | None) -> int | None:
    return None if raw is None else int(raw)


def _text(raw: bytes | None) -> str | None:
    return raw.decode() if raw else None


def place_of(seq: int, job_id: str) -> str:
    """A job as a member of a line: members of one score are in the order of their numbers."""
    return f"{seq:015d}:{job_id}"


class Writer:
    """Commands that write records, those on one sorted set gathered into few."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._commands: list[Command] = []
        self._members: dict[str, list[Any]] = {}

    def key(self, name: str) -> str:
        return self._prefix + name

    def add(self, command: str, name: str, *values: Any) -> None:
        self._commands.append((command, self.key(name), *values))

    def hash(self, name: str, values: Mapping[str, Any]) -> None:
        """Fill a hash."""
        flat = [each for pair in values.items() for each in pair]
        for start in range(0, len(flat), 2 * AT_ONCE):
            self.add("HSET", name, *flat[start : start + 2 * AT_ONCE])

    def rank(self, name: str, score: int | str, member: str) -> None:
        """Put a member into a sorted set."""
        self._members.setdefault(name, []).extend((score, member))

    def packed(self) -> list[Any]:
        """All commands as the script takes them."""
        for name, members in self._members.items():
            for start in range(0, len(members), 2 * AT_ONCE):
                self.add("ZADD", name, *members[start : start + 2 * AT_ONCE])
        flat: list[Any] = [len(self._commands)]
        for command in self._commands:
            flat.append(len(command))
            flat.extend(command)
        return flat


# ── Jobs ─────────────────────────────────────────────────────────────────────────────────────


def job_record(row: Sequence[Any]) -> JobRecord:
    """The job behind JOB_FIELDS, its id, its errors, and whether it stands in the line."""
    # fmt: off
    (
        seq, kind, queue, payload, state, version, role, priority, run_at, attempt, lease, lost,
        key, batch, position, retry, _, cancel, gate, uniq, on_lost, created, started,
        finished, progress, message, result, error, baggage, job_id, errors, due, steps, lines,
        edges, children,
    ) = row
    # fmt: on
    code = int(state)
    return JobRecord(
        seq=int(seq),
        id=job_id.decode(),
        kind=text_of(kind),
        queue=text_of(queue),
        role=ROLES[int(role or 0)],
        version=1 if version is None else int(version),
        payload=payload,
        state=STATES[code],
        ready=bool(due),
        gate=GATES[int(gate or 0)] if code == PENDING else None,
        priority=int(priority or 0),
        run_at=int(run_at),
        attempt=int(attempt or 0),
        lease=int(lease or 0),
        lost=int(lost or 0),
        cancel=int(cancel or 0) if code == RUNNING else 0,
        key=None if key is None else key.decode(),
        batch_id=_text(batch),
        position=_int(position),
        retry=retry_from_text(text_of(retry)) if retry else None,
        names=None if uniq is None else _active(uniq),
        on_lost=ON_LOST[int(on_lost or 0)],
        created_at=int(created),
        started_at=_int(started),
        finished_at=_int(finished),
        progress=_int(progress),
        message=None if message is None else message.decode(),
        result=result,
        error=None if error is None else error_from_text(error),
        baggage=_text(baggage),
        errors=tuple(sorted(map(error_from_text, errors), key=_lease)),
        steps=tuple(steps_from(job_id.decode(), steps)),
        lines=tuple(lines_from(lines)),
        edges=edges_from(edges),
        children=None if children is None else int(children),
    )


def _active(uniq: bytes) -> tuple[str, ...]:
    return tuple(name for name, scope in json.loads(uniq) if scope == ACTIVE)


def _lease(error: JobError) -> int:
    return error.lease


def write_jobs(writer: Writer, records: Sequence[JobRecord], limits: Sequence[Limit]) -> None:
    counts: Counter[str] = Counter()
    lanes = Lanes(writer, limits)
    let_in: Counter[str] = Counter()
    for record in records:
        writer.add("HSET", f"job:{record.id}", *_job_fields(record))
        if len(record.payload) > COMPACT:
            writer.add("SET", f"payload:{record.id}", record.payload)
        for error in record.errors:
            writer.add("HSET", f"errors:{record.id}", error.lease, _error_text(error))
        steps = {s.name: f"{s.at} {s.lease} ".encode() + s.result for s in record.steps}
        writer.hash(f"steps:{record.id}", steps)
        lines = {f"{each.lease}:{each.number}": f"{each.at} {each.text}" for each in record.lines}
        writer.hash(f"lines:{record.id}", lines)
        _index(writer, record, lanes)
        _write_edges(writer, record)
        line = f"{escaped(record.queue)}:{escaped(record.kind)}"
        counts[f"{line}:{ROLE_CODE[record.role]}:{STATE_CODE[record.state]}"] += 1
        if record.gate is Gate.LET_IN and record.batch_id is not None:
            let_in[record.batch_id] += 1
    for field, count in counts.items():
        writer.add("HINCRBY", "counts", field, count)
    lanes.open()
    for batch, count in let_in.items():
        writer.add("HINCRBY", f"batch:{batch}", "let_in", count)


def _error_text(error: JobError) -> str:
    return error_to_text(error, error.at, lease=error.lease, worker=error.worker)


def _job_fields(record: JobRecord) -> Iterator[Any]:
    """Fields and values; those that have their default are left out."""
    values: dict[str, Any] = {
        "seq": record.seq,
        "kind": record.kind,
        "queue": record.queue,
        "payload": record.payload if len(record.payload) <= COMPACT else None,
        "state": STATE_CODE[record.state],
        "run_at": record.run_at,
        "created": record.created_at,
        "version": record.version if record.version != 1 else None,
        "role": ROLE_CODE[record.role] or None,
        "priority": record.priority or None,
        "attempt": record.attempt or None,
        "lease": record.lease or None,
        "lost": record.lost or None,
        "key": record.key,
        "batch": record.batch_id,
        "position": record.position,
        "retry": None if record.retry is None else retry_to_text(record.retry),
        "cancel": record.cancel or None,
        "gate": GATE_CODE[record.gate],
        "uniq": None if record.names is None else _uniq((name, ACTIVE) for name in record.names),
        "on_lost": ON_LOST_CODE[record.on_lost] or None,
        "started": record.started_at,
        "finished": record.finished_at,
        "progress": record.progress,
        "message": record.message,
        "result": record.result,
        "error": None if record.error is None else _error_text(record.error),
        "baggage": record.baggage,
        "children": record.children,
        "waits": sum(edge.state is None for edge in record.edges) if record.edges else None,
    }
    for field, value in values.items():
        if value is not None:
            yield field
            yield value


def _uniq(names: Iterable[tuple[str, int]]) -> str:
    return json.dumps([list(each) for each in names], separators=(",", ":"), ensure_ascii=False)


def _index(writer: Writer, record: JobRecord, lanes: Lanes) -> None:
    """Enter a job where it stands, and into all that it is found by."""
    seq, job_id, batch = record.seq, record.id, record.batch_id
    if ROLE_CODE[record.role] >= ITEM:
        writer.rank("below", seq, job_id)
        writer.rank(f"items:{batch}", seq, job_id)
    else:
        writer.rank("top", seq, job_id)
    if record.state is JobState.PENDING:
        _stand(writer, record, lanes)
        return
    if record.state is JobState.RUNNING:
        return
    code, kind = STATE_CODE[record.state], escaped(record.kind)
    ended = record.finished_at or 0
    if ROLE_CODE[record.role] < ITEM:
        writer.rank(f"finished:{code}:{kind}", ended, job_id)
    if code == FAILED:
        writer.rank("dead", seq, job_id)
        if batch is not None:
            writer.rank(f"failed:{batch}", seq, job_id)
    has_result = record.state is JobState.COMPLETED and record.result not in (None, b"null")
    if has_result and ROLE_CODE[record.role] == SINGLE:
        writer.rank(f"results:{kind}", ended, job_id)


def edges_from(rows: Iterable[Row]) -> tuple[EdgeRecord, ...]:
    """What a job waits for or has waited for, in its order."""
    found = [parent for _, parent in sorted(map(parent_from_row, rows), key=itemgetter(0))]
    return tuple(
        EdgeRecord(
            parent.job_id,
            parent.otherwise,
            parent.state if parent.ended else None,
            parent.result,
            parent.error,
        )
        for parent in found
    )


def _write_edges(writer: Writer, record: JobRecord) -> None:
    edges: dict[str, str] = {}
    for nth, edge in enumerate(record.edges):
        told = "" if edge.state is None else STATE_CODE[edge.state]
        edges[edge.parent_id] = f"{nth}:{OTHERWISE.index(edge.otherwise)}:{told}"
        writer.rank(f"children:{edge.parent_id}", record.seq, record.id)
        if edge.state is None:
            writer.rank(f"untold:{edge.parent_id}", record.seq, record.id)
            continue
        end: dict[str, Any] = {"state": told}
        if edge.result is not None:
            end["result"] = edge.result
        if edge.error is not None:
            end["error"] = _error_text(edge.error)
        writer.hash(f"end:{edge.parent_id}", end)
    writer.hash(f"edges:{record.id}", edges)


def _stand(writer: Writer, record: JobRecord, lanes: Lanes) -> None:
    rank = rank_of(record.run_at, record.priority)
    place = place_of(record.seq, record.id)
    if record.gate is Gate.WAITING:
        return
    if record.gate is Gate.ALONE:
        writer.rank("alone", record.run_at, record.id)
    elif record.gate is Gate.PARKED:
        writer.rank(f"parked:{record.batch_id}", rank, place)
    elif record.ready and record.gate is None and lanes.limited(record):
        writer.rank(f"lane:{lanes.enter(record)}", rank, place)
    elif record.ready:
        writer.rank(f"ready:{escaped(record.queue)}:{escaped(record.kind)}", rank, place)
    else:
        writer.rank("scheduled", record.run_at, record.id)


class Lanes:
    """Lanes are made anew from the jobs of limited lines, with turns in the order of these."""

    def __init__(self, writer: Writer, limits: Sequence[Limit]) -> None:
        self._writer = writer
        self._limits = limits
        self._places: dict[str, int] = {}
        self._turns: dict[str, int] = {}

    def limited(self, record: JobRecord) -> bool:
        return any(limit.concerns(record.queue, record.kind) for limit in self._limits)

    def enter(self, record: JobRecord) -> str:
        """The lane of a job."""
        line = f"{escaped(record.queue)}:{escaped(record.kind)}"
        name = f"{line}:{record.batch_id or ''}:{record.key or ''}"
        if record.role.heads:
            name = f"{line}:head:"
        turn = self._turns.setdefault(name, record.seq)
        place = rank_of(turn, record.priority)
        self._places[name] = min(self._places.get(name, place), place)
        if record.priority:
            self._writer.add("HSET", "history", "urgent", 1)
        return name

    def open(self) -> None:
        """Each stands where it did before this page, or further in front."""
        for name, place in self._places.items():
            self._writer.add("HSETNX", "turns", name, self._turns[name])
            line = ":".join(name.split(":", 2)[:2])
            self._writer.add("ZADD", f"open:{line}", "LT", place, name)


# ── Batches ──────────────────────────────────────────────────────────────────────────────────

BATCH_FIELDS = (
    *("own_expander", "sealed", "cancel", "paused", "owed", "leases", "total", "pending"),
    *("running", "completed", "failed", "cancelled", "started", "concurrency", "batch_size"),
    *("max_failures", "finish_kind", "finish_queue", "finish_job", "within"),
)
"""Fields of a batch's hash; those up to `cancelled` are 0 where they are left out."""

_NUMBERS = BATCH_FIELDS.index("started")


def batch_record(batch_id: str, row: Sequence[bytes | None], *, gated: bool) -> BatchRecord:
    own_expander, sealed, cancel, paused, owed, *numbers = (int(raw or 0) for raw in row[:_NUMBERS])
    limits, finish = map(_int, row[_NUMBERS : _NUMBERS + 4]), map(_text, row[_NUMBERS + 4 :])
    flags = bool(own_expander), bool(sealed), cancel, paused, gated, bool(owed)
    return BatchRecord._make((batch_id, *flags, *numbers, *limits, *finish))


def write_batches(writer: Writer, records: Sequence[BatchRecord]) -> None:
    for record in records:
        values = record._asdict()
        del values["id"]
        if values.pop("gated"):
            writer.add("SADD", "gated", record.id)
        values["started"] = values.pop("started_at")
        fields = [
            each
            for field in BATCH_FIELDS
            if (value := values[field]) is not None
            for each in (field, int(value) if isinstance(value, bool) else value)
        ]
        writer.add("HSET", f"batch:{record.id}", *fields)
        if record.within is None:
            writer.rank("batches", 0, record.id)
            continue
        writer.rank("nested", 0, record.id)
        writer.rank(f"inner:{record.within}", 0, record.id)
        if record.owed:
            writer.add("HINCRBY", f"batch:{record.within}", "unsettled", 1)


# ── Names ────────────────────────────────────────────────────────────────────────────────────


def name_record(name: str, value: bytes) -> NameRecord:
    job_id, scope, until, digest = value.decode().split("|")
    return NameRecord(
        name,
        job_id,
        SCOPES[int(scope)],
        int(until) if until else None,
        bytes.fromhex(digest),
    )


def write_names(
    writer: Writer, records: Sequence[NameRecord], held: Mapping[str, bytes | None]
) -> None:
    """`held`: the names that the hash of each holder has so far; None for one that is gone.

    A job's hash lists its names of all scopes, since that is how they are found when it goes on.
    """
    lists: dict[str, list[list[Any]]] = {}
    for record in records:
        scope = SCOPE_CODE[record.scope]
        until = "" if record.until is None else record.until
        value = f"{record.job_id}|{scope}|{until}|{record.digest.hex()}"
        writer.add("HSET", "uniques", record.name, value)
        if record.until is not None:
            writer.rank("periods", record.until, record.name)
        uniq = held.get(record.job_id)
        if uniq is not None:
            names = lists.setdefault(record.job_id, json.loads(uniq))
            if [record.name, scope] not in names:
                names.append([record.name, scope])
    for job_id, names in lists.items():
        writer.add("HSET", f"job:{job_id}", "uniq", _uniq(map(tuple, names)))


# ── Events ───────────────────────────────────────────────────────────────────────────────────


def event_record(row: Sequence[Any]) -> EventRecord:
    """The events of one entry of the stream."""
    seq, fields = row
    _, _, _, at, _, event, _, kind, _, queue, _, role, _, batch, _, worker, _, error, _, jobs = (
        fields
    )
    entries = (entry.split(",") for entry in jobs.decode().split(";"))
    return EventRecord(
        seq=int(seq.partition(b"-")[0]),
        at=int(at),
        type=text_of(event),
        kind=text_of(kind),
        queue=text_of(queue),
        role=ROLES[int(role)],
        batch_id=_text(batch),
        worker=_text(worker),
        error_type=_text(error),
        jobs=tuple((job_id, int(attempt), int(lease)) for job_id, attempt, lease in entries),
    )


def write_events(writer: Writer, records: Sequence[EventRecord]) -> None:
    for record in records:
        jobs = ";".join(f"{job_id},{attempt},{lease}" for job_id, attempt, lease in record.jobs)
        writer.add(
            *("XADD", "events", f"{record.seq}-0", "n", len(record.jobs), "at", record.at),
            *("type", record.type, "kind", record.kind, "queue", record.queue),
            *("role", ROLE_CODE[record.role], "batch", record.batch_id or ""),
            *("worker", record.worker or "", "error", record.error_type or "", "jobs", jobs),
        )
