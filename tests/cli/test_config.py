"""Settings of all workers, changed from the command line while they run."""

from __future__ import annotations

import json

import pytest

from haulier import App
from processes import haulier, haulier_json, running
from support import wait_until, work

STORE = ("--store", "sqlite:///tasks.db")

TASKS = """
import structlog
from haulier import App

app = App("sqlite:///tasks.db")
log = structlog.get_logger("mine")


@app.task
async def speak(level: str, word: str):
    getattr(log, level)(word)
"""


@pytest.fixture
async def store(tmp_path):
    async with App(f"sqlite:///{tmp_path}/tasks.db", secret_key_file=tmp_path / "key") as app:
        yield app.store


def test_settings_are_set_listed_unset_and_told_of(tmp_path, store):
    told = haulier_json(
        tmp_path,
        *("config", "set", "log.level=debug", "queues.slow.weight=3"),
        *('retention.speak.failed={"age": 60, "count": 5}', "--by", "Ann", *STORE),
    )
    assert told["version"] == 1
    assert {name: each["value"] for name, each in told["settings"].items()} == {
        "log.level": "debug",
        "queues.slow.weight": 3,
        "retention.speak.failed": {"age": 60, "count": 5},
    }
    assert told["settings"]["log.level"]["changed_by"] == "Ann"
    haulier_json(tmp_path, "config", "unset", "queues.slow.weight", *STORE)
    listed = haulier_json(tmp_path, "config", "list", *STORE)
    assert (listed["version"], sorted(listed["settings"])) == (
        2,
        ["log.level", "retention.speak.failed"],
    )
    latest, *rest = haulier_json(tmp_path, "config", "history", *STORE)["changes"]
    assert len(rest) == 3
    assert (latest["name"], latest["before"], latest["set"]) == ("queues.slow.weight", 3, False)
    shown = haulier(tmp_path, "config", "list", *STORE).stdout
    assert shown.splitlines()[1].split()[:4] == ["log.level", '"debug"', "1", "Ann"]
    events = haulier(tmp_path, "events", *STORE).stdout
    assert "configured" in events
    assert "log.level  by Ann" in events


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("set", "log.levle=debug"), 2, "log.levle: is no setting; did you mean log.level?"),
        (("set", "log.level=loud", "queues.a.weight=5"), 2, "log.level: is one of debug, info"),
        (("set", "queues.a b.paused=true"), 2, "is not a dotted name"),
        (("set", "queues.a.weight=0"), 2, "queues.a.weight: is a whole number from 1 to 1000"),
        (("set", "retention.k.failed={}"), 2, "names age, count or both"),
        (("set", "log.level"), 2, "is not NAME=VALUE"),
        (("unset", "log"), 2, "log: is no setting"),
        (("set", "log.level=debug", "--expect", "4"), 1, "version 0 by now, not 4"),
    ],
)
def test_bad_input_is_refused_with_field_and_reason(tmp_path, store, command, code, said):
    done = haulier(tmp_path, "config", *command, *STORE)
    assert said in done.stderr
    assert done.returncode == code or (code == 1 and done.returncode > 2), done.returncode
    assert haulier_json(tmp_path, "config", "list", *STORE) == {"version": 0, "settings": {}}


def test_queues_are_paused_resumed_and_weighed(tmp_path, store):
    told = haulier_json(tmp_path, "queues", "pause", "slow", "other", *STORE)
    assert sorted(told["settings"]) == ["queues.other.paused", "queues.slow.paused"]
    haulier_json(tmp_path, "queues", "weight", "default", "5", *STORE)
    document = haulier_json(tmp_path, "queues", *STORE)
    assert document["paused"] == ["other", "slow"]
    assert "slow is paused" in haulier(tmp_path, "queues", *STORE).stderr
    haulier_json(tmp_path, "queues", "resume", "slow", "other", *STORE)
    assert haulier_json(tmp_path, "queues", *STORE)["paused"] == []
    haulier_json(tmp_path, "queues", "weight", "default", "none", *STORE)
    assert haulier_json(tmp_path, "config", "list", *STORE)["settings"] == {}
    for wrong in (("queues", "weight", "default", "many"), ("queues", "pause", "a b")):
        assert haulier(tmp_path, *wrong, *STORE).returncode == 2
    misplaced = haulier(tmp_path, "queues", *STORE, "pause", "slow")
    assert (misplaced.returncode, haulier_json(tmp_path, "queues", *STORE)["paused"]) == (2, [])


async def test_a_queue_shows_that_it_is_paused_and_what_it_weighs(tmp_path, store):
    await store.insert([work(queue="slow"), work()])
    await store.configurable().configure(
        {"queues.slow.paused": True, "queues.slow.weight": 7}, by="Ann"
    )
    lines = {line["queue"]: line for line in haulier_json(tmp_path, "queues", *STORE)["queues"]}
    assert (lines["slow"]["paused"], lines["slow"]["weight"]) == (True, 7)
    assert (lines["default"]["paused"], lines["default"]["weight"]) == (False, None)
    assert "paused, weight 7" in haulier(tmp_path, "queues", *STORE).stdout


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_the_log_level_changes_while_workers_run(tmp_path, processes):
    """What the store says comes before the environment, and that before the default."""
    (tmp_path / "tasks.py").write_text(TASKS)
    command = ("worker", "tasks:app", "--processes", processes, "--log-format", "json")
    with running(tmp_path, *command, HAULIER_LOG_LEVEL="warning") as worker:
        app = App(f"sqlite:///{tmp_path}/tasks.db", secret_key_file=tmp_path / "key")
        spoken = 0

        async def heard(level: str) -> bool:
            nonlocal spoken
            spoken += 1
            word = f"word-{spoken}-"
            payload = json.dumps({"level": level, "word": word}).encode()
            job = work("speak", payload=payload)
            await app.store.insert([job])
            await app.jobs.wait(job.id, timeout=20)
            return word in worker.says()

        async def silent(level: str) -> bool:
            return not await heard(level)

        async with app:
            assert await heard("warning")
            assert not await heard("info")
            for setting, audible, quiet in (("debug", "debug", None), ("error", "error", "info")):
                await app.settings.change({"log.level": setting}, by="Ann")
                await wait_until(lambda level=audible: heard(level), timeout=10)
                if quiet:
                    await wait_until(lambda: silent("warning"), timeout=10)
                    assert not await heard(quiet)
            await app.settings.change(unset=["log.level"])
            await wait_until(lambda: heard("warning"), timeout=10)
            assert not await heard("info")


def test_a_worker_is_told_weights_of_queues(tmp_path, store):
    done = haulier(tmp_path, "worker", "--queue", "a=5", "--queue", "b=x", *STORE)
    assert (done.returncode, "the weight of 'b'" in done.stderr) == (2, True)
