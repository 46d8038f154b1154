"""The bulk kinds under a batch's limits, through the library to the end."""

from __future__ import annotations

import json
import threading

import pytest
from PIL import Image

from haulier import App, JobFilter, JobState, PermanentError, RetryPolicy
from haulier.runners.media_uniq import MediaUniqTaskRunner
from haulier.runners.proxy_diagnostics import ProxyDiagnosticsTaskRunner
from haulier.runners.proxy_input import read_proxies
from support import wait_until

NOBODY = "http://127.0.0.1:9/"
"""What nothing listens to: a check is over at once."""


class Crowd:
    """Counts how many are inside at once; each waits until there are enough, if there can be."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._lock = threading.Lock()
        self.inside = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.inside -= 1

    @property
    def complete(self) -> bool:
        return self.most >= self._enough


@pytest.fixture
async def app(tmp_path):
    async with App("sqlite://", secret_key_file=tmp_path / "secret.key") as app:
        yield app


@pytest.fixture
def pictures(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    Image.linear_gradient("L").convert("RGB").save(media / "one.png")
    return media


def proxies(count):
    return read_proxies("\n".join(f"http://127.0.0.1:{9 + n}" for n in range(count)))


async def ended(app, batch_id):
    """The settled batch, and the job of its finish callback."""
    async with app.working():
        await app.wait(batch_id, timeout=60, progress=False)
    batch = await app.batch(batch_id)
    return batch, await app.get(batch.finish_job)


@pytest.mark.parametrize(("limit", "most"), [(2, 2), (None, 6)])
async def test_no_more_proxies_are_checked_at_once_than_the_batch_may(app, limit, most):
    crowd = Crowd(most)

    class Watched(ProxyDiagnosticsTaskRunner):
        async def run_item(self, ctx, item):
            with crowd:
                # All that may come in are let in before the first one leaves.
                await wait_until(lambda: crowd.complete)
                return await super().run_item(ctx, item)

    app.add_runner(Watched())
    start = {"proxies": proxies(6), "check_url": NOBODY, "tries": 1}
    batch, callback = await ended(
        app, await app.enqueue("proxy_diagnostics", start, concurrency=limit)
    )
    assert (batch.state, batch.counts.completed) == (JobState.COMPLETED, 6)
    assert crowd.most == most
    assert callback.value["proxies"] == 6


async def test_no_more_renditions_are_made_at_once_than_the_batch_may(app, pictures, tmp_path):
    crowd = Crowd(2)
    both = threading.Barrier(2, timeout=20)

    class Watched(MediaUniqTaskRunner):
        per_worker = 16

        def run_item(self, ctx, item):
            with crowd:
                both.wait()
                return super().run_item(ctx, item)

    app.add_runner(Watched())
    start = {
        "accounts": [f"account-{n}" for n in range(8)],
        "sources": [str(pictures)],
        "output": str(tmp_path / "out"),
        "spec": "thumb",
    }
    batch, callback = await ended(app, await app.enqueue("media_uniq", start, concurrency=2))
    assert batch.counts.completed == 8
    assert crowd.most == 2
    assert callback.value["rows"] == 8


async def test_a_proxy_run_with_too_many_failures_is_cut_short_and_reported(app):
    class Unlucky(ProxyDiagnosticsTaskRunner):
        retry = RetryPolicy.never()

        async def run_item(self, ctx, item):
            if item.proxy.port % 2:
                raise PermanentError("the network of this machine is down")
            return await super().run_item(ctx, item)

    app.add_runner(Unlucky())
    start = {"proxies": proxies(40), "check_url": NOBODY, "tries": 1}
    batch, callback = await ended(
        app, await app.enqueue("proxy_diagnostics", start, concurrency=1, max_failures=2)
    )
    head, counts = await app.get(batch.id), batch.counts
    assert (head.state, head.error.type) == (JobState.FAILED, "MaxFailuresExceeded")
    assert (counts.failed, counts.total, counts.done) == (3, 40, 40)
    assert counts.cancelled == 40 - 3 - counts.completed > 30
    # The callback ran, was told that the batch failed, and reports on what was checked.
    assert callback.state is JobState.COMPLETED
    told = json.loads(callback.payload)
    assert (told["state"], told["counts"]["failed"]) == ("failed", 3)
    report = callback.value
    assert (report["proxies"], report["unfinished"]) == (40, 40 - counts.completed)
    assert sum(report["verdicts"].values()) == counts.completed


async def test_a_rendition_run_cut_short_has_a_manifest_of_all_items(app, pictures, tmp_path):
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    app.add_runner(MediaUniqTaskRunner())
    start = {
        "accounts": [f"account-{n}" for n in range(10)],
        "sources": [str(pictures / "one.png"), str(pictures / "broken.jpg")],
        "output": str(tmp_path / "out"),
        "spec": "thumb",
    }
    batch, callback = await ended(
        app, await app.enqueue("media_uniq", start, concurrency=1, max_failures=0)
    )
    assert (batch.state, batch.counts.failed) == (JobState.FAILED, 1)
    assert (callback.state, callback.value["rows"]) == (JobState.COMPLETED, 20)
    text = (tmp_path / "out" / "manifest.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    done = await app.find(
        JobFilter(batch_id=batch.id, states=frozenset({JobState.COMPLETED})), limit=20
    )
    assert len([row for row in rows if row.get("path")]) == len(done.jobs) == batch.counts.completed
    # What was cut short is done by trying it again.
    (pictures / "one.png").replace(pictures / "broken.jpg")
    Image.linear_gradient("L").convert("RGB").save(pictures / "one.png")
    assert await app.retry_all(JobFilter(batch_id=batch.id)) == 1
