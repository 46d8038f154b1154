"""Webhooks by the API: made, shown, changed, tested, removed."""

from __future__ import annotations

import httpx
import pytest

from haulier.domain.webhook import DEFAULT_TYPES

URL = "https://example.com/hooks"
PATH = "/api/v1/webhooks"
UNKNOWN = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def api(serving):
    async with serving() as api:
        yield api


async def add(client, **fields):
    answer = await client.post(PATH, json={"url": URL, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_the_secret_is_shown_once(client):
    answer = await client.post(PATH, json={"url": URL, "types": ["batch.*"], "kind": "add"})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert (made["types"], made["kind"], made["enabled"]) == (["batch.*"], "add", True)
    shown = await client.get(answer.headers["location"])
    listed = await client.get(PATH)
    assert shown.json() == made
    assert listed.json() == {"webhooks": [made]}
    assert secret not in shown.text + listed.text


async def test_what_is_left_out_has_its_default(client):
    made = await add(client, enabled=None)
    assert made["types"] == list(DEFAULT_TYPES)
    assert (made["kind"], made["queue"], made["batch"], made["enabled"]) == (None, None, None, True)


async def test_only_what_is_given_is_changed(client):
    made = await add(client, kind="add", description="one")
    path = f"{PATH}/{made['id']}"
    changed = (await client.patch(path, json={"types": ["*"], "enabled": False})).json()
    assert (changed["types"], changed["kind"], changed["enabled"]) == (["*"], "add", False)
    assert changed["disabled"] == "it was disabled by hand"
    changed = (await client.patch(path, json={"kind": None, "enabled": True})).json()
    assert (changed["kind"], changed["description"], changed["disabled"]) == (None, "one", None)
    assert (await client.patch(path, json={})).json() == changed


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": None}, "url"),
        ({"url": "http://127.0.0.1.:1/"}, "url"),
        ({"url": "http://192.168.0.1/"}, "url"),
        ({"url": "https://localhost/"}, "url"),
        ({"url": "https://u:k4nary@example.com/"}, "url"),
        ({"url": "gopher://example.com/"}, "url"),
        ({"types": ["job.exploded"]}, "types"),
        ({"kind": "a\x00"}, "kind"),
        ({"description": "a\nb"}, "description"),
        ({"types": "job.failed"}, "types"),
        ({"batch": "7"}, "batch"),
        ({"secret": "whsec_mine"}, "secret"),
        ({"after": "e:1"}, "after"),
    ],
)
async def test_bad_input_is_refused_by_field_and_changes_nothing(client, check, body, field):
    made = await add(client)
    del made["secret"]
    path = f"{PATH}/{made['id']}"
    for answer in (
        await client.post(PATH, json={"url": URL, **body}),
        await client.patch(path, json=body),
    ):
        assert [name.partition(".")[0] for name, _ in check.refused(answer)] == [field]
        assert "k4nary" not in answer.text
    assert (await client.get(PATH)).json() == {"webhooks": [made]}


async def test_a_test_message_is_a_job_that_is_listed(client):
    made = await add(client)
    path = f"{PATH}/{made['id']}"
    answer = await client.post(f"{path}/test")
    assert answer.status_code == 202
    job = answer.json()
    page = (await client.get(f"{path}/deliveries", params={"limit": 1})).json()
    (delivery,) = page["deliveries"]
    assert (delivery["id"], delivery["type"]) == (job["id"], "webhook.test")
    assert (delivery["state"], delivery["status"]) == ("pending", None)
    assert (await client.get(job["status_url"])).json()["kind"] == "haulier.webhook"
    second = (await client.post(f"{path}/test")).json()
    page = (await client.get(f"{path}/deliveries", params={"limit": 1})).json()
    assert page["deliveries"][0]["id"] == second["id"]
    older = await client.get(f"{path}/deliveries", params={"limit": 1, "cursor": page["next"]})
    assert older.json()["deliveries"][0]["id"] == job["id"]


async def test_a_new_secret_is_shown_once(client):
    made = await add(client)
    answer = await client.post(f"{PATH}/{made['id']}/rotate")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["secret"] != made["secret"]
    assert "whsec_" not in (await client.get(f"{PATH}/{made['id']}")).text


async def test_nobody_enqueues_a_delivery_by_hand(client, check):
    """What is signed in a webhook's name is made from events alone."""
    made = await add(client)
    payload = {"webhook": made["id"], "type": "job.completed", "body": "{}"}
    body = {"kind": "haulier.webhook", "payload": payload, "queue": "haulier.webhooks"}
    check.problem(await client.post("/api/v1/jobs", json=body), 422)


async def test_one_that_is_removed_is_not_there(client, check):
    made = await add(client)
    path = f"{PATH}/{made['id']}"
    job = (await client.post(f"{path}/test")).json()
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(job["status_url"])).json()["status"] == "cancelled"
    for id_ in (made["id"], UNKNOWN, "no-id", "%00"):
        there = f"{PATH}/{id_}"
        for answer in (
            await client.get(there),
            await client.patch(there, json={"enabled": True}),
            await client.delete(there),
            await client.post(f"{there}/test"),
            await client.post(f"{there}/rotate"),
            await client.get(f"{there}/deliveries"),
        ):
            assert check.problem(answer, 404)["type"].endswith(":webhook-not-found")


async def test_without_records_there_are_none(jobs, options, check):
    from haulier.web.app import create_app

    transport = httpx.ASGITransport(app=create_app(jobs=jobs, options=options))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        check.problem(await client.get(PATH), 501)
