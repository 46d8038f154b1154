"""The command line as a user meets it: real processes, their output, their exit codes."""

from __future__ import annotations

import csv
import json

import pytest

from processes import haulier, haulier_json, running, started_anew, with_tasks
from support import wait_until

OK, FAILED, USAGE, NOT_FOUND, CONFLICT, UNREACHABLE, TIMEOUT, UNSUCCESSFUL = 0, 1, 2, 3, 4, 6, 7, 8
NOBODY = "01990000-0000-7000-8000-000000000000"
COMMANDS = (
    "batches", "bench", "demo", "echo", "enqueue", "events", "jobs", "run", "serve", "store",
    "worker",
)  # fmt: skip


def enqueue(folder, kind, payload="{}", *more):
    done = haulier(folder, "enqueue", kind, "--payload", payload, "--app", "tasks:app", *more)
    assert done.returncode == OK, done.stderr
    return done.stdout.strip()


def test_help_names_every_command_and_each_has_help_of_its_own(tmp_path):
    """Each in a new process: a command must not need what another one has imported."""
    text = started_anew(tmp_path, "--help").stdout
    assert "\\b" not in text
    for command in COMMANDS:
        assert f"  {command} " in text
        own = started_anew(tmp_path, command, "--help")
        assert own.returncode == OK
        assert "Usage:" in own.stdout
        assert "\\b" not in own.stdout


def test_a_misspelt_command_is_met_with_a_suggestion(tmp_path):
    done = haulier(tmp_path, "job", "list")
    assert done.returncode == USAGE
    assert "Did you mean 'jobs'?" in done.stderr


def test_help_and_lists_do_not_load_what_only_servers_need(tmp_path):
    """The command line stays quick because of what it does not import."""
    with_tasks(tmp_path)
    enqueue(tmp_path, "echo", '{"value": 1}')
    probe = (
        "import sys; sys.argv = ['haulier', *sys.argv[1:]]\n"
        "from haulier.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'fastapi', 'uvicorn', 'httpx', 'pydantic', 'pydantic_settings', 'PIL', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    import subprocess
    import sys

    for arguments in (["--help"], ["jobs", "list", "--store", "sqlite:///tasks.db"]):
        done = subprocess.run(
            [sys.executable, "-c", probe, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr.splitlines()[-1] == "[]"


def test_a_job_from_enqueue_to_its_result(tmp_path):
    with_tasks(tmp_path)
    store = ("--store", "sqlite:///tasks.db")
    job_id = enqueue(tmp_path, "echo", '{"value": 7}', "--priority", "5", "--key", "k")
    shown = haulier_json(tmp_path, "jobs", "show", job_id, *store)
    assert (shown["state"], shown["priority"], shown["key"]) == ("pending", 5, "k")
    with running(tmp_path, "worker", "tasks:app"):
        watched = haulier(tmp_path, "jobs", "watch", job_id, "--timeout", "30", *store)
        assert watched.returncode == OK, watched.stderr
        assert f"echo {job_id} completed" in watched.stdout
    shown = haulier_json(tmp_path, "jobs", "show", job_id, *store)
    assert (shown["state"], shown["result"], shown["attempt"]) == ("completed", 7, 1)
    listed = haulier_json(tmp_path, "jobs", "list", *store)
    assert [job["id"] for job in listed["jobs"]] == [job_id]
    text = haulier(tmp_path, "jobs", "list", *store).stdout
    assert text.splitlines()[0].split() == [
        "ID", "KIND", "STATE", "ATTEMPT", "CREATED", "TOOK", "NOTE",
    ]  # fmt: skip


async def test_failed_jobs_show_why_and_can_be_retried(tmp_path):
    with_tasks(tmp_path)
    store = ("--store", "sqlite:///tasks.db")
    job_id = enqueue(tmp_path, "fail", '{"reason": "the moon"}')
    fine = enqueue(tmp_path, "echo", '{"value": 1}')
    with running(tmp_path, "worker", "tasks:app"):
        assert haulier(tmp_path, "jobs", "watch", fine, *store).returncode == OK
        watched = haulier(tmp_path, "jobs", "watch", job_id, *store)
        assert watched.returncode == UNSUCCESSFUL
        assert "ValueError: the moon" in watched.stdout
    shown = haulier(tmp_path, "jobs", "show", job_id, *store).stdout
    assert "ValueError: the moon" in shown
    assert "raise ValueError(reason)" in shown
    assert haulier_json(tmp_path, "jobs", "list", "--state", "failed", *store)["jobs"]
    again = haulier_json(tmp_path, "jobs", "retry", job_id, *store)
    assert again == {"jobs": [{"id": job_id, "state": "pending"}]}
    assert haulier(tmp_path, "jobs", "retry", job_id, *store).returncode == OK
    assert haulier(tmp_path, "jobs", "retry", fine, *store).returncode == CONFLICT


async def test_cancel_stops_pending_and_running_jobs(tmp_path):
    with_tasks(tmp_path)
    store = ("--store", "sqlite:///tasks.db")
    waiting = enqueue(tmp_path, "echo", '{"value": 1}', "--delay", "600")
    done = haulier_json(tmp_path, "jobs", "cancel", waiting, *store)
    assert done["jobs"] == [{"id": waiting, "state": "cancelled"}]
    busy = [enqueue(tmp_path, kind, '{"seconds": 600}') for kind in ("nap", "snore")]
    with running(tmp_path, "worker", "tasks:app"):

        def states() -> list[str]:
            return [haulier_json(tmp_path, "jobs", "show", job, *store)["state"] for job in busy]

        await wait_until(lambda: states() == ["running", "running"], 30)
        assert "asked to stop" in haulier(tmp_path, "jobs", "cancel", *busy, *store).stdout
        await wait_until(lambda: states() == ["cancelled", "cancelled"], 30)


def test_secrets_are_taken_from_standard_input_only(tmp_path):
    (tmp_path / "tasks.py").write_text(
        "from haulier import App, Secret\n"
        "app = App('sqlite:///tasks.db')\n"
        "@app.task\n"
        "async def login(name: str, password: Secret): pass\n"
    )
    payload = '{"name": "ada", "password": "canary-0815"}'
    refused = haulier(tmp_path, "enqueue", "login", "--payload", payload, "--app", "tasks:app")
    assert refused.returncode == USAGE
    assert "--payload -" in refused.stderr
    taken = haulier(
        tmp_path, "enqueue", "login", "--payload", "-", "--app", "tasks:app", stdin=payload
    )
    assert taken.returncode == OK, taken.stderr
    store = ("--store", "sqlite:///tasks.db")
    shown = haulier_json(tmp_path, "jobs", "show", taken.stdout.strip(), *store)
    assert shown["payload"] == {"name": "ada", "password": "******"}
    for path in tmp_path.glob("tasks.db*"):
        assert b"canary-0815" not in path.read_bytes()


def test_waiting_has_a_limit(tmp_path):
    with_tasks(tmp_path)
    job_id = enqueue(tmp_path, "echo", '{"value": 1}')
    done = haulier(
        tmp_path, "jobs", "watch", job_id, "--timeout", "0.2", "--store", "sqlite:///tasks.db"
    )
    assert done.returncode == TIMEOUT
    assert "did not finish within 0.2 s" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["enqueue", "ecko"], USAGE, "did you mean 'echo'?"),
        (["enqueue", "echo"], USAGE, "value: Field required"),
        (["enqueue", "echo", "--payload", '{"value": "x"}'], USAGE, "value: "),
        (["enqueue", "echo", "--payload", '{"value": 1, "more": 2}'], USAGE, "more: "),
        (["enqueue", "echo", "--payload", "{"], USAGE, "payload: "),
        (["enqueue", "echo", "--payload", "[1]"], USAGE, "must be an object"),
        (["enqueue", "echo", "--payload", '{"value": 1}', "--delay", "-1"], USAGE, "delay: "),
        (["enqueue", "echo", "--payload", '{"value": 1}', "--delay", "nan"], USAGE, "delay: "),
        (["enqueue", "echo", "--payload", '{"value": 1}', "--queue", "a b"], USAGE, "queue: "),
        (["enqueue", "echo", "--payload", '{"value": 1}', "--id", "7"], USAGE, "job_id: "),
        (["enqueue", "media_uniq", "--payload", "{}"], USAGE, "accounts: Field required"),
    ],
)
def test_bad_input_is_refused_with_the_field_and_nothing_is_enqueued(
    tmp_path, arguments, code, said
):
    with_tasks(tmp_path)
    done = haulier(tmp_path, *arguments, "--app", "tasks:app")
    assert done.returncode == code
    assert said in done.stderr
    listed = haulier(tmp_path, "jobs", "list", "--store", "sqlite:///tasks.db", "--json")
    assert listed.returncode != OK or json.loads(listed.stdout)["jobs"] == []


@pytest.mark.parametrize(
    ("store", "code", "said"),
    [
        ("sqlite:///none.db", USAGE, "there is no haulier store at none.db"),
        ("mysql://there", USAGE, "a store URL starts with"),
        ("sqlite:///text.db", UNREACHABLE, "damaged or not a haulier store"),
        ("sqlite:///other.db", UNREACHABLE, "of some other program"),
        ("sqlite:///folder", UNREACHABLE, "cannot be opened"),
        ("sqlite://", USAGE, "cannot be shared"),
    ],
)
def test_a_store_that_is_none_is_named_as_what_it_is(tmp_path, store, code, said):
    import sqlite3

    (tmp_path / "text.db").write_text("this is not a database " * 400)
    (tmp_path / "folder").mkdir()
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    done = haulier(tmp_path, "jobs", "list", "--store", store)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_unknown_ids_are_not_found(tmp_path):
    with_tasks(tmp_path)
    enqueue(tmp_path, "echo", '{"value": 1}')
    store = ("--store", "sqlite:///tasks.db")
    for arguments in (
        ["jobs", "show", NOBODY], ["jobs", "show", "nonsense"], ["jobs", "cancel", NOBODY],
        ["jobs", "retry", NOBODY], ["jobs", "watch", NOBODY], ["batches", "show", NOBODY],
        ["batches", "cancel", NOBODY], ["batches", "retry-failed", NOBODY],
        ["batches", "watch", NOBODY],
    ):  # fmt: skip
        done = haulier(tmp_path, *arguments, "--json", *store)
        assert done.returncode == NOT_FOUND, (arguments, done.stderr)
        assert json.loads(done.stderr)["error"] == "not found"
    assert haulier(tmp_path, "batches", "export", NOBODY, *store).returncode == NOT_FOUND


def test_a_misspelt_setting_is_refused_with_a_suggestion(tmp_path):
    done = haulier(tmp_path, "worker", HAULIER_CONCURENCY="4")
    assert done.returncode == USAGE
    assert "did you mean HAULIER_CONCURRENCY?" in done.stderr
    done = haulier(tmp_path, "worker", HAULIER_CONCURRENCY="many")
    assert done.returncode == USAGE
    assert "CONCURRENCY" in done.stderr


def test_an_address_that_others_could_reach_is_refused(tmp_path):
    done = haulier(tmp_path, "serve", "--host", "0.0.0.0")
    assert done.returncode == USAGE
    assert "not a loopback address" in done.stderr


async def test_a_batch_with_failures_is_told_exported_and_retried(tmp_path):
    from haulier.app import App

    with_tasks(tmp_path)
    store = ("--store", "sqlite:///tasks.db")
    haulier(tmp_path, "enqueue", "echo", "--payload", '{"value": 1}', "--app", "tasks:app")
    app = App(f"sqlite:///{tmp_path}/tasks.db")

    @app.task
    async def picky(n: int) -> int:
        return n

    async with app:
        batch = await app.enqueue_batch(picky, [{"n": n} for n in range(5)])
    (tmp_path / "picky.py").write_text(
        "from haulier import App, PermanentError\n"
        "from pathlib import Path\n"
        'app = App("sqlite:///tasks.db")\n'
        "@app.task\n"
        "async def picky(n: int):\n"
        "    if n % 2 and not Path('mended').exists(): raise PermanentError('=odd')\n"
        "    return n\n"
    )
    with running(tmp_path, "worker", "picky:app"):
        watched = haulier(tmp_path, "batches", "watch", batch, *store)
        assert watched.returncode == UNSUCCESSFUL
        assert "3 of 5 completed" in watched.stdout
        shown = haulier_json(tmp_path, "batches", "show", batch, *store)
        assert (shown["total"], shown["completed"], shown["failed"]) == (5, 3, 2)
        exported = haulier(tmp_path, "batches", "export", batch, "--format", "csv", *store)
        rows = list(csv.DictReader(exported.stdout.splitlines()))
        assert [row["state"] for row in rows] == [
            "completed", "failed", "completed", "failed", "completed",
        ]  # fmt: skip
        assert rows[1]["error"] == "'=odd"
        (tmp_path / "mended").touch()
        assert haulier_json(tmp_path, "batches", "retry-failed", batch, *store)["requeued"] == 2
        assert haulier(tmp_path, "batches", "watch", batch, *store).returncode == OK
    lines = haulier(tmp_path, "batches", "export", batch, *store).stdout.splitlines()
    assert [json.loads(line)["attempt"] for line in lines] == [1, 1, 1, 1, 1]
    assert haulier_json(tmp_path, "batches", "list", *store)["batches"][0]["id"] == batch
