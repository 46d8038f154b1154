"""Who did what: one entry for each request that changes something, and none lost."""

from __future__ import annotations

import asyncio

import pytest
from authentication import CLOSED, ROOT, ask, door_of, needed
from structlog.testing import capture_logs

from haulier.domain.access import Access
from haulier.exceptions import StoreUnavailableError
from haulier.services.audit import Actor, Entry
from haulier.web import diary as diaries
from haulier.web.diary import Book, Diary


@pytest.fixture
async def door(serving, records):
    async with door_of(serving, records) as door:
        yield door


def entries(number):
    return [Entry(Actor("ann", "token:1", "here"), "POST /x", {"id": n}) for n in range(number)]


class TestEntries:
    async def test_each_request_that_may_change_something_leaves_exactly_one(self, door):
        async with door.client(await door.token()) as client:
            before = len(await door.told())
            sent = []
            for method, route in CLOSED:
                if method == "GET":
                    continue
                answer = await ask(client, method, route)
                sent.append((f"{method} {route.path}", answer.status_code))
                assert answer.headers["x-request-id"]
            told = (await door.told())[before:]
        assert [(each.action, each.status) for each in told] == sent
        assert {each.actor.who for each in told} == {"the admin"}
        assert {each.actor.source for each in told} == {"192.0.2.7"}
        assert (await door.log.verify()).fault is None

    async def test_it_tells_who_what_and_with_what_outcome(self, door, jobs):
        token = await door.token(Access.OPERATOR)
        async with door.client(token) as client:
            body = {"kind": "add", "payload": {"a": 1, "b": 2}}
            made = await client.post("/api/v1/jobs", json=body)
            job_id = made.json()["id"]
            await client.post(f"/api/v1/jobs/{job_id}/stop")
            await client.post("/api/v1/jobs/retry", json={"kind": "add", "state": ["cancelled"]})
        create, enqueue, stop, retry = await door.told()
        assert create.action == "token.create"
        assert enqueue.actor.credential == f"token:{token.split('_')[1]}"
        assert enqueue.actor.request == made.headers["x-request-id"]
        assert (enqueue.action, enqueue.status) == ("POST /api/v1/jobs", 201)
        assert enqueue.target == {"location": f"/api/v1/jobs/{job_id}"}
        assert (stop.action, stop.target) == ("POST /api/v1/jobs/{job_id}/stop", {"job_id": job_id})
        assert retry.target == {"filter": {"kind": "add", "state": ["cancelled"]}}

    async def test_what_was_cut_off_or_failed_is_told_too(self, door, jobs, monkeypatch):
        async def fail(*args, **kwargs):
            raise RuntimeError("canary")

        async def cancelled(*args, **kwargs):
            raise asyncio.CancelledError

        async with door.client(await door.token()) as client:
            monkeypatch.setattr(jobs, "cancel", fail)
            with capture_logs():
                assert (await client.post("/api/v1/jobs/x/stop")).status_code == 500
            monkeypatch.setattr(jobs, "cancel", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await client.post("/api/v1/jobs/y/stop")
        _, failed, cut_off = await door.told()
        assert (failed.target, failed.status) == ({"job_id": "x"}, 500)
        assert (cut_off.target, cut_off.status) == ({"job_id": "y"}, None)

    async def test_what_was_refused_by_role_is_told_and_strangers_are_not(self, door):
        async with door.client(await door.token(Access.VIEWER)) as client:
            await client.post("/api/v1/jobs", json={})
        async with door.client("hunter2") as client:
            await client.post("/api/v1/jobs", json={})
        _, refused = await door.told()
        assert (refused.actor.who, refused.status) == ("the viewer", 403)

    async def test_what_is_done_to_tokens_is_told_once_and_without_their_secrets(self, door):
        async with door.client(await door.token()) as client:
            body = {"role": "viewer", "name": "ci"}
            made = (await client.post("/api/v1/tokens", json=body)).json()
            await client.delete(f"/api/v1/tokens/{made['id']}")
            await client.delete(f"/api/v1/tokens/{made['id']}")
            link = await door.credentials.create_link(ROOT, "ann", Access.ADMIN)
            await client.post("/api/v1/session", json={"link": link.text})
        told = await door.told()
        # What is written with what it tells of is there before the answer; the rest comes soon.
        assert sorted(each.action for each in told[1:]) == [
            "DELETE /api/v1/tokens/{token_id}",
            "link.create",
            "session.open",
            "token.create",
            "token.revoke",
        ]
        for secret in (made["token"], link.text):
            assert secret.split("_")[2] not in repr(told)

    async def test_it_is_read_page_by_page_by_admins(self, door, check):
        await door.log.append(entries(7))
        async with door.client(await door.token()) as client:
            seen, before = [], None
            while True:
                params = {"limit": 3} | ({"before": before} if before else {})
                page = (await client.get("/api/v1/audit", params=params)).json()
                seen += [each["seq"] for each in page["entries"]]
                before = page["next"]
                if before is None:
                    break
        assert seen == [8, 7, 6, 5, 4, 3, 2, 1]


class TestDiary:
    async def test_many_are_written_in_few_transactions_and_in_their_order(self):
        batches = []

        async def append(batch):
            batches.append(batch)

        diary = Diary(Book(append, append))
        made = entries(2500)
        for entry in made:
            diary.write(entry)
        await diary.close()
        assert [entry for batch in batches for entry in batch] == made
        assert len(batches) == 3

    async def test_records_that_fail_are_tried_again_and_nothing_is_lost(self, monkeypatch):
        monkeypatch.setattr(diaries, "PAUSE", 0.01)
        written, failures = [], [StoreUnavailableError("away")] * 3

        async def append(batch):
            if failures:
                raise failures.pop()
            written.extend(batch)

        diary = Diary(Book(append, append))
        made = entries(5)
        for entry in made:
            diary.write(entry)
        with capture_logs() as logs:
            await diary.close()
        assert written == made
        assert [each["event"] for each in logs] == ["audit log not written"] * 3

    async def test_what_cannot_be_written_until_the_end_goes_to_the_log(self, monkeypatch):
        monkeypatch.setattr(diaries, "PAUSE", 0.01)
        monkeypatch.setattr(diaries, "CLOSING", 0.1)

        async def append(batch):
            raise StoreUnavailableError("away")

        diary = Diary(Book(append, append))
        diary.write(entries(1)[0])
        with capture_logs() as logs:
            await diary.close()
        last = logs[-1]
        assert (last["event"], last["who"]) == ("audit entry not written", "ann")

    async def test_when_too_many_wait_nothing_more_may_be_done(self, door, check, monkeypatch):
        token = await door.token()
        stuck = asyncio.Event()

        async def append(batch):
            await stuck.wait()

        diary = door.api.state.diary
        monkeypatch.setattr(diaries, "MOST_WAITING", 3)
        monkeypatch.setattr(diary, "_book", Book(append, diary._book.mark_used))
        async with door.client(token) as client:
            codes = [(await client.post("/api/v1/jobs", json={})).status_code for _ in range(5)]
            assert codes == [422, 422, 422, 503, 503]
            assert len(diary._entries) == 3
            assert (await client.get("/api/v1/jobs")).status_code == 200
        stuck.set()


def test_every_route_of_admins_is_about_who_may_or_what_holds_for_all():
    """A list to look at when one is added."""
    assert {route.path for _, route in CLOSED if needed(route) is Access.ADMIN} >= {
        "/api/v1/tokens",
        "/api/v1/tokens/{token_id}",
        "/api/v1/sessions",
        "/api/v1/audit",
    }
