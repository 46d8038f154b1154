"""What running jobs say of themselves, gathered until it is stored."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import structlog

from haulier.domain.worker import Note
from haulier.exceptions import StoreError
from haulier.ports import JobStore

NOTE_EVERY = 0.25

_log = structlog.get_logger("haulier.worker")


class Notes:
    """The latest note of each job; taken from any thread."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._notes: dict[str, Note] = {}

    def take(self, note: Note) -> None:
        """Remember a note until the next flush."""
        with self._lock:
            self._notes[note.job_id] = _merged(self._notes.get(note.job_id), note)

    async def flush(self) -> None:
        """Store what was taken; raises StoreError, and then keeps it."""
        if not self._notes:
            return
        with self._lock:
            notes, self._notes = self._notes, {}
        try:
            await self._store.note(list(notes.values()))
        except BaseException:
            with self._lock:
                for note in notes.values():
                    self._notes[note.job_id] = _merged(note, self._notes.get(note.job_id))
            raise

    async def flush_often(self) -> None:
        """Flush a few times a second, for as long as it is awaited."""
        while True:
            await asyncio.sleep(NOTE_EVERY)
            try:
                await self.flush()
            except StoreError as error:
                _log.warning("progress not stored", error=str(error))


def _merged(old: Note | None, new: Note | None) -> Note:
    """Both as one: the later progress with its message, and that a cancel was heard for good."""
    if old is None or new is None or old.lease != new.lease:
        found = new or old
        assert found is not None
        return found
    latest = old if new.progress is None else new
    return replace(latest, heard=old.heard or new.heard)
