"""`haulier token` and `haulier audit`, as real processes."""

from __future__ import annotations

import json
import re
import stat

from processes import haulier, haulier_json

OK, FAILED, USAGE, NOT_FOUND = 0, 1, 2, 3


def test_a_token_is_made_listed_and_revoked(tmp_path):
    made = haulier(tmp_path, "token", "create", "--role", "operator", "--name", "ci")
    assert made.returncode == OK, made.stderr
    token = made.stdout.strip()
    assert re.fullmatch(r"hlr_\w{12}_\w{32}_\w{6}", token)
    public = token.split("_")[1]
    assert token not in made.stderr
    [listed] = haulier_json(tmp_path, "token", "list")["tokens"]
    assert (listed["id"], listed["name"], listed["role"]) == (public, "ci", "operator")
    assert listed["state"] == "active"
    assert token.split("_")[2] not in haulier(tmp_path, "token", "list", "--all").stdout
    assert haulier(tmp_path, "token", "revoke", public).returncode == OK
    assert haulier_json(tmp_path, "token", "list")["tokens"] == []
    [listed] = haulier_json(tmp_path, "token", "list", "--all")["tokens"]
    assert listed["state"] == "revoked"
    assert haulier(tmp_path, "token", "revoke", "nobody").returncode == NOT_FOUND


def test_the_scope_and_the_expiry_are_kept(tmp_path):
    made = haulier_json(
        tmp_path, "token", "create", "--role", "viewer", "--expires", "never",
        "--kind", "add", "--kind", "mul", "--queue", "bulk",
    )  # fmt: skip
    assert (made["kinds"], made["queues"], made["expires_at"]) == (["add", "mul"], ["bulk"], None)
    assert "kind add, kind mul, queue bulk" in haulier(tmp_path, "token", "list").stdout


def test_bad_input_is_refused_before_anything_is_made(tmp_path):
    for options in (
        ["--role", "king"],
        ["--role", "viewer", "--expires", "3y"],
        ["--role", "viewer", "--name", " "],
        ["--role", "viewer", "--kind", ""],
        [],
    ):
        assert haulier(tmp_path, "token", "create", *options).returncode == USAGE, options
    assert haulier(tmp_path, "token", "list").returncode == USAGE
    assert haulier(tmp_path, "token", "list", "--store", "sqlite://").returncode == USAGE
    assert haulier(tmp_path, "token", "link", "--session", "never").returncode == USAGE
    assert list(tmp_path.glob("*.db")) == []


def test_records_are_beside_the_store_or_where_they_are_said_to_be(tmp_path):
    create = ("token", "create", "--role", "viewer")
    haulier(tmp_path, *create, "--store", "sqlite:///jobs.db")
    haulier(tmp_path, *create, "--records", "sqlite:///here.db")
    haulier(tmp_path, *create, HAULIER_RECORDS="sqlite:///there.db")
    made = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.glob("*.db")}
    assert made == {"jobs.records.db": 0o600, "here.db": 0o600, "there.db": 0o600}


def test_a_link_has_its_secret_where_browsers_send_it_to_nobody(tmp_path):
    done = haulier(tmp_path, "token", "link", "--url", "https://jobs.example/")
    assert re.fullmatch(r"https://jobs\.example/login#hll_\w+", done.stdout.strip())
    assert haulier_json(tmp_path, "token", "sessions")["sessions"] == []


def test_the_log_tells_what_was_done_and_is_verified(tmp_path):
    public = haulier_json(tmp_path, "token", "create", "--role", "viewer", "--name", "ci")["id"]
    haulier(tmp_path, "token", "revoke", public)
    entries = haulier_json(tmp_path, "audit")["entries"]
    assert [each["action"] for each in entries] == ["token.create", "token.revoke"]
    assert {each["target"]["id"] for each in entries} == {public}
    assert "token.revoke" in haulier(tmp_path, "audit").stdout
    mark = haulier(tmp_path, "audit", "--verify").stdout.strip()
    assert haulier(tmp_path, "audit", "--verify", "--expect", mark).returncode == OK
    later = haulier(tmp_path, "audit", "--verify", "--expect", mark.replace("2:", "3:"))
    assert later.returncode == FAILED
    assert "should have 3" in later.stderr
    document = json.loads(haulier(tmp_path, "audit", "--verify", "--json").stdout)
    assert document == {"sound": True, "fault": None, "mark": mark}
    assert haulier(tmp_path, "audit", "--verify", "--expect", "x").returncode == USAGE
