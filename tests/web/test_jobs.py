"""Jobs over HTTP: enqueue, look, stop, retry, delete."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from haulier.domain.job import JobState
from haulier.services.ids import new_id
from support import wait_until


async def enqueue(client, kind="add", payload=None, **options):
    body = {"kind": kind, "payload": {"a": 1, "b": 2} if payload is None else payload, **options}
    answer = await client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def in_state(client, job_id, state):
    async def is_so():
        status = (await client.get(f"/api/v1/jobs/{job_id}/status")).json()
        return status if status["status"] == state else None

    return is_so


async def settled(client, job_id):
    async def is_done():
        status = (await client.get(f"/api/v1/jobs/{job_id}/status")).json()
        return status if JobState(status["status"]).final else None

    return await wait_until(is_done)


async def test_an_enqueued_job_runs_and_its_result_is_told(client, working):
    answer = await client.post("/api/v1/jobs", json={"kind": "add", "payload": {"a": 20, "b": 22}})
    assert answer.status_code == 201
    job_id = answer.json()["id"]
    assert answer.headers["location"] == f"/api/v1/jobs/{job_id}"
    assert answer.json()["status_url"] == f"/api/v1/jobs/{job_id}/status"
    async with working():
        status = await settled(client, job_id)
    assert (status["status"], status["result"], status["progress"]) == ("completed", 42, 100)
    assert (status["kind"], status["role"], status["error"]) == ("add", "single", None)
    assert (status["counts"], status["rate"], status["eta_seconds"]) == (None, None, None)


async def test_instants_are_iso_8601_in_utc(client, working):
    before = datetime.now(UTC)
    job_id = await enqueue(client)
    async with working():
        status = await settled(client, job_id)
    told = [status[name] for name in ("created_at", "started_at", "finished_at")]
    assert all(text.endswith("Z") for text in told)
    instants = [before, *map(datetime.fromisoformat, told), datetime.now(UTC)]
    assert instants == sorted(instants)


async def test_all_options_reach_the_job(client):
    job_id, at = new_id(), datetime.now(UTC) + timedelta(days=2)
    answer = await client.post(
        "/api/v1/jobs",
        json={
            "kind": "add",
            "payload": {"a": 1, "b": 2},
            "queue": "slow",
            "priority": -7,
            "run_at": at.isoformat(),
            "key": "account-5",
            "id": job_id.upper(),
        },
    )
    assert answer.json()["id"] == job_id
    job = (await client.get(answer.headers["location"])).json()
    assert (job["queue"], job["priority"], job["key"]) == ("slow", -7, "account-5")
    assert datetime.fromisoformat(job["run_at"]) == at
    assert job["payload"] == {"a": 1, "b": 2}


async def test_a_repeated_id_enqueues_once(client):
    job_id = new_id()
    assert await enqueue(client, id=job_id) == await enqueue(client, id=job_id) == job_id
    assert len((await client.get("/api/v1/jobs")).json()["jobs"]) == 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"queue": "no spaces"}, "queue"),
        ({"queue": ""}, "queue"),
        ({"priority": 10_001}, "priority"),
        ({"priority": 10**30}, "priority"),
        ({"delay": -1}, "delay"),
        ({"delay": 1e300}, "delay"),
        ({"delay": 1, "run_at": "2030-01-01T00:00:00Z"}, "run_at"),
        ({"run_at": "2030-01-01T00:00:00"}, "run_at"),
        ({"run_at": "tomorrow"}, "run_at"),
        ({"key": "k" * 201}, "key"),
        ({"id": "seven"}, "id"),
        ({"payload": [1]}, "payload"),
        ({"payload": {"a": "x", "b": 2}}, "payload.a"),
        ({"payload": {"a": 1}}, "payload.b"),
        ({"payload": {"a": 1, "b": 2, "c": 3}}, "payload.c"),
        ({"kind": "subtract"}, "kind"),
        ({"kind": 5}, "kind"),
        ({"retries": 5}, "retries"),
    ],
)
async def test_bad_options_are_refused_by_name(client, check, given, field):
    body = {"kind": "add", "payload": {"a": 1, "b": 2}, **given}
    assert check.refused(await client.post("/api/v1/jobs", json=body)) == [(field, None)]
    assert (await client.get("/api/v1/jobs")).json()["jobs"] == []


@pytest.mark.parametrize("key", ["", "k" * 201])
async def test_a_bad_idempotency_key_is_refused(client, check, jobs, key):
    body = {"kind": "add", "payload": {"a": 1, "b": 2}}
    for path, given in (
        ("/jobs", body),
        ("/jobs/many", {"jobs": [body]}),
        ("/batches", {"kind": "add"}),
    ):
        answer = await client.post(f"/api/v1{path}", json=given, headers={"Idempotency-Key": key})
        assert check.refused(answer) == [("Idempotency-Key", None)]
    assert not await jobs.store.counts()


async def test_requests_at_the_same_time_each_have_an_answer_of_their_own(client, check, jobs):
    """They share a commit; what is wrong with one is told to it alone."""
    unique = {"by": "one", "conflict": "reject"}
    good = {"kind": "add", "payload": {"a": 1, "b": 2}}
    await client.post("/api/v1/jobs", json=good | {"unique": unique})
    await client.post("/api/v1/jobs", json=good, headers={"Idempotency-Key": "k"})
    other = {"kind": "add", "payload": {"a": 5, "b": 5}}
    cases = [
        (good, None, 201),
        (good | {"unique": unique}, None, 409),
        ({"kind": "add"}, None, 422),
        (good, "k", 201),
        (other, "k", 409),
        (good | {"after": ["0199b2d2-6c6e-7cc1-b8a4-6f2f3c1d8a10"]}, None, 422),
    ] * 10
    answers = await asyncio.gather(
        *(
            client.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": key} if key else {})
            for body, key, _ in cases
        )
    )
    assert [answer.status_code for answer in answers] == [status for _, _, status in cases]
    made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert len(made) == 11
    assert sum((await jobs.store.counts()).values()) == 12


async def test_kinds_with_a_start_route_are_not_enqueued_around_it(client, check):
    payload = {"accounts": ["a"], "sources": ["/etc/hostname"], "output": "/tmp"}
    for kind in ("media_uniq", "media_uniq.item", "media_uniq.finish", "proxy_diagnostics"):
        answer = await client.post("/api/v1/jobs", json={"kind": kind, "payload": payload})
        assert check.refused(answer) == [("kind", None)]
        assert "/start" in answer.text


async def test_a_page_leads_to_the_next_until_the_end(client, jobs):
    ids = await jobs.enqueue_many("add", [{"a": n, "b": 0} for n in range(23)], {})
    seen, cursor, pages = [], None, 0
    while True:
        params = {"limit": 5} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/api/v1/jobs", params=params)).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor, pages = page["next"], pages + 1
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert pages == 5


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "cursor=-1", f"cursor={2**63}", "cursor=abc"]
)
async def test_a_bad_page_is_refused(client, check, query):
    [(field, _)] = check.refused(await client.get(f"/api/v1/jobs?{query}"))
    assert field == query.partition("=")[0]


async def test_lists_are_filtered(client, jobs, working):
    done = await enqueue(client)
    async with working():
        await settled(client, done)
    other = await enqueue(client, "tell", {"value": 1}, queue="slow")
    batch = await jobs.enqueue_batch("add", [{"a": 1, "b": 1}] * 3, {"queue": "slow"})

    async def found(query):
        answer = await client.get(f"/api/v1/jobs?{query}")
        return [job["id"] for job in answer.json()["jobs"]]

    assert await found("") == [batch, other, done]
    assert await found("state=completed") == [done]
    assert await found("state=completed&state=pending") == [other, done]
    assert await found("kind=tell") == [other]
    assert await found("queue=slow") == [batch, other]
    assert await found("role=head") == [batch]
    assert len(await found("role=item")) == 3
    assert len(await found(f"batch={batch}")) == 3
    assert await found(f"batch={batch}&state=failed") == []
    assert await found(f"batch={new_id()}") == []


@pytest.mark.parametrize("query", ["state=done", "role=boss", "batch=7", "stat=failed"])
async def test_a_bad_filter_is_refused_not_ignored(client, check, query):
    fields = [field for field, _ in check.refused(await client.get(f"/api/v1/jobs?{query}"))]
    assert fields[0].startswith(query.partition("=")[0])


async def test_secrets_are_masked_wherever_a_job_is_shown(client, working):
    canary = "correct-horse-battery"
    job_id = await enqueue(client, "login", {"user": "ann", "password": canary})
    async with working():
        await settled(client, job_id)
    shown = (await client.get(f"/api/v1/jobs/{job_id}")).json()
    assert shown["payload"] == {"user": "ann", "password": "******"}
    for path in ("", f"/{job_id}", f"/{job_id}/status"):
        text = (await client.get(f"/api/v1/jobs{path}")).text
        assert canary not in text
        assert "$sealed" not in text


async def test_a_failed_job_says_why_and_can_be_retried(client, working):
    job_id = await enqueue(client, "fail", {"reason": "out of luck"})
    async with working():
        status = await settled(client, job_id)
        assert status["status"] == "failed"
        assert status["error"] == {"type": "ValueError", "message": "out of luck"}
        shown = (await client.get(f"/api/v1/jobs/{job_id}")).json()
        assert "raise ValueError(reason)" in shown["error"]["traceback"]
        assert shown["attempt"] == 1
    answer = await client.post(f"/api/v1/jobs/{job_id}/retry")
    assert (answer.status_code, answer.json()) == (200, {"id": job_id, "state": "pending"})


async def test_a_completed_job_is_not_retried(client, check, working):
    job_id = await enqueue(client)
    async with working():
        await settled(client, job_id)
    check.problem(await client.post(f"/api/v1/jobs/{job_id}/retry"), 409)


async def test_a_pending_job_stops_at_once(client):
    job_id = await enqueue(client)
    answer = await client.post(f"/api/v1/jobs/{job_id}/stop")
    assert (answer.status_code, answer.json()) == (202, {"id": job_id, "state": "cancelled"})


async def test_a_running_job_is_told_to_stop_and_stops(client, check, working):
    async with working():
        job_id = await enqueue(client, "linger", {})
        await wait_until(in_state(client, job_id, "running"))
        check.problem(await client.delete(f"/api/v1/jobs/{job_id}"), 409)
        answer = await client.post(f"/api/v1/jobs/{job_id}/stop")
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
        await wait_until(in_state(client, job_id, "cancelled"))
    assert (await client.delete(f"/api/v1/jobs/{job_id}")).status_code == 204


async def test_a_running_job_tells_its_progress(client, working):
    async with working():
        job_id = await enqueue(client, "report", {})

        async def reported():
            status = (await client.get(f"/api/v1/jobs/{job_id}/status")).json()
            return status if status["progress"] else None

        status = await wait_until(reported)
    assert (status["progress"], status["message"], status["status"]) == (40, "under way", "running")


async def test_a_deleted_job_is_gone(client, check):
    job_id = await enqueue(client)
    answer = await client.delete(f"/api/v1/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    check.problem(await client.get(f"/api/v1/jobs/{job_id}"), 404)
    check.problem(await client.delete(f"/api/v1/jobs/{job_id}"), 404)


async def test_results_that_json_cannot_carry_become_null(client, working):
    job_id = await enqueue(client, "tell", {"value": "nan"})
    async with working():
        status = await settled(client, job_id)
    assert (status["status"], status["result"]) == ("completed", None)
    assert (await client.get(f"/api/v1/jobs/{job_id}")).status_code == 200


async def test_a_batch_tells_its_counts_and_its_items(client, jobs, working):
    batch = await jobs.enqueue_batch("only_even", [{"number": n} for n in range(7)], {})
    status = (await client.get(f"/api/v1/jobs/{batch}/status")).json()
    assert (status["role"], status["status"], status["progress"]) == ("head", "running", 0)
    assert status["counts"]["total"] == status["counts"]["pending"] == 7
    async with working():
        status = await settled(client, batch)
    assert status["progress"] == 100
    assert (status["counts"]["completed"], status["counts"]["failed"]) == (4, 3)
    assert status["rate"] > 0
    items, cursor = [], None
    while True:
        params = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(f"/api/v1/jobs/{batch}/items", params=params)).json()
        items, cursor = items + page["items"], page["next"]
        if cursor is None:
            break
    assert [item["position"] for item in items] == list(range(7))
    assert [item["result"] for item in items[::2]] == [0, 2, 4, 6]
    assert {item["error"]["message"] for item in items[1::2]} == {f"{n} is odd" for n in (1, 3, 5)}
    failed = (await client.get(f"/api/v1/jobs/{batch}/items?state=failed")).json()["items"]
    assert [item["position"] for item in failed] == [1, 3, 5]


async def test_only_the_failed_items_are_retried(client, check, jobs, working):
    batch = await jobs.enqueue_batch("only_even", [{"number": n} for n in range(7)], {})
    async with working():
        await settled(client, batch)
    answer = await client.post(f"/api/v1/jobs/{batch}/retry-failed")
    assert (answer.status_code, answer.json()) == (200, {"id": batch, "requeued": 3})
    status = (await client.get(f"/api/v1/jobs/{batch}/status")).json()
    assert (status["status"], status["counts"]["pending"]) == ("running", 3)
    check.problem(await client.delete(f"/api/v1/jobs/{batch}"), 409)
    stopped = await client.post(f"/api/v1/jobs/{batch}/stop")
    assert stopped.status_code == 202
    await wait_until(in_state(client, batch, "cancelled"))
    assert (await client.delete(f"/api/v1/jobs/{batch}")).status_code == 204
    assert (await client.get("/api/v1/jobs?role=item")).json()["jobs"] == []


async def test_a_single_job_has_no_items_and_is_no_batch(client, check):
    job_id = await enqueue(client)
    check.problem(await client.get(f"/api/v1/jobs/{job_id}/items"), 404)
    check.problem(await client.post(f"/api/v1/jobs/{job_id}/retry-failed"), 404)


async def test_health_tells_workers_and_counts(client, jobs, working):
    await enqueue(client)
    await jobs.enqueue_batch("add", [{"a": 1, "b": 1}] * 4, {})
    health = (await client.get("/api/v1/health")).json()
    assert (health["status"], health["workers"], health["version"]) == ("degraded", 0, "9.9")
    assert health["jobs"] | {"pending": 1, "running": 1} == health["jobs"]
    assert health["items"]["pending"] == 4
    assert health["store_ms"] > 0
    async with working():

        async def well():
            health = (await client.get("/api/v1/health")).json()
            return health if health["status"] == "ok" else None

        assert (await wait_until(well))["workers"] == 1


async def test_requests_beside_each_other_do_not_mix(client):
    ids = await asyncio.gather(
        *(enqueue(client, payload={"a": number, "b": 0}) for number in range(50))
    )
    shown = await asyncio.gather(*(client.get(f"/api/v1/jobs/{job_id}") for job_id in ids))
    assert [answer.json()["payload"]["a"] for answer in shown] == list(range(50))
    assert len({answer.headers["x-request-id"] for answer in shown}) == 50
