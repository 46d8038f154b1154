"""Every method of both clients, against a real server."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest
from fastapi.routing import APIRoute

from haulier.client import AsyncClient, Client
from haulier.domain.job import JobState
from haulier.exceptions import (
    JobNotFoundError,
    LimitNotFoundError,
    ScheduleNotFoundError,
    WebhookNotFoundError,
)
from haulier.services.ids import new_id
from haulier.web.routes import ROUTERS
from support import wait_until

PROXIES = {
    "proxies": ["http://93.184.215.14:9", "http://93.184.215.14:8"],
    "tries": 1,
    "timeout": 0.2,
}


async def test_a_job_from_its_enqueue_to_its_end(client, working):
    started = await client.enqueue("add", {"a": 1, "b": 2}, priority="high", key="ada")
    assert started.status_url.endswith(f"/jobs/{started.id}/status")
    assert (await client.status(started.id)).status is JobState.PENDING
    async with working():
        done = await client.wait(started.id, timeout=10)
    assert (done.status, done.result, done.progress) == (JobState.COMPLETED, 3, 100)
    job = await client.job(started.id)
    assert (job.payload, job.result, job.key) == ({"a": 1, "b": 2}, 3, "ada")
    assert job.created_at.tzinfo is not None
    assert job.created_at <= job.started_at <= job.finished_at


async def test_jobs_are_listed_with_all_there_is_to_know(client, working):
    made = await client.enqueue("fail", {"reason": "no luck"})
    async with working():
        await client.wait(made.id)
    (job,) = await client.job_records(state=["failed"])
    assert (job.id, job.lease, job.error.attempt) == (made.id, 1, 1)
    assert "no luck" in job.error.traceback


async def test_what_a_job_has_done_on_its_way(client, working):
    made = await client.enqueue("by_steps")
    failed = await client.enqueue("fail", {"reason": "no luck"})
    async with working():
        await client.wait(made.id)
        ended = await client.wait(failed.id)
    assert [step.result for step in await client.steps(made.id)] == [{"found": 3}]
    assert [line.text for line in await client.lines(made.id)] == ["one ☕"]
    assert (ended.status, ended.error.message) == (JobState.FAILED, "no luck")
    (error,) = await client.errors(failed.id)
    assert error.type == "ValueError"
    assert "no luck" in error.traceback


async def test_jobs_are_listed_stopped_retried_and_deleted(client):
    made = [(await client.enqueue("add", {"a": n, "b": 0})).id for n in range(5)]
    listed = await client.jobs(page=2)
    assert [job.id for job in listed] == made[::-1]
    assert [job.id for job in await client.jobs(page=2, first=3)] == made[:1:-1]
    assert await client.jobs(state=["failed", "completed"]) == []
    assert (await client.stop(made[0])).state is JobState.CANCELLED
    assert (await client.retry(made[0])).state is JobState.PENDING
    await client.stop(made[1])
    assert await client.delete(made[1]) is None
    with pytest.raises(JobNotFoundError):
        await client.job(made[1])


async def test_operations_by_filter_are_counted_first(client):
    for number in range(3):
        await client.enqueue("add", {"a": number, "b": 0})
    assert (await client.stop_jobs(kind="add", dry_run=True)).count == 3
    assert (await client.stop_jobs(kind="add", limit=2)).count == 2
    assert (await client.retry_jobs(kind="add", state=["cancelled"], limit=1)).count == 1
    assert (await client.delete_jobs(kind="add", state=["cancelled"])).count == 1
    assert len(await client.jobs(kind="add")) == 2


async def test_many_at_once_and_line_by_line(client):
    first = new_id()
    together = await client.enqueue_many(
        [
            {"kind": "add", "payload": {"a": 1, "b": 1}, "id": first},
            {"kind": "add", "payload": {"a": 2, "b": 1}, "after": [first]},
        ]
    )
    assert together.ids[0] == first
    assert [parent.id for parent in await client.parents(together.ids[1])] == [first]
    assert [child.id for child in await client.children(first)] == [together.ids[1]]

    lines = [{"kind": "add", "payload": {"a": n, "b": 0}} for n in range(250)]
    taken = await client.stream_jobs(iter(lines))
    assert (taken.taken, taken.new) == (250, 250)
    taken = await client.stream_jobs([*lines[:2], {"kind": "nonsense"}], on_bad="skip")
    assert (taken.taken, taken.skipped, taken.errors[0].line) == (2, 1, 3)


async def test_the_async_client_sends_what_an_async_iterator_makes(server):
    async def lines():
        for number in range(3):
            yield {"kind": "add", "payload": {"a": number, "b": 0}}

    async with AsyncClient(server.url) as client:
        assert (await client.stream_jobs(lines())).taken == 3


async def test_a_batch_from_its_opening_to_its_export(client, working):
    opened = await client.open_batch("add", concurrency=2)
    taken = await client.add_items(opened.id, [{"a": n, "b": 1} for n in range(7)])
    assert taken.taken == 7
    assert (await client.batch(opened.id)).open
    assert (await client.pause(opened.id)).paused
    assert not (await client.resume(opened.id)).paused
    altered = await client.alter(opened.id, concurrency=None, max_failures=3)
    assert (altered.limits.concurrency, altered.limits.max_failures) == (None, 3)
    assert (await client.seal(opened.id)).sealed
    async with working():
        done = await client.wait(opened.id, timeout=10)
    assert done.counts.completed == 7
    items = await client.items(opened.id, page=3)
    assert [item.result for item in items] == [1, 2, 3, 4, 5, 6, 7]
    assert await client.items(opened.id, state=["failed"]) == []
    assert [batch.id for batch in await client.batches(page=1)] == [opened.id]
    assert (await client.retry_failed(opened.id)).requeued == 0
    rows = [json.loads(line) for line in await client.export(opened.id)]
    assert [row["result"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    rest = await client.export(opened.id, form="csv", cursor=rows[4]["cursor"])
    assert len(rest) == 2


async def test_a_batch_is_cancelled(client):
    opened = await client.open_batch("add")
    await client.add_items(opened.id, [{"a": 1, "b": 1}])
    assert (await client.cancel_batch(opened.id)).state is JobState.CANCELLED
    with pytest.raises(JobNotFoundError):
        await client.export(str(uuid4()))


@pytest.mark.parametrize("name", ["proxy_diagnostics", "proxy-diagnostics"])
async def test_a_bulk_kind_is_started(client, name):
    started = await client.start(name, given=PROXIES, options={"concurrency": 1})
    status = await client.status(started.id)
    assert (status.kind, status.status) == ("proxy_diagnostics", JobState.PENDING)


async def test_queues_and_workers(client, working):
    await client.enqueue("add", {"a": 1, "b": 2}, queue="bulk")
    assert (await client.pause_queue("bulk")).paused
    assert (await client.queues()).paused == ("bulk",)
    assert not (await client.resume_queue("bulk")).paused
    assert (await client.weigh_queue("bulk", 5)).weight == 5
    assert (await client.weigh_queue("bulk", None)).weight is None
    assert [(line.queue, line.pending) for line in (await client.queues()).queues] == [("bulk", 1)]
    assert await client.workers() == ()
    async with working():
        await client.wait((await client.enqueue("add", {"a": 1, "b": 2})).id)
        (worker,) = await client.workers()
    assert worker.alive


async def test_limits_and_breakers(client):
    assert (await client.set_limit("fetch/rate", rate="30/m", kind="fetch", per_key=True)).changed
    await client.set_limit("fetch/breaker", breaker={"failures": 0.5}, per_key=True)
    breaker, rate = await client.limits()
    assert (rate.name, rate.rate.count, rate.rate.per) == ("fetch/rate", 30, 60)
    assert breaker.breaker.failures == 0.5
    assert await client.limit_keys("fetch/rate") == []
    assert not (await client.reset_breaker("fetch/breaker", "ada")).reset
    assert await client.delete_limit("fetch/rate") is None
    with pytest.raises(LimitNotFoundError, match="fetch/rate"):
        await client.delete_limit("fetch/rate")


async def test_schedules(client):
    made = await client.set_schedule("nightly", "add", cron="0 3 * * *", payload={"a": 1, "b": 1})
    assert (made.cron, made.zone, made.next.hour) == ("0 3 * * *", "UTC", 3)
    assert (await client.pause_schedule("nightly")).paused
    assert not (await client.resume_schedule("nightly")).paused
    assert (await client.schedule("nightly")).revision == made.revision + 2
    started = await client.run_schedule("nightly")
    assert (await client.job(started.id)).schedule == "nightly"
    assert [tick.job for tick in await client.ticks("nightly")] == [started.id]
    assert [each.name for each in await client.schedules(page=1)] == ["nightly"]
    await client.delete_schedule("nightly")
    with pytest.raises(ScheduleNotFoundError, match="nightly"):
        await client.schedule("nightly")


async def test_the_configuration(client):
    now = await client.configuration()
    changed = await client.configure({"log.level": "debug"}, expected=now.version)
    assert changed.settings["log.level"].value == "debug"
    await client.configure(unset=["log.level"])
    assert [each.before for each in await client.alterations(limit=1)] == ["debug"]


async def test_events_of_the_past_end_where_now_is(client):
    made = [(await client.enqueue("add", {"a": n, "b": 0})).id for n in range(3)]
    events = await client.history(page=2)
    assert [(event.type, event.job_id) for event in events] == [("insert", each) for each in made]
    assert await client.history(after=events[-1].cursor) == []


async def test_how_the_service_is(client):
    await client.enqueue("add", {"a": 1, "b": 2})
    health = await client.health()
    assert (health.status, health.version, health.jobs[JobState.PENDING]) == ("degraded", "9.9", 1)
    assert (await client.metrics()).jobs_by_type == {"add": 1}
    assert "# HELP haulier" in await client.prometheus()


async def test_events_are_shown_as_they_happen(client, server):
    reading = asyncio.create_task(client.events(first=3, types=["insert"]))
    await wait_until(lambda: server.api.state.live.viewers)
    for number in range(2):
        await client.enqueue("add", {"a": number, "b": 2})
    snapshot, *events = await reading
    assert (snapshot.type, snapshot.data["reason"]) == ("snapshot", "start")
    assert [event.type for event in events] == ["insert"] * 2
    # From there on it is the same as in the pages.
    (following,) = await client.events(after=events[0].cursor, first=1)
    assert following.data["cursor"] == events[1].cursor


async def test_webhooks(client):
    made = await client.add_webhook(url="https://93.184.215.14/hook", types=["job.failed"])
    assert made.secret not in repr(made)
    assert [each.id for each in await client.webhooks()] == [made.id]
    assert not (await client.change_webhook(made.id, enabled=False)).enabled
    assert (await client.webhook(made.id)).disabled
    assert (await client.rotate_secret(made.id)).secret != made.secret
    assert (await client.try_webhook(made.id)).id
    assert [each.type for each in await client.deliveries(made.id)] == ["webhook.test"]
    await client.delete_webhook(made.id)
    with pytest.raises(WebhookNotFoundError, match=made.id):
        await client.webhook(made.id)


async def test_a_method_shows_what_it_takes_and_does():
    for client in (Client, AsyncClient):
        assert client.enqueue.__doc__.startswith("Enqueue a job of any registered kind.")
        assert client.enqueue.__name__ == "enqueue"


def test_both_clients_have_the_same_methods():
    names = [{name for name in vars(each) if name[0] != "_"} for each in (Client, AsyncClient)]
    assert names[0] == names[1]


LEFT_OUT = {
    "POST /api/v1/session": "browsers sign in, by a link",
    "DELETE /api/v1/session": "browsers sign out",
    "GET /api/v1/jobs/{job_id}/items": "the same as that of batches",
    "POST /api/v1/batches/{job_id}/pause": "the same as that of jobs",
    "POST /api/v1/batches/{job_id}/resume": "the same as that of jobs",
    "POST /api/v1/batches/{job_id}/retry-failed": "the same as that of jobs",
    "POST /api/accounts/generate": "for front ends of before",
    "POST /api/workflow/autoResolveIssue": "for front ends of before",
    "POST /api/workflow/commentOnIssue": "for front ends of before",
    "POST /api/workflow/resolveIssue": "for front ends of before",
    "GET /api/jobs/{job_id}": "for front ends of before",
    "POST /api/jobs/{job_id}/cancel": "for front ends of before",
}


def _calls():
    """A call of each method, as (method, path)."""
    from haulier.client import access, jobs, operating, webhooks
    from haulier.client.call import Call, Listing

    given = {"kind": "warmup", "jobs": [{}], "role": "viewer", "weight": 1, "name": "n", "key": "k"}
    for module in (access, jobs, operating, webhooks):
        for name, function in vars(module).items():
            if getattr(function, "__module__", "") != module.__name__ or isinstance(function, type):
                continue
            if name[0] == "_" or name in ("stream", "jobs_stream", "items_stream"):
                continue
            if name == "start":
                for kind in jobs.STARTS:
                    yield name, function(kind)
                continue
            needed = [
                each
                for each in function.__code__.co_varnames[: function.__code__.co_argcount]
                if len(function.__defaults__ or ())
                < function.__code__.co_argcount - function.__code__.co_varnames.index(each)
            ]
            made = function(*(given.get(each, "x") for each in needed))
            assert isinstance(made, Call | Listing), name
            yield name, made.first if isinstance(made, Listing) else made
    yield "stream_jobs", jobs.stream(jobs.jobs_stream(), on_bad="stop", key=None, again=True)
    yield "add_items", jobs.stream(jobs.items_stream("x"), on_bad="stop", key=None, again=True)


def test_every_route_has_a_method(server):
    document = server.api.openapi()
    routes = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    real = [each for router in ROUTERS for each in router.routes if isinstance(each, APIRoute)]
    calls = list(_calls())
    covered = set()
    for _, call in calls:
        hits = {
            (call.method, each.path_format)
            for each in real
            if call.method in each.methods and each.path_regex.match(call.path)
        }
        assert hits, call.path
        covered |= hits
    missing = {f"{method} {path}" for method, path in routes - covered}
    assert missing == LEFT_OUT.keys()
    methods = {name for name in vars(Client) if name[0] != "_"}
    own = {"live": "events"}
    assert {own.get(name, name) for name, _ in calls} <= methods


def test_every_answer_has_the_fields_that_the_server_tells(server):
    """So that a field which is added on one side is not forgotten on the other."""
    schemas = server.api.openapi()["components"]["schemas"]
    from haulier.client import access, answers, webhooks

    names = {
        "FailureDetail": "ErrorDetail",
        "Failure": "ErrorView",
        "Item": "ItemView",
        "Job": "JobDetail",
        "Counts": "CountsView",
        "BatchLimits": "LimitsView",
        "Step": "StepView",
        "Line": "LineView",
        "LineError": "FieldError",
        "Parent": "ParentView",
        "Batch": "BatchView",
        "Event": "EventView",
        "QueueLine": "QueueLineView",
        "Queues": "QueueList",
        "Worker": "WorkerView",
        "Rate": "RateBody",
        "Breaker": "BreakerBody",
        "Limit": "LimitView",
        "LimitKey": "KeyView",
        "Schedule": "ScheduleView",
        "Tick": "TickView",
        "Setting": "SettingView",
        "Configuration": "ConfigurationView",
        "Alteration": "AlterationView",
        "Token": "TokenView",
        "Session": "SessionView",
        "Entry": "AuditEntry",
        "Webhook": "WebhookView",
        "Delivery": "DeliveryView",
    }
    made = {
        name: kind
        for module in (access, answers, webhooks)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, answers.Answer)
    }
    for ours in ("Answer", "Message", "Page"):
        del made[ours]
    for name, kind in made.items():
        schema = schemas[names.get(name, name)]
        assert kind.model_fields.keys() == schema["properties"].keys(), name
