"""Batches over HTTP: opened, filled by streams, sealed, altered, listed, exported."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json

import pytest

from haulier.ports import JobFilter

BATCHES = "/api/v1/batches"
NDJSON = {"content-type": "application/x-ndjson"}
OWN = "0199b2d2-6c6e-7cc1-b8a4-6f2f3c1d8a10"


def lines(*numbers):
    return "".join(f'{{"number": {number}}}\n' for number in numbers).encode()


@pytest.fixture
def opened(client):
    """Opens a batch; gives its id."""

    async def open_one(**body):
        answer = await client.post(BATCHES, json={"kind": "only_even"} | body)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    return open_one


@pytest.fixture
def filled(client):
    """Streams items into a batch; gives the answer."""

    async def fill(batch_id, content, *, key=None, **query):
        headers = NDJSON | ({"Idempotency-Key": key} if key else {})
        path = f"{BATCHES}/{batch_id}/items"
        return await client.post(path, content=content, headers=headers, params=query)

    return fill


async def shown(client, batch_id):
    return (await client.get(f"{BATCHES}/{batch_id}")).json()


async def test_a_batch_is_opened_filled_sealed_and_settles(client, jobs, opened, filled, working):
    batch_id = await opened(on_finish="tell_end", concurrency=7, queue="default", priority="high")
    assert (await filled(batch_id, lines(0, 1, 2))).json()["taken"] == 3
    async with working():
        assert (await filled(batch_id, lines(3, 4))).json() == {
            "taken": 2,
            "new": 2,
            "skipped": 0,
            "errors": [],
        }
        before = await shown(client, batch_id)
        assert (before["open"], before["sealed"], before["settled"]) == (True, False, False)
        assert before["limits"]["concurrency"] == 7
        sealed = await client.post(f"{BATCHES}/{batch_id}/seal")
        assert sealed.json()["sealed"]
        await jobs.wait(batch_id, timeout=10)
    after = await shown(client, batch_id)
    assert (after["state"], after["settled"], after["progress"]) == ("completed", True, 100)
    assert (after["counts"]["completed"], after["counts"]["failed"]) == (3, 2)
    assert (await jobs.store.get(after["finish_job"])).kind == "tell_end"
    page = (await client.get(f"{BATCHES}/{batch_id}/items")).json()
    assert [item["position"] for item in page["items"]] == [0, 1, 2, 3, 4]
    assert {item["priority"] for item in page["items"]} == {10}
    retried = await client.post(f"{BATCHES}/{batch_id}/retry-failed")
    assert retried.json()["requeued"] == 2


async def test_the_answer_of_an_open_is_that_of_a_start(client):
    answer = await client.post(BATCHES, json={"kind": "add", "id": OWN})
    assert answer.json() == {"id": OWN, "status_url": f"/api/v1/jobs/{OWN}/status"}
    assert answer.headers["location"] == f"/api/v1/jobs/{OWN}"


async def test_opening_is_safe_to_repeat(client, check, jobs):
    headers = {"Idempotency-Key": "k"}
    body = {"kind": "only_even", "concurrency": 3}
    first = await client.post(BATCHES, json=body, headers=headers)
    again = await client.post(BATCHES, json=body, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    for other in ({"concurrency": 4}, {"kind": "add"}, {"on_finish": "tell_end"}):
        problem = check.problem(await client.post(BATCHES, json=body | other, headers=headers), 409)
        assert problem["job_id"] == first.json()["id"]
    assert len(await jobs.store.batches()) == 1
    by_id = {"kind": "only_even", "id": OWN}
    for _ in range(2):
        assert (await client.post(BATCHES, json=by_id)).json()["id"] == OWN
    check.refused(await client.post(BATCHES, json={"kind": "add", "id": OWN}))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "nothing_such"}, "kind"),
        ({"kind": "media_uniq"}, "kind"),
        ({"kind": "add", "on_finish": "nothing_such"}, "kind"),
        ({"kind": "add", "concurrency": 0}, "concurrency"),
        ({"kind": "add", "priority": "soon"}, "priority"),
        ({"kind": "add", "payload": {}}, "payload"),
        ({}, "kind"),
    ],
)
async def test_a_batch_that_cannot_be_is_refused(client, check, jobs, body, field):
    assert [name for name, _ in check.refused(await client.post(BATCHES, json=body))] == [field]
    assert await jobs.store.batches() == []


async def test_a_bad_item_ends_the_stream_and_the_batch_stays_open(client, check, opened, filled):
    batch_id = await opened()
    content = lines(0, 2) + b'{"number": "x"}\n' + lines(4)
    problem = check.problem(await filled(batch_id, content), 422)
    assert problem["taken"] == 2
    assert [(error["field"], error["line"]) for error in problem["errors"]] == [("number", 3)]
    told = (await filled(batch_id, content, on_bad="skip")).json()
    assert (told["taken"], told["skipped"]) == (3, 1)
    batch = await shown(client, batch_id)
    assert (batch["open"], batch["counts"]["total"]) == (True, 5)


async def test_a_repeated_stream_of_items_doubles_none(client, check, opened, filled):
    batch_id = await opened()
    assert (await filled(batch_id, lines(0, 2), key="part 1")).json()["new"] == 2
    again = (await filled(batch_id, lines(0, 2, 4), key="part 1")).json()
    assert (again["taken"], again["new"]) == (3, 1)
    assert (await filled(batch_id, lines(0, 2), key="part 2")).json()["new"] == 2
    problem = check.problem(await filled(batch_id, lines(0, 6, 4, 8), key="part 1"), 409)
    assert problem["errors"][0]["line"] == 2
    assert problem["taken"] == 1
    assert (await shown(client, batch_id))["counts"]["total"] == 5
    await client.post(f"{BATCHES}/{batch_id}/seal")
    assert (await filled(batch_id, lines(0, 2), key="part 1")).json()["new"] == 0
    check.problem(await filled(batch_id, lines(0, 2, 4, 6), key="part 1"), 409)


async def test_streams_without_a_key_are_different_items(client, opened, filled):
    batch_id = await opened()
    for _ in range(2):
        assert (await filled(batch_id, lines(0, 2))).json()["new"] == 2
    assert (await shown(client, batch_id))["counts"]["total"] == 4


async def test_items_of_packed_lines(opened, client):
    batch_id = await opened()
    headers = NDJSON | {"content-encoding": "gzip"}
    path = f"{BATCHES}/{batch_id}/items"
    answer = await client.post(path, content=gzip.compress(lines(*range(500))), headers=headers)
    assert answer.json()["taken"] == 500


async def test_a_batch_that_is_sealed_or_cancelled_takes_no_more(client, check, opened, filled):
    sealed, cancelled = await opened(), await opened()
    await filled(sealed, lines(0))
    await client.post(f"{BATCHES}/{sealed}/seal")
    assert (await client.post(f"{BATCHES}/{cancelled}/cancel")).status_code == 202
    for batch_id in (sealed, cancelled):
        assert check.problem(await filled(batch_id, lines(2)), 409)["taken"] == 0


async def test_a_single_job_is_no_batch(client, check, jobs):
    job_id = await jobs.enqueue("add", {"a": 1, "b": 2}, {})
    for method, path in (
        ("GET", ""),
        ("PATCH", ""),
        ("POST", "/items"),
        ("GET", "/items"),
        ("POST", "/seal"),
        ("POST", "/cancel"),
        ("GET", "/export"),
    ):
        body = {"concurrency": 1} if method == "PATCH" else None
        answer = await client.request(method, f"{BATCHES}/{job_id}{path}", json=body)
        check.problem(answer, 404)
    assert (await jobs.store.get(job_id)).state == "pending"


async def test_limits_change_and_who_did_it_is_kept(client, check, jobs, opened):
    batch_id = await opened(concurrency=2)
    changed = await client.patch(
        f"{BATCHES}/{batch_id}", json={"concurrency": None, "max_failures": 3}
    )
    assert changed.json()["limits"] == {
        "concurrency": None,
        "batch_size": None,
        "max_failures": 3,
    }
    [event] = [e for e in await jobs.store.events() if e.type == "alter"]
    assert event.by == "local"
    for body, field in (({}, "limits"), ({"concurrency": 0}, "concurrency"), ({"x": 1}, "x")):
        refused = check.refused(await client.patch(f"{BATCHES}/{batch_id}", json=body))
        assert [name for name, _ in refused] == [field]


async def test_pause_and_resume(client, opened):
    batch_id = await opened()
    await client.post(f"{BATCHES}/{batch_id}/pause")
    assert (await shown(client, batch_id))["paused"]
    await client.post(f"{BATCHES}/{batch_id}/resume")
    assert not (await shown(client, batch_id))["paused"]


async def test_batches_are_listed_page_by_page_newest_first(client, opened):
    made = [await opened() for _ in range(5)]
    seen, query = [], {"limit": 2}
    while True:
        page = (await client.get(BATCHES, params=query)).json()
        seen += [batch["id"] for batch in page["batches"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert sorted(seen, reverse=True) == seen
    assert set(seen) == set(made)
    assert len(seen) == 5


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 501}, {"cursor": "7"}, {"within": "x"}])
async def test_a_bad_page_of_batches_is_refused(client, check, query):
    check.refused(await client.get(BATCHES, params=query))


@pytest.fixture
async def exported(jobs, working):
    """A batch of 450 items that was worked off."""
    batch_id = await jobs.enqueue_batch(
        "tell", [{"value": f"=1+{number}"} for number in range(450)], {}
    )
    async with working():
        await jobs.wait(batch_id, timeout=30)
    return batch_id


async def test_an_export_has_every_item_once_in_order(client, exported):
    answer = await client.get(f"{BATCHES}/{exported}/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert f"{exported}.ndjson" in answer.headers["content-disposition"]
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["position"] for row in rows] == list(range(450))
    assert rows[7]["result"] == "=1+7"
    assert rows[7]["payload"] == {"value": "=1+7"}
    assert {row["state"] for row in rows} == {"completed"}


async def test_a_broken_export_goes_on_behind_its_last_whole_row(client, exported):
    for form in ("ndjson", "csv"):
        path = f"{BATCHES}/{exported}/export"
        whole = (await client.get(path, params={"format": form})).text.splitlines()
        kept = whole[:234]
        last = (
            json.loads(kept[-1])
            if form == "ndjson"
            else dict(zip(whole[0].split(","), next(csv.reader([kept[-1]])), strict=True))
        )
        query = {"format": form, "cursor": last["cursor"]}
        rest = (await client.get(path, params=query)).text.splitlines()
        assert kept + rest == whole


async def test_no_cell_of_an_export_is_a_formula(client, exported):
    answer = await client.get(f"{BATCHES}/{exported}/export", params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(answer.text.splitlines()))
    assert len(rows) == 450
    assert all(row["result"].startswith("'=1+") for row in rows)
    assert not any(
        cell[:1] in ("=", "+", "-", "@", "\t", "\r") for row in rows for cell in row.values()
    )


async def test_an_export_masks_secrets_and_is_restricted_to_states(client, jobs, working):
    batch_id = await jobs.enqueue_batch(
        "login", [{"user": "u", "password": "hunter2-canary"}] * 3, {}
    )
    for form in ("ndjson", "csv"):
        query = {"format": form, "state": "pending"}
        answer = await client.get(f"{BATCHES}/{batch_id}/export", params=query)
        assert "hunter2-canary" not in answer.text
        assert answer.text.count("pending") == 3
        query["state"] = "failed"
        answer = await client.get(f"{BATCHES}/{batch_id}/export", params=query)
        assert "login" not in answer.text
        assert len(answer.text.splitlines()) == (form == "csv")


@pytest.mark.parametrize("query", [{"format": "xml"}, {"cursor": "x"}, {"state": "odd"}])
async def test_a_bad_export_is_refused(client, check, exported, query):
    check.refused(await client.get(f"{BATCHES}/{exported}/export", params=query))


async def test_exports_are_streams_of_their_caller(options, ask_with, check, jobs):
    batch_id = await jobs.enqueue_batch("tell", [{"value": 1}], {})
    async with ask_with(dataclasses.replace(options, max_streams=0)) as client:
        check.problem(await client.get(f"{BATCHES}/{batch_id}/export"), 429)
    async with ask_with(dataclasses.replace(options, max_streams=1)) as client:
        for _ in range(3):
            assert (await client.get(f"{BATCHES}/{batch_id}/export")).status_code == 200


async def test_an_export_reads_fewer_large_items_at_a_time(client, jobs, monkeypatch):
    batch_id = await jobs.enqueue_batch("tell", [{"value": "x" * 200_000}] * 60, {})
    most = 0
    find = jobs.store.find

    async def watched(*arguments, **options):
        nonlocal most
        page = await find(*arguments, **options)
        most = max(most, sum(len(job.payload) for job in page.jobs))
        return page

    monkeypatch.setattr(jobs.store, "find", watched)
    answer = await client.get(f"{BATCHES}/{batch_id}/export")
    assert len(answer.text.splitlines()) == 60
    assert most < 5_000_000


async def test_large_answers_are_packed_for_who_understands_it(client, jobs):
    await jobs.enqueue_many("tell", [{"value": number} for number in range(100)], {})
    packed = await client.get("/api/v1/jobs", headers={"accept-encoding": "gzip"})
    plain = await client.get("/api/v1/jobs", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()
    small = await client.get("/api/v1/health", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers
    page = await jobs.store.find(JobFilter())
    assert len(page.jobs) == 50
