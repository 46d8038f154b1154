"""The benchmark beside the peers: its table, the contract of its adapters, the page it writes."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
NAMES = {
    "haulier", "BullMQ for Python", "BullMQ on Node", "Celery", "Dramatiq", "Huey", "PgQueuer",
    "Procrastinate", "RQ", "SAQ", "arq", "docket", "streaQ", "taskiq",
}  # fmt: skip


@pytest.fixture
def peers(monkeypatch):
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(PEERS))
    return importlib.import_module


def adapter(command, *amounts, server):
    return subprocess.Popen(
        [sys.executable, PEERS / "adapters" / "with_haulier.py", command, *map(str, amounts)],
        env=os.environ | {"PEER_SERVER": str(server)},
        stdout=subprocess.PIPE,
        text=True,
    )


def figures(process):
    out, _ = process.communicate(timeout=60)
    return json.loads(out.splitlines()[-1])


def test_all_peers_are_there_with_fixed_versions(peers):
    table = peers("table")
    assert {peer.name for peer in table.PEERS} == NAMES
    ours = [peer for peer in table.PEERS if peer.name == table.HAULIER]
    assert {peer.server for peer in ours} == set(table.SERVERS)
    for peer in table.PEERS:
        if peer.name != table.HAULIER:
            assert "==" in peer.packages[0] or "@" in peer.packages[0], peer.name


def test_every_adapter_tells_its_settings_and_how_it_delivers(peers):
    table = peers("table")
    for peer in table.PEERS:
        text = (table.ADAPTERS / peer.adapter).read_text()
        told = (
            text[: text.index("*/")]
            if peer.adapter.endswith("mjs")
            else ast.get_docstring(ast.parse(text))
        )
        assert ("most" if not peer.at_least_once else "least") + " once" in told, peer.name
        for setting in peer.settings:
            for word in setting.split():
                assert f"`{word.partition('=')[0]}" in told, (peer.name, word)


def test_an_adapter_produces_and_works(tmp_path):
    produced = figures(adapter("produce", 300, server=tmp_path))
    assert produced["jobs"] == 300
    worked = figures(adapter("work", 300, "concurrency=50", server=tmp_path))
    assert worked["jobs"] == 300
    assert worked["seconds"] > 0
    assert worked["processor"] > 0


def test_a_listener_measures_what_another_process_sends(tmp_path):
    listener = adapter("listen", 20, server=tmp_path)
    assert listener.stdout.readline() == "ready\n"
    assert figures(adapter("send", 20, 200, server=tmp_path))["jobs"] == 20
    heard = figures(listener)
    assert heard["jobs"] == 20
    assert 0 < heard["p50_ms"] <= heard["p99_ms"]


def test_ratios_are_those_of_the_same_round_and_failures_are_told(peers):
    report, measure, table = peers("report"), peers("measure"), peers("table")
    ours, huey, redis_huey = (
        next(peer for peer in table.PEERS if peer.name == name and peer.server == server)
        for name, server in (("haulier", "sqlite"), ("Huey", "sqlite"), ("Huey", "redis"))
    )
    rest = {name: [1.0] for name in ("enqueue_rates", "worker_us", "server_us")}
    rows = [
        measure.Row(ours, rates=[30_000.0, 10_000.0, 40_000.0], **rest),
        measure.Row(huey, rates=[1_000.0, 1_000.0, 2_000.0], **rest),
        measure.Row(redis_huey, failed="round 1: no such server"),
    ]
    found = report.results(rows, versions={}, others=[0.0, 0.4], rounds=3, seconds=1)
    text = report.text(found)
    assert found["rows"][1]["haulier_ratio"] == {"min": 10, "median": 20, "max": 30}
    assert "| SQLite | Huey | 10 | 20 | 20.00 (10.00 to 30.00) | aim met |" in text
    assert "failed: round 1: no such server" in text
    assert "not quiet" in text


def test_the_page_says_what_the_data_says(peers):
    report = peers("report")
    page = report.PAGE.read_text()
    assert report.text(json.loads(report.DATA.read_text())) in page
    assert report.CHART.name in page
