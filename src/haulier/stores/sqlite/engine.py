"""Threads: one writer per process, which commits in groups, and one reader.

Operations are plain functions of a connection. Those that wait while a commit is being written to
the disk go together into the next transaction, so the cost of the disk's fsync is shared by all
that arrived meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import apsw

from haulier.exceptions import StoreClosedError, StoreError, StoreUnavailableError
from haulier.services.deadlines import shortened
from haulier.stores.sqlite.connection import prepare, snapshot, transaction, translated
from haulier.stores.watching import Change, Watchers

T = TypeVar("T")
Operation = Callable[[apsw.Connection], T]

GROUP_SECONDS = 0.02
GROUP_OPERATIONS = 64
FOREIGN_POLL_SECONDS = 0.01
OFTEN_POLL_SECONDS = 0.004
OFTEN_SECONDS = 1.0
"""So long after a commit of another process the next one is looked for more often."""

IDLE_POLL_SECONDS = 1.0


Changes = Change | Callable[[T], Change]
"""What an operation changes: always the same, or told by what it returned."""


@dataclass(slots=True, eq=False)
class _Call(Generic[T]):
    """One operation on its way to a thread and its result on the way back."""

    run: Operation[T]
    deliver: Callable[[T | None, BaseException | None], None]
    change: Changes[T] = Change.NOTHING
    probe: Operation[T | None] | None = None
    abandoned: bool = False


class Lane:
    """A thread that owns a connection and runs operations on it, one after the other."""

    def __init__(
        self, name: str, path: str, open_connection: Callable[[], apsw.Connection]
    ) -> None:
        self.path = path
        self._name = name
        self._open = open_connection
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._serving = False

    def open(self) -> None:
        """Start the thread and wait until its connection is open; blocking.

        A lane that was closed can be opened again.
        """
        opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._calls = queue.SimpleQueue()
        self._serving = True
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name=self._name, daemon=True
        )
        self._thread.start()
        error = opened.get()
        if error is not None:
            self._thread = None
            raise error

    def close(self) -> None:
        """Finish what was asked for, close the connection, end the thread; blocking."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._calls.put(None)
            thread.join()

    async def call(
        self,
        run: Operation[T],
        *,
        deadline: float,
        change: Changes[T] = Change.NOTHING,
        probe: Operation[T | None] | None = None,
    ) -> T:
        """Run an operation in the thread; StoreUnavailableError after `deadline` seconds."""
        deadline = shortened(deadline)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)  # type: ignore[arg-type]

        def deliver(value: T | None, error: BaseException | None) -> None:
            # The loop may be gone when the caller gave up and its program ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, value, error)

        call = _Call(run, deliver, change, probe)
        self._submit(call)
        try:
            async with asyncio.timeout(deadline):
                return await future
        except TimeoutError:
            raise StoreUnavailableError(
                f"the store {self.path} did not answer within {deadline:g} s"
            ) from None
        finally:
            call.abandoned = True

    def call_blocking(self, run: Operation[T], *, deadline: float) -> T:
        """The same for threads that have no event loop."""
        answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        call = _Call(run, lambda value, error: answer.put((value, error)))
        self._submit(call)
        try:
            value, error = answer.get(timeout=deadline)
        except queue.Empty:
            call.abandoned = True
            raise StoreUnavailableError(
                f"the store {self.path} did not answer within {deadline:g} s"
            ) from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def _submit(self, call: _Call[Any]) -> None:
        if self._thread is None or not self._serving:
            raise self._closed()
        self._calls.put(call)
        # Once more: a thread that ended meanwhile answered only those it found in its queue.
        if not self._serving:
            call.abandoned = True
            raise self._closed()

    def _closed(self) -> StoreClosedError:
        return StoreClosedError(f"the store {self.path} is closed")

    def _run(self, opened: queue.SimpleQueue[BaseException | None]) -> None:
        try:
            with translated(self.path):
                db = self._open()
        except BaseException as error:  # noqa: BLE001 - handed to the opener
            opened.put(error)
            return
        opened.put(None)
        try:
            self._serve(db)
        except Exception as error:  # noqa: BLE001 - the thread ends here
            self._log("store thread failed", error)
        finally:
            self._serving = False
            self._refuse_rest()
            db.close()

    def _log(self, event: str, error: Exception) -> None:
        # Loaded only now: it is slow to load, and short commands open stores too.
        import structlog

        log = structlog.get_logger("haulier.store")
        log.error(event, store=self.path, error=repr(error))

    def _refuse_rest(self) -> None:
        """Answer those whose calls came too late."""
        with contextlib.suppress(queue.Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call.deliver(None, self._closed())

    def _serve(self, db: apsw.Connection) -> None:
        while (call := self._calls.get()) is not None:
            if not call.abandoned:
                self._run_alone(db, call)

    def _run_alone(self, db: apsw.Connection, call: _Call[Any]) -> None:
        try:
            with translated(self.path), snapshot(db):
                value = call.run(db)
        except Exception as error:  # noqa: BLE001 - belongs to the caller
            call.deliver(None, error)
        else:
            call.deliver(value, None)


@dataclass(slots=True)
class _Group:
    """The calls of one transaction and what each of them came to."""

    calls: list[_Call[Any]] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    errors: list[BaseException | None] = field(default_factory=list)

    def add(self, call: _Call[Any], value: Any, error: BaseException | None) -> None:
        self.calls.append(call)
        self.values.append(value)
        self.errors.append(error)


class Writer(Lane):
    """The lane through which every write of this process goes."""

    def __init__(self, path: str, *, create: bool) -> None:
        super().__init__("haulier-sqlite-writer", path, lambda: prepare(path, create=create))
        self._watchers = Watchers()
        self._waiting: list[_Call[Any]] = []
        self._seen_version: object = None
        self._look_at = 0.0
        self._often_until = 0.0

    @contextlib.contextmanager
    def watch(self, notify: Callable[[], None], change: Change) -> Iterator[None]:
        """Call `notify` on the running loop whenever such a change may have happened."""
        with self._watchers.watch(notify, change):
            # Shortens the wait of a thread that went to sleep when nobody was watching.
            self._calls.put(_Call(lambda _: None, lambda _value, _error: None, abandoned=True))
            yield

    def _serve(self, db: apsw.Connection) -> None:
        self._seen_version = self._data_version(db)
        ending = False
        while not ending or self._waiting:
            ending = self._gather(block=not self._waiting and not ending) or ending
            calls = [call for call in self._waiting if not call.abandoned]
            self._waiting = []
            try:
                if calls:
                    self._commit(db, calls)
                self._look_for_others(db)
            except Exception as error:  # noqa: BLE001 - everybody needs this thread
                self._log("store writer failed", error)

    def _gather(self, *, block: bool) -> bool:
        """Collect the calls that wait; whether the last one has come."""
        try:
            if block:
                pause = self._pause(time.monotonic()) if self._watchers else IDLE_POLL_SECONDS
                call = self._calls.get(timeout=pause)
            else:
                call = self._calls.get_nowait()
            while call is not None:
                self._waiting.append(call)
                if len(self._waiting) >= GROUP_OPERATIONS:
                    return False
                call = self._calls.get_nowait()
        except queue.Empty:
            return False
        return True

    def _commit(self, db: apsw.Connection, calls: list[_Call[Any]]) -> None:
        group = _Group()
        try:
            with translated(self.path):
                if len(calls) == 1 and self._probed(db, calls[0]):
                    return
                with transaction(db):
                    self._run_group(db, calls, group)
        except Exception as error:  # noqa: BLE001 - belongs to every caller of this group
            for call in calls:
                if call not in self._waiting:
                    call.deliver(None, error)
            return
        change = Change.NOTHING
        for call, value, failure in zip(group.calls, group.values, group.errors, strict=True):
            call.deliver(value, failure)
            if failure is None:
                change |= call.change(value) if callable(call.change) else call.change
        self._watchers.tell(change)

    def _probed(self, db: apsw.Connection, call: _Call[Any]) -> bool:
        """Whether a look without the write lock showed that there is nothing to write."""
        if call.probe is None:
            return False
        value = call.probe(db)
        if value is None:
            return False
        call.deliver(value, None)
        return True

    def _run_group(self, db: apsw.Connection, calls: list[_Call[Any]], group: _Group) -> None:
        began = time.monotonic()
        for index, call in enumerate(calls):
            if index and time.monotonic() - began > GROUP_SECONDS:
                # A long transaction would keep other processes from writing.
                self._waiting.extend(calls[index:])
                return
            group.add(call, *self._run_safely(db, call, alone=len(calls) == 1))

    def _run_safely(
        self, db: apsw.Connection, call: _Call[Any], *, alone: bool
    ) -> tuple[Any, BaseException | None]:
        """What a call came to; one that fails leaves nothing behind, and the others go on."""
        if alone:
            return self._run_one(db, call), None
        db.execute("SAVEPOINT one")
        value, failure = None, None
        try:
            value = self._run_one(db, call)
        except apsw.Error:
            raise
        except Exception as error:  # noqa: BLE001 - this caller's alone
            db.execute("ROLLBACK TO one")
            failure = error
        db.execute("RELEASE one")
        return value, failure

    def _run_one(self, db: apsw.Connection, call: _Call[Any]) -> Any:
        try:
            return call.run(db)
        except apsw.ConstraintError as error:
            # The fault of what this caller asked for; any other error of SQLite concerns everybody.
            raise StoreError(f"the store {self.path} refused what was asked: {error}") from error

    def _look_for_others(self, db: apsw.Connection) -> None:
        """Notice commits of other processes, which SQLite does not announce."""
        now = time.monotonic()
        if not self._watchers or now < self._look_at:
            return
        # Set before the look: when that fails, the next one is left some time.
        self._look_at = now + IDLE_POLL_SECONDS
        version = self._data_version(db)
        if version != self._seen_version:
            self._seen_version = version
            self._often_until = now + OFTEN_SECONDS
            self._watchers.tell(Change.ANY)
        self._look_at = now + self._pause(now)

    def _pause(self, now: float) -> float:
        return OFTEN_POLL_SECONDS if now < self._often_until else FOREIGN_POLL_SECONDS

    def _data_version(self, db: apsw.Connection) -> object:
        ((version,),) = db.execute("PRAGMA data_version").fetchall()
        return version
