"""Every item of a batch as a row, for machines (NDJSON) and for spreadsheets (CSV)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from haulier.domain.job import Job, JobState
from haulier.domain.redaction import shown, without_credentials
from haulier.ports import JobFilter, JobReader
from haulier.services.instants import iso

COLUMNS = ("position", "id", "state", "attempt", "error_type", "error", "result", "payload")
"""What a spreadsheet is given of a row."""

FIRST_PAGE = 20
PAGE = 200
LARGE = 2 << 20
"""Bytes of payloads and results that a page is to have at most, by the size of the one before."""


async def item_pages(
    reader: JobReader,
    batch_id: str,
    *,
    states: Iterable[JobState] = (),
    after: int | None = None,
) -> AsyncIterator[Sequence[Job]]:
    """The items of a batch in their order, in flat memory; `after` is the `seq` of the last seen.

    Raises JobNotFoundError if there is no such batch.
    """
    await reader.batch(batch_id)
    where = JobFilter(batch_id=batch_id, states=frozenset(states) or None)
    cursor, limit = after, FIRST_PAGE
    while True:
        page = await reader.find(where, limit=limit, cursor=cursor, oldest_first=True)
        yield page.jobs
        if page.next is None:
            return
        cursor = page.next
        size = sum(len(job.payload) + len(job.result or b"") for job in page.jobs)
        limit = max(1, min(PAGE, limit * LARGE // max(size, 1)))


def row_of(job: Job) -> dict[str, Any]:
    """An item as a row; secrets are masked."""
    return {
        "position": job.position,
        "id": job.id,
        "state": job.state,
        "attempt": job.attempt,
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "error_type": job.error.type if job.error else None,
        "error": without_credentials(job.error.message) if job.error else None,
        "result": shown(job.value),
        "payload": shown(json.loads(job.payload)),
    }


def csv_lines(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Rows as lines of CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    """A CSV cell that no spreadsheet takes for a formula."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
