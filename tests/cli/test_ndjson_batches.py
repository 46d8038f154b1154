"""Batches from NDJSON, and how one that was left open is found and ended."""

from __future__ import annotations

import pytest

from processes import haulier, haulier_json, running

TASKS = """
from haulier import App
app = App('sqlite:///tasks.db')
@app.task
async def resize(n: int) -> int:
    return n
"""
APP = ("--app", "tasks:app")
STORE = ("--store", "sqlite:///tasks.db")
MIXED = '{"n": 1}\n\n{"n": "x"}\nnope\n[1]\n{"n": 2}\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "mixed.ndjson").write_text(MIXED)
    (tmp_path / "good.ndjson").write_text("\ufeff" + "".join(f'{{"n": {n}}}\n' for n in range(9)))
    return tmp_path


def create(folder, *arguments, **how):
    return haulier(folder, "batches", "create", "resize", *arguments, *APP, **how)


def listed(folder, *arguments):
    return haulier_json(folder, "batches", "list", *arguments, *STORE)["batches"]


def test_a_file_becomes_a_batch_that_runs(folder):
    with running(folder, "worker", "tasks:app"):
        done = create(folder, "--ndjson", "good.ndjson", "--wait", "--concurrency", "2")
    assert done.returncode == 0, done.stderr
    (batch,) = listed(folder)
    assert (batch["state"], batch["completed"], batch["concurrency"]) == ("completed", 9, 2)


def test_nothing_starts_when_a_line_of_a_file_is_bad(folder):
    done = create(folder, "--ndjson", "mixed.ndjson")
    assert done.returncode == 2
    assert [line.strip()[:9] for line in done.stderr.splitlines()[1:]] == [
        "line 3: n",
        "line 4: i",
        "line 5: m",
    ]
    assert not (folder / "tasks.db").exists()


def test_bad_lines_can_be_skipped(folder):
    arguments = ("batches", "create", "resize", "--ndjson", "mixed.ndjson", "--on-bad", "skip")
    done = haulier_json(folder, *arguments, *APP)
    assert (done["added"], done["new"], done["skipped"]) == (2, 2, 3)
    done = create(folder, "--ndjson", "-", "--on-bad", "skip", stdin=MIXED)
    assert (done.returncode, "line 4 was skipped: is not JSON" in done.stderr) == (0, True)


def test_a_bad_line_of_standard_input_cancels_what_was_added(folder):
    done = create(folder, "--ndjson", "-", stdin=MIXED)
    assert (done.returncode, "line 3: n: " in done.stderr) == (2, True)
    (batch,) = listed(folder)
    assert (batch["state"], batch["sealed"]) == ("cancelled", False)


def test_one_that_was_left_open_is_found_and_ended(folder):
    kept = create(folder, "--ndjson", "good.ndjson", "--no-seal").stdout.strip()
    other = create(folder, "--ndjson", "-", "--keep-open", stdin=MIXED)
    assert other.returncode == 2
    create(folder, "--ndjson", "good.ndjson")
    found = listed(folder, "--open")
    assert [batch["total"] for batch in found] == [0, 9]
    assert f"seal|cancel {kept}" in haulier(folder, "batches", "show", kept, *STORE).stdout
    again = create(folder, "--ndjson", "good.ndjson", "--id", kept, "--no-seal")
    assert again.stdout.strip() == kept
    assert "sealed with 9 items" in haulier(folder, "batches", "seal", kept, *STORE).stdout
    assert haulier(folder, "batches", "cancel", found[0]["id"], *STORE).returncode == 0
    assert listed(folder, "--open") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ndjson", "nowhere"), "does not exist"),
        (("--ndjson", "good.ndjson", "--wait", "--no-seal"), "--wait"),
        (("--ndjson", "good.ndjson", "--id", "7"), "job_id"),
        (("--ndjson", "good.ndjson", "--concurrency", "0"), "concurrency"),
        (("--ndjson", "good.ndjson", "--on-finish", "nobody"), "nobody"),
    ],
)
def test_bad_arguments_are_refused(folder, arguments, said):
    done = create(folder, *arguments)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_limits_are_changed_while_it_runs(folder):
    batch = create(folder, "--ndjson", "good.ndjson", "--concurrency", "2").stdout.strip()
    limit = ("batches", "limit", batch, "--by", "ann")
    said = haulier(folder, *limit, "--concurrency", "20", "--max-failures", "3", *STORE)
    assert said.stdout.strip() == f"{batch}  concurrency 20, max failures 3; 0 running"
    found = haulier_json(folder, *limit, "--concurrency", "none", *STORE)
    assert (found["concurrency"], found["max_failures"]) == (None, 3)
    told = haulier(folder, "events", *STORE).stdout
    assert "concurrency 20 -> none, by ann" in told
    for arguments in (("--concurrency", "0"), ("--concurrency", "many"), ()):
        refused = haulier(folder, *limit, *arguments, *STORE)
        assert (refused.returncode, "limit" in refused.stderr) == (2, True)
    nobody = haulier(folder, "batches", "limit", "7", "--concurrency", "3", *STORE)
    assert nobody.returncode == haulier(folder, "batches", "show", "7", *STORE).returncode
