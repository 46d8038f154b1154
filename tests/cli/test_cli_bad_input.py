"""Bad input on the command line: exit code 2, the field by name, no traceback, and no job."""

from __future__ import annotations

import pytest

from processes import haulier, haulier_json, with_tasks

USAGE = 2
VALUE = '{"value": 1}'


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["echo", "--payload", VALUE, "--delay", "-1"], "delay"),
        (["echo", "--payload", VALUE, "--delay", "nan"], "delay"),
        (["echo", "--payload", VALUE, "--delay", "inf"], "delay"),
        (["echo", "--payload", VALUE, "--priority", "10001"], "priority"),
        (["echo", "--payload", VALUE, "--priority", "nan"], "priority"),
        (["echo", "--payload", VALUE, "--queue", "two words"], "queue"),
        (["echo", "--payload", VALUE, "--queue", "a'; DROP TABLE jobs; --"], "queue"),
        (["echo", "--payload", VALUE, "--queue", ""], "queue"),
        (["echo", "--payload", VALUE, "--key", "k" * 201], "key"),
        # What the shell hands over that is no UTF-8 arrives as half a character.
        (["echo", "--payload", VALUE, "--key", "half \udcff"], "key"),
        (["echo", "--payload", VALUE, "--id", "x"], "job_id"),
        (["echo", "--payload", '{"value": NaN}'], "value"),
        (["echo", "--payload", '{"value": "\\ud800"}'], "value"),
        (["echo", "--payload", f'{{"value": {"9" * 5000}}}'], "payload"),
        (["echo", "--payload", "[1]"], "payload"),
        (["echo", "--payload", "{"], "payload"),
        (["nothing", "--payload", VALUE], "nothing"),
        (["half \udcff"], "kind"),
    ],
)
def test_it_is_refused_by_name(tmp_path, arguments, told):
    with_tasks(tmp_path)
    done = haulier(tmp_path, "enqueue", *arguments, "--app", "tasks:app")
    assert done.returncode == USAGE, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "payload",
    [
        '{"value": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"value": ' + "9" * 1_000_000 + "}",
        '{"value": "' + "x" * 100 * 1024 * 1024 + '"}',
    ],
    ids=["deep", "long number", "large"],
)
def test_so_is_what_comes_by_standard_input(tmp_path, payload):
    with_tasks(tmp_path)
    arguments = ("echo", "--payload", "-", "--app", "tasks:app")
    done = haulier(tmp_path, "enqueue", *arguments, stdin=payload)
    assert done.returncode == USAGE, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 2000
    if (tmp_path / "tasks.db").exists():
        listed = haulier_json(tmp_path, "jobs", "list", "--store", "sqlite:///tasks.db")
        assert listed["jobs"] == []
