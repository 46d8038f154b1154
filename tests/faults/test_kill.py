"""SIGKILL in the middle of the main job: nothing lost, nothing torn, every counter exact."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import random
import signal
from pathlib import Path

import pytest
from PIL import Image

from haulier.app import App
from haulier.container import add_builtin_runners
from haulier.domain.job import JobState
from processes import haulier_json, running
from support import wait_until

KILLS = 20
ACCOUNTS = 200
STORE = "sqlite:///demo.db"


def photographs() -> list[str]:
    package = importlib.util.find_spec("skimage")
    assert package is not None
    assert package.submodule_search_locations
    data = Path(package.submodule_search_locations[0]) / "data"
    return [str(data / name) for name in ("astronaut.png", "chelsea.png", "coffee.png")]


async def enqueue_renditions(folder: Path) -> str:
    app = App(f"sqlite:///{folder}/demo.db", secret_key_file=folder / "config" / "key")
    add_builtin_runners(app)
    async with app:
        return await app.enqueue(
            "media_uniq",
            {
                "accounts": [f"account-{number}" for number in range(ACCOUNTS)],
                "sources": photographs(),
                "output": str(folder / "renditions"),
                "watermark": {"text": "@{account}"},
            },
        )


def done(folder: Path, batch: str) -> int:
    shown = haulier_json(folder, "batches", "show", batch, "--store", STORE)
    return shown["completed"] + shown["failed"]


@pytest.mark.slow
async def test_twenty_kills_of_the_worker_lose_nothing_and_tear_nothing(tmp_path):
    """Eighteen kills hit one worker process, two the whole tree, each at a random moment."""
    seed = random.randrange(1_000_000)
    print("seed", seed)
    dice = random.Random(seed)
    batch = await enqueue_renditions(tmp_path)
    app = App(f"sqlite:///{tmp_path}/demo.db")
    kills = 0
    tree_kills = set(dice.sample(range(KILLS), 2))
    async with app:

        async def completed() -> int:
            return (await app.batch(batch)).counts.completed

        while kills < KILLS:
            with running(
                tmp_path, "worker", "--processes", "2", "--store", STORE, HAULIER_TTL="2"
            ) as parent:
                while kills < KILLS:
                    target = await completed() + dice.randint(3, 25)
                    await wait_until(lambda goal=target: reached(completed, goal), 60)
                    victims = await wait_until(parent.children)
                    kills += 1
                    if kills - 1 in tree_kills:
                        parent.process.kill()
                        for pid in victims:
                            kill(pid)
                        break
                    kill(dice.choice(victims))
        with running(tmp_path, "worker", "--processes", "2", "--store", STORE, HAULIER_TTL="2"):
            head = await app.jobs.wait(batch, timeout=120)
            assert head.state is JobState.COMPLETED
            total = ACCOUNTS * 3
            assert head.value == {
                "total": total,
                "completed": total,
                "failed": 0,
                "cancelled": 0,
            }
            counts = (await app.batch(batch)).counts
            assert (counts.total, counts.completed, counts.done) == (total, total, total)
    await asyncio.to_thread(assert_whole, tmp_path / "renditions", total)


async def reached(completed, goal: int) -> bool:
    return await completed() >= goal


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def assert_whole(folder: Path, total: int) -> None:
    """Every rendition is there, is the one its manifest line names, and opens; no draft is left."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == total
    files = {path for path in folder.rglob("*") if path.is_file()}
    expected = {Path(row["path"]) for row in rows}
    assert len(expected) == total
    assert files == expected | {folder / "manifest.jsonl", folder / "manifest.csv"}
    for row in rows:
        data = Path(row["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        with Image.open(row["path"]) as picture:
            picture.load()
            assert picture.size == (1080, 1080)
