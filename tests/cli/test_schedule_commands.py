"""Schedules on the command line."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from processes import haulier, haulier_json, running, with_tasks
from support import wait_until

OK, USAGE, NOT_FOUND, CONFLICT = 0, 2, 3, 4
STORE = ("--store", "sqlite:///tasks.db")


@pytest.fixture
def folder(tmp_path):
    with_tasks(tmp_path)
    return tmp_path


def set_echo(folder, *options, name="each"):
    command = ("schedules", "set", name, "echo", "--payload", '{"value": 1}', "--app", "tasks:app")
    return haulier(folder, *command, *options)


def shown(folder, name="each"):
    return haulier_json(folder, "schedules", "show", name, *STORE)


def test_its_whole_life(folder):
    made = set_echo(
        *(folder, "--cron", "0 3 * * mon", "--zone", "Europe/Berlin", "--missed", "all:3"),
        *("--overlap", "skip", "--priority", "high", "--json"),
    )
    assert made.returncode == OK, made.stderr
    told = json.loads(made.stdout)
    assert (told["cron"], told["zone"]) == ("0 3 * * mon", "Europe/Berlin")
    assert (told["missed"], told["overlap"], told["priority"]) == ("all:3", "skip", 10)
    assert (told["payload"], told["paused"], told["declared"]) == ({"value": 1}, False, False)
    assert "@" in told["changed_by"]
    listed = haulier(folder, "schedules", "list", *STORE).stdout
    assert "0 3 * * mon (Europe/Berlin)" in listed
    assert haulier(folder, "schedules", "pause", "each", *STORE).stdout.endswith("paused\n")
    assert shown(folder)["next"] is None
    assert "paused" in haulier(folder, "schedules", "list", *STORE).stdout
    job = haulier_json(folder, "schedules", "run", "each", *STORE)["id"]
    told_of_job = haulier_json(folder, "jobs", "show", job, *STORE)
    assert (told_of_job["priority"], told_of_job["schedule"]) == (10, "each")
    (tick,) = shown(folder)["ticks"]
    assert (tick["state"], tick["job"], tick["tick"]) == ("manual", job, told_of_job["tick"])
    assert job in haulier(folder, "schedules", "show", "each", *STORE).stdout
    again = haulier(folder, "schedules", "run", "each", *STORE)
    assert (again.returncode, job in again.stderr) == (CONFLICT, True)
    assert haulier_json(folder, "schedules", "resume", "each", *STORE)["next"] == told["next"]
    assert haulier(folder, "schedules", "delete", "each", *STORE).returncode == OK
    assert haulier_json(folder, "schedules", "list", *STORE) == {"schedules": []}
    assert "No schedules" in haulier(folder, "schedules", "list", *STORE).stderr


def test_an_interval_with_a_start(folder):
    start = "2026-01-31T06:00:00+01:00"
    made = set_echo(folder, "--every", "3600", "--start", start)
    assert "each  every 3600 s, next " in made.stdout
    told = shown(folder)
    assert (told["every"], told["start"]) == (3600, "2026-01-31T05:00:00.000Z")
    assert told["next"][14:] == "00:00.000Z"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ((), "--cron"),
        (("--cron", "* * * * *", "--every", "5"), "--cron"),
        (("--cron", "* * * * *", "--start", "2026-01-31T06:00:00Z"), "--start"),
        (("--every", "5", "--zone", "UTC"), "--zone"),
        (("--every", "5", "--start", "2026-01-31T06:00:00"), "--start"),
        (("--every", "0"), "interval"),
        (("--cron", "0 0 30 2 *"), "cron"),
        (("--cron", "* * * * *", "--zone", "Mars/Olympus"), "zone"),
        (("--every", "5", "--missed", "twice"), "missed"),
        (("--every", "5", "--payload", '{"value": "x"}'), "value"),
    ],
)
def test_bad_input_is_refused_with_its_field(folder, options, field):
    refused = set_echo(folder, *options, "--json")
    assert refused.returncode == USAGE
    told = json.loads(refused.stderr)
    assert [problem["field"] for problem in told["problems"]] == [field]


def test_what_is_not_there(folder):
    assert set_echo(folder, "--every", "5").returncode == OK
    for verb in ("show", "pause", "resume", "run", "delete"):
        done = haulier(folder, "schedules", verb, "nobody", *STORE)
        assert (done.returncode, "nobody" in done.stderr) == (NOT_FOUND, True), verb


async def test_what_an_app_declares_is_stored_by_its_worker_and_ticks(folder):
    with (folder / "tasks.py").open("a") as file:
        file.write('\n\napp.schedule("beat", "echo", 0.2, {"value": 1}, missed="all:5")\n')

    def fired():
        done = haulier(folder, "schedules", "show", "beat", "--json", *STORE)
        ticks = json.loads(done.stdout)["ticks"] if done.returncode == OK else []
        return len([tick for tick in ticks if tick["state"] == "fired"]) >= 2

    with running(folder, "worker", "tasks:app") as daemon:
        await wait_until(lambda: asyncio.to_thread(fired), 30)
        daemon.send(signal.SIGTERM)
        assert await daemon.ended() == OK
    told = shown(folder, "beat")
    assert (told["declared"], told["changed_by"], told["missed"]) == (True, "code", "all:5")
