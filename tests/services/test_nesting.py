"""Bulk kinds as items of batches: from the library down, on every store."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from haulier import (
    App,
    BaseTaskRunner,
    BatchFinished,
    ConfigurationError,
    Context,
    JobState,
    RetryPolicy,
)
from haulier.testing import run_until_idle
from support import wait_until


class Album(BaseModel):
    title: str
    pictures: int


class Picture(BaseModel):
    album: str
    number: int


class Shelf(BaseModel):
    albums: int


class Publish(BaseTaskRunner[Album, Picture]):
    task_type = "publish"
    start_model = Album
    item_model = Picture
    retry = RetryPolicy(max_attempts=3, delay=0, cap=0)

    def __init__(self) -> None:
        self.finished: list[str] = []
        self.failing = False
        self.seen: list[str] = []

    def expand(self, ctx: Context, start: Album):
        return (Picture(album=start.title, number=n) for n in range(start.pictures))

    async def run_item(self, ctx: Context, item: Picture) -> str:
        self.seen.append((await ctx.batch()).kind)
        if self.failing:
            raise ValueError(item.album)
        return item.album

    async def finish(self, ctx: Context, start: Album, finished: BatchFinished) -> None:
        self.finished.append(start.title)


class PublishAll(BaseTaskRunner[Shelf, Album]):
    task_type = "publish_all"
    start_model = Shelf
    item_kind = "publish"

    def expand(self, ctx: Context, start: Shelf):
        return (Album(title=f"album {n}", pictures=2) for n in range(start.albums))


@pytest.fixture
def publish() -> Publish:
    return Publish()


@pytest.fixture
def app(store, tmp_path, publish) -> App:
    app = App(store, secret_key_file=tmp_path / "secret.key")
    app.add_runner(publish)
    app.add_runner(PublishAll())
    return app


async def settled(app: App, batch_id: str):
    async def look():
        await app.store.sweep()
        await run_until_idle(app)
        found = await app.batch(batch_id)
        return found if found.settled else None

    return await wait_until(look)


async def test_a_batch_of_a_bulk_kind(app, publish):
    albums = [{"title": "sea", "pictures": 3}, {"title": "hills", "pictures": 2}]
    outer = await app.enqueue_batch("publish", albums)
    found = await settled(app, outer)
    assert (found.state, found.counts.total, found.counts.completed) == (JobState.COMPLETED, 2, 2)
    inner = await app.store.batches(within=outer)
    assert sorted(batch.counts.completed for batch in inner) == [2, 3]
    assert sorted(publish.finished) == ["hills", "sea"]
    assert set(publish.seen) == {"publish"}


async def test_one_that_is_filled_as_its_items_come(app, publish):
    async with app.open_batch("publish") as batch:
        await batch.add({"title": f"album {n}", "pictures": 1} for n in range(5))
        assert await batch.add([]) == 0
    found = await settled(app, batch.id)
    assert (found.counts.completed, len(publish.finished)) == (5, 5)


async def test_a_runner_whose_items_are_of_another_bulk_kind(app, publish):
    outer = await app.enqueue("publish_all", {"albums": 3})
    found = await settled(app, outer)
    assert (found.kind, found.counts.completed) == ("publish_all", 3)
    assert len(publish.finished) == 3


async def test_failed_items_within_are_tried_again(app, publish):
    publish.failing = True
    outer = await app.enqueue("publish_all", {"albums": 2})
    await settled(app, outer)
    publish.failing = False
    assert await app.batches.retry_failed(outer) == 4
    found = await settled(app, outer)
    assert found.counts.completed == 2
    inner = await app.store.batches(within=outer)
    assert [batch.counts.completed for batch in inner] == [2, 2]


def test_a_runner_without_items_of_its_own_names_their_kind():
    class Nothing(BaseTaskRunner[Shelf, Album]):
        task_type = "nothing"
        start_model = Shelf
        item_model = Album

        def expand(self, ctx, start):
            return []

    with pytest.raises(ConfigurationError, match="item_kind"):
        App("sqlite://").add_runner(Nothing())


def test_limits_of_items_that_are_another_kinds_are_refused():
    class Limited(PublishAll):
        limits = ("30/m",)

    with pytest.raises(ConfigurationError, match="publish has its own"):
        App("sqlite://").add_runner(Limited())
