"""What is SQLite's alone: its clock, its file, its lanes."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import apsw
import pytest

from haulier.domain.flow import After
from haulier.domain.ids import raw_id
from haulier.domain.job import JobState
from haulier.domain.limits import Limit
from haulier.domain.moves import Move
from haulier.domain.step import Step
from haulier.exceptions import (
    ConfigurationError,
    JobStateError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)
from haulier.ports import Inserted
from haulier.services.ids import new_ids
from haulier.stores import open_store
from haulier.stores.sqlite import (
    SqliteStore,
    admission,
    batches,
    claiming,
    connection,
    gates,
    retention,
)
from haulier.stores.sqlite.connection import APPLICATION_ID, check_library
from haulier.stores.sqlite.rows import fetch
from haulier.testing import FakeClock
from support import (
    TTL,
    Hand,
    SqliteFile,
    items,
    remove_all_that_left_something,
    wait_until,
    work,
    works,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(path: Path, clock: FakeClock) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(str(path), ttl=TTL, clock=clock) as opened:
        yield opened


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Somebody else holds the file's write lock.

    By the same SQLite library: a second one in the same process, such as Python's own, would not
    see the locks of the first.
    """
    db = apsw.Connection(str(path))
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")
    finally:
        db.close()


class TestBootClock:
    """Expiry counts in the time since boot, which nobody can set."""

    @pytest.mark.parametrize("jump", [-86_400, -3600, 3600, 86_400])
    async def test_a_jump_of_the_wall_clock_ends_no_worker_and_keeps_none_alive(
        self, store, clock, jump
    ):
        await store.insert([work()])
        hand = await Hand.enlist(store)
        await hand.claim_one()
        clock.jump(jump)
        assert await store.sweep() == 0
        assert hand.renew().alive
        clock.jump(-2 * jump)
        clock.advance(TTL - 1)
        assert hand.renew().alive
        clock.advance(TTL + 1)
        assert await store.sweep() == 1
        assert not hand.renew().alive

    async def test_a_new_boot_ends_every_worker_of_the_last_one(self, store, clock):
        await store.insert(works(2))
        hand = await Hand.enlist(store)
        await hand.claim(2)
        clock.reboot()
        assert not hand.renew().alive
        assert not (await hand.exchange(slots=1)).alive
        assert [row.alive for row in await store.workers()] == [False]
        assert await store.sweep() == 2
        other = await Hand.enlist(store)
        assert len(await other.claim(5)) == 2

    async def test_a_new_boot_with_a_longer_time_since_boot_is_still_a_new_one(self, store, clock):
        hand = await Hand.enlist(store)
        clock.reboot()
        clock.advance(3600)
        assert not hand.renew().alive

    async def test_a_wall_clock_set_back_does_not_lose_jobs_that_are_ready(self, store, clock):
        await store.insert([work()])
        clock.jump(-3600)
        hand = await Hand.enlist(store)
        assert len(await hand.claim(1)) == 1


class TestFile:
    """One file, made for its owner, refused when it is something else."""

    async def test_it_is_made_for_its_owner_alone(self, store, path):
        await store.insert([work()])
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file

    async def test_jobs_outlive_the_store_object(self, path):
        job = work()
        async with SqliteStore(str(path)) as store:
            await store.insert([job])
        assert not path.with_name("jobs.db-wal").exists()
        async with SqliteStore(str(path)) as store:
            assert (await store.get(job.id)).id == job.id

    async def test_a_store_can_be_opened_again_after_it_was_closed(self, path):
        store = SqliteStore(str(path))
        job = work()
        async with store:
            await store.insert([job])
        async with store:
            assert (await store.get(job.id)).id == job.id

    async def test_a_store_that_is_not_open_says_so(self, path):
        store = SqliteStore(str(path))
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.insert([work()])
        async with store:
            pass
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.counts()
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.insert([work()])

    async def test_what_is_no_database_is_refused_and_left_alone(self, path):
        path.write_bytes(b"dear diary, " * 1000)
        before = path.read_bytes()
        with pytest.raises(StoreCorruptError):
            await SqliteStore(str(path)).__aenter__()
        assert path.read_bytes() == before

    async def test_a_database_of_another_program_is_refused_and_left_alone(self, path):
        db = apsw.Connection(str(path))
        db.execute("CREATE TABLE recipes (name TEXT)")
        db.close()
        before = path.read_bytes()
        with pytest.raises(StoreCorruptError, match="other program"):
            await SqliteStore(str(path)).__aenter__()
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == ["jobs.db"]

    async def test_a_store_of_another_schema_step_is_refused(self, path):
        async with SqliteStore(str(path)):
            pass
        db = apsw.Connection(str(path))
        db.execute("PRAGMA user_version = 99")
        db.close()
        with pytest.raises(ConfigurationError, match="schema step 99"):
            await SqliteStore(str(path)).__aenter__()

    async def test_a_damaged_file_is_named_as_such(self, path):
        async with SqliteStore(str(path)) as store:
            await store.insert(works(500, payload=b"x" * 500))
        content = bytearray(path.read_bytes())
        content[4096 * 3 : -4096] = b"\xa5" * len(content[4096 * 3 : -4096])
        path.write_bytes(content)
        with pytest.raises(StoreCorruptError, match=r"jobs\.db"):
            async with SqliteStore(str(path)) as store:
                hand = await Hand.enlist(store)
                await hand.work_off()

    async def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(StoreUnavailableError, match="nowhere"):
            await SqliteStore(str(tmp_path / "nowhere" / "jobs.db")).__aenter__()

    async def test_many_that_open_a_new_file_at_once_all_get_it(self, tmp_path):
        """Twenty times: the moments in which they can meet are short."""
        for number in range(20):
            stores = [SqliteStore(str(tmp_path / f"{number}.db")) for _ in range(5)]
            async with contextlib.AsyncExitStack() as stack:
                await asyncio.gather(*(stack.enter_async_context(store) for store in stores))
                for store in stores:
                    await store.insert([work()])
                assert sum((await stores[0].counts()).values()) == len(stores)

    def test_the_header_says_whose_file_it_is(self, tmp_path):
        home = SqliteFile(tmp_path)

        async def make() -> None:
            async with home.client():
                pass

        asyncio.run(make())
        db = apsw.Connection(str(home.path))
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        db.close()


class TestUrl:
    """How a store is named."""

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("sqlite:///jobs.db", "jobs.db"),
            ("sqlite:////var/lib/jobs.db", "/var/lib/jobs.db"),
            ("sqlite:///with%20space.db", "with space.db"),
            ("sqlite://", ":memory:"),
            ("sqlite:///", ":memory:"),
        ],
    )
    def test_it_holds_the_path(self, url, path):
        assert open_store(url).path == path

    @pytest.mark.parametrize(
        "url", ["sqlite://host/jobs.db", "sqlite:///a?mode=ro", "mysql://x/y", "jobs.db", ""]
    )
    def test_others_are_refused(self, url):
        with pytest.raises(ConfigurationError):
            open_store(url)


class TestLanes:
    """Threads, groups of calls, deadlines."""

    async def test_a_refused_call_does_not_spoil_those_that_are_committed_with_it(self, store):
        good = [store.insert(works(3)) for _ in range(10)]
        bad = [store.insert(items(work().id, 1)) for _ in range(5)]
        mixed = [call for pair in zip(good, bad + bad, strict=False) for call in pair]
        for call in mixed[20:]:
            call.close()
        answers = await asyncio.gather(*mixed, return_exceptions=True)
        assert [answer.new for answer in answers if isinstance(answer, Inserted)] == [3] * 10
        refused = [answer for answer in answers if not isinstance(answer, Inserted)]
        assert all(isinstance(answer, JobStateError) for answer in refused)
        assert sum((await store.counts()).values()) == 30

    async def test_what_one_call_violates_is_its_own_error(self, store):
        def twice(db: apsw.Connection) -> None:
            for _ in range(2):
                db.execute("INSERT INTO uniques VALUES ('name', ?, 0, 0, x'')", (bytes(16),))

        calls = [store.insert([work()]), store._write(twice), store.insert([work()])]
        first, violation, last = await asyncio.gather(*calls, return_exceptions=True)
        assert (first.new, last.new) == (1, 1)
        assert isinstance(violation, StoreError)
        assert isinstance(violation.__cause__, apsw.ConstraintError)

    async def test_a_store_that_stays_locked_answers_within_its_deadline_and_recovers(self, path):
        async with SqliteStore(str(path), deadline=0.3) as store:
            with write_lock(path), pytest.raises(StoreUnavailableError):
                await store.insert([work()])
            job = work()
            await wait_until(lambda: _inserted(store, job))
            assert (await store.get(job.id)).id == job.id

    async def test_reads_are_answered_while_somebody_else_writes(self, store, path):
        job = work()
        await store.insert([job])
        with write_lock(path):
            assert (await store.get(job.id)).id == job.id
            assert sum((await store.counts()).values()) == 1

    async def test_a_caller_that_gives_up_disturbs_nobody(self, store):
        calls = [asyncio.ensure_future(store.insert(works(20))) for _ in range(20)]
        for call in calls[::2]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        total = sum((await store.counts()).values())
        assert 200 <= total <= 400
        assert total % 20 == 0

    async def test_trouble_while_it_looks_for_others_is_got_over(self, store, path, monkeypatch):
        looks: list[int] = []
        told: list[int] = []

        def broken(db: apsw.Connection) -> object:
            looks.append(1)
            raise apsw.IOError("the disk is away")

        with store.watch(lambda: told.append(1), ready=True):
            with monkeypatch.context() as patched:
                patched.setattr(store._writer, "_data_version", broken)
                await wait_until(lambda: looks)
                await store.insert([work()])
            await wait_until(lambda: told)
            told.clear()
            async with SqliteStore(str(path)) as other:
                await other.insert([work()])
                await wait_until(lambda: told)

    @pytest.mark.parametrize("lane", ["_writer", "_reader"])
    async def test_a_thread_that_is_dead_fails_those_who_call_it(self, path, monkeypatch, lane):
        store = SqliteStore(str(path))
        entered, go_on = threading.Event(), threading.Event()

        def broken(_: apsw.Connection) -> None:
            entered.set()
            go_on.wait(10)
            raise MemoryError

        monkeypatch.setattr(getattr(store, lane), "_serve", broken)
        async with store:
            await asyncio.to_thread(entered.wait, 10)
            ask = store.counts if lane == "_reader" else lambda: store.insert([work()])
            waiting = asyncio.ensure_future(ask())
            await asyncio.to_thread(go_on.set)
            for asked in (waiting, ask()):
                async with asyncio.timeout(5):
                    with pytest.raises(StoreUnavailableError, match="closed"):
                        await asked

    async def test_an_error_of_the_driver_never_escapes_as_such(self, store):
        with pytest.raises(StoreError):
            await store._write(lambda db: db.execute("SELECT nonsense").fetchall())

    async def test_a_read_whose_transaction_is_gone_tells_its_own_error(self, store):
        def read(db: apsw.Connection) -> None:
            db.execute("ROLLBACK")
            raise JobStateError("mine")

        with pytest.raises(JobStateError, match="mine"):
            await store._read(read)

    async def test_closing_waits_for_no_work_in_the_background(self, path):
        begun = asyncio.Event()

        async def endless() -> None:
            begun.set()
            await asyncio.Event().wait()

        async with asyncio.timeout(10):
            async with SqliteStore(str(path)) as store:
                store._background.begin(endless())
                await begun.wait()
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.counts()

    def test_a_library_that_corrupts_databases_is_refused(self, monkeypatch):
        monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
        with pytest.raises(ConfigurationError, match=r"3\.51\.2"):
            check_library()


class TestTimeUnderLimits:
    """A claim that takes long stops, and the next one goes on with those that were left."""

    async def test_it_gives_less_and_no_key_twice(self, store, monkeypatch):
        monkeypatch.setattr(admission, "SERVING_SECONDS", -1)
        keys = 2 * admission.SERVED_AT_ONCE + 10
        await store.limits().put(Limit(name="l", concurrency=5, per_key=True), by="test")
        for _ in range(2):
            await store.insert([work(key=f"k{n}") for n in range(keys)])
        hand = await Hand.enlist(store)
        told = [await hand.exchange(slots=keys) for _ in range(3)]
        assert [len(reply.jobs) for reply in told[:2]] == [admission.SERVED_AT_ONCE] * 2
        assert [reply.due_in for reply in told[:2]] == [0, 0]
        first = [job.key for reply in told for job in reply.jobs][:keys]
        assert len(set(first)) == keys


class TestRemoval:
    async def test_nothing_of_a_removed_job_stays(self, store):
        await remove_all_that_left_something(store)
        for table in ("jobs", "batches", "errors", "steps", "lines"):
            rows = await store._read(lambda db, of=table: fetch(db, f"SELECT * FROM {of}"))
            assert rows == [], table


class TestUpgrade:
    """A store that an earlier version made."""

    def made_by_step_1(self, path: Path, batch: str) -> None:
        files = resources.files("haulier.stores.schema")
        db = apsw.Connection(str(path))
        db.execute(files.joinpath("sqlite_1.sql").read_text("utf-8"))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1")
        row = "INSERT INTO jobs (id, kind, queue, role, version, payload, state, rank, priority, "
        row += "run_at, created_at, batch, finished_at, error) "
        row += "VALUES (?, ?, 'default', ?, 1, x'7b7d', ?, ?, 0, ?, 0, ?, ?, ?)"
        one, two, three = (raw_id(job_id) for job_id in new_ids(3))
        error = '{"type":"Boom","message":"it broke","traceback":"","attempt":1,"at":5}'
        for values in (
            (one, "work", 0, 0, 5, 5, None, None, None),
            (two, "work", 0, 0, None, 9, None, None, None),
            (raw_id(batch), "bulk", 1, 2, None, 5, None, 8, None),
            (three, "work", 2, 3, None, 5, raw_id(batch), 7, error),
        ):
            db.execute(row, values)
        db.execute(
            "INSERT INTO batches (id, own_expander, sealed, total, failed) VALUES (?, 0, 1, 1, 1)",
            (raw_id(batch),),
        )
        counts = [("work", 0, 0, 2), ("bulk", 1, 2, 1), ("work", 2, 3, 1)]
        db.executemany("INSERT INTO counts VALUES ('default', ?, ?, ?, ?)", counts)
        db.close()

    async def test_is_brought_up_and_its_jobs_go_on(self, path):
        batch = work().id
        self.made_by_step_1(path, batch)
        async with SqliteStore(str(path)) as store:
            hand = await Hand.enlist(store)
            assert await hand.work_off() == 2
            told = await store.batch(batch)
            assert (told.settled, told.paused, told.counts.failed) == (True, False, 1)
            assert await store.retry_failed(batch, error_type="Boom") == 1
            assert await hand.work_off() == 1
            assert (await store.get(batch)).state is JobState.COMPLETED
            assert [event.type for event in await store.events(limit=2)] == ["claim", "claim"]
        async with SqliteStore(str(path)) as again:
            assert (await again.batch(batch)).counts.completed == 1

    async def test_one_without_steps_can_keep_them_then(self, path, monkeypatch):
        monkeypatch.setattr(connection, "SCHEMA_STEP", 3)
        connection.prepare(str(path), create=True).close()
        monkeypatch.undo()
        async with SqliteStore(str(path)) as store:
            await store.insert(works(1))
            job = await (await Hand.enlist(store)).claim_one()
            assert await store.keep([Step(job.id, job.lease, "one", b"1")]) == []
            assert [step.name for step in await store.steps(job.id)] == ["one"]

    async def test_one_of_a_later_version_is_refused(self, path):
        async with SqliteStore(str(path)):
            pass
        apsw.Connection(str(path)).execute("PRAGMA user_version = 99")
        with pytest.raises(ConfigurationError, match="upgrade haulier"):
            async with SqliteStore(str(path)):
                pass


class TestPlans:
    """A claim reads its line from an index, in order, however long the line is."""

    @pytest.mark.parametrize(
        ("statement", "index"),
        [
            (claiming._CLAIM_FIRST, "jobs_ready"),
            (claiming._FIRST, "jobs_ready"),
            (claiming.NEXT_DUE, "jobs_scheduled"),
            (claiming._ANY_LONER, "jobs_alone"),
            (gates._LET_IN, "jobs_gated"),
            (gates._DUE_NOW, "jobs_scheduled"),
            (gates._PROMOTE, "jobs_scheduled"),
            (gates._GATED, "batches_gated"),
            (retention._TOO_OLD, "jobs_finished"),
            (retention._EXPIRED, "jobs_results"),
            (batches._REQUEUE, "jobs_failed"),
            (batches._UNPARK, "jobs_gated"),
        ],
    )
    async def test_no_claim_sorts_or_scans(self, store, statement, index):
        names = ("worker", "now", "queue", "kind", "slots", "batch", "cursor", "type", "slice")
        values = (
            dict.fromkeys((*names, "gated")) if ":" in statement else (None,) * statement.count("?")
        )
        plan = await store._read(
            lambda db: db.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
        )
        steps = [row[3] for row in plan]
        assert any(index in step for step in steps), steps
        assert not any("TEMP B-TREE" in step for step in steps), steps
        assert not any("jobs_items" in step for step in steps), steps
        scans = [step for step in steps if step.startswith("SCAN jobs")]
        assert not any("INDEX" not in step for step in scans), steps


async def test_jobs_in_the_callers_transaction_may_wait_for_others(store, path):
    hand = await Hand.enlist(store)
    done, going = works(2)
    await store.insert([done, going])
    await hand.hand_in(await hand.claim_one(), Move.COMPLETE)
    child = work(after=(After(done.id), After(going.id)))
    db = apsw.Connection(str(path))
    with db:
        await store.insert([child], connection=db)
        await store.insert([last := work(after=(After(child.id),))], connection=db)
    db.close()
    for job in (going, child, last):
        (held,) = await hand.claim(9)
        assert held.id == job.id
        await hand.hand_in(held, Move.COMPLETE)


async def _inserted(store: SqliteStore, job) -> bool:
    try:
        await store.insert([job])
    except StoreUnavailableError:
        return False
    return True
