"""Jobs whose payload is of another version than their worker reads."""

from __future__ import annotations

from typing import Any

from child_tasks import add
from structlog.testing import capture_logs

from haulier import App, JobState, RetryPolicy
from haulier.worker import execution
from support import wait_until, work


def release(store, tmp_path, version: int) -> tuple[App, list[Any]]:
    """An app as it is in one of its releases."""
    app = App(store, secret_key_file=tmp_path / "secret.key")
    seen: list[Any] = []

    @app.task(kind="greet", version=version, retry=RetryPolicy.never())
    async def greet(name: str) -> None:
        seen.append(name)

    if version > 1:

        @app.upcast(greet, from_version=1)
        def renamed(old: dict[str, Any]) -> dict[str, Any]:
            return {"name": old["who"]}

    return app, seen


async def test_jobs_of_an_older_release_are_brought_up_to_date(store, tmp_path):
    app, seen = release(store, tmp_path, 2)
    old = work("greet", payload=b'{"who":"Ada"}')
    await store.insert([old])
    async with app.working():
        await app.wait(old.id, timeout=20, progress=False)
        await app.wait(await app.enqueue("greet", {"name": "Bob"}), timeout=20, progress=False)
    assert seen == ["Ada", "Bob"]


async def test_a_missing_upcast_fails_the_job_at_once(store, tmp_path):
    app, seen = release(store, tmp_path, 3)
    old = work("greet", payload=b'{"who":"Ada"}', version=2, retry=RetryPolicy(delay=0))
    await store.insert([old])
    async with app.working():
        job = await app.wait(old.id, timeout=20, progress=False)
    assert (job.state, job.attempt, job.error.type) == (JobState.FAILED, 1, "PermanentError")
    assert "has no upcast from version 2" in job.error.message
    assert seen == []


async def test_an_old_worker_leaves_new_jobs_to_new_ones(store, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "NEWER_DELAY", 0.2)
    old, seen_by_old = release(store, tmp_path, 1)
    new, seen_by_new = release(store, tmp_path, 2)
    job_id = await new.enqueue("greet", {"name": "Ada"})
    also = await new.enqueue("greet", {"name": "Bob"})

    async def put_off_twice() -> bool:
        job = await new.get(job_id)
        return job.lease >= 2 and job.state is JobState.PENDING

    with capture_logs() as logs:
        await put_off_and_run(old, new, job_id, also, put_off_twice)
    told = [log for log in logs if log["event"] == "payload too new"]
    assert [(log["kind"], log["job"]) for log in told] == [("greet", job_id)]
    assert (seen_by_old, sorted(seen_by_new)) == ([], ["Ada", "Bob"])


async def put_off_and_run(old: App, new: App, job_id: str, also: str, put_off_twice: Any) -> None:
    async with old.working():
        await wait_until(put_off_twice)
        job = await old.get(job_id)
        assert (job.attempt, job.error) == (0, None)
        assert job.message == "waits for a worker that reads version 2; this one reads 1"
        async with new.working():
            job = await new.wait(job_id, timeout=20, progress=False)
            await new.wait(also, timeout=20, progress=False)
    assert (job.state, job.attempt, job.message) == (JobState.COMPLETED, 1, None)


async def test_a_child_process_is_given_what_the_upcast_made(store, tmp_path):
    app = App(store, secret_key_file=tmp_path / "secret.key")
    task = app.task(version=2, executor="process")(add)
    app.upcast(task, from_version=1)(lambda old: {"left": old["l"], "right": old["r"]})
    old = work("add", payload=b'{"l":2,"r":3}')
    await store.insert([old])
    async with app.working():
        assert (await app.wait(old.id, timeout=20, progress=False)).value["sum"] == 5
