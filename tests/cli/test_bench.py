"""Every profile of `haulier bench`, with tiny numbers: its figures are there and can be true."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

import servers
from processes import environment, haulier, haulier_json

TINY = (
    *("--jobs", "300", "--singles", "10", "--present", "500", "--rounds", "2"),
    *("--seconds", "0.5", "--readers", "50"),
)
FIGURES = {
    "noop": ("enqueue_per_s", "run_per_s", "latency_p50_ms", "latency_p99_ms"),
    "batch": (
        "enqueue_per_s", "items_per_s", "status_p50_ms", "status_p99_ms",
        "status_present_p50_ms", "status_present_p99_ms",
    ),
    "retry": ("jobs_per_s", "attempts_per_s"),
    "latency": ("latency_p50_ms", "latency_p99_ms"),
    "backlog": (
        "empty_per_s", "other_queues_per_s", "same_queue_per_s",
        "other_queues_ratio", "same_queue_ratio",
    ),
    "writers": ("enqueued", "counted", "slowest_ms"),
    "limits": (
        "free_noop_per_s", "held_noop_per_s", "noop_ratio", "free_busy_per_s", "held_busy_per_s",
        "busy_ratio", "fresh_p50_ms", "fresh_max_ms", "rate_wanted", "rate_given",
    ),
    "live": (
        "readers_held", "alone_p99_ms", "beside_p99_ms", "events_meanwhile", "memory_after_mb",
    ),
    "http": (
        "post_per_s", "post_p99_ms", "ndjson_per_s", "ndjson_taken", "status_per_s",
        "status_p99_ms", "worker_peak_per_s",
    ),
    "flow": ("plain_per_s", "flow_enqueue_per_s", "fan_per_s", "chain_per_s", "fan_ratio"),
}  # fmt: skip


@pytest.mark.parametrize("profile", FIGURES)
def test_its_figures_are_there_and_positive(tmp_path, profile):
    more = ("--writers", "2") if profile == "writers" else ()
    figures = haulier_json(tmp_path, "bench", "--profile", profile, *TINY, *more)
    for name in (*FIGURES[profile], "fsync_p50_ms", "peak_memory_mb", "cores"):
        assert figures[name] > 0, name


def test_writers_never_find_the_store_locked(tmp_path):
    options = ("--writers", "3", "--seconds", "1", "--store", f"sqlite:///{tmp_path}/one.db")
    figures = haulier_json(tmp_path, "bench", "--profile", "writers", *options)
    assert figures["errors"] == 0
    listed = haulier_json(tmp_path, "jobs", "list", "--limit", "1", "--store", figures["store"])
    assert listed["jobs"]


def test_further_processes_are_measured_against_one(tmp_path):
    figures = haulier_json(tmp_path, "bench", *TINY, "--processes", "1")
    assert figures["more_processes"] == 1
    assert figures["processes_ratio"] > 0
    assert figures["together_per_s"] > 0


def test_without_json_the_figures_are_lines(tmp_path):
    done = haulier(tmp_path, "bench", "--profile", "backlog", *TINY)
    assert done.returncode == 0, done.stderr
    for label in ("machine", "empty store", "500 in other queues", "500 in the same queue"):
        assert f"\n{label}" in f"\n{done.stdout}"


def test_all_profiles_want_a_store_each(tmp_path):
    done = haulier(tmp_path, "bench", "--profile", "all", "--store", "sqlite:///one.db")
    assert done.returncode == 2
    assert "leave out --store" in done.stderr


@pytest.mark.parametrize("profile", ["noop", "batch", "retry", "latency", "backlog", "limits"])
def test_a_store_that_is_no_file_has_the_same_figures_but_no_fsync(tmp_path, profile):
    figures = haulier_json(tmp_path, "bench", "--profile", profile, *TINY, "--store", "sqlite://")
    for name in FIGURES[profile]:
        assert figures[name] > 0, name
    assert not [name for name in figures if "fsync" in name]


def test_a_store_that_is_no_file_is_told_as_such(tmp_path):
    done = haulier(tmp_path, "bench", "--profile", "latency", *TINY, "--store", "sqlite://")
    assert "not measured: the store is no file of this machine" in done.stdout
    assert "nothing is written to disk" in done.stdout


def test_a_store_with_other_jobs_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/used.db"
    few = ("--profile", "writers", "--writers", "1", "--seconds", "0.1")
    assert haulier_json(tmp_path, "bench", *few, "--store", url)["enqueued"] > 0
    done = haulier(tmp_path, "bench", *TINY, "--store", url)
    assert done.returncode == 2
    assert "needs a store for itself" in done.stderr


@pytest.mark.parametrize("options", [("--profile", "writers"), ("--processes", "1")])
def test_a_store_in_memory_is_not_for_several_processes(tmp_path, options):
    done = haulier(tmp_path, "bench", *TINY, *options, "--store", "sqlite://")
    assert done.returncode == 2
    assert "cannot be shared with another process" in done.stderr


PASSWORD = "correct-horse"
NUMBERS = itertools.count()


@pytest.fixture(scope="module", params=["postgres", "redis"])
def server(request):
    with servers.or_skip(), servers.private(request.param) as server:
        yield server


@pytest.fixture
def server_url(server):
    """A new store there, by a URL with a password that the server does not ask for."""
    parts = urlsplit(server.url)
    user = parts.username or "default"
    own = f"bench_{next(NUMBERS)}"
    return urlunsplit(
        parts._replace(
            netloc=f"{user}:{PASSWORD}@127.0.0.1:{server.port}",
            query=f"schema={own}" if parts.username else f"prefix={own}:",
        )
    )


@pytest.mark.parametrize(
    "options",
    [("noop", "--processes", "1"), ("batch",), ("retry",), ("latency",), ("backlog",), ("limits",)],
)
def test_a_store_on_a_server_has_the_same_figures_and_keeps_its_password(
    tmp_path, server_url, options
):
    done = haulier(tmp_path, "bench", "--profile", *options, *TINY, "--store", server_url, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for name in FIGURES[options[0]]:
        assert figures[name] > 0, name
    assert ":***@" in figures["store"]
    assert PASSWORD not in done.stdout + done.stderr


async def test_processes_that_write_are_not_given_the_password_as_an_argument(tmp_path, server_url):
    command = ("bench", "--profile", "writers", "--writers", "2", "--seconds", "1.5", "--json")
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "haulier", *command, "--store", server_url),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=asyncio.subprocess.PIPE,
    )
    told = asyncio.create_task(bench.communicate())
    seen = set()
    while not told.done():
        seen |= {pid for pid in children_of(bench.pid) if PASSWORD not in command_line(pid)}
        assert not [pid for pid in children_of(bench.pid) if PASSWORD in command_line(pid)]
        await asyncio.sleep(0.05)
    figures = json.loads((await told)[0])
    assert len(seen) == 2
    assert figures["errors"] == 0
    assert figures["enqueued"] > 0


def children_of(parent):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(stat.parent.name))
    return found


def command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
