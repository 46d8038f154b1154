"""Unique enqueue, filters, batches and events on the command line."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from haulier import App, RetryPolicy
from haulier.domain.line import Said
from haulier.domain.moves import Move
from haulier.domain.retention import Retention
from haulier.domain.step import Step
from haulier.domain.worker import Note
from processes import haulier, haulier_json, running, with_tasks
from support import Hand, wait_until

OK, USAGE, NOT_FOUND, CONFLICT, UNSUCCESSFUL = 0, 2, 3, 4, 8
NOBODY = "01990000-0000-7000-8000-000000000000"
STORE = ("--store", "sqlite:///jobs.db")


@pytest.fixture
async def app(tmp_path):
    """An app on the store that the commands look at."""
    app = App(f"sqlite:///{tmp_path}/jobs.db", secret_key_file=tmp_path / "secret.key")

    @app.task(retry=RetryPolicy.never())
    async def work(n: int) -> int:
        return n

    async with app:
        yield app


@pytest.fixture
async def hand(app):
    return await Hand.enlist(app.store, kinds=("work",))


@pytest.fixture
def run(tmp_path):
    """Run a command beside the event loop; a command with --json must succeed."""

    async def run(*arguments):
        call = haulier_json if "--json" in arguments else haulier
        given = [argument for argument in arguments if argument != "--json"]
        return await asyncio.to_thread(call, tmp_path, *given, *STORE)

    return run


@pytest.fixture
def events(tmp_path):
    """The types of the events that `haulier events --json` prints."""

    async def events(*arguments):
        command = ("events", "--json", *arguments, *STORE)
        done = await asyncio.to_thread(haulier, tmp_path, *command)
        assert done.returncode == OK, done.stderr
        return [json.loads(line)["type"] for line in done.stdout.splitlines()]

    return events


def enqueue(folder, *options, kind="echo", payload='{"value": 1}'):
    return haulier(folder, "enqueue", kind, "--payload", payload, "--app", "tasks:app", *options)


def numbers(count):
    return [{"n": n} for n in range(count)]


class TestEnqueue:
    def test_a_unique_job_is_there_once(self, tmp_path):
        with_tasks(tmp_path)
        first = enqueue(tmp_path, "--unique", "ada", "--priority", "high")
        assert enqueue(tmp_path, "--unique", "ada").stdout == first.stdout
        refused = enqueue(tmp_path, "--unique", "ada", "--on-conflict", "reject", "--json")
        assert refused.returncode == CONFLICT
        told = json.loads(refused.stderr)
        assert (told["error"], told["job_id"]) == ("conflict", first.stdout.strip())
        periods = [
            enqueue(tmp_path, "--unique-payload", "--unique-period", "60").stdout for _ in range(2)
        ]
        assert periods[0] == periods[1] != first.stdout
        shown = haulier_json(
            tmp_path, "jobs", "show", first.stdout.strip(), "--store", "sqlite:///tasks.db"
        )
        assert (shown["unique"], shown["priority"]) == (True, 10)

    def test_a_repeated_command_with_a_key_enqueues_once(self, tmp_path):
        with_tasks(tmp_path)
        first = enqueue(tmp_path, "--idempotency-key", "k")
        assert enqueue(tmp_path, "--idempotency-key", "k").stdout == first.stdout
        other = enqueue(tmp_path, "--idempotency-key", "k", "--priority", "-3")
        assert other.returncode == CONFLICT
        assert first.stdout.strip() in other.stderr

    def test_a_job_carries_what_it_was_given_along(self, tmp_path):
        with_tasks(tmp_path)
        done = enqueue(tmp_path, "--baggage", "request_id=r-1", "--baggage", "who=ann=bob")
        shown = haulier_json(
            tmp_path, "jobs", "show", done.stdout.strip(), "--store", "sqlite:///tasks.db"
        )
        assert shown["baggage"] == {"request_id": "r-1", "who": "ann=bob"}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--unique-scope", "pending"], "--unique-scope: goes with --unique"),
            (["--unique-period", "5"], "--unique-period: goes with --unique"),
            (["--on-conflict", "reject"], "--on-conflict: goes with --unique"),
            (["--unique", "x", "--unique-payload"], "is given beside --unique"),
            (["--unique", ""], "unique.by: "),
            (["--unique", "x", "--unique-scope", "period"], "unique.period: "),
            (["--unique", "x", "--unique-period", "-1"], "unique.period: "),
            (
                ["--unique", "x", "--unique-scope", "active", "--unique-period", "5"],
                "unique.period",
            ),
            (["--priority", "hurry"], "priority: must be low, normal, high, urgent"),
            (["--priority", "1.5"], "priority: "),
            (["--idempotency-key", ""], "idempotency_key: "),
            (["--concurrency", "2"], "concurrency: is for batches"),
            (["--max-failures", "0"], "max_failures: is for batches"),
            (["--baggage", "request"], "--baggage: 'request' is not NAME=VALUE"),
            (["--baggage", "level=5"], "baggage.level: is what log events have themselves"),
        ],
    )
    def test_bad_options_are_refused_by_name(self, tmp_path, options, said):
        with_tasks(tmp_path)
        done = enqueue(tmp_path, *options)
        assert done.returncode == USAGE
        assert said in done.stderr

    def test_a_bulk_kind_takes_limits(self, tmp_path):
        with_tasks(tmp_path)
        payload = '{"accounts": ["ann"], "sources": ["."], "output": "out"}'
        limits = ("--concurrency", "2", "--batch-size", "5", "--max-failures", "0")
        done = enqueue(tmp_path, *limits, kind="media_uniq", payload=payload)
        store = ("--store", "sqlite:///tasks.db")
        shown = haulier_json(tmp_path, "batches", "show", done.stdout.strip(), *store)
        assert (shown["concurrency"], shown["batch_size"], shown["max_failures"]) == (2, 5, 0)
        for name in ("--concurrency", "--batch-size"):
            bad = enqueue(tmp_path, name, "0", kind="media_uniq", payload=payload)
            assert bad.returncode == USAGE
            assert "must be an integer from 1" in bad.stderr


class TestViews:
    async def test_lists_tell_pending_and_running_apart(self, app, hand, run):
        stopping, retrying = await app.enqueue_many("work", numbers(2), key="ada")
        first, second = await hand.claim(2)
        await app.cancel(first.id)
        await hand.hand_in(second, Move.RETRY, delay=60)
        scheduled = await app.enqueue("work", {"n": 1}, delay=60)
        pending = await app.enqueue("work", {"n": 1})
        batch = await app.enqueue_batch("work", numbers(1))
        await app.batches.pause(batch)
        listed = (await run("jobs", "list", "--json"))["jobs"]
        assert {job["id"]: job["view"] for job in listed} == {
            stopping: "stopping", retrying: "retrying", scheduled: "scheduled",
            pending: "pending", batch: "running",
        }  # fmt: skip
        text = (await run("jobs", "list", "--batch", batch)).stdout
        assert text.splitlines()[1].split()[2] == "parked"
        found = (await run("jobs", "list", "--key", "ada", "--error", "Boom", "--json"))["jobs"]
        assert [job["id"] for job in found] == [retrying]

    async def test_a_cancel_is_told_as_requested_and_as_heard(self, app, hand, run):
        job_id = await app.enqueue("work", {"n": 1})
        job = await hand.claim_one()
        await app.cancel(job_id)
        assert "running, asked to stop, not heard" in (await run("jobs", "show", job_id)).stdout
        await app.store.note([Note(job.id, job.lease, heard=True)])
        shown = (await run("jobs", "show", job_id)).stdout
        assert "running, asked to stop, its worker has told it" in shown
        assert hand.id in shown

    async def test_errors_of_earlier_attempts_are_listed(self, app, hand, run):
        job_id = await app.enqueue("work", {"n": 1})
        for _ in range(2):
            await hand.hand_in(await hand.claim_one(), Move.RETRY, delay=0)
        await hand.work_off(Move.FAIL)
        shown = (await run("jobs", "show", job_id)).stdout
        head, _, earlier = shown.partition("Earlier attempts")
        assert head.count("Boom: it broke") == 1
        assert [line.split()[1:3] for line in earlier.splitlines()[2:]] == [
            ["2", hand.id],
            ["1", hand.id],
        ]
        with_all = (await run("jobs", "show", job_id, "--tracebacks")).stdout
        assert f"attempt 1, worker {hand.id}" in with_all
        document = await run("jobs", "show", job_id, "--json")
        assert [error["attempt"] for error in document["errors"]] == [3, 2, 1]
        assert document["errors"][0] == document["error"]

    async def test_show_has_what_a_job_has_finished_and_said(self, app, hand, run):
        job_id = await app.enqueue("work", {"n": 1})
        job = await hand.claim_one()
        await app.store.keep([Step(job.id, job.lease, "upload ü", b'{"id": 7}')])
        await app.store.keep([Step(job.id, job.lease, "zip", b'"' + b"x" * 200 + b'"')])
        said = (Said(1, "began ☕", ago=10), Said(2, "red \x1b[31m alert"))
        await app.store.note([Note(job.id, job.lease, lines=said)])
        shown = (await run("jobs", "show", job_id)).stdout
        assert 'upload ü  {"id": 7}\n' in shown
        assert "x…\n" in shown
        assert shown.index("Finished steps") < shown.index("Log\n") < shown.index("began ☕\n")
        assert "red \ufffd[31m alert\n" in shown
        document = await run("jobs", "show", job_id, "--json")
        assert [(each["name"], each["lease"]) for each in document["steps"]] == [
            ("upload ü", 1),
            ("zip", 1),
        ]
        assert document["steps"][0]["result"] == {"id": 7}
        assert [each["text"] for each in document["lines"]] == ["began ☕", "red \x1b[31m alert"]
        assert document["lines"][0]["at"] <= document["lines"][1]["at"]

    async def test_an_expired_result_is_no_missing_one(self, app, hand, run):
        job_id = await app.enqueue("work", {"n": 1})
        await hand.work_off()
        assert 'result       {"ok": true}' in (await run("jobs", "show", job_id)).stdout
        await app.store.prune({"work": Retention(result_ttl=0)})
        assert "result       expired" in (await run("jobs", "show", job_id)).stdout
        assert (await run("jobs", "show", job_id, "--json"))["result_expired"] is True


class TestFilters:
    async def test_jobs_are_cancelled_retried_and_deleted_by_what_they_are(self, app, hand, run):
        await app.enqueue_many("work", numbers(3), key="ada")
        await hand.work_off(Move.FAIL)
        await app.enqueue_many("work", numbers(2), key="eve", delay=60)
        assert await run("jobs", "retry", "--error", "Boom", "--limit", "1", "--json") == {
            "count": 1
        }
        done = await run("jobs", "retry", "--key", "ada", "--state", "failed")
        assert done.stdout == "2 jobs requeued\n"
        assert await run("jobs", "cancel", "--kind", "work", "--key", "eve", "--json") == {
            "count": 2
        }
        done = await run("jobs", "cancel", "--all")
        assert done.stdout == "3 jobs cancelled or asked to stop\n"
        assert await run("jobs", "delete", "--key", "ada", "--limit", "1", "--json") == {"count": 1}
        assert (await run("jobs", "delete", "--all")).stdout == "4 jobs deleted\n"
        assert (await run("jobs", "list", "--json"))["jobs"] == []

    async def test_items_are_meant_by_their_batch(self, app, hand, run):
        batch = await app.enqueue_batch("work", numbers(3))
        await hand.work_off(Move.FAIL)
        assert await run("jobs", "retry", "--batch", batch, "--limit", "2", "--json") == {
            "count": 2
        }

    async def test_jobs_are_deleted_by_id(self, app, hand, run):
        ids = await app.enqueue_many("work", numbers(3))
        await hand.claim_one()
        done = await run("jobs", "delete", ids[1], ids[0], ids[2])
        assert done.returncode == CONFLICT
        assert done.stdout == f"{ids[1]}  deleted\n{ids[2]}  deleted\n"
        assert "is running" in done.stderr
        assert (await run("jobs", "delete", NOBODY)).returncode == NOT_FOUND

    @pytest.mark.parametrize("command", ["cancel", "retry", "delete"])
    async def test_ids_and_filters_exclude_each_other(self, app, run, command):
        job_id = await app.enqueue("work", {"n": 1})
        for arguments, said in (
            ([], "--all"),
            (["--limit", "5"], "--all"),
            ([job_id, "--all"], "not both"),
            ([job_id, "--kind", "work"], "not both"),
            ([job_id, "--limit", "5"], "not both"),
            (["--all", "--limit", "0"], "--limit"),
            (["--all", "--limit", "9" * 30], "--limit"),
            (["--kind", "half \udcff"], "--kind"),
            (["--error", "half \udcff"], "--error"),
            (["--state", "done"], "--state"),
        ):
            done = await run("jobs", command, *arguments)
            assert (done.returncode, said in done.stderr) == (USAGE, True), (arguments, done.stderr)
        assert (await app.get(job_id)).state == "pending"

    async def test_a_job_whose_name_another_holds_is_not_retried(self, app, hand, run):
        job_id = await app.enqueue("work", {"n": 1}, unique="ada")
        await hand.work_off(Move.FAIL)
        await app.enqueue("work", {"n": 2}, unique="ada")
        done = await run("jobs", "retry", job_id)
        assert done.returncode == CONFLICT
        assert "another holds its unique name" in done.stderr


class TestBatches:
    async def test_a_batch_is_paused_and_resumed(self, app, run):
        batch = await app.enqueue_batch(
            "work", numbers(3), concurrency=2, batch_size=5, max_failures=0
        )
        assert (
            await run("batches", "pause", batch)
        ).stdout == f"{batch}  paused, 0 still running\n"
        line = (await run("batches", "list")).stdout.splitlines()[1]
        assert line.split()[2] == "paused"
        assert line.endswith("2 at once, 5 a claim, 0 may fail")
        shown = (await run("batches", "show", batch)).stdout
        assert "running, paused" in shown
        document = await run("batches", "resume", batch, "--json")
        assert (document["paused"], document["concurrency"]) == (False, 2)
        for verb in ("pause", "resume"):
            assert (await run("batches", verb, NOBODY)).returncode == NOT_FOUND
        await app.cancel(batch)
        assert (await run("batches", "pause", batch)).returncode == CONFLICT

    async def test_failed_items_are_retried_by_error_and_by_number(self, app, hand, run):
        batch = await app.enqueue_batch("work", numbers(5))
        await hand.work_off(Move.FAIL)
        retry = ("batches", "retry-failed", batch)
        assert (await run(*retry, "--error", "Bang", "--json"))["requeued"] == 0
        assert (await run(*retry, "--error", "Boom", "--limit", "2", "--json"))["requeued"] == 2
        assert (await run(*retry, "--limit", "1")).stdout == f"{batch}  1 item requeued\n"


class TestEvents:
    async def test_one_line_an_event_up_to_the_latest(self, app, hand, run, events):
        job_id = await app.enqueue("work", {"n": 1})
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        done = await run("events")
        assert [line.split()[1:3] for line in done.stdout.splitlines()] == [
            ["insert", job_id],
            ["claim", job_id],
            ["fail", job_id],
        ]
        assert done.stdout.endswith("Boom\n")
        cursor = done.stderr.split()[-1]
        assert (await run("events", "--after", cursor)).stdout == ""
        await app.cancel(await app.enqueue("work", {"n": 2}))
        assert await events("--after", cursor) == ["insert", "drop"]
        assert await events("--after", "now") == []
        everything = ["insert", "claim", "fail", "insert", "drop"]
        assert await events() == everything
        assert await events("--after", "x:1") == ["reset", *everything]
        assert (await run("events", "--after", "7")).returncode == USAGE

    async def test_following_goes_on_until_it_is_interrupted(self, app, tmp_path):
        await app.enqueue("work", {"n": 1})
        with running(tmp_path, "events", "--follow", *STORE, PYTHONUNBUFFERED="1") as follower:
            await wait_until(lambda: follower.says().count("insert") == 1, 30)
            await app.enqueue("work", {"n": 2})
            await wait_until(lambda: follower.says().count("insert") == 2, 30)
            follower.send(signal.SIGINT)
            assert await follower.ended() == OK
        assert "Traceback" not in follower.says()
        assert f"haulier events --after {await app.last_event()}" in follower.says()


class TestFlows:
    """Jobs that wait for others, on the command line."""

    @pytest.fixture(autouse=True)
    def user_app(self, tmp_path):
        with_tasks(tmp_path)

    async def test_a_job_waits_and_shows_for_what(self, app, hand, run):
        first = await app.enqueue("work", {"n": 1})
        second = await app.enqueue("work", {"n": 2}, after=first)
        third = await app.enqueue("work", {"n": 3}, after=[first, second])
        listed = (await run("jobs", "list", "--json"))["jobs"]
        assert [job["view"] for job in listed] == ["waiting", "waiting", "pending"]
        shown = await run("jobs", "show", third, "--json")
        assert [(each["id"], each["state"], each["ended"]) for each in shown["parents"]] == [
            (first, "pending", False),
            (second, "pending", False),
        ]
        shown = await run("jobs", "show", first, "--json")
        assert [each["id"] for each in shown["children"]] == [second, third]
        told = (await run("jobs", "show", second)).stdout
        assert "After" in told
        assert first in told
        assert "Before" in told
        assert third in told

    async def test_enqueue_after(self, app, run):
        first = await app.enqueue("work", {"n": 1})
        made = await run(
            *("enqueue", "nap", "--app", "tasks:app", "--payload", '{"seconds":0}'),
            *("--after", f"{first}:run", "--json"),
        )
        (parent,) = await app.parents(made["id"])
        assert (parent.job_id, parent.otherwise) == (first, "run")

    @pytest.mark.parametrize("given", ["nonsense", f"{NOBODY}:perhaps", NOBODY])
    async def test_what_cannot_be_waited_for_is_refused(self, run, given):
        refused = await run(
            *("enqueue", "nap", "--app", "tasks:app", "--payload", '{"seconds":0}'),
            *("--after", given),
        )
        assert refused.returncode == USAGE
        assert "after" in refused.stderr
