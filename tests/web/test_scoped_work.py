"""New jobs by a token that is for some kinds or queues, over every route that makes some."""

from __future__ import annotations

import json

import pytest

from haulier.domain.access import Access, Identity
from haulier.web import guard

SCOPED = Identity(
    "ada", Access.OPERATOR, "token:1", frozenset({"add"}), frozenset({"default", "slow"})
)
GOOD = {"kind": "add", "payload": {"a": 1, "b": 2}}
NDJSON = {"content-type": "application/x-ndjson"}
FIRST = "0199b2d2-6c6e-7cc1-b8a4-6f2f3c1d8a10"


@pytest.fixture(autouse=True)
def scoped(monkeypatch):
    """Whoever asks has such a token."""
    monkeypatch.setattr(guard, "LOCAL", SCOPED)


@pytest.fixture
async def foreign(jobs):
    """The id of a job that does not exist for them."""
    return await jobs.enqueue("linger", {}, {})


async def count(jobs):
    return sum((await jobs.store.counts()).values())


OUTSIDE = [GOOD | {"kind": "linger", "payload": {}}, GOOD | {"queue": "other"}]


async def test_what_is_within_is_taken(client, jobs):
    lines = f"{json.dumps(GOOD)}\n{json.dumps(GOOD | {'queue': 'slow'})}"
    answers = [
        await client.post("/api/v1/jobs", json=GOOD),
        await client.post("/api/v1/jobs/many", json={"jobs": [GOOD, GOOD | {"queue": "slow"}]}),
        await client.post("/api/v1/jobs/stream", content=lines, headers=NDJSON),
        await client.post("/api/v1/batches", json={"kind": "add"}),
    ]
    assert [answer.status_code for answer in answers] == [201] * 4
    batch = answers[3].json()["id"]
    items = await client.post(
        f"/api/v1/batches/{batch}/items", content='{"a": 1, "b": 2}', headers=NDJSON
    )
    assert items.json()["taken"] == 1
    assert (await client.get(f"/api/v1/batches/{batch}/export")).status_code == 200
    assert await count(jobs) == 7


@pytest.mark.parametrize("body", OUTSIDE)
async def test_what_is_outside_is_refused(client, check, jobs, body):
    check.problem(await client.post("/api/v1/jobs", json=body), 403)
    check.problem(await client.post("/api/v1/jobs/many", json={"jobs": [GOOD, body]}), 403)
    lines = f"{json.dumps(GOOD)}\n{json.dumps(body)}\n{json.dumps(GOOD)}"
    answer = await client.post("/api/v1/jobs/stream", content=lines, headers=NDJSON)
    assert check.problem(answer, 422)["taken"] == 1
    assert check.refused(answer) == [("kind", 2)]
    opening = {name: value for name, value in body.items() if name != "payload"}
    check.problem(await client.post("/api/v1/batches", json=opening), 403)
    with_finish = {"kind": "add", "on_finish": "linger"}
    check.problem(await client.post("/api/v1/batches", json=with_finish), 403)
    assert await count(jobs) == 1


async def test_foreign_jobs_are_not_waited_for_nor_shown(client, check, jobs, foreign):
    waits = GOOD | {"after": [foreign]}
    assert check.refused(await client.post("/api/v1/jobs", json=waits)) == [("after.0", None)]
    many = await client.post("/api/v1/jobs/many", json={"jobs": [GOOD, waits]})
    assert check.refused(many) == [("jobs.1.after.0", 2)]
    answer = await client.post(
        "/api/v1/jobs/stream", content=json.dumps(waits).encode(), headers=NDJSON
    )
    assert check.refused(answer) == [("after", 1)]
    assert await count(jobs) == 1
    own = await jobs.enqueue("add", {"a": 1, "b": 2}, {"after": foreign})
    child = await jobs.enqueue("linger", {}, {"after": own})
    assert (await client.get(f"/api/v1/jobs/{own}/parents")).json() == {"parents": []}
    assert (await client.get(f"/api/v1/jobs/{own}/children")).json()["children"] == []
    for path in (f"/jobs/{foreign}/children", f"/jobs/{child}/parents"):
        check.problem(await client.get(f"/api/v1{path}"), 404)


async def test_their_own_jobs_may_wait_for_each_other(client, jobs):
    first = (await client.post("/api/v1/jobs", json=GOOD)).json()["id"]
    second = await client.post("/api/v1/jobs", json=GOOD | {"after": [first]})
    assert second.status_code == 201
    body = {"jobs": [GOOD | {"id": FIRST}, GOOD | {"after": [FIRST]}]}
    assert (await client.post("/api/v1/jobs/many", json=body)).status_code == 201
    [child] = (await client.get(f"/api/v1/jobs/{first}/children")).json()["children"]
    assert child["id"] == second.json()["id"]


async def test_foreign_batches_are_not_there(client, check, jobs):
    batch = await jobs.enqueue_batch("linger", [{}], {})
    for method, path in (
        ("GET", ""),
        ("GET", "/export"),
        ("GET", "/items"),
        ("POST", "/items"),
        ("POST", "/seal"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("PATCH", ""),
    ):
        body = {"concurrency": 1} if method == "PATCH" else None
        answer = await client.request(method, f"/api/v1/batches/{batch}{path}", json=body)
        check.problem(answer, 404)
    check.problem(await client.get("/api/v1/batches"), 403)


async def test_the_audit_log_is_told_how_much_came(api, client, jobs, monkeypatch):
    entries = []
    monkeypatch.setattr(api.state.diary, "write", entries.append)
    lines = f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n{{"
    await client.post("/api/v1/jobs/stream", content=lines, headers=NDJSON)
    ids = (await client.post("/api/v1/jobs/many", json={"jobs": [GOOD] * 3})).json()["ids"]
    batch = (await client.post("/api/v1/batches", json={"kind": "add"})).json()["id"]
    path = f"/api/v1/batches/{batch}"
    await client.post(f"{path}/items", content='{"a": 1, "b": 2}', headers=NDJSON)
    await client.patch(path, json={"concurrency": 3})
    assert [(entry.actor.who, entry.action, entry.target, entry.status) for entry in entries] == [
        ("ada", "POST /api/v1/jobs/stream", {"taken": 2}, 422),
        ("ada", "POST /api/v1/jobs/many", {"jobs": 3, "first": ids[0]}, 201),
        ("ada", "POST /api/v1/batches", {"location": f"/api/v1/jobs/{batch}"}, 201),
        ("ada", "POST /api/v1/batches/{job_id}/items", {"job_id": batch, "taken": 1}, 201),
        (
            "ada",
            "PATCH /api/v1/batches/{job_id}",
            {"job_id": batch, "limits": {"concurrency": 3}},
            200,
        ),
    ]
