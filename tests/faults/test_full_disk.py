"""A disk without space: a clear error, nothing acknowledged lost, and work goes on afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from haulier.app import App
from haulier.domain.job import JobState
from haulier.exceptions import StoreFullError
from processes import haulier, running, with_tasks
from support import wait_until

SIZE = "4m"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes. Only root may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={SIZE}", "haulier-test", str(folder)],
        check=False,
        capture_output=True,
    )
    if not done or done.returncode:
        if os.environ.get("CI"):
            pytest.fail("a small disk cannot be mounted here")
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_what_was_acknowledged_survives_a_full_disk_and_runs_when_there_is_space(
    small_disk, tmp_path
):
    with_tasks(tmp_path)
    url = f"sqlite:///{small_disk}/jobs.db"
    filler = small_disk / "filler"
    acknowledged: list[str] = []
    app = App(url)

    @app.task
    async def echo(value: int) -> int:
        return value

    async with app:
        acknowledged.extend(await app.enqueue_many(echo, [{"value": n} for n in range(100)]))
        fill(filler)
        with pytest.raises(StoreFullError, match="no space left"):
            await enqueue_for_ever(app, acknowledged)
        assert await app.get(acknowledged[-1])
    refused = haulier(
        tmp_path, "enqueue", "echo", "--payload", '{"value": 1}', "--app", "tasks:app",
        "--store", url, "--json",
    )  # fmt: skip
    assert refused.returncode == 6
    assert '"error": "unreachable"' in refused.stderr
    assert "no space left" in refused.stderr
    with running(tmp_path, "worker", "tasks:app", "--store", url) as worker:
        await wait_until(lambda: "no space left" in worker.says(), 30)
        filler.unlink()
        async with App(url) as reader:

            async def all_done() -> bool:
                counts = await reader.store.counts()
                return all(state.final for (*_, state), n in counts.items() if n)

            await wait_until(all_done, 60)
            for job_id in acknowledged:
                assert (await reader.get(job_id)).state is JobState.COMPLETED


async def enqueue_for_ever(app: App, acknowledged: list[str]) -> None:
    while True:
        acknowledged.append(await app.enqueue("echo", {"value": 0}))


def fill(path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return
