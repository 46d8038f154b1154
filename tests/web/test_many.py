"""Many jobs in one body: all or none, with the place of each fault; and flows over HTTP."""

from __future__ import annotations

import pytest

from haulier.domain.retention import Keep, Retention

MANY = "/api/v1/jobs/many"
FIRST = "0199b2d2-6c6e-7cc1-b8a4-6f2f3c1d8a10"
SECOND = "0199b2d2-6c6e-7cc1-b8a4-6f2f3c1d8a11"


def adds(*numbers, **options):
    return {"jobs": [{"kind": "add", "payload": {"a": n, "b": 0}, **options} for n in numbers]}


async def total(jobs):
    return sum((await jobs.store.counts()).values())


async def test_jobs_of_several_kinds_are_enqueued_in_their_order(client, jobs):
    body = adds(1, 2, priority="high", key="k")
    body["jobs"].append({"kind": "linger", "queue": "slow"})
    answer = await client.post(MANY, json=body)
    assert answer.status_code == 201
    found = [await jobs.store.get(each) for each in answer.json()["ids"]]
    assert [job.kind for job in found] == ["add", "add", "linger"]
    assert [job.payload for job in found] == [b'{"a":1,"b":0}', b'{"a":2,"b":0}', b"{}"]
    assert [(job.priority, job.key, job.queue) for job in found] == [
        (10, "k", "default"),
        (10, "k", "default"),
        (0, None, "slow"),
    ]


async def test_faults_are_told_with_their_places_and_nothing_is_there(client, check, jobs):
    body = adds(1)
    body["jobs"] += [
        {"kind": "add", "payload": {"a": "x", "b": 1}},
        {"kind": "nothing_such"},
        {"kind": "add", "payload": {"a": 1, "b": 1}, "concurrency": 3},
        {"kind": "media_uniq", "payload": {}},
    ]
    assert check.refused(await client.post(MANY, json=body)) == [
        ("jobs.1.payload.a", 2),
        ("jobs.2.kind", 3),
        ("jobs.3.concurrency", 4),
        ("jobs.4.kind", 5),
    ]
    assert await total(jobs) == 0


async def test_fields_that_are_none_are_told_with_their_places(client, check, jobs):
    body = adds(1)
    body["jobs"] += [{"kind": 5}, {"kind": "add", "surprise": 1}]
    faults = check.refused(await client.post(MANY, json=body))
    assert faults == [("jobs.1.kind", 2), ("jobs.2.surprise", 3)]
    assert await total(jobs) == 0


@pytest.mark.parametrize("count", [0, 1001])
async def test_none_and_too_many_are_refused(client, check, count):
    assert check.refused(await client.post(MANY, json=adds(*range(count)))) == [("jobs", None)]


async def test_a_thousand_are_taken(client, jobs):
    answer = await client.post(MANY, json=adds(*range(1000)), headers={"Idempotency-Key": "k"})
    assert len(set(answer.json()["ids"])) == 1000
    assert await total(jobs) == 1000


async def test_a_key_repeats_the_first_answer(client, check, jobs, working):
    headers = {"Idempotency-Key": "import-7"}
    first = await client.post(MANY, json=adds(1, 2, 3), headers=headers)
    async with working():
        for job_id in first.json()["ids"]:
            await jobs.wait(job_id, timeout=10)
    again = await client.post(MANY, json=adds(1, 2, 3), headers=headers)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    for other in (adds(1, 2), adds(1, 2, 3, 4), adds(1, 9, 3), adds(1, 2, 3, priority=1)):
        problem = check.problem(await client.post(MANY, json=other, headers=headers), 409)
        assert problem["job_id"] in first.json()["ids"]
    alone = {"kind": "add", "payload": {"a": 1, "b": 0}}
    check.problem(await client.post("/api/v1/jobs", json=alone, headers=headers), 409)
    assert await total(jobs) == 3


async def test_a_repeat_does_not_double_jobs_that_are_kept_no_longer(client, jobs):
    headers = {"Idempotency-Key": "k"}
    first = (await client.post(MANY, json=adds(1, 2), headers=headers)).json()
    for job_id in first["ids"]:
        await jobs.cancel(job_id)
    await jobs.store.prune({"add": Retention(cancelled=Keep(count=0))})
    assert await total(jobs) == 0
    again = await client.post(MANY, json=adds(1, 2), headers=headers)
    assert (again.status_code, again.json()) == (201, first)
    assert await total(jobs) == 0


async def test_a_rejected_duplicate_keeps_all_out(client, check, jobs):
    body = adds(1, 2)
    body["jobs"][1]["unique"] = {"by": "two", "conflict": "reject"}
    first = (await client.post(MANY, json=body)).json()["ids"]
    problem = check.problem(await client.post(MANY, json=body), 409)
    assert problem["job_id"] == first[1]
    assert await total(jobs) == 2


async def test_jobs_wait_for_each_other_and_tell_so(client, jobs, working):
    body = {
        "jobs": [
            {
                "kind": "add",
                "payload": {"a": 3, "b": 4},
                "id": SECOND,
                "after": [{"id": FIRST, "otherwise": "run"}],
            },
            {"kind": "fail", "payload": {"reason": "no"}, "id": FIRST},
        ]
    }
    assert (await client.post(MANY, json=body)).json()["ids"] == [SECOND, FIRST]
    assert (await client.get(f"/api/v1/jobs/{SECOND}")).json()["waiting"]
    async with working():
        await jobs.wait(SECOND, timeout=10)
    [parent] = (await client.get(f"/api/v1/jobs/{SECOND}/parents")).json()["parents"]
    assert (parent["id"], parent["otherwise"], parent["state"]) == (FIRST, "run", "failed")
    assert (parent["ended"], parent["error"]["type"]) == (True, "ValueError")
    page = (await client.get(f"/api/v1/jobs/{FIRST}/children")).json()
    assert ([child["id"] for child in page["children"]], page["next"]) == ([SECOND], None)


async def test_children_are_told_page_by_page(client):
    await client.post("/api/v1/jobs", json={"kind": "linger", "id": FIRST})
    for _ in range(5):
        answer = await client.post("/api/v1/jobs", json={"kind": "linger", "after": [FIRST]})
        assert answer.status_code == 201
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(f"/api/v1/jobs/{FIRST}/children", params=query)).json()
        seen += [child["id"] for child in page["children"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(set(seen)) == len(seen) == 5


@pytest.mark.parametrize("after", [["x"], [{"id": FIRST, "otherwise": "explode"}], FIRST, [5]])
async def test_what_is_no_job_to_wait_for_is_refused(client, check, after):
    check.refused(await client.post("/api/v1/jobs", json={"kind": "linger", "after": after}))


async def test_a_job_that_waits_for_none_that_is_there_is_refused(client, check, jobs):
    check.refused(await client.post("/api/v1/jobs", json={"kind": "linger", "after": [FIRST]}))
    body = {"jobs": [{"kind": "linger"}, {"kind": "linger", "after": [FIRST]}]}
    check.refused(await client.post(MANY, json=body))
    assert await total(jobs) == 0
