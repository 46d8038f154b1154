"""Webhooks on the command line, and told by servers that are killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from haulier.webhooks import verify
from processes import haulier, haulier_json, running, with_tasks
from receiver import receiving
from support import wait_until

OK, UNSUCCESSFUL, USAGE, NOT_FOUND = 0, 1, 2, 3
STORE = ("--store", "sqlite:///tasks.db")
LOCAL = ("--allow-host", "127.0.0.1")


@pytest.fixture
def folder(tmp_path):
    with_tasks(tmp_path)
    return tmp_path


def serving(folder):
    command = ("serve", "tasks:app", "--no-token", "--port", "0", *LOCAL)
    return running(folder, *command, HAULIER_TTL="1")


async def called(folder, *arguments):
    """Run a command while the receiver goes on."""
    return await asyncio.to_thread(haulier_json, folder, *arguments)


def test_its_whole_life(folder):
    done = haulier(folder, "webhook", "add", "https://example.com/x", *STORE, "--type", "batch.*")
    assert done.returncode == OK, done.stderr
    secret = done.stdout.strip()
    assert secret.startswith("whsec_")
    (webhook,) = haulier_json(folder, "webhook", "list", *STORE)["webhooks"]
    assert (webhook["url"], webhook["types"]) == ("https://example.com/x", ["batch.*"])
    shown = haulier(folder, "webhook", "list", *STORE).stdout
    assert "https://example.com/x" in shown
    assert secret not in shown + json.dumps(webhook)
    rotated = haulier(folder, "webhook", "rotate", webhook["id"], *STORE).stdout.strip()
    assert rotated.startswith("whsec_")
    assert rotated != secret
    job_id = haulier(folder, "webhook", "test", webhook["id"], *STORE).stdout.strip()
    assert haulier_json(folder, "jobs", "show", job_id, *STORE)["kind"] == "haulier.webhook"
    assert haulier(folder, "webhook", "enable", webhook["id"], *STORE).returncode == OK
    assert haulier(folder, "webhook", "remove", webhook["id"], *STORE).returncode == OK
    assert haulier_json(folder, "webhook", "list", *STORE) == {"webhooks": []}
    entries = haulier_json(folder, "audit", *STORE)["entries"]
    assert [(entry["action"], entry["target"]) for entry in entries] == [
        (f"webhook.{action}", {"id": webhook["id"]})
        for action in ("create", "rotate", "test", "enable", "delete")
    ]
    for command in ("remove", "test", "enable", "rotate"):
        done = haulier(folder, "webhook", command, webhook["id"], *STORE)
        assert done.returncode == NOT_FOUND
        assert webhook["id"] in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("http://127.0.0.1/",), "url"),
        (("https://u:k4nary@example.com/",), "url"),
        (("https://example.com/", "--type", "job.exploded"), "types"),
        (("https://example.com/", "--batch", "7"), "batch_id"),
    ],
)
def test_bad_input_is_refused(folder, arguments, said):
    done = haulier(folder, "webhook", "add", *arguments, *STORE)
    assert done.returncode == USAGE
    assert said in done.stderr
    assert "k4nary" not in done.stderr


async def test_servers_that_are_killed_lose_no_message(folder):
    """One dies while it sends; the next one goes on, and each job is told under one id."""
    async with receiving() as receiver:
        made = await called(folder, "webhook", "add", receiver.url, *STORE, *LOCAL)
        with serving(folder) as first:
            await wait_until(lambda: "haulier serves" in first.says())
            command = ("enqueue", "echo", "--app", "tasks:app", "--payload", '{"value": 1}')
            jobs = [(await called(folder, *command))["id"] for _ in range(4)]
            await wait_until(lambda: len(receiver.messages) >= 2, 20)
            receiver.pause = 0.05
            jobs += [(await called(folder, *command))["id"] for _ in range(6)]
            first.send(signal.SIGKILL)
            await first.ended()
        with serving(folder) as second:
            jobs.append((await called(folder, *command))["id"])
            await wait_until(lambda: set(jobs) <= told(receiver).keys(), 30)
            second.send(signal.SIGTERM)
            assert await second.ended() == 0
        for headers, body in receiver.messages:
            verify(made["secret"], headers, body)
    assert set(told(receiver)) == set(jobs)
    assert all(len(ids) == 1 for ids in told(receiver).values())


def told(receiver):
    """The ids under which each job was told of."""
    found: dict[str, set[str]] = {}
    for headers, body in list(receiver.messages):
        found.setdefault(json.loads(body)["data"]["id"], set()).add(headers["webhook-id"])
    return found
