"""Queues and kinds over HTTP: how many wait, and whether anybody would take them."""

from __future__ import annotations

from haulier.domain.worker import WorkerRow
from haulier.services.ids import new_id


def row(kinds: tuple[str, ...], queues: tuple[str, ...] = ("default",)) -> WorkerRow:
    return WorkerRow(id=new_id(), host="h", pid=1, queues=queues, kinds=kinds, slots=1)


async def test_kinds_that_no_live_worker_knows_are_told(client, jobs):
    body = {"kind": "add", "payload": {"a": 1, "b": 2}}
    for _ in range(3):
        assert (await client.post("/api/v1/jobs", json=body)).status_code == 201
    told = (await client.get("/api/v1/queues")).json()
    (line,) = told["queues"]
    assert (told["workers"], line["pending"], line["unroutable"]) == (0, 3, None)
    await jobs.store.enlist(row(("other",)))
    (line,) = (await client.get("/api/v1/queues")).json()["queues"]
    assert (line["queue"], line["kind"], line["pending"]) == ("default", "add", 3)
    assert (line["workers"], line["unroutable"]) == (0, "no live worker knows the kind")
    await jobs.store.enlist(row(("add",)))
    told = (await client.get("/api/v1/queues")).json()
    assert (told["workers"], told["queues"][0]["workers"]) == (2, 1)
    assert told["queues"][0]["unroutable"] is None
