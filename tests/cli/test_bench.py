"""Every profile of `haulier bench`, with tiny numbers: its figures are there and can be true."""

from __future__ import annotations

import pytest

from processes import haulier, haulier_json

TINY = ("--jobs", "300", "--singles", "10", "--present", "500", "--rounds", "2")
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
}  # fmt: skip


@pytest.mark.parametrize("profile", FIGURES)
def test_its_figures_are_there_and_positive(tmp_path, profile):
    more = ("--writers", "2", "--seconds", "0.5") if profile == "writers" else ()
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


@pytest.mark.parametrize("profile", ["noop", "batch", "retry", "latency", "backlog"])
def test_a_store_that_is_no_file_has_the_same_figures_but_no_fsync(tmp_path, profile):
    options = ("--profile", profile, *TINY, "--store", "sqlite://")
    figures = haulier_json(tmp_path, "bench", *options)
    for name in FIGURES[profile]:
        assert figures[name] > 0, name
    assert not [name for name in figures if "fsync" in name]
    done = haulier(tmp_path, "bench", *options)
    assert "not measured: the store is no file of this machine" in done.stdout
    assert "nothing is written to disk" in done.stdout


@pytest.mark.parametrize("options", [("--profile", "writers"), ("--processes", "1")])
def test_a_store_in_memory_is_not_for_several_processes(tmp_path, options):
    done = haulier(tmp_path, "bench", *TINY, *options, "--store", "sqlite://")
    assert done.returncode == 2
    assert "cannot be shared with another process" in done.stderr
