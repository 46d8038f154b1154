"""Signals, dead parents and dead children: who stops, who goes on, and what it costs a job."""

from __future__ import annotations

import os
import signal

from haulier.app import App
from haulier.domain.job import JobState
from nursery import alive
from processes import haulier, running, told, with_tasks
from support import wait_until

STORE = ("--store", "sqlite:///tasks.db")


def app_of(folder) -> App:
    return App(f"sqlite:///{folder}/tasks.db")


async def enqueue(folder, kind, payload) -> str:
    asked = haulier(folder, "enqueue", kind, "--payload", payload, "--app", "tasks:app")
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.strip()


async def started(folder, count=1) -> None:
    await wait_until(lambda: sum(line.startswith("start") for line in told(folder)) >= count, 30)


async def test_a_signal_lets_running_jobs_finish_and_exits_with_zero(tmp_path):
    with_tasks(tmp_path)
    job = await enqueue(tmp_path, "nap", '{"seconds": 1.0}')
    waiting = await enqueue(tmp_path, "nap", '{"seconds": 0.1, "name": "later"}')
    with running(tmp_path, "worker", "tasks:app", "--concurrency", "1") as worker:
        await started(tmp_path)
        worker.send(signal.SIGTERM)
        assert await worker.ended() == 0, worker.says()
    async with app_of(tmp_path) as app:
        assert (await app.get(job)).state is JobState.COMPLETED
        assert (await app.get(waiting)).state is JobState.PENDING
        assert (await app.get(waiting)).attempt == 0
    assert told(tmp_path) == ["start nap 1", "end nap"]


async def test_what_outlasts_the_grace_time_is_given_back_without_an_attempt(tmp_path):
    with_tasks(tmp_path)
    async_job = await enqueue(tmp_path, "nap", '{"seconds": 60}')
    thread_job = await enqueue(tmp_path, "snore", '{"seconds": 60}')
    with running(tmp_path, "worker", "tasks:app", "--grace", "0.3") as worker:
        await started(tmp_path, 2)
        worker.send(signal.SIGTERM)
        assert await worker.ended() == 0, worker.says()
    async with app_of(tmp_path) as app:
        for job_id in (async_job, thread_job):
            job = await app.get(job_id)
            assert (job.state, job.attempt, job.lost) == (JobState.PENDING, 0, 0)
            assert job.lease == 1


async def test_a_second_signal_gives_back_at_once(tmp_path):
    with_tasks(tmp_path)
    job_id = await enqueue(tmp_path, "nap", '{"seconds": 60}')
    with running(tmp_path, "worker", "tasks:app", "--grace", "600") as worker:
        await started(tmp_path)
        worker.send(signal.SIGINT)
        await wait_until(lambda: "worker stopping" in worker.says())
        worker.send(signal.SIGINT)
        assert await worker.ended() == 0, worker.says()
    async with app_of(tmp_path) as app:
        job = await app.get(job_id)
        assert (job.state, job.attempt) == (JobState.PENDING, 0)


async def test_the_parent_restarts_a_killed_child_and_its_job_runs_again_at_once(tmp_path):
    """The default ttl of 15 s plays no part: the parent saw the exit."""
    with_tasks(tmp_path)
    job_id = await enqueue(tmp_path, "nap", '{"seconds": 2}')
    with running(tmp_path, "worker", "tasks:app", "--processes", "2") as parent:
        await started(tmp_path)
        async with app_of(tmp_path) as app:
            holder = (await app.get(job_id)).worker
            rows = {row.id: row for row in await app.store.workers()}
            os.kill(rows[holder].pid, signal.SIGKILL)
            await started(tmp_path, 2)
            await wait_until(lambda: "worker process ended" in parent.says())
            job = await app.jobs.wait(job_id, timeout=30)
            assert (job.state, job.attempt, job.lost) == (JobState.COMPLETED, 1, 1)
            assert job.lease == 2
        await wait_until(lambda: len(parent.children()) == 2)
        parent.send(signal.SIGTERM)
        assert await parent.ended() == 0, parent.says()


async def test_children_of_a_killed_parent_stop_and_give_their_jobs_back(tmp_path):
    with_tasks(tmp_path)
    job_id = await enqueue(tmp_path, "nap", '{"seconds": 60}')
    with running(tmp_path, "worker", "tasks:app", "--processes", "2", "--grace", "0.2") as parent:
        await started(tmp_path)
        children = parent.children()
        assert len(children) == 2
        parent.process.kill()
        await wait_until(lambda: not any(alive(pid) for pid in children), 30)
    async with app_of(tmp_path) as app:
        job = await app.get(job_id)
        assert (job.state, job.attempt, job.lost) == (JobState.PENDING, 0, 0)
