"""The manifest of a batch of renditions: what became of every item, as JSON lines and as CSV."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from pydantic_core import from_json

from haulier.domain.job import Job, JobState
from haulier.runners._files import replacing

COLUMNS = (
    "account",
    "source",
    "spec",
    "state",
    "path",
    "source_sha256",
    "sha256",
    "width",
    "height",
    "bytes",
    "distance_to_source",
    "distance_to_geometry",
    "error",
    "message",
)

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def guarded(cell: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula (OWASP, "CSV Injection")."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def manifest_row(job: Job) -> dict[str, Any]:
    """What became of an item; what there is not is None."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    payload = from_json(job.payload)
    row |= {"account": payload["account"], "source": payload["source"], "state": job.state.value}
    row["spec"] = payload["spec"]["name"]
    if job.state is JobState.COMPLETED and job.result is not None:
        result = from_json(job.result)
        row |= {name: result[name] for name in COLUMNS if name in result}
    elif job.error is not None:
        row |= {"error": job.error.type, "message": job.error.message}
    return row


class ManifestWriter:
    """Writes `manifest.jsonl` and `manifest.csv` into a folder; both appear whole, at the end.

    `mark` makes the temporary names this writer's own. File work is done in threads, so the event
    loop goes on. Raises OSError.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder = folder
        self._mark = mark
        self._stack = ExitStack()
        self._jsonl: BinaryIO
        self._csv: BinaryIO
        self.rows = 0
        self.failed = 0

    @property
    def path(self) -> Path:
        """The JSON lines; the CSV lies beside it."""
        return self._folder / "manifest.jsonl"

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._stack.__exit__, exc_type, exc, tb)

    async def add(self, jobs: Sequence[Job]) -> None:
        """Append one row per item."""
        await asyncio.to_thread(self._add, jobs)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._jsonl = stack.enter_context(self._replacing(self.path))
            self._csv = stack.enter_context(self._replacing(self.path.with_suffix(".csv")))
            self._csv.write(_as_csv([COLUMNS]))
            self._stack = stack.pop_all()

    def _replacing(self, target: Path) -> Any:
        return replacing(target, self._folder / f".{target.name}.{self._mark}.part")

    def _add(self, jobs: Sequence[Job]) -> None:
        rows = [manifest_row(job) for job in jobs]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._jsonl.write(_utf8(lines))
        self._csv.write(_as_csv([[guarded(cell) for cell in row.values()] for row in rows]))
        self.rows += len(jobs)
        self.failed += sum(job.state is JobState.FAILED for job in jobs)


def _as_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return _utf8(text.getvalue())


def _utf8(text: str) -> bytes:
    # One odd file name in an error message must not cost the whole manifest.
    return text.encode("utf-8", "backslashreplace")
