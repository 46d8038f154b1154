"""Many plain jobs on their way to the server: their rows by COPY, between two calls of functions.

COPY cannot pass over an id that is there already, and knows nothing of unique names: what it cannot
do is left to `inserting`, which can do all and takes twice the time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from haulier.domain.ids import text_id
from haulier.domain.job import NewJob
from haulier.ports import Fence
from haulier.stores.codes import (
    IN_LANE,
    ON_LOST_CODE,
    PARKED,
    PENDING,
    ROLE_CODE,
    rank_of,
    raw_once,
    retry_to_text,
)
from haulier.stores.postgres.connection import Connection

FEWEST = 250
"""Jobs from which on COPY is worth its round trips, five more than one call of a function takes.

It saves about 10 us a job, so 250 jobs make up for round trips of half a millisecond.
"""

_BEGIN = "SELECT at, gated, leases, queues, kinds FROM begin_rows($1, $2, $3, $4)"
_END = "SELECT end_rows($1, $2, $3, $4, $5, $6, $7, $8)"
_TELL = "SELECT tell_new_lanes($1, $2, $3, $4, $5, $6, $7)"

_Batches = Mapping[str | None, tuple[bool, int]]
"""Of each batch: whether its items have to be let in, and above which number leases begin."""


def fit(jobs: Sequence[NewJob]) -> bool:
    """Whether these jobs are many enough, and so plain that COPY can insert them."""
    return len(jobs) >= FEWEST and not any(
        job.unique or job.after or job.role.heads for job in jobs
    )


async def insert(
    connection: Connection, now: int | None, jobs: Sequence[NewJob], fence: Fence | None
) -> bool:
    """Insert jobs that `fit`, all of them; false if that cannot be, and then nothing was done.

    Usually some are there already. It may also be a value that cannot be sent: the other way tells
    which.
    """
    try:
        async with connection.transaction():
            batches = [batch for batch in {job.batch_id for job in jobs} if batch is not None]
            at, gated, leases, queues, kinds = await connection.fetchrow(
                _BEGIN, now, batches, fence and fence.job_id, fence and fence.lease
            )
            known: dict[str | None, tuple[bool, int]] = {None: (False, 0)}
            known.update(zip(batches, zip(gated, leases, strict=True), strict=True))
            lanes = None if queues is None else _Lanes(list(zip(queues, kinds, strict=True)))
            rows, groups = _written(jobs, at, known, lanes)
            columns = _COLUMNS if lanes is None else (*_COLUMNS, "lane")
            await connection.copy_to_table(
                "jobs_live", source=_pieces(rows), columns=columns, format="binary"
            )
            if lanes is not None and lanes.ranks:
                await connection.execute(_TELL, at, *lanes.columns())
            ids = [job.id for job in jobs]
            await connection.execute(_END, at, ids, *_groups(groups))
    except (asyncpg.UniqueViolationError, ValueError, TypeError, OverflowError):
        return False
    return True


# ── The binary format of COPY ────────────────────────────────────────────────────────────────
#
# Each row: how many columns, then each column's length and value, big-endian; length -1 is NULL.
# See "Binary Format" at COPY in PostgreSQL's manual. It is written here and not by the driver: that
# is faster, as most columns of many jobs are the same, and a value that cannot be written is found
# before anything is sent, where the driver has to cancel a COPY that is under way.

_COLUMNS = (
    *("id", "payload", "position", "key"),
    *("kind", "queue", "role", "version", "state", "rank", "gate", "priority"),
    *("run_at", "lease", "on_lost", "batch", "retry", "created_at", "baggage"),
)
"""First those that differ from job to job."""

_OPENING = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_CLOSING = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"

_ID_BYTES = 16
_ROW = len(_COLUMNS).to_bytes(2, "big") + _ID_BYTES.to_bytes(4, "big")
_ROW_WITH_LANE = (len(_COLUMNS) + 1).to_bytes(2, "big") + _ID_BYTES.to_bytes(4, "big")
_INT4 = (4).to_bytes(4, "big")

_PIECE_ROWS = 100
"""Rows that are sent together: the driver waits between pieces if the server is slower."""

_SAME = (
    *("kind", "version", "queue", "priority", "run_at", "delay", "retry", "role", "batch_id"),
    *("on_lost", "baggage"),
)
_same = itemgetter(*map(NewJob._fields.index, _SAME))
"""All of a job that the columns after `key` are made of."""


class _Group(NamedTuple):
    """What the events of jobs that share a row of the journal have in common."""

    kind: str
    queue: str
    role: int
    batch: str | None
    lease: int


class _Lanes:
    """The lanes of jobs that fall under limits, and the lowest rank of those that are ready.

    `lines` are those to which limits apply: queues and kinds, None being all.
    """

    def __init__(self, lines: Sequence[tuple[str | None, str | None]]) -> None:
        self._lines = lines
        self._made: dict[tuple[str, str, str | None, str | None], bytes] = {}
        self.ranks: dict[tuple[str, str, str | None, str | None], int] = {}

    def concern(self, job: NewJob) -> bool:
        """Whether jobs of this queue and kind fall under limits."""
        return any(
            queue in (None, job.queue) and kind in (None, job.kind) for queue, kind in self._lines
        )

    def column(self, job: NewJob, rank: int | None) -> bytes:
        """The lane of a job, as lane_of() makes it; `rank` if it is ready."""
        lane = (job.queue, job.kind, job.key, job.batch_id)
        if rank is not None:
            self.ranks[lane] = min(rank, self.ranks.get(lane, rank))
        raw = self._made.get(lane)
        if raw is None:
            batch = "" if job.batch_id is None else text_id(raw_once(job.batch_id))
            key = "" if job.key is None else f"k{job.key}"
            text = f"{job.queue}/{job.kind}/{batch}/{key}"
            digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
            raw = self._made[lane] = _sized(digest)
        return raw

    def columns(self) -> tuple[list[Any], ...]:
        """Each lane that has ready jobs, as tell_new_lanes() takes them."""
        queues, kinds, keys, batches = zip(*self.ranks, strict=True)
        ids = [str(UUID(bytes=self._made[lane][4:])) for lane in self.ranks]
        return ids, list(queues), list(kinds), list(keys), list(batches), list(self.ranks.values())


def _written(
    jobs: Sequence[NewJob], now: int, batches: _Batches, lanes: _Lanes | None
) -> tuple[list[bytes], dict[_Group, list[bytes]]]:
    """The rows of jobs, those that insert_rows() makes of them in the server; and their ids."""
    rows: list[bytes] = []
    groups: defaultdict[_Group, list[bytes]] = defaultdict(list)
    before: object = None
    rest, add = b"", rows.append
    row, lane, limited, rank = _ROW if lanes is None else _ROW_WITH_LANE, b"", False, None
    for raw, job in zip(_raw_ids(jobs), jobs, strict=True):
        same = _same(job)
        if same != before:
            # Jobs of one call are nearly always alike.
            limited = lanes is not None and lanes.concern(job)
            before, group, rank, rest = same, *_shared(job, now, batches, limited)
            add = groups[group].append
            lane = b"" if lanes is None else _NULL
        add(raw)
        if limited:
            assert lanes is not None
            lane = lanes.column(job, rank)
        payload, position, key = job.payload, job.position, job.key
        rows.append(
            b"".join(
                (
                    row,
                    raw,
                    len(payload).to_bytes(4, "big"),
                    payload,
                    _NULL if position is None else _INT4 + position.to_bytes(4, "big", signed=True),
                    _NULL if key is None else _text(key),
                    rest,
                    lane,
                )
            )
        )
    return rows, groups


def _raw_ids(jobs: Sequence[NewJob]) -> list[bytes]:
    """The ids as bytes, all turned at once: that takes a tenth of the time of one by one.

    That each of them is a UUID is seen when end_rows() gets them as texts.
    """
    raw = bytes.fromhex("".join([job.id for job in jobs]).replace("-", ""))
    return [raw[start : start + _ID_BYTES] for start in range(0, len(raw), _ID_BYTES)]


def _shared(
    job: NewJob, now: int, batches: _Batches, limited: bool
) -> tuple[_Group, int | None, bytes]:
    """What a job shares with others like it: the group of its event, its rank, its later columns.

    No rank if it is not due yet.
    """
    gated, lease = batches[job.batch_id]
    # An instant in the past counts as now, or a producer could jump the line by it.
    due = max(now + job.delay if job.run_at is None else job.run_at, now)
    ready = due == now
    role, rank = ROLE_CODE[job.role], rank_of(due, job.priority)
    gate = IN_LANE if limited else PARKED if gated else None
    columns = (
        _text(job.kind),
        _text(job.queue),
        _number(role, 2),
        _number(job.version, 4),
        _number(PENDING, 2),
        _number(rank, 8) if ready and gate is None else _NULL,
        _number(gate, 2) if ready and gate is not None else _NULL,
        _number(job.priority, 4),
        _number(due, 8),
        _number(lease, 4),
        _number(ON_LOST_CODE[job.on_lost], 2),
        _NULL if job.batch_id is None else _sized(raw_once(job.batch_id)),
        _NULL if job.retry is None else _text(retry_to_text(job.retry)),
        _number(now, 8),
        _NULL if job.baggage is None else _text(job.baggage),
    )
    group = _Group(job.kind, job.queue, role, job.batch_id, lease)
    return group, rank if ready else None, b"".join(columns)


def _number(value: int, size: int) -> bytes:
    return _sized(value.to_bytes(size, "big", signed=True))


def _text(value: str) -> bytes:
    return _sized(value.encode())


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


async def _pieces(rows: Sequence[bytes]) -> AsyncIterator[bytes]:
    yield _OPENING
    for start in range(0, len(rows), _PIECE_ROWS):
        yield b"".join(rows[start : start + _PIECE_ROWS])
    yield _CLOSING


def _groups(groups: Mapping[_Group, Sequence[bytes]]) -> tuple[list[Any], ...]:
    """Columns of the journal's rows."""
    return (
        [len(ids) for ids in groups.values()],
        [group.kind for group in groups],
        [group.queue for group in groups],
        [group.role for group in groups],
        [group.batch for group in groups],
        [_body(ids, group.lease) for group, ids in groups.items()],
    )


def _body(ids: Sequence[bytes], lease: int) -> bytes:
    """What entry() packs for each job: its id, no attempt yet, and where its leases begin."""
    rest = (0).to_bytes(4, "big") + lease.to_bytes(4, "big", signed=True)
    return rest.join(ids) + rest
