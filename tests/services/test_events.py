"""The library's stream of events: in order, without gap or repetition, whatever happens."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import aclosing
from itertools import pairwise

import pytest

from haulier import App, ValidationError
from haulier.exceptions import StoreUnavailableError
from haulier.services import following
from support import TroubledStore, wait_until

OTHER_PROCESS = """
import asyncio, sys
from haulier import App

app = App(sys.argv[1])

@app.task
async def work(n: int) -> int:
    return n

async def main():
    async with app, app.working():
        ids = [await app.enqueue(work, {"n": n}) for n in range(int(sys.argv[2]))]
        for job_id in ids:
            await app.result(job_id, timeout=30)

asyncio.run(main())
"""


def working_app(store, tmp_path) -> App:
    app = App(store, secret_key_file=tmp_path / "secret.key")

    @app.task
    async def work(n: int) -> int:
        return n

    return app


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(following, "POLL", 0.05)


async def take(app, count, *, after=None):
    """The next so many events."""
    found = []
    async with asyncio.timeout(30), aclosing(app.events(after=after)) as events:
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


def without_gap(events) -> bool:
    return all(later.seq == earlier.seq + 1 for earlier, later in pairwise(events))


@pytest.fixture
async def app(store, tmp_path):
    """Over every kind of store."""
    return working_app(store, tmp_path)


async def test_the_life_of_a_job(app):
    async with app.working():
        job_id = await app.enqueue("work", {"n": 1})
        events = await take(app, 3)
    assert [event.type for event in events] == ["insert", "claim", "complete"]
    assert {event.job_id for event in events} == {job_id}
    assert without_gap(events)


async def test_a_reader_goes_on_where_it_stopped(app):
    ids = await app.enqueue_many("work", [{"n": n} for n in range(30)])
    seen, after = [], None
    for count in (1, 9, 19, 1):
        events = await take(app, count, after=after)
        seen += events
        # By its number or by its cursor, which is the same within a history.
        after = events[-1].seq if len(seen) % 2 else events[-1].cursor
    assert [event.job_id for event in seen] == ids
    assert without_gap(seen)


async def test_what_is_to_come_is_waited_for(app):
    await app.enqueue("work", {"n": 1})
    after = await app.last_event()
    waiting = asyncio.create_task(take(app, 2, after=after))
    ids = [await app.enqueue("work", {"n": n}) for n in (2, 3)]
    assert [event.job_id for event in await waiting] == ids


async def test_an_idle_reader_seldom_looks(app, monkeypatch):
    looks = 0
    events = app.store.events

    async def counted(**options):
        nonlocal looks
        looks += 1
        return await events(**options)

    monkeypatch.setattr(following, "POLL", 0.2)
    monkeypatch.setattr(app.store, "events", counted)
    reading = asyncio.create_task(take(app, 1))
    end = time.monotonic() + 0.5
    await wait_until(lambda: time.monotonic() > end)
    reading.cancel()
    await asyncio.wait([reading])
    assert 1 <= looks <= 4


async def test_a_reader_ends_with_its_store(home, tmp_path):
    app = working_app(home.client(real_time=True), tmp_path)
    async with app:
        waiting = asyncio.create_task(take(app, 1))
        await app.last_event()
    with pytest.raises(StoreUnavailableError, match="closed"):
        async with asyncio.timeout(10):
            await waiting


async def test_garbage_is_refused(app):
    for cursor in ("7", "", "a:b", "a:-1", ":5"):
        with pytest.raises(ValidationError):
            await take(app, 1, after=cursor)


async def test_another_history_begins_with_a_reset(app):
    job_id = await app.enqueue("work", {"n": 1})
    first, second = await take(app, 2, after="0000:5")
    assert (first.type, second.type, second.job_id) == ("reset", "insert", job_id)


@pytest.mark.parametrize("after", [False, True])
async def test_trouble_with_the_store_costs_no_event_and_doubles_none(store, tmp_path, after):
    troubled = TroubledStore(store)
    app = working_app(troubled, tmp_path)
    seen = []

    async def read():
        async with aclosing(app.events()) as events:
            async for event in events:
                seen.append(event)  # noqa: PERF401 - it never ends, and is looked at meanwhile

    reading = asyncio.create_task(read())
    made = []
    for n in range(5):
        troubled.trouble("events", times=2, after=after)
        made.append(await app.enqueue("work", {"n": n}))
        await wait_until(lambda: troubled.over)
        await wait_until(lambda: len(seen) == len(made))
    reading.cancel()
    await asyncio.wait([reading])
    assert [event.job_id for event in seen] == made
    assert without_gap(seen)


async def test_another_process_is_heard(tmp_path):
    count = 20
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with working_app(url, tmp_path) as app:
        waiting = asyncio.create_task(take(app, 3 * count))
        other = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            OTHER_PROCESS,
            url,
            str(count),
            env=os.environ | {"XDG_CONFIG_HOME": str(tmp_path)},
            stderr=subprocess.PIPE,
        )
        _, said = await other.communicate()
        assert other.returncode == 0, said
        events = await waiting
    assert without_gap(events)
    assert sorted(event.type for event in events) == sorted(["insert", "claim", "complete"] * count)


async def test_readers_that_stop_leave_nothing_behind(app):
    for _ in range(3):
        await app.enqueue("work", {"n": 1})
        assert await take(app, 1)
