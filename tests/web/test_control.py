"""Operations over HTTP: unique and idempotent enqueue, batches, filters, errors, events."""

from __future__ import annotations

from datetime import datetime

import pytest
from pydantic import BaseModel

from haulier.domain.job import JobState
from haulier.domain.moves import Move
from haulier.domain.retention import Retention
from haulier.domain.retry import RetryPolicy
from haulier.domain.worker import Note
from haulier.runners.base import BaseTaskRunner, register_runner
from haulier.services.ids import new_id
from haulier.services.registry import define_task
from support import Hand, move

JOBS = "/api/v1/jobs"
MEDIA = "/api/v1/media-uniq/start"
PROXIES = "/api/v1/proxy-diagnostics/start"


class Start(BaseModel):
    count: int


class Item(BaseModel):
    n: int


class Numbers(BaseTaskRunner[Start, Item]):
    """Counts."""

    task_type, start_model, item_model = "numbers", Start, Item

    def expand(self, ctx, start):
        return (Item(n=n) for n in range(start.count))

    def run_item(self, ctx, item):
        return item.n


async def twice_wrong(number: int) -> int:
    raise ValueError(f"{number} is wrong")


@pytest.fixture(autouse=True)
def kinds(registry):
    register_runner(registry, Numbers())
    again = RetryPolicy(max_attempts=2, delay=0)
    registry.add(define_task(twice_wrong, retry=again))


def sum_of(a=1, b=2, **options):
    return {"kind": "add", "payload": {"a": a, "b": b}, **options}


async def ids(client, **params):
    return [job["id"] for job in (await client.get(JOBS, params=params)).json()["jobs"]]


async def enqueued(client, body, **headers):
    answer = await client.post(JOBS, json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def in_states(client, *job_ids):
    return [(await client.get(f"{JOBS}/{job_id}/status")).json()["status"] for job_id in job_ids]


async def failed_job(client, reason="no", **options):
    return await enqueued(client, {"kind": "fail", "payload": {"reason": reason}, **options})


async def settled(jobs, *job_ids):
    for job_id in job_ids:
        await jobs.wait(job_id, timeout=20)


class TestUnique:
    async def test_a_second_one_is_the_first(self, client):
        for unique in ("ada", {"by": "ada"}, {}, {"by": "eve", "scope": "period", "period": 60}):
            first = await enqueued(client, sum_of(unique=unique))
            assert await enqueued(client, sum_of(unique=unique)) == first
            assert (await client.get(f"{JOBS}/{first}")).json()["unique"] is True
        # The payload counts for the one without a name, and for no other.
        assert len(await ids(client)) == 3
        await enqueued(client, sum_of(a=9, unique={}))
        assert len(await ids(client)) == 4

    async def test_a_second_one_is_refused_with_the_first_ones_id(self, client, check):
        first = await enqueued(client, sum_of(unique="ada"))
        again = sum_of(a=7, unique={"by": "ada", "conflict": "reject"})
        problem = check.problem(await client.post(JOBS, json=again), 409)
        assert problem["type"].endswith(":duplicate-job")
        assert problem["job_id"] == first
        assert "ada" not in problem["detail"]
        assert await ids(client) == [first]

    async def test_a_second_one_takes_the_place_of_the_first(self, client):
        unique = {"by": "ada", "conflict": "replace"}
        first = await enqueued(client, sum_of(unique=unique, delay=60))
        second = await enqueued(client, sum_of(a=2, unique=unique, delay=60))
        assert await in_states(client, first, second) == ["cancelled", "pending"]

    @pytest.mark.parametrize(
        ("unique", "field"),
        [
            (7, "unique"),
            ("", "unique.by"),
            ({"by": "x" * 201}, "unique.by"),
            ({"scope": "ever"}, "unique.scope"),
            ({"scope": "period"}, "unique.period"),
            ({"period": 5}, "unique.period"),
            ({"scope": "period", "period": -1}, "unique.period"),
            ({"conflict": "match"}, "unique.conflict"),
            ({"until": 5}, "unique.until"),
        ],
    )
    async def test_bad_ones_are_refused_by_field(self, client, check, unique, field):
        answer = await client.post(JOBS, json=sum_of(unique=unique))
        assert check.refused(answer) == [(field, None)]
        assert await ids(client) == []


class TestIdempotencyKey:
    async def test_the_same_request_gives_the_same_job(self, client, check):
        key = {"Idempotency-Key": "abc-1"}
        first = await enqueued(client, sum_of(priority="high"), **key)
        assert await enqueued(client, sum_of(priority=10), **key) == first
        for other in (sum_of(a=2, priority="high"), sum_of(), sum_of(priority="high", key="k")):
            problem = check.problem(await client.post(JOBS, json=other, headers=key), 409)
            assert problem["type"].endswith(":idempotency-conflict")
            assert problem["job_id"] == first
        assert await ids(client) == [first]
        assert await enqueued(client, sum_of(), **{"Idempotency-Key": "abc-2"}) != first

    @pytest.mark.parametrize("key", ["", "k" * 201])
    async def test_a_bad_key_is_refused(self, client, check, key):
        answer = await client.post(JOBS, json=sum_of(), headers={"Idempotency-Key": key})
        assert check.refused(answer) == [("Idempotency-Key", None)]

    async def test_starts_take_one_too(self, client, check):
        starts = [
            (
                MEDIA,
                {"accounts": ["ann"], "sources": ["sea.png"], "output": "run"},
                "spec",
                "thumb",
            ),
            (PROXIES, {"proxies": ["http://u:secret@10.0.0.1:80"]}, "tries", 2),
        ]
        for path, body, name, other in starts:
            key = {"Idempotency-Key": f"key of {path}"}
            first = await client.post(path, json=body, headers=key)
            again = await client.post(path, json=body, headers=key)
            assert (first.status_code, again.status_code) == (202, 202), first.text
            assert first.json() == again.json()
            changed = await client.post(path, json={**body, name: other}, headers=key)
            assert check.problem(changed, 409)["job_id"] == first.json()["id"]


class TestPriority:
    async def test_names_are_understood(self, client):
        for name, number in (("low", -10), ("Normal", 0), ("high", 10), ("urgent", 100)):
            job_id = await enqueued(client, sum_of(priority=name))
            assert (await client.get(f"{JOBS}/{job_id}")).json()["priority"] == number

    @pytest.mark.parametrize("priority", ["hurry", 1.5, True, [], ""])
    async def test_others_are_refused(self, client, check, priority):
        answer = await client.post(JOBS, json=sum_of(priority=priority))
        assert check.refused(answer) == [("priority", None)]


class TestBatches:
    async def test_limits_are_taken_and_told(self, client):
        limits = {"concurrency": 2, "batch_size": 5, "max_failures": 0}
        bodies = [
            (JOBS, {"kind": "numbers", "payload": {"count": 3}}),
            (MEDIA, {"accounts": ["ann"], "sources": ["sea.png"], "output": "run"}),
            (PROXIES, {"proxies": ["10.0.0.1:80"]}),
        ]
        for path, body in bodies:
            answer = await client.post(path, json=body | limits)
            status = (await client.get(answer.json()["status_url"])).json()
            assert (status["limits"], status["paused"]) == (limits, False)

    @pytest.mark.parametrize(
        ("limit", "field"),
        [
            ({"concurrency": 0}, "concurrency"),
            ({"batch_size": "many"}, "batch_size"),
            ({"max_failures": -1}, "max_failures"),
        ],
    )
    async def test_bad_limits_are_refused(self, client, check, limit, field):
        numbers = {"kind": "numbers", "payload": {"count": 3}}
        proxies = {"proxies": ["10.0.0.1:80"]}
        for path, body in ((JOBS, numbers), (PROXIES, proxies)):
            answer = await client.post(path, json=body | limit)
            assert check.refused(answer) == [(field, None)]

    async def test_single_jobs_have_none(self, client, check):
        answer = await client.post(JOBS, json=sum_of(concurrency=2))
        assert check.refused(answer) == [("concurrency", None)]
        status = (await client.get(f"{JOBS}/{await enqueued(client, sum_of())}/status")).json()
        assert (status["limits"], status["paused"], status["parked"]) == (None, None, False)

    async def test_a_paused_batch_waits_until_it_is_resumed(self, client, jobs, working):
        batch = await jobs.enqueue_batch("add", [{"a": n, "b": 0} for n in range(3)], {})
        for _ in range(2):
            answer = await client.post(f"{JOBS}/{batch}/pause")
            assert (answer.status_code, answer.json()) == (200, {"id": batch, "paused": True})
        status = (await client.get(f"{JOBS}/{batch}/status")).json()
        assert (status["paused"], status["eta_seconds"]) == (True, None)
        items = (await client.get(f"{JOBS}/{batch}/items")).json()["items"]
        assert [item["parked"] for item in items] == [True] * 3
        async with working():
            alone = await enqueued(client, sum_of())
            await settled(jobs, alone)
            assert (await jobs.store.batch(batch)).counts.pending == 3
            answer = await client.post(f"{JOBS}/{batch}/resume")
            assert (answer.status_code, answer.json()) == (200, {"id": batch, "paused": False})
            await settled(jobs, batch)

    async def test_what_is_no_running_batch_cannot_be_paused(self, client, check, jobs, working):
        batch = await jobs.enqueue_batch("add", [{"a": 1, "b": 0}], {})
        single = await enqueued(client, sum_of())
        async with working():
            await settled(jobs, batch, single)
        for verb in ("pause", "resume"):
            check.problem(await client.post(f"{JOBS}/{batch}/{verb}"), 409)
            check.problem(await client.post(f"{JOBS}/{single}/{verb}"), 404)

    async def test_failed_items_are_retried_by_error_and_by_number(self, client, jobs, working):
        batch = await jobs.enqueue_batch("only_even", [{"number": n} for n in range(10)], {})
        path = f"{JOBS}/{batch}/retry-failed"
        async with working():
            await settled(jobs, batch)
        for body, count in (
            ({"error_type": "KeyError"}, 0),
            ({"error_type": "ValueError", "limit": 2}, 2),
            ({"limit": 1}, 1),
            (None, 2),
        ):
            answer = await client.post(path, json=body) if body else await client.post(path)
            assert (answer.status_code, answer.json()) == (200, {"id": batch, "requeued": count})

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"limit": 0}, "limit"),
            ({"limit": 2**63}, "limit"),
            ({"error_type": 5}, "error_type"),
            ({"error": "x"}, "error"),
        ],
    )
    async def test_a_bad_choice_of_items_is_refused(self, client, check, jobs, body, field):
        batch = await jobs.enqueue_batch("add", [{"a": 1, "b": 0}], {})
        answer = await client.post(f"{JOBS}/{batch}/retry-failed", json=body)
        assert check.refused(answer) == [(field, None)]


class TestFilters:
    async def test_lists_know_keys_and_errors(self, client, jobs, working):
        bad = await failed_job(client, key="ada")
        good = await enqueued(client, sum_of(key="ada"))
        async with working():
            await settled(jobs, bad, good)
        assert await ids(client, key="ada") == [good, bad]
        assert await ids(client, error_type="ValueError") == [bad]
        assert await ids(client, key="ada", error_type="KeyError") == []

    async def test_all_that_are_found_stop(self, client):
        mine = [await enqueued(client, sum_of(key="ada", delay=60)) for _ in range(3)]
        other = await enqueued(client, sum_of(key="eve", delay=60))
        answer = await client.post(f"{JOBS}/stop", json={"key": "ada", "limit": 2})
        assert (answer.status_code, answer.json()) == (202, {"count": 2})
        answer = await client.post(f"{JOBS}/stop", json={"key": "ada", "state": ["pending"]})
        assert answer.json() == {"count": 1}
        assert await in_states(client, *mine, other) == ["cancelled"] * 3 + ["pending"]

    async def test_all_that_are_found_run_again(self, client, jobs, working):
        bad = [await failed_job(client, key="ada") for _ in range(3)]
        stopped = await enqueued(client, sum_of(key="ada", delay=60))
        await client.post(f"{JOBS}/{stopped}/stop")
        async with working():
            await settled(jobs, *bad)
        answer = await client.post(f"{JOBS}/retry", json={"error_type": "ValueError", "limit": 1})
        assert (answer.status_code, answer.json()) == (200, {"count": 1})
        # Those that were cancelled are left as they are, unless they are meant.
        assert (await client.post(f"{JOBS}/retry", json={"key": "ada"})).json() == {"count": 2}
        answer = await client.post(f"{JOBS}/retry", json={"state": ["cancelled"]})
        assert answer.json() == {"count": 1}
        assert await in_states(client, *bad, stopped) == ["pending"] * 4

    async def test_items_are_meant_by_their_batch(self, client, jobs, working):
        batch = await jobs.enqueue_batch("only_even", [{"number": n} for n in range(6)], {})
        async with working():
            await settled(jobs, batch)
        answer = await client.post(f"{JOBS}/retry", json={"kind": "only_even"})
        assert answer.json() == {"count": 0}
        answer = await client.post(f"{JOBS}/retry", json={"batch": batch})
        assert answer.json() == {"count": 3}

    async def test_all_that_are_found_and_finished_are_deleted(self, client, jobs, working):
        batch = await jobs.enqueue_batch("add", [{"a": n, "b": 0} for n in range(3)], {})
        done = [await enqueued(client, sum_of()) for _ in range(2)]
        async with working():
            await settled(jobs, batch, *done)
        waiting = await enqueued(client, sum_of(delay=60))
        answer = await client.post(f"{JOBS}/delete", json={"kind": "add", "state": ["failed"]})
        assert (answer.status_code, answer.json()) == (200, {"count": 0})
        answer = await client.post(f"{JOBS}/delete", json={"kind": "add"})
        assert answer.json() == {"count": 3}
        assert await ids(client) == [waiting]
        assert await ids(client, role="item") == []

    @pytest.mark.parametrize("verb", ["stop", "retry", "delete"])
    @pytest.mark.parametrize(
        ("body", "fields"),
        [
            ({}, ["body"]),
            ({"limit": 5}, ["body"]),
            ({"state": []}, ["body"]),
            ({"kind": "add", "limit": 0}, ["limit"]),
            ({"kind": "add", "limit": 2**63}, ["limit"]),
            ({"kind": 5}, ["kind"]),
            ({"kind": "add", "kinds": ["add"]}, ["kinds"]),
            ({"state": ["done"]}, ["state.0"]),
        ],
    )
    async def test_a_bad_choice_is_refused_and_nothing_done(
        self, client, check, verb, body, fields
    ):
        job_id = await enqueued(client, sum_of())
        errors = check.refused(await client.post(f"{JOBS}/{verb}", json=body))
        assert [field for field, _ in errors] == fields
        assert await in_states(client, job_id) == ["pending"]

    @pytest.mark.parametrize(
        ("verb", "state"), [("stop", "failed"), ("retry", "completed"), ("delete", "running")]
    )
    async def test_states_that_do_not_fit_are_refused(self, client, check, verb, state):
        answer = await client.post(f"{JOBS}/{verb}", json={"state": [state]})
        assert check.refused(answer) == [("state.0", None)]

    async def test_items_are_not_deleted(self, client, check):
        answer = await client.post(f"{JOBS}/delete", json={"batch": new_id()})
        assert ("batch", None) in check.refused(answer)

    async def test_the_words_of_operations_are_no_jobs(self, client, check):
        for word in ("stop", "retry", "delete"):
            check.problem(await client.get(f"{JOBS}/{word}"), 404)
            check.problem(await client.delete(f"{JOBS}/{word}"), 404)


class TestErrors:
    async def test_those_of_all_attempts_are_told(self, client, jobs, working):
        job_id = await enqueued(client, {"kind": "twice_wrong", "payload": {"number": 3}})
        async with working():
            await settled(jobs, job_id)
        [worker_id] = [row.id for row in await jobs.store.workers()]
        errors = (await client.get(f"{JOBS}/{job_id}/errors")).json()["errors"]
        assert [error["attempt"] for error in errors] == [2, 1]
        assert {error["message"] for error in errors} == {"3 is wrong"}
        assert {error["worker"] for error in errors} == {worker_id}
        assert all("raise ValueError" in error["traceback"] for error in errors)
        shown = (await client.get(f"{JOBS}/{job_id}")).json()
        assert shown["error"] == errors[0]

    async def test_a_job_without_errors_has_none(self, client):
        job_id = await enqueued(client, sum_of())
        assert (await client.get(f"{JOBS}/{job_id}/errors")).json() == {"errors": []}


class TestOnTheWay:
    async def test_steps_and_log_lines_are_told(self, client, jobs, working):
        job_id = await enqueued(client, {"kind": "by_steps", "payload": {}})
        async with working():
            await settled(jobs, job_id)
        steps = (await client.get(f"{JOBS}/{job_id}/steps")).json()["steps"]
        assert [(each["name"], each["result"], each["lease"]) for each in steps] == [
            ("list", {"found": [1, "ü"]}, 1),
            ("nothing", None, 1),
        ]
        lines = (await client.get(f"{JOBS}/{job_id}/lines")).json()["lines"]
        assert [(each["text"], each["lease"]) for each in lines] == [("one ☕", 1), ("two", 1)]
        job = (await client.get(f"{JOBS}/{job_id}")).json()
        began, ended = (datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at"))
        for each in [*steps, *lines]:
            assert began <= datetime.fromisoformat(each["at"]) <= ended

    async def test_a_job_that_has_left_none_has_none(self, client):
        job_id = await enqueued(client, sum_of())
        assert (await client.get(f"{JOBS}/{job_id}/steps")).json() == {"steps": []}
        assert (await client.get(f"{JOBS}/{job_id}/lines")).json() == {"lines": []}


class TestViews:
    async def test_a_result_that_is_kept_no_longer_is_told_as_that(self, client, jobs, working):
        job_id = await enqueued(client, sum_of())
        async with working():
            await settled(jobs, job_id)
        await jobs.store.prune({"add": Retention(result_ttl=0)})
        for path in (f"{JOBS}/{job_id}", f"{JOBS}/{job_id}/status"):
            shown = (await client.get(path)).json()
            assert (shown["result"], shown["result_expired"]) == (None, True)

    async def test_a_cancel_is_requested_and_then_heard(self, client, jobs):
        hand = await Hand.enlist(jobs.store, kinds=("add",))
        job_id = await enqueued(client, sum_of())
        job = await hand.claim_one()

        async def told():
            found = []
            for path in (f"{JOBS}/{job_id}", f"{JOBS}/{job_id}/status"):
                shown = (await client.get(path)).json()
                found.append((shown["cancel_requested"], shown["cancel_heard"]))
            return found

        assert await told() == [(False, False)] * 2
        await client.post(f"{JOBS}/{job_id}/stop")
        assert await told() == [(True, False)] * 2
        await jobs.store.note([Note(job.id, job.lease, heard=True)])
        assert await told() == [(True, True)] * 2


class TestEvents:
    async def test_pages_lead_on_and_repeat_nothing(self, client, jobs):
        made = await jobs.enqueue_many("add", [{"a": n, "b": 0} for n in range(25)], {})
        seen, params = [], {"limit": 10}
        for size in (10, 10, 5, 0):
            page = (await client.get("/api/v1/events", params=params)).json()
            assert len(page["events"]) == size
            seen += page["events"]
            params["after"] = page["next"]
        assert [event["job_id"] for event in seen] == made
        assert {event["type"] for event in seen} == {"insert"}
        assert [event["seq"] for event in seen] == list(range(1, 26))
        # An empty page leads on as well.
        later = await enqueued(client, sum_of())
        page = (await client.get("/api/v1/events", params={"after": page["next"]})).json()
        assert [event["job_id"] for event in page["events"]] == [later]

    async def test_a_store_without_events_leads_on_too(self, client):
        page = (await client.get("/api/v1/events")).json()
        assert page["events"] == []
        job_id = await enqueued(client, sum_of())
        page = (await client.get("/api/v1/events", params={"after": page["next"]})).json()
        assert [event["job_id"] for event in page["events"]] == [job_id]

    async def test_an_event_says_who_did_what(self, client, jobs):
        hand = await Hand.enlist(jobs.store, kinds=("add",))
        job_id = await enqueued(client, sum_of(queue="default"))
        job = await hand.claim_one()
        await hand.exchange(move(job, Move.FAIL))
        events = (await client.get("/api/v1/events")).json()["events"]
        assert [event["type"] for event in events] == ["insert", "claim", "fail"]
        last = events[-1]
        assert (last["job_id"], last["kind"], last["role"]) == (job_id, "add", "single")
        assert (last["attempt"], last["lease"], last["worker"]) == (1, 1, hand.id)
        assert (last["error_type"], last["at"][-1]) == ("Boom", "Z")
        assert (await jobs.store.get(job_id)).state is JobState.FAILED

    async def test_a_cursor_of_another_history_is_reset(self, client):
        await enqueued(client, sum_of())
        page = (await client.get("/api/v1/events", params={"after": "0000:7"})).json()
        assert [event["type"] for event in page["events"]] == ["reset"]
        page = (await client.get("/api/v1/events", params={"after": page["next"]})).json()
        assert [event["type"] for event in page["events"]] == ["insert"]

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("after=7", "after"),
            ("after=", "after"),
            ("after=x:y", "after"),
            (f"after=x:{'9' * 50}", "after"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("since=1", "since"),
        ],
    )
    async def test_a_bad_page_is_refused(self, client, check, query, field):
        assert check.refused(await client.get(f"/api/v1/events?{query}")) == [(field, None)]
