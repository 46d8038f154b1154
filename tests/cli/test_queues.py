"""Jobs that no live worker would take, as the command line shows them."""

from __future__ import annotations

import asyncio
import json

import pytest

from haulier import App
from haulier.domain.worker import WorkerRow
from haulier.services.ids import new_id
from processes import haulier
from support import Hand

STORE = ("--store", "sqlite:///jobs.db")
UNKNOWN = "no live worker knows the kind"
ELSEWHERE = "no live worker that knows the kind listens to the queue"


@pytest.fixture
async def app(tmp_path):
    app = App(f"sqlite:///{tmp_path}/jobs.db", secret_key_file=tmp_path / "secret.key")

    @app.task
    async def known() -> None: ...

    @app.task
    async def unknown() -> None: ...

    async with app:
        yield app


@pytest.fixture
def show(tmp_path):
    async def show(*arguments):
        done = await asyncio.to_thread(haulier, tmp_path, *arguments, *STORE)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout + done.stderr

    return show


async def test_queues_say_how_many_wait_and_that_nobody_knows_the_kind(app, show):
    await Hand.enlist(app.store, kinds=("known",))
    await app.enqueue_many("unknown", [{}, {}])
    await app.enqueue("known")
    await app.enqueue("known", queue="other")
    document = await show("queues", "--json")
    assert document["workers"] == 1
    found = {
        (line["queue"], line["kind"]): (line["pending"], line["workers"], line["unroutable"])
        for line in document["queues"]
    }
    assert found == {
        ("default", "known"): (1, 1, None),
        ("default", "unknown"): (2, 0, UNKNOWN),
        ("other", "known"): (1, 0, ELSEWHERE),
    }
    text = await show("queues")
    (line,) = (line for line in text.splitlines() if " unknown " in line)
    assert line.split()[:3] == ["default", "unknown", "2"]
    assert line.endswith(f"unroutable: {UNKNOWN}")


async def test_without_any_worker_it_says_that_and_nothing_of_kinds(app, show):
    await app.enqueue("unknown")
    text = await show("queues")
    assert "No live worker. Start one" in text
    assert "unroutable" not in text
    assert "unroutable" not in await show("jobs", "list")


async def test_jobs_are_shown_as_unroutable_and_stay_pending(app, show):
    hand = await Hand.enlist(app.store, kinds=("known",))
    lost, fine = await app.enqueue("unknown"), await app.enqueue("known")
    listed = {job["id"]: job for job in (await show("jobs", "list", "--json"))["jobs"]}
    shown = [
        (job["state"], job["view"], job["unroutable"]) for job in map(listed.get, (lost, fine))
    ]
    assert shown == [("pending", "unroutable", UNKNOWN), ("pending", "pending", None)]
    (row,) = (row for row in (await show("jobs", "list")).splitlines() if lost in row)
    assert " unroutable " in row
    assert row.endswith(UNKNOWN)
    assert f"pending, unroutable: {UNKNOWN}" in await show("jobs", "show", lost)
    row = WorkerRow(new_id(), "h", 1, ("default",), ("unknown",), 1)
    await app.store.enlist(row)
    assert "unroutable" not in await show("jobs", "list")
    await app.store.retire(row.id)
    await app.store.retire(hand.id)
    assert "unroutable" not in await show("jobs", "list")


async def test_batches_whose_items_nobody_knows_are_shown_so(app, show):
    await Hand.enlist(app.store, kinds=("known",))
    lost = await app.enqueue_batch("unknown", [{}, {}])
    fine = await app.enqueue_batch("known", [{}])
    listed = {batch["id"]: batch for batch in (await show("batches", "list", "--json"))["batches"]}
    assert (listed[lost]["unroutable"], listed[fine]["unroutable"]) == (UNKNOWN, None)
    (row,) = (row for row in (await show("batches", "list")).splitlines() if lost in row)
    assert " unroutable " in row
    assert UNKNOWN in await show("batches", "show", lost)
    await app.cancel(lost)
    assert "unroutable" not in await show("batches", "list")
