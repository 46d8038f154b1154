"""Jobs that do their worst, in real processes: what each costs, and whom."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from haulier.app import App
from haulier.domain.job import Job, JobState
from nursery import alive
from processes import haulier_json, running
from support import wait_until, work

TASKS = """
import asyncio, ctypes, os, signal, sys, time
from pathlib import Path
from haulier import App, Context, RetryPolicy

app = App("sqlite:///tasks.db")
here = Path(__file__).parent
TWICE = RetryPolicy(max_attempts=2, delay=0, cap=0)
RAISED = {
    "cancelled": asyncio.CancelledError("mine"),
    "generator": GeneratorExit(),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
}


def tell(line):
    with (here / "told.txt").open("a") as file:
        file.write(line + "\\n")


def hostile(ctx, how):
    tell(f"{how} {os.getpid()} {ctx.job.lost} {time.time()}")
    if how in RAISED:
        raise RAISED[how]
    if ctx.job.lost:
        return "second"
    if how == "os_exit":
        os._exit(9)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "block":
        time.sleep(20)
    if how == "hold":
        ctypes.PyDLL(None).sleep(20)
    return "first"


@app.task(retry=TWICE)
async def in_loop(ctx: Context, how: str):
    return hostile(ctx, how)


@app.task(retry=TWICE)
def in_thread(ctx: Context, how: str):
    return hostile(ctx, how)


@app.task(retry=TWICE, executor="process")
def in_process(ctx: Context, how: str):
    return hostile(ctx, how)


@app.task
async def good(n: int):
    return n


@app.task
def good_thread(n: int):
    return n


@app.task
async def deaf():
    tell("deaf")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


@app.task(executor="process")
def long(ctx: Context):
    tell(f"long {os.getpid()}")
    time.sleep(60)
"""

EVERYWHERE = ("in_loop", "in_thread", "in_process")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def app_of(folder: Path) -> App:
    return App(f"sqlite:///{folder}/tasks.db")


async def enqueue(folder: Path, kind: str, payload: str = "{}") -> str:
    """Straight into the store: a command would take longer than most of these jobs."""
    job = work(kind, payload=payload.encode())
    async with app_of(folder) as app:
        await app.store.insert([job])
    return job.id


def told(folder: Path, how: str) -> list[list[str]]:
    """What attempts of that kind of job have said, a list of words each."""
    path = folder / "told.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split() for line in lines if line.split()[0] == how]


async def outcome(app: App, job_id: str, timeout: float = 60) -> Job:
    return await app.jobs.wait(job_id, timeout=timeout)


async def test_what_a_job_raises_ends_its_attempt_and_nothing_else(folder):
    hows = ("cancelled", "generator", "exit", "interrupt")
    ids = [
        await enqueue(folder, kind, f'{{"how": "{how}"}}') for how in hows for kind in EVERYWHERE
    ]
    good = await enqueue(folder, "good", '{"n": 5}')
    with running(folder, "worker", "tasks:app") as worker:
        async with app_of(folder) as app:
            for job_id in ids:
                job = await outcome(app, job_id)
                assert (job.state, job.attempt, job.lost) == (JobState.FAILED, 2, 0), job
            assert (await outcome(app, good)).value == 5
            assert len(await app.store.workers()) == 1
        worker.send(signal.SIGTERM)
        assert await worker.ended() == 0, worker.says()


@pytest.mark.parametrize("how", ["os_exit", "segfault"])
@pytest.mark.parametrize("kind", ["in_loop", "in_thread"])
async def test_what_ends_the_worker_process_is_run_again_within_seconds(folder, kind, how):
    """The parent sees the exit; the default ttl of 15 s plays no part."""
    job_id = await enqueue(folder, kind, f'{{"how": "{how}"}}')
    with running(folder, "worker", "tasks:app", "--processes", "2") as parent:
        async with app_of(folder) as app:
            job = await outcome(app, job_id)
        parent.send(signal.SIGTERM)
        await parent.ended()
    assert (job.state, job.value, job.attempt, job.lost) == (JobState.COMPLETED, "second", 1, 1)
    first, second = (float(words[3]) for words in told(folder, how))
    assert second - first < 3


@pytest.mark.parametrize("how", ["os_exit", "segfault"])
async def test_in_a_process_of_its_own_it_costs_its_attempts_alone(folder, how):
    job_id = await enqueue(folder, "in_process", f'{{"how": "{how}"}}')
    others = [await enqueue(folder, "good", f'{{"n": {n}}}') for n in range(3)]
    with running(folder, "worker", "tasks:app") as worker:
        async with app_of(folder) as app:
            job = await outcome(app, job_id)
            for n, other in enumerate(others):
                assert (await outcome(app, other)).value == n
            (row,) = await app.store.workers()
            assert (row.alive, row.pid) == (True, worker.pid)
    assert (job.state, job.attempt, job.lost) == (JobState.FAILED, 2, 0)
    assert job.error.type == "ProcessDied"


@pytest.mark.slow
async def test_a_blocked_event_loop_and_a_blocked_interpreter_elsewhere_cost_nothing(folder):
    """Twenty seconds, with the default ttl of fifteen."""
    holds = await enqueue(folder, "in_process", '{"how": "hold"}')
    with running(folder, "worker", "tasks:app") as worker:
        await wait_until(lambda: told(folder, "hold"), 30)
        blocks = await enqueue(folder, "in_loop", '{"how": "block"}')
        async with app_of(folder) as app:
            for job_id in (blocks, holds):
                job = await outcome(app, job_id)
                found = (job.state, job.value, job.attempt, job.lost, job.lease)
                assert found == (JobState.COMPLETED, "first", 1, 0, 1), worker.says()
            (row,) = await app.store.workers()
            assert row.alive
    assert (len(told(folder, "block")), len(told(folder, "hold"))) == (1, 1)


@pytest.mark.slow
async def test_a_worker_whose_interpreter_is_held_is_fenced_and_its_job_runs_elsewhere(folder):
    """Twenty seconds in a C call, with the default ttl of fifteen."""
    job_id = await enqueue(folder, "in_thread", '{"how": "hold"}')
    with running(folder, "worker", "tasks:app", "--threads", "1") as worker:
        await wait_until(lambda: told(folder, "hold"), 30)
        began = time.monotonic()
        with running(folder, "worker", "tasks:app") as other:
            async with app_of(folder) as app:
                job = await outcome(app, job_id)
                assert time.monotonic() - began < 25, other.says()
                assert (job.value, job.attempt, job.lost) == ("second", 1, 1)
                # Its late answer changes nothing, and it goes on as another incarnation.
                await wait_until(lambda: "incarnation lost" in worker.says(), 30)
                good = await enqueue(folder, "good_thread", '{"n": 7}')
                assert (await outcome(app, good)).value == 7
                assert (await app.get(job_id)).value == "second"
                await wait_until(lambda: _several_alive(app, 2))
    assert len(told(folder, "hold")) == 2


async def test_a_coroutine_that_heeds_nothing_does_not_keep_a_worker_from_ending(folder):
    job_id = await enqueue(folder, "deaf")
    with running(folder, "worker", "tasks:app", "--grace", "0.1") as worker:
        await wait_until(lambda: told(folder, "deaf"), 30)
        worker.send(signal.SIGTERM)
        assert await worker.ended(20) == 0, worker.says()
    assert "job abandoned" in worker.says()
    job = haulier_json(folder, "jobs", "show", job_id, "--store", "sqlite:///tasks.db")
    assert (job["state"], job["attempt"]) == ("pending", 0)


async def test_children_end_with_a_worker_that_is_stopped_and_with_one_that_is_killed(folder):
    for how in (signal.SIGTERM, signal.SIGKILL):
        before = len(told(folder, "long"))
        job_id = await enqueue(folder, "long")
        with running(folder, "worker", "tasks:app", "--grace", "0.1", HAULIER_TTL="1") as worker:
            await wait_until(lambda count=before: len(told(folder, "long")) > count, 30)
            pid = int(told(folder, "long")[-1][1])
            assert alive(pid)
            assert worker.children() == [pid]
            # Ctrl-C and a service manager reach every process: the worker decides.
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(pid, number)
            worker.send(how)
            await worker.ended()
            await wait_until(lambda child=pid: not alive(child))
        async with app_of(folder) as app:
            await app.cancel(job_id)
            await app.store.sweep()


async def _several_alive(app: App, count: int) -> bool:
    return sum(row.alive for row in await app.store.workers()) >= count
