"""Rows that the SQL stores have in common, and cursors of events, which all have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from struct import Struct
from typing import Any

from haulier.domain.batch import Batch, Counts
from haulier.domain.event import ALTERED, OF_NOBODY, OF_SCHEDULES, Event
from haulier.domain.ids import text_id
from haulier.domain.worker import WorkerRow
from haulier.exceptions import Problem, ValidationError
from haulier.stores.codes import ROLES, STATES

ENTRY = Struct(">16sII")
"""What distinguishes the events of one row: job id, attempt, lease."""

LONGEST_NUMBER = 15
"""Digits of an event's number: Lua counts no further without a gap."""


def parsed_cursor(cursor: str) -> tuple[str, int]:
    """The history that a cursor is of, and the number of its event; raises ValidationError."""
    epoch, colon, number = cursor.partition(":")
    digits = number.isascii() and number.isdigit() and len(number) <= LONGEST_NUMBER
    if not (colon and epoch and digits):
        problem = Problem("after", "is no cursor of an event")
        raise ValidationError("the cursor was refused", [problem])
    return epoch, int(number)


def events_of(
    epoch: str, row: Sequence[Any], seen: int, *, batch: str | None, worker: str | None
) -> list[Event]:
    """The events that a row of many holds, without those up to `seen`."""
    last, n, at, event, kind, queue, role, _, _, error, body = row
    if event in OF_NOBODY:
        return [of_nobody(epoch, last, at, event, kind, error)]
    said = said_by(event, error)
    what = (kind, queue, ROLES[role], batch)
    return [
        Event(epoch, seq, at, event, text_id(job), *what, attempt, lease, worker, *said)
        for seq, (job, attempt, lease) in enumerate(ENTRY.iter_unpack(body), start=last - n + 1)
        if seq > seen
    ]


def altered(by: str, what: str) -> str:
    """What an `alter` event keeps in the place of an error's class."""
    return json.dumps([by, what])


def said_by(event: str, error: str | None) -> tuple[str | None, str | None, str | None]:
    """The last fields of an event: the class of its error, or what was changed and who did it."""
    if event in OF_SCHEDULES:
        return None, None, error
    if event != ALTERED or error is None:
        return error, None, None
    by, what = json.loads(error)
    return None, what, by or None


def of_nobody(epoch: str, seq: int, at: int, event: str, setting: str, by: str | None) -> Event:
    """The event of a change that is no job's, which has a row to itself.

    It is kept like one of a job: what was changed in the place of the kind, who did it in that of
    the error.
    """
    return Event(epoch, seq, at, event, setting=setting, by=by)


def batch_of(
    row: Sequence[Any], batch_id: str, finish_job: str | None, within: str | None
) -> Batch:
    """The batch of a row: BATCH_COLUMNS of either store, whose ids are given as text."""
    return Batch(
        id=batch_id,
        kind=row[1],
        queue=row[2],
        state=STATES[row[3]],
        counts=Counts(
            total=row[4],
            pending=row[5],
            running=row[6],
            completed=row[7],
            failed=row[8],
            cancelled=row[9],
        ),
        sealed=bool(row[10]),
        cancel_requested=row[11] > 0,
        created_at=row[12],
        started_at=row[13],
        finished_at=row[14],
        finish_job=finish_job,
        paused=bool(row[16]),
        concurrency=row[17],
        batch_size=row[18],
        max_failures=row[19],
        settled=not row[20],
        within=within,
    )


def worker_of(row: Sequence[Any], worker_id: str) -> WorkerRow:
    """The worker behind: id, host, pid, queues, kinds, slots, started_at, renewed_at, alive."""
    return WorkerRow(
        id=worker_id,
        host=row[1],
        pid=row[2],
        queues=tuple(json.loads(row[3])),
        kinds=tuple(json.loads(row[4])),
        slots=row[5],
        started_at=row[6],
        renewed_at=row[7],
        alive=bool(row[8]),
    )
