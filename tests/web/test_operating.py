"""Queues, limits, breakers, schedules, workers and the configuration over HTTP."""

from __future__ import annotations

import pytest

from haulier.domain.limits import Limit
from haulier.domain.moves import Move
from haulier.domain.worker import WorkerRow
from haulier.services.ids import new_id
from support import Hand

V1 = "/api/v1"


class TestQueues:
    async def test_a_paused_queue_is_shown_and_resumed(self, client):
        answer = await client.post(f"{V1}/queues/bulk/pause")
        assert answer.json() == {"queue": "bulk", "paused": True, "weight": None, "version": 1}
        assert (await client.get(f"{V1}/queues")).json()["paused"] == ["bulk"]
        assert not (await client.post(f"{V1}/queues/bulk/resume")).json()["paused"]
        assert (await client.get(f"{V1}/queues")).json()["paused"] == []

    async def test_a_weight_is_set_and_taken_away(self, client, check):
        given = await client.put(f"{V1}/queues/bulk/weight", json={"weight": 7})
        assert given.json()["weight"] == 7
        gone = await client.put(f"{V1}/queues/bulk/weight", json={"weight": None})
        assert gone.json()["weight"] is None
        for wrong in ({"weight": 0}, {"weight": 1001}, {}, {"weight": 1, "by": "me"}):
            answer = await client.put(f"{V1}/queues/bulk/weight", json=wrong)
            assert check.refused(answer)

    async def test_a_name_that_is_none_is_refused(self, client, check):
        assert check.refused(await client.post(f"{V1}/queues/not a queue/pause"))

    async def test_the_one_who_asks_is_kept(self, client):
        await client.post(f"{V1}/queues/bulk/pause")
        [change] = (await client.get(f"{V1}/configuration/changes")).json()["changes"]
        assert (change["by"], change["name"]) == ("local", "queues.bulk.paused")
        assert (change["before"], change["after"]) == (None, True)


class TestWorkers:
    async def test_a_worker_is_listed(self, client, store):
        row = WorkerRow(id=new_id(), host="h", pid=7, queues=("a", "b"), kinds=("add",), slots=3)
        await store.enlist(row)
        [told] = (await client.get(f"{V1}/workers")).json()["workers"]
        assert (told["id"], told["pid"], told["queues"], told["slots"]) == (
            row.id,
            7,
            ["a", "b"],
            3,
        )
        assert told["alive"]
        assert told["renewed_at"].endswith("Z")


class TestLimits:
    @pytest.mark.parametrize(
        ("body", "told"),
        [
            ({"concurrency": 3}, {"concurrency": 3, "per_key": False}),
            (
                {"rate": "30/m", "kind": "add"},
                {"rate": {"count": 30, "per": 60.0, "burst": None}, "kind": "add"},
            ),
            (
                {"rate": {"count": 5, "burst": 9}, "per_key": True},
                {"rate": {"count": 5, "per": 1.0, "burst": 9}, "per_key": True},
            ),
            ({"breaker": {"least": 2}}, {"per_key": True}),
        ],
    )
    async def test_a_limit_is_set_shown_and_deleted(self, client, check, body, told):
        path = f"{V1}/limits/api/of-hosts"
        answer = await client.put(path, json=body)
        assert answer.json() == {"name": "api/of-hosts", "changed": True}
        assert not (await client.put(path, json=body)).json()["changed"]
        [limit] = (await client.get(f"{V1}/limits")).json()["limits"]
        assert limit.items() >= told.items()
        assert (limit["name"], limit["changed_by"]) == ("api/of-hosts", "local")
        assert (await client.delete(path)).status_code == 204
        assert (await client.get(f"{V1}/limits")).json() == {"limits": []}
        gone = check.problem(await client.delete(path), 404)
        assert gone["type"].endswith(":limit-not-found")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "limit"),
            ({"concurrency": 0}, "concurrency"),
            ({"rate": "often"}, "rate"),
            ({"rate": {"count": 0}}, "count"),
            ({"breaker": {"failures": 2}}, "failures"),
            ({"concurrency": 1, "rate": "1/s"}, "limit"),
            ({"concurrency": 1, "queue": "no queue"}, "queue"),
        ],
    )
    async def test_what_is_no_limit_is_refused_by_field(self, client, check, body, field):
        faults = check.refused(await client.put(f"{V1}/limits/api", json=body))
        assert [name for name, _ in faults] == [field]
        assert (await client.get(f"{V1}/limits")).json() == {"limits": []}

    async def test_keys_and_their_breakers(self, client, check, store, jobs):
        await client.put(f"{V1}/limits/hosts", json={"breaker": {"least": 1}})
        hand = await Hand.enlist(store, kinds=["fail"])
        await jobs.enqueue("fail", {"reason": "x"}, {"key": "a.example"})
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        asked = {"name": "hosts", "limit": 1}
        page = (await client.get(f"{V1}/limit-keys", params=asked)).json()
        assert [(key["key"], key["circuit"]) for key in page["keys"]] == [("a.example", "open")]
        assert page["next"] == "a.example"
        rest = await client.get(f"{V1}/limit-keys", params={**asked, "after": page["next"]})
        assert rest.json() == {"keys": [], "next": None}
        reset = {"name": "hosts", "key": "a.example"}
        assert (await client.post(f"{V1}/breakers/reset", json=reset)).json()["reset"]
        assert not (await client.post(f"{V1}/breakers/reset", json=reset)).json()["reset"]
        none = await client.get(f"{V1}/limit-keys", params={"name": "nothing"})
        check.problem(none, 404)

    async def test_what_is_no_breaker_is_not_reset(self, client, check, store):
        await store.limits().put(Limit(name="some", concurrency=1), by="me")
        wanted = {"name": "some", "key": "k"}
        check.problem(await client.post(f"{V1}/breakers/reset", json=wanted), 409)


SCHEDULE = {"kind": "add", "payload": {"a": 1, "b": 2}, "cron": "0 6 * * mon", "zone": "Asia/Tokyo"}


class TestSchedules:
    async def test_a_schedule_from_its_making_to_its_end(self, client, check):
        path = f"{V1}/schedules/sums"
        made = (await client.put(path, json={**SCHEDULE, "missed": "all:3"})).json()
        assert made.items() >= {**SCHEDULE, "missed": "all:3", "paused": False}.items()
        assert made["changed_by"] == "local"
        assert (await client.get(f"{V1}/schedules")).json() == {"schedules": [made], "next": None}
        assert (await client.post(f"{path}/pause")).json()["next"] is None
        assert (await client.post(f"{path}/resume")).json()["next"] == made["next"]
        job = (await client.post(f"{path}/run")).json()
        assert (await client.get(job["status_url"])).json()["kind"] == "add"
        [tick] = (await client.get(f"{path}/ticks")).json()["ticks"]
        assert tick["job"] == job["id"]
        assert (await client.delete(path)).status_code == 204
        for method, where in (("GET", path), ("GET", f"{path}/ticks"), ("POST", f"{path}/run")):
            answer = check.problem(await client.request(method, where), 404)
            assert answer["type"].endswith(":schedule-not-found")

    async def test_an_interval_is_told_as_it_was_given(self, client):
        every = {"kind": "linger", "every": 60, "start": "2026-01-01T00:00:00Z"}
        made = (await client.put(f"{V1}/schedules/s", json=every)).json()
        assert made.items() >= every.items()

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"cron": "never"}, "cron"),
            ({"cron": "0 0 31 2 *"}, "cron"),
            ({"zone": "Mars/Olympus"}, "zone"),
            ({"every": 5}, "cron"),
            ({"missed": "sometimes"}, "missed"),
            ({"overlap": "wait"}, "overlap"),
            ({"payload": {"a": 1}}, "b"),
            ({"concurrency": 3}, "concurrency"),
            ({"start": "2026-01-01T00:00:00Z"}, "start"),
        ],
    )
    async def test_bad_input_is_refused_by_field(self, client, check, change, field):
        answer = await client.put(f"{V1}/schedules/sums", json={**SCHEDULE, **change})
        assert [name for name, _ in check.refused(answer)] == [field]
        assert (await client.get(f"{V1}/schedules")).json()["schedules"] == []

    async def test_kinds_with_a_start_of_their_own_are_not_scheduled(self, client, check):
        body = {"kind": "media_uniq", "payload": {}, "every": 5}
        answer = await client.put(f"{V1}/schedules/s", json=body)
        assert check.refused(answer) == [("kind", None)]

    async def test_pages_by_name(self, client):
        for name in "abc":
            await client.put(f"{V1}/schedules/{name}", json=SCHEDULE)
        names, after = [], ""
        while after is not None:
            asked = {"limit": 2, "after": after}
            page = (await client.get(f"{V1}/schedules", params=asked)).json()
            names += [schedule["name"] for schedule in page["schedules"]]
            after = page["next"]
        assert names == ["a", "b", "c"]

    async def test_an_unchanged_schedule_is_not_sent_again(self, client):
        await client.put(f"{V1}/schedules/s", json=SCHEDULE)
        first = await client.get(f"{V1}/schedules/s")
        known = {"If-None-Match": first.headers["etag"]}
        again = await client.get(f"{V1}/schedules/s", headers=known)
        assert (again.status_code, again.content) == (304, b"")
        await client.post(f"{V1}/schedules/s/pause")
        changed = await client.get(f"{V1}/schedules/s", headers=known)
        assert changed.status_code == 200
        assert changed.headers["etag"] != first.headers["etag"]


class TestConfiguration:
    async def test_settings_are_set_and_unset_together(self, client):
        body = {"set": {"log.level": "debug", "queues.a.paused": True}}
        now = (await client.patch(f"{V1}/configuration", json=body)).json()
        assert now["version"] == 1
        assert (
            now["settings"]["log.level"].items()
            >= {
                "value": "debug",
                "version": 1,
                "changed_by": "local",
            }.items()
        )
        later = {"unset": ["queues.a.paused"], "expected": 1}
        now = (await client.patch(f"{V1}/configuration", json=later)).json()
        assert list(now["settings"]) == ["log.level"]

    async def test_a_change_of_what_somebody_else_has_changed_is_refused(self, client, check):
        await client.patch(f"{V1}/configuration", json={"set": {"log.level": "debug"}})
        body = {"set": {"log.level": "info"}, "expected": 0}
        check.problem(await client.patch(f"{V1}/configuration", json=body), 409)

    async def test_every_setting_at_fault_is_named_and_none_is_set(self, client, check):
        body = {"set": {"log.level": "loud", "log.levle": "info", "queues.a.paused": True}}
        faults = check.refused(await client.patch(f"{V1}/configuration", json=body))
        assert "log.levle" in [name for name, _ in faults]
        assert (await client.get(f"{V1}/configuration")).json() == {"version": 0, "settings": {}}

    async def test_what_has_not_changed_is_not_sent_again(self, client):
        first = await client.get(f"{V1}/configuration")
        known = {"If-None-Match": first.headers["etag"]}
        again = await client.get(f"{V1}/configuration", headers=known)
        assert again.status_code == 304


class TestCountsFirst:
    """A dry run tells how many jobs an operation would be about, and changes nothing."""

    async def test_stop(self, client, jobs):
        for number in range(3):
            await jobs.enqueue("add", {"a": number, "b": 1}, {"key": "k"})
        wanted = {"kind": "add", "dry_run": True}
        assert (await client.post(f"{V1}/jobs/stop", json=wanted)).json() == {"count": 3}
        two = {**wanted, "limit": 2}
        assert (await client.post(f"{V1}/jobs/stop", json=two)).json() == {"count": 2}
        pending = await client.get(f"{V1}/jobs", params={"state": "pending"})
        assert len(pending.json()["jobs"]) == 3
        assert (await client.post(f"{V1}/jobs/stop", json={"kind": "add"})).json() == {"count": 3}
        assert (await client.post(f"{V1}/jobs/stop", json=wanted)).json() == {"count": 0}

    async def test_retry_and_delete(self, client, jobs):
        for number in range(2):
            await jobs.enqueue("add", {"a": number, "b": 1}, {})
        await client.post(f"{V1}/jobs/stop", json={"kind": "add"})
        wanted = {"kind": "add", "dry_run": True}
        assert (await client.post(f"{V1}/jobs/retry", json=wanted)).json() == {"count": 0}
        named = {**wanted, "state": ["cancelled"]}
        assert (await client.post(f"{V1}/jobs/retry", json=named)).json() == {"count": 2}
        assert (await client.post(f"{V1}/jobs/delete", json=wanted)).json() == {"count": 2}
        cancelled = await client.get(f"{V1}/jobs", params={"state": "cancelled"})
        assert len(cancelled.json()["jobs"]) == 2
