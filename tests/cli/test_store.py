"""Stores copied and looked at on the command line."""

from __future__ import annotations

import json
import sqlite3

import pytest

from haulier.stores.sqlite.connection import SCHEMA_STEP
from processes import haulier, haulier_json, running, told, with_tasks
from support import wait_until

OK, FAILED, USAGE, CONFLICT, UNREACHABLE, TIMEOUT = 0, 1, 2, 4, 6, 7
FROM, TO = "sqlite:///tasks.db", "sqlite:///new.db"


@pytest.fixture
def folder(tmp_path):
    return with_tasks(tmp_path)


def enqueue(folder, kind="echo", payload='{"value": 1}', *options):
    done = haulier(folder, "enqueue", kind, "--payload", payload, "--app", "tasks:app", *options)
    assert done.returncode == OK, done.stderr
    return done.stdout.strip()


def copy(folder, *options, source=FROM, target=TO, **env):
    return haulier(folder, "store", "copy", source, target, *options, **env)


class TestCopy:
    async def test_jobs_are_moved_and_run_in_the_new_store(self, folder):
        job = enqueue(folder)
        done = copy(folder)
        assert done.returncode == OK, done.stderr
        assert "1 jobs" in done.stdout
        assert "the same in both" in done.stdout
        assert f"haulier worker --store {TO}" in done.stderr
        refused = haulier(
            folder, "enqueue", "echo", "--payload", '{"value": 1}', "--app", "tasks:app"
        )
        assert refused.returncode == UNREACHABLE
        assert f"was moved to {TO}: the work goes on there" in refused.stderr
        with running(folder, "worker", "tasks:app", "--store", TO):
            watched = haulier(folder, "jobs", "watch", job, "--store", TO)
        assert watched.returncode == OK, watched.stdout

    def test_the_document_has_counts_and_digests(self, folder):
        enqueue(folder)
        document = json.loads(copy(folder, "--json").stdout)
        assert (document["from"], document["to"]) == (FROM, TO)
        assert document["copied"]["jobs"]["records"] == 1
        assert len(document["copied"]["jobs"]["digest"]) == 64
        assert document["jobs"]["pending"] == 1
        assert (document["resumed"], document["source"]) == (False, "moved")
        again = json.loads(copy(folder, "--json").stdout)
        assert again["resumed"]
        assert again["copied"] == document["copied"]

    def test_urls_can_come_from_the_environment(self, folder):
        enqueue(folder)
        done = copy(folder, source="env:OLD", target="env:NEW", OLD=FROM, NEW=TO)
        assert done.returncode == OK, done.stderr
        missing = copy(folder, target="env:NONE")
        assert missing.returncode == USAGE
        assert "NONE is not set" in missing.stderr

    async def test_workers_are_not_taken_by_surprise(self, folder):
        enqueue(folder, "nap", '{"seconds": 60}')
        with running(folder, "worker", "tasks:app", "--store", FROM):
            await wait_until(lambda: told(folder))
            refused = copy(folder)
            assert refused.returncode == CONFLICT
            assert "1 live worker and 1 running job" in refused.stderr
            late = copy(folder, "--wait", "0.5")
            assert late.returncode == TIMEOUT
            assert "did not finish within 0.5 s" in late.stderr

    async def test_running_jobs_are_waited_for(self, folder):
        job = enqueue(folder, "nap", '{"seconds": 2}')
        with running(folder, "worker", "tasks:app", "--store", FROM):
            await wait_until(lambda: told(folder))
            assert copy(folder, "--wait", "30").returncode == OK
        shown = haulier_json(folder, "jobs", "show", job, "--store", TO)
        assert (shown["state"], shown["attempt"]) == ("completed", 1)

    def test_a_source_may_be_kept(self, folder):
        enqueue(folder)
        done = copy(folder, "--keep-source")
        assert "is open again" in done.stderr
        assert enqueue(folder)
        listed = haulier_json(folder, "jobs", "list", "--store", TO)
        assert len(listed["jobs"]) == 1

    @pytest.mark.parametrize(
        ("source", "target", "code", "said"),
        [
            ("sqlite:///none.db", TO, USAGE, "there is no haulier store at none.db"),
            (FROM, "sqlite://", USAGE, "in memory"),
            (FROM, "mysql://h/d", USAGE, "a store URL starts with"),
            (FROM, FROM, CONFLICT, "are the same store"),
        ],
    )
    def test_what_cannot_be_copied_is_refused(self, folder, source, target, code, said):
        enqueue(folder)
        done = copy(folder, source=source, target=target)
        assert done.returncode == code
        assert said in done.stderr


class TestThaw:
    def test_a_moved_store_opens_by_force(self, folder):
        enqueue(folder)
        copy(folder)
        refused = haulier(folder, "store", "thaw", FROM)
        assert refused.returncode == CONFLICT
        assert "each job may run in both" in refused.stderr
        assert haulier_json(folder, "store", "thaw", FROM, "--force") == {
            "store": FROM,
            "was": "moved",
        }
        assert enqueue(folder)

    def test_an_open_one_stays_open(self, folder):
        enqueue(folder)
        assert "was open already" in haulier(folder, "store", "thaw", FROM).stdout


class TestCheck:
    def check(self, folder, *options, store=FROM):
        done = haulier(folder, "store", "check", "--store", store, *options, "--json")
        found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
        return done.returncode, found

    def test_a_healthy_store_has_no_problem(self, folder):
        enqueue(folder)
        code, found = self.check(folder)
        assert code == OK
        assert {each["level"] for each in found.values()} == {"ok", "warning"}
        assert found["queues"]["what"] == "1 pending (1 in default), 0 running"
        assert found["workers"]["level"] == "warning"
        assert found["durability"]["what"].startswith("WAL, synchronous=FULL")
        assert found["schema"]["what"] == f"step {SCHEMA_STEP} of {SCHEMA_STEP}"
        assert self.check(folder, "--strict")[0] == FAILED

    def test_the_table_says_what_to_do(self, folder):
        enqueue(folder)
        done = haulier(folder, "store", "check", "--store", FROM)
        assert done.returncode == OK
        assert done.stdout.splitlines()[0].split() == ["LEVEL", "CHECK", "FOUND"]
        assert "no worker listens to default" in done.stderr

    async def test_live_workers_are_seen(self, folder):
        enqueue(folder)
        with running(folder, "worker", "tasks:app", "--store", FROM):
            await wait_until(lambda: self.check(folder)[1]["workers"]["what"].startswith("1 live"))

    def test_a_file_that_others_can_read_is_a_warning(self, folder):
        enqueue(folder)
        (folder / "tasks.db").chmod(0o644)
        code, found = self.check(folder)
        assert (code, found["rights"]["level"]) == (OK, "warning")
        assert found["rights"]["advice"].startswith("chmod go= tasks.db")

    def test_a_missing_index_is_a_problem(self, folder):
        enqueue(folder)
        db = sqlite3.connect(folder / "tasks.db")
        db.execute("DROP INDEX jobs_ready")
        db.close()
        code, found = self.check(folder)
        assert (code, found["indexes"]["level"]) == (FAILED, "problem")
        assert "jobs_ready" in found["indexes"]["what"]

    def test_a_moved_store_is_a_problem_and_the_new_one_is_not(self, folder):
        enqueue(folder)
        code, found = self.check(folder)
        assert (code, found["copy"]["level"]) == (OK, "ok")
        copy(folder)
        code, found = self.check(folder)
        assert (code, found["copy"]["level"]) == (FAILED, "problem")
        assert found["copy"]["advice"].endswith(f"use {TO}")
        code, found = self.check(folder, store=TO)
        assert (code, found["copy"]["level"]) == (OK, "ok")
