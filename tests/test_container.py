"""The composition root: a user's own app is the one that works."""

from __future__ import annotations

import sys

import pytest

from haulier.config import Settings
from haulier.container import build_app
from haulier.worker.lanes import WorkerOptions

OWN_APP = """
from pathlib import Path
from haulier import App, Secret

here = Path(__file__).parent
app = App(f"sqlite:///{here / 'own.db'}", secret_key_file=here / "own.key")

@app.task
def leaf() -> str:
    return "done"

@app.task
def from_a_thread() -> str:
    return app.enqueue_sync(leaf)

@app.task
async def from_the_loop() -> str:
    return await app.enqueue(leaf)

@app.task
async def sealed(word: Secret) -> int:
    return len(word.reveal())
"""


@pytest.fixture
def user_app(tmp_path, monkeypatch) -> str:
    """`module:attribute` of an app that stands in a module of its own."""
    name = f"own_app_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN_APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield f"{name}:app"
    sys.modules.pop(name, None)


@pytest.mark.parametrize("named", [False, True], ids=["own store", "another store"])
@pytest.mark.parametrize("task", ["from_a_thread", "from_the_loop"])
async def test_what_a_job_enqueues_by_its_own_app_goes_to_the_store_it_came_from(
    tmp_path, user_app, named, task
):
    settings = Settings(store=f"sqlite:///{tmp_path / 'other.db'}") if named else Settings()
    async with build_app(settings, user_app) as app, app.working(WorkerOptions(concurrency=4)):
        leaf = await app.result(await app.enqueue(task), timeout=20)
        assert await app.result(leaf, timeout=20) == "done"
    assert (tmp_path / "own.db").exists() != named


async def test_secrets_are_sealed_with_its_own_key_unless_the_settings_name_one(tmp_path, user_app):
    async with build_app(Settings(), user_app) as app:
        job = await app.enqueue("sealed", {"word": "open sesame"})
        async with app.working(WorkerOptions(concurrency=1)):
            assert await app.result(job, timeout=20) == 11
    assert (tmp_path / "own.key").exists()


async def test_all_that_an_app_offers_speaks_to_the_store_that_the_settings_name(
    tmp_path, user_app
):
    settings = Settings(store=f"sqlite:///{tmp_path / 'other.db'}")
    async with build_app(settings, user_app) as app:
        await app.queues.pause("slow", by="test")
        assert await app.queues.paused() == {"slow"}
        assert await app.limits.all() == []
        assert await app.schedules.all() == []
