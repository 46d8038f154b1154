"""`haulier run` on real input, good and bad."""

from __future__ import annotations

import json
import signal

import pytest
from PIL import Image

from processes import haulier, haulier_json, running
from support import wait_until

USAGE, UNREACHABLE, UNSUCCESSFUL, INTERRUPTED = 2, 6, 8, 130


@pytest.fixture
def folder(tmp_path):
    """Three accounts, and two pictures."""
    (tmp_path / "accounts.csv").write_text("account\nada\nbob\neve\n")
    media = tmp_path / "media"
    media.mkdir()
    Image.linear_gradient("L").convert("RGB").save(media / "one.png")
    Image.radial_gradient("L").convert("RGB").save(media / "two.png")
    return tmp_path


def media_uniq(folder, *more, accounts="accounts.csv", out="out"):
    return haulier(
        folder, "run", "media-uniq", "--accounts", accounts, "--media", "media", "--out", out,
        "--spec", "thumb", *more,
    )  # fmt: skip


def test_one_rendition_per_account_and_picture(folder):
    done = media_uniq(folder, "--watermark", "@{account}")
    assert done.returncode == 0, done.stderr
    assert "6 of 6" in done.stdout
    assert len(list((folder / "out").rglob("*.webp"))) == 6
    rows = (folder / "out" / "manifest.jsonl").read_text().splitlines()
    assert len(rows) == 6


def test_json_is_one_document_on_standard_output(folder):
    done = media_uniq(folder, "--json")
    document = json.loads(done.stdout)
    assert document["batch"]["completed"] == 6
    assert document["summary"]["rows"] == 6


def test_a_corrupt_picture_fails_only_its_own_items(folder):
    (folder / "media" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    done = media_uniq(folder)
    assert done.returncode == UNSUCCESSFUL
    assert "6 of 9" in done.stdout
    assert "CorruptPictureError" in done.stdout
    assert "broken.jpg" in done.stdout


def test_a_run_with_too_many_failures_is_cut_short_and_still_reported(folder):
    (folder / "media" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    limits = ("--concurrency", "1", "--batch-size", "1", "--max-failures", "0")
    done = media_uniq(folder, *limits)
    assert done.returncode == UNSUCCESSFUL
    assert "CorruptPictureError" in done.stdout
    assert "manifest" in done.stdout
    assert "The batch failed: 1 of the items failed and 0 may" in done.stderr
    batch = haulier_json(folder, "batches", "list")["batches"][0]
    assert (batch["state"], batch["failed"], batch["total"]) == ("failed", 1, 9)
    assert (batch["concurrency"], batch["batch_size"], batch["max_failures"]) == (1, 1, 0)
    assert len((folder / "out" / "manifest.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize("limit", [("--concurrency", "0"), ("--max-failures", "-1")])
def test_bad_limits_are_refused_before_anything_is_started(folder, limit):
    done = media_uniq(folder, *limit)
    assert done.returncode == USAGE
    assert "must be an integer" in done.stderr
    assert haulier_json(folder, "batches", "list")["batches"] == []


def test_three_bad_lines_among_a_hundred_are_all_named_and_nothing_is_started(folder):
    lines = ["account", *(f"account-{n}" for n in range(100))]
    lines[20], lines[50], lines[90] = '""', "two,columns", "account-3"
    (folder / "bad.csv").write_text("\n".join(lines) + "\n")
    done = media_uniq(folder, "--json", accounts="bad.csv")
    assert done.returncode == USAGE
    problems = json.loads(done.stderr)["problems"]
    assert [problem["line"] for problem in problems] == [21, 51, 91]
    assert all(problem["reason"] for problem in problems)
    assert not (folder / "out").exists()
    assert not (folder / "haulier.db").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--spec", "postcard"), "spec"),
        (("--media", "nowhere.jpg"), "nowhere.jpg"),
        (("--accounts", "nobody.csv"), "nobody.csv"),
        (("--watermark", "a", "--watermark-image", "b.png"), "watermark"),
        (("--watermark-image", "none.png"), "none.png"),
    ],
)
def test_wrong_input_is_named(folder, more, said):
    done = media_uniq(folder, *more)
    assert done.returncode in (USAGE, UNSUCCESSFUL)
    assert said in done.stderr
    assert not list(folder.rglob("*.webp"))


def test_an_output_folder_that_cannot_be_written_fails_the_batch_at_once(folder):
    (folder / "out").write_text("a file where the folder should be")
    done = media_uniq(folder)
    assert done.returncode == UNSUCCESSFUL
    assert "out" in done.stderr
    batch = haulier_json(folder, "batches", "list")["batches"][0]
    assert (batch["state"], batch["total"]) == ("failed", 0)


def test_proxies_are_reported_and_their_passwords_are_not(folder):
    (folder / "proxies.txt").write_text(
        "socks5://user:canary-4711@127.0.0.1:9\nhttp://127.0.0.1:9\n"
    )
    command = ("run", "proxy-diagnostics", "--proxies", "proxies.txt", "--tries", "1")
    refused = haulier(folder, *command)
    assert refused.stdout.count("forbidden") == 2
    (folder / "haulier.db").unlink()
    done = haulier(folder, *command, "--allow-host", "127.0.0.1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dial_refused") == 2
    everything = done.stdout + done.stderr
    for arguments in (["jobs", "list", "--json"], ["batches", "list", "--json"]):
        everything += haulier(folder, *arguments).stdout
    batch = haulier_json(folder, "batches", "list")["batches"][0]["id"]
    everything += haulier(folder, "batches", "export", batch).stdout
    assert "canary-4711" not in everything
    for path in folder.iterdir():
        if path.name.startswith("haulier.db"):
            assert b"canary-4711" not in path.read_bytes()


def test_bad_proxy_lines_are_named_without_their_passwords(folder):
    (folder / "proxies.txt").write_text("http://127.0.0.1:80\nftp://u:canary@x:1\nhost:port\n")
    done = haulier(folder, "run", "proxy-diagnostics", "--proxies", "proxies.txt")
    assert done.returncode == USAGE
    assert "line 2" in done.stderr
    assert "line 3" in done.stderr
    assert "canary" not in done.stderr


def test_detached_runs_only_enqueue(folder):
    batch = media_uniq(folder, "--detach").stdout.strip()
    assert haulier_json(folder, "batches", "show", batch)["state"] == "pending"
    with running(folder, "worker"):
        watched = haulier(folder, "batches", "watch", batch)
        assert watched.returncode == 0, watched.stderr


async def test_ctrl_c_gives_the_work_back_and_says_how_to_go_on(folder):
    """Many accounts, so that there is something left to interrupt."""
    accounts = "\n".join(["account", *(f"account-{n}" for n in range(600))])
    (folder / "many.csv").write_text(accounts)
    with running(
        folder, "run", "media-uniq", "--accounts", "many.csv", "--media", "media", "--out", "out"
    ) as run:
        await wait_until(lambda: list((folder / "out").rglob("*.jpg")), 30)
        await wait_until(lambda: haulier_json(folder, "batches", "list")["batches"][0]["sealed"])
        run.send(signal.SIGINT)
        assert await run.ended() == INTERRUPTED
        assert "nothing is lost" in run.says()
    batch = haulier_json(folder, "batches", "list")["batches"][0]
    assert batch["state"] == "running"
    assert batch["running"] == 0
    assert batch["total"] == batch["pending"] + batch["completed"]
