"""What running jobs say of themselves, gathered until it is stored."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import replace

import structlog

from haulier.domain.line import KEPT_LINES, Said
from haulier.domain.worker import Note
from haulier.exceptions import StoreError
from haulier.ports import JobStore

NOTE_EVERY = 0.25

_log = structlog.get_logger("haulier.worker")

_Lines = deque[tuple[int, Said]]
"""Lines, each with when it was said, in microseconds of the monotonic clock."""


class Notes:
    """The latest note of each job, and its last log lines; taken from any thread."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._flushing = asyncio.Lock()
        self._notes: dict[str, Note] = {}
        self._lines: dict[tuple[str, int], _Lines] = {}

    def take(self, note: Note) -> None:
        """Remember a note until the next flush."""
        with self._lock:
            if note.lines:
                place = note.job_id, note.lease
                lines = self._lines.setdefault(place, deque(maxlen=KEPT_LINES))
                at = _now()
                lines.extend((at, said) for said in note.lines)
                note = replace(note, lines=())
            self._notes[note.job_id] = _merged(self._notes.get(note.job_id), note)

    async def flush(self) -> None:
        """Store all that was taken so far; raises StoreError, and then keeps it."""
        if not self._notes and not self._flushing.locked():
            return
        # What another flush has on its way must be there too before a job is handed in: a note that
        # came after the end of its lease would be dropped.
        async with self._flushing:
            if self._notes:
                await self._store_all()

    async def _store_all(self) -> None:
        with self._lock:
            notes, self._notes = self._notes, {}
            lines, self._lines = self._lines, {}
        try:
            await self._store.note(_told(notes, lines))
        except BaseException:
            with self._lock:
                for note in notes.values():
                    self._notes[note.job_id] = _merged(note, self._notes.get(note.job_id))
                for place, said in lines.items():
                    later = self._lines.get(place, ())
                    self._lines[place] = deque([*said, *later], maxlen=KEPT_LINES)
            raise

    async def flush_often(self) -> None:
        """Flush a few times a second, for as long as it is awaited."""
        while True:
            await asyncio.sleep(NOTE_EVERY)
            try:
                await self.flush()
            except StoreError as error:
                _log.warning("progress not stored", error=str(error))


def _told(notes: dict[str, Note], lines: dict[tuple[str, int], _Lines]) -> list[Note]:
    """The notes with their lines, of which each says how long ago it was said."""
    now = _now()
    told = {(note.job_id, note.lease): note for note in notes.values()}
    for place, said in lines.items():
        note = told.get(place) or Note(*place)
        aged = tuple(line._replace(ago=now - at) for at, line in said)
        told[place] = replace(note, lines=aged)
    return list(told.values())


def _merged(old: Note | None, new: Note | None) -> Note:
    """Both as one: the later progress with its message, and that a cancel was heard for good."""
    if old is None or new is None or old.lease != new.lease:
        found = new or old
        assert found is not None
        return found
    latest = old if new.progress is None else new
    return replace(latest, heard=old.heard or new.heard)


def _now() -> int:
    return time.monotonic_ns() // 1000
