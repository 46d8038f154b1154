"""Commands with --server tell the same as with the store behind it, and do the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket

import pytest

from haulier import App, RetryPolicy
from haulier.cli.echo import http_server
from haulier.cli.remote import ClientDesk
from haulier.client import AsyncClient
from haulier.domain.line import Said
from haulier.domain.moves import Move
from haulier.domain.schedule import Interval
from haulier.domain.worker import Note
from haulier.web.app import WebOptions, create_app
from processes import haulier
from support import Hand, wait_until

OK, USAGE, NOT_FOUND, CONFLICT, AUTH, UNREACHABLE, TIMEOUT = 0, 2, 3, 4, 5, 6, 7
NOBODY = "01990000-0000-7000-8000-000000000000"
STORE = ("--store", "sqlite:///jobs.db")


MOVING = r'"(rate|eta)": [^,]*|[0-9.]+ (items/)?s|ago'


@pytest.fixture
async def app(tmp_path):
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
async def server(app, tmp_path):
    """The address of a server of the app."""
    options = WebOptions(media_root=tmp_path, output_root=tmp_path, version="9.9", no_token=True)
    api = create_app(jobs=app.jobs, options=options)
    server = http_server(api, ending=api.state.live.close)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            await wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True


@pytest.fixture
def run(tmp_path, server):
    """Run a command on the server."""

    async def run(*arguments, place=("--server", server), **options):
        return await asyncio.to_thread(haulier, tmp_path, *arguments, *place, **options)

    return run


@pytest.fixture
def same(run):
    """What a command prints, the same with the server and with its store."""

    async def same(*arguments):
        by_server = await run(*arguments)
        by_store = await run(*arguments, place=STORE)
        assert by_server.returncode == by_store.returncode, by_server.stderr
        # How fast a batch is changes while one looks.
        texts = [re.sub(MOVING, "…", each.stdout) for each in (by_server, by_store)]
        assert texts[0] == texts[1]
        told = [text.replace(NOBODY, "…") for text in (by_server.stderr, by_store.stderr)]
        assert told[0] == told[1]
        return by_server.stdout

    return same


async def _some_jobs(app, hand):
    """One that failed and had said something, one that waits for it, one that is due later."""
    failing = await app.enqueue("work", {"n": 1}, key="ada", unique="one")
    (job,) = await hand.claim()
    line = Said(1, "under way ☕")
    await app.store.note([Note(failing, job.lease, 40, "so far", lines=(line,))])
    await hand.hand_in(job, Move.FAIL)
    waiting = await app.enqueue("work", {"n": 2}, after=failing)
    later = await app.enqueue("work", {"n": 3}, delay=3600, priority="high")
    return failing, waiting, later


async def test_lists_and_single_jobs(app, hand, same):
    ids = await _some_jobs(app, hand)
    listed = json.loads(await same("jobs", "list", "--json"))
    assert {job["id"] for job in listed["jobs"]} == set(ids)
    first = json.loads(await same("jobs", "list", "--limit", "1", "--json"))
    assert first["next"]
    await same("jobs", "list", "--limit", "1", "--cursor", str(first["next"]), "--json")
    await same("jobs", "list")
    await same("jobs", "list", "--state", "failed", "--kind", "work", "--key", "ada")
    for job_id in ids:
        await same("jobs", "show", job_id)
        await same("jobs", "show", job_id, "--json")
        await same("jobs", "show", job_id, "--tracebacks")
    await same("jobs", "show", NOBODY)


async def test_the_job_of_a_schedule_tells_where_it_comes_from(app, same):
    await app.schedules.set("nightly", "work", Interval(3600), {"n": 1})
    job_id = await app.schedules.run("nightly")
    assert json.loads(await same("jobs", "show", job_id, "--json"))["schedule"] == "nightly"


async def test_a_page_of_more_than_the_server_gives_at_once(app, run):
    await app.enqueue_many("work", [{"n": n} for n in range(510)])
    told = json.loads((await run("jobs", "list", "--limit", "505", "--json")).stdout)
    assert len(told["jobs"]) == 505
    rest = await run("jobs", "list", "--limit", "9", "--cursor", str(told["next"]), "--json")
    assert len(json.loads(rest.stdout)["jobs"]) == 5


async def test_enqueue_watch_cancel_retry_and_delete(app, hand, run):
    payload = ("--payload", '{"n": 1}', "--priority", "high", "--idempotency-key", "k")
    made = json.loads((await run("enqueue", "work", *payload, "--json")).stdout)["id"]
    assert json.loads((await run("enqueue", "work", *payload, "--json")).stdout)["id"] == made
    options = ("--after", f"{made}:run", "--unique", "one", "--on-conflict", "reject")
    enqueued = await run("enqueue", "work", *payload[:2], *options)
    assert enqueued.returncode == OK, enqueued.stderr
    second = enqueued.stdout.strip()
    assert [parent.job_id for parent in await app.store.parents(second)] == [made]
    refused = await run("enqueue", "work", *payload[:2], *options)
    assert refused.returncode == CONFLICT
    assert second in refused.stderr
    assert (await run("jobs", "watch", made, "--timeout", "0.1")).returncode == TIMEOUT
    assert (await run("jobs", "cancel", made, NOBODY)).returncode == NOT_FOUND
    assert (await app.store.get(made)).state == "cancelled"
    assert (await run("jobs", "watch", made)).returncode == 8
    assert "pending" in (await run("jobs", "retry", made)).stdout
    (job,) = await hand.claim()
    await hand.hand_in(job, Move.COMPLETE)
    assert (await run("jobs", "retry", made)).returncode == CONFLICT
    assert (await run("jobs", "delete", made)).returncode == OK
    assert (await run("jobs", "show", made)).returncode == NOT_FOUND


async def test_operations_on_all_that_a_filter_finds(app, run):
    await app.enqueue_many("work", [{"n": n} for n in range(4)])

    async def count(*arguments):
        return json.loads((await run("jobs", *arguments, "--json")).stdout)["count"]

    assert await count("cancel", "--kind", "work", "--limit", "1") == 1
    assert await count("cancel", "--all") == 3
    assert await count("retry", "--all") == 0
    assert await count("retry", "--state", "cancelled", "--limit", "1") == 1
    assert await count("delete", "--all") == 3


async def test_batches(app, hand, run, same):
    async with app.open_batch("work", concurrency=3, keep_open=True) as batch:
        await batch.add({"n": n} for n in range(5))
        for job in await hand.claim(2):
            await hand.hand_in(job, Move.FAIL)
        await same("batches", "list", "--json")
        assert "open" in await same("batches", "list", "--open")
        await same("batches", "show", NOBODY)
        assert (await run("batches", "limit", batch.id, "--concurrency", "none")).returncode == OK
        assert "paused" in (await run("batches", "pause", batch.id)).stdout
        assert "paused" in await same("batches", "list")
        assert (await run("batches", "resume", batch.id)).returncode == OK
        assert "sealed with 5 items" in (await run("batches", "seal", batch.id)).stdout
    assert "2 items requeued" in (await run("batches", "retry-failed", batch.id)).stdout
    for form in ("csv", "jsonl"):
        await same("batches", "export", batch.id, "--format", form)
    await same("batches", "export", batch.id, "--state", "failed")
    await same("batches", "export", NOBODY)
    assert "5 cancelled" in (await run("batches", "cancel", batch.id)).stdout


async def test_queues_and_the_configuration(app, hand, run, same):
    await app.enqueue("work", {"n": 1}, queue="bulk")
    await same("queues")
    await same("queues", "--json")
    assert (await run("queues", "pause", "bulk")).returncode == OK
    assert (await app.store.configurable().configuration()).paused == {"bulk"}
    await same("queues")
    await run("queues", "weight", "bulk", "5")
    await run("queues", "resume", "bulk")
    await run("config", "set", "log.level=debug")
    await same("config", "list")
    await same("config", "list", "--json")
    await same("config", "history", "--json")
    refused = await run("config", "set", "log.level=nonsense")
    assert (refused.returncode, "log.level" in refused.stderr) == (USAGE, True)


async def test_limits(app, run, same):
    assert (
        await run("limits", "set", "fetch/rate", "--rate", "30/m", "--per-key")
    ).returncode == OK
    breaker = ("--breaker", "--failures", "0.5", "--per-key")
    assert (await run("limits", "set", "hosts", *breaker)).returncode == OK
    slots = ("limits", "set", "slots", "--concurrency", "3", "--json", "--queue", "bulk")
    assert json.loads((await run(*slots)).stdout)["changed"]
    assert not json.loads(await same(*slots))["changed"]
    assert len(json.loads(await same("limits", "list", "--json"))["limits"]) == 3
    await same("limits", "list")
    await same("limits", "keys", "fetch/rate", "--json")
    await same("limits", "reset", "hosts", "ada", "--json")
    assert (await run("limits", "delete", "slots")).returncode == OK
    await same("limits", "delete", "slots")


async def test_events(app, hand, run, same):
    ids = await _some_jobs(app, hand)
    told = (await same("events", "--json")).splitlines()
    assert {json.loads(line)["job_id"] for line in told} == set(ids)
    await same("events", "--after", json.loads(told[1])["cursor"])
    assert (await same("events", "--after", "now")) == ""


async def test_events_are_followed(app, hand, server):
    await _some_jobs(app, hand)
    async with AsyncClient(server) as client:
        desk, seen = ClientDesk(client), []
        async with contextlib.aclosing(desk.follow(None)) as events:
            async for event in events:
                if not seen:
                    await app.enqueue("work", {"n": 4})
                seen.append(event)
                if len(seen) == 6:
                    break
    stored = await app.store.events()
    assert seen == list(stored)[:6]


async def test_what_goes_wrong_has_the_same_exit_codes(app, run, server):
    both = await run("jobs", "list", *STORE)
    assert (both.returncode, "not both" in both.stderr) == (USAGE, True)
    carried = await run("enqueue", "work", "--baggage", "a=b")
    assert (carried.returncode, "--baggage" in carried.stderr) == (USAGE, True)
    named = await run("config", "set", "log.level=debug", "--by", "me")
    assert (named.returncode, "--by" in named.stderr) == (USAGE, True)
    bad = await run("jobs", "list", HAULIER_TOKEN="secret-of-mine")
    assert (bad.returncode, "secret-of-mine" in bad.stderr) == (AUTH, False)
    by_environment = await run("jobs", "list", place=(), HAULIER_SERVER=server)
    assert by_environment.returncode == OK
    at_the_store = await run("jobs", "list", place=STORE, HAULIER_SERVER="http://127.0.0.1:9")
    assert at_the_store.returncode == OK


async def test_a_server_that_is_not_there(app, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    gone = await asyncio.to_thread(haulier, tmp_path, "queues", "--server", url)
    assert (gone.returncode, url in gone.stderr) == (UNREACHABLE, True)
