"""Jobs in processes of their own: what they can do, how they are stopped, what a death costs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import child_tasks
import pytest
from child_tasks import Login
from structlog.testing import capture_logs
from test_stopping import Running

from haulier import (
    App,
    ConfigurationError,
    Job,
    JobState,
    RetryPolicy,
    WorkerOptions,
)
from haulier.services.registry import define_task
from nursery import alive
from support import SqliteMemory, wait_until

ONCE = RetryPolicy.never()
TWICE = RetryPolicy(max_attempts=2, delay=0, cap=0)
CANARY = "canary-7f3a-s3cr3t"


@pytest.fixture
def home_kind() -> Any:
    """One kind of store: what children do has nothing to do with it."""
    return SqliteMemory


@pytest.fixture(autouse=True)
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the children know."""
    monkeypatch.setenv("HAULIER_TEST_SCENE", str(tmp_path))
    return tmp_path


def process_task(app: App, name: str, **options: Any) -> Any:
    return app.task(executor="process", **options)(getattr(child_tasks, name))


async def outcome_of(app: App, task: Any, **payload: Any) -> Job:
    async with app.working(WorkerOptions(children=1)):
        return await app.wait(await app.enqueue(task, payload), timeout=20, progress=False)


async def pid_of(scene: Path, job_id: str) -> int:
    path = scene / f"{job_id}.pid"
    return int(await wait_until(lambda: path.exists() and path.read_text()))


class TestWork:
    async def test_a_child_runs_the_job_and_knows_it_and_is_used_again(self, app):
        add = process_task(app, "add")
        async with app.working(WorkerOptions(children=1)):
            ids = await app.enqueue_many(add, [{"left": n} for n in range(3)])
            values = [await app.result(job_id, timeout=20) for job_id in ids]
        assert [value["sum"] for value in values] == [1, 2, 3]
        assert [value["job"] for value in values] == ids
        assert {(value["lease"], value["attempt"], value["cancelled"]) for value in values} == {
            (1, 1, False)
        }
        (pid,) = {value["pid"] for value in values}
        assert pid != os.getpid()
        assert not alive(pid)

    async def test_a_bulk_kind_runs_its_items_in_children(self, app):
        app.add_runner(child_tasks.Squares())
        async with app.working(WorkerOptions(children=1)):
            head = await app.enqueue("squares", {"count": 20})
            done = await app.wait(head, timeout=20, progress=False)
        assert done.value["completed"] == 20

    async def test_progress_and_log_events_reach_the_worker(self, app, scene):
        task = process_task(app, "report")
        with capture_logs() as lines:
            async with app.working(WorkerOptions(children=1)):
                job_id = await app.enqueue(task)
                await wait_until(lambda: _reports(app, job_id, 40, "four of ten"), timeout=20)
                (scene / job_id).touch()
                job = await app.wait(job_id, timeout=20, progress=False)
        assert (job.progress, job.message) == (100, "done with it")
        (line,) = [line for line in lines if line["event"] == "hello"]
        told = {name: line[name] for name in ("job", "kind", "attempt", "lease", "who", "number")}
        assert told == {
            "job": job_id,
            "kind": "report",
            "attempt": 1,
            "lease": 1,
            "who": "world",
            "number": 3,
        }

    async def test_secrets_go_in_and_do_not_come_out(self, app):
        login = process_task(app, "login", retry=ONCE)
        with capture_logs() as lines:
            job = await outcome_of(app, login, user="u", password=CANARY)
        assert job.error.message == "login failed: u:******@host"
        assert job.message == "trying ******"
        assert CANARY not in repr(job) + repr(lines)
        assert any(line.get("password") == "******" for line in lines)

    async def test_a_child_can_open_its_own_secrets(self, app):
        job = await outcome_of(
            app, process_task(app, "reveal"), login={"user": "u", "password": "abcd"}, token="efgh"
        )
        assert job.value == ["dcba", "hgfe", "******"]

    async def test_what_needs_the_store_says_that_it_is_not_there(self, app):
        job = await outcome_of(app, process_task(app, "look"))
        assert (job.state, job.attempt) == (JobState.FAILED, 1)
        assert "a child process has not" in job.error.message

    async def test_a_child_is_replaced_after_so_many_jobs(self, app):
        add = process_task(app, "add")
        async with app.working(WorkerOptions(children=1, jobs_per_child=2)):
            ids = await app.enqueue_many(add, [{"left": n} for n in range(5)])
            pids = Counter([(await app.result(job_id, timeout=20))["pid"] for job_id in ids])
        assert sorted(pids.values()) == [1, 2, 2]

    async def test_never_more_than_the_children_there_may_be(self, app, scene):
        stay = process_task(app, "stay", per_worker=2)
        async with Running(app, children=3) as running:
            ids = await app.enqueue_many(stay, [{}] * 4)
            await wait_until(lambda: len(list(scene.glob("*.pid"))) == 2, timeout=20)
            states = [(await app.get(job_id)).state for job_id in ids]
            assert states.count(JobState.RUNNING) == 2
            running.worker.stop(now=True)
            await running.task


class TestRaising:
    @pytest.mark.parametrize(
        ("how", "state", "error_type"),
        [
            ("value", JobState.FAILED, "ValueError"),
            ("exit", JobState.FAILED, "SystemExit"),
            ("generator", JobState.FAILED, "GeneratorExit"),
            ("interrupt", JobState.FAILED, "KeyboardInterrupt"),
            ("memory", JobState.FAILED, "MemoryError"),
        ],
    )
    async def test_any_exception_fails_the_attempt(self, app, how, state, error_type):
        job = await outcome_of(app, process_task(app, "fail", retry=TWICE), how=how)
        assert (job.state, job.attempt, job.error.type) == (state, 2, error_type)
        assert "in fail" in job.error.traceback
        assert "haulier/worker" not in job.error.traceback

    async def test_signals_come_back_as_what_they_are(self, app):
        fail = process_task(app, "fail")
        async with app.working(WorkerOptions(children=1)):
            ids = {
                how: await app.enqueue(fail, {"how": how})
                for how in ("permanent", "cancel", "later", "snooze", "asked")
            }
            for how in ("permanent", "cancel"):
                await app.wait(ids[how], timeout=20, progress=False)
            for how in ("later", "asked", "snooze"):
                await wait_until(lambda job_id=ids[how]: _put_off(app, job_id), timeout=20)
        jobs = {how: await app.get(job_id) for how, job_id in ids.items()}
        assert (jobs["permanent"].state, jobs["permanent"].attempt) == (JobState.FAILED, 1)
        assert jobs["cancel"].error.message == "nothing to do"
        assert [jobs[how].attempt for how in ("later", "asked", "snooze")] == [1, 1, 0]
        assert jobs["asked"].run_at - jobs["asked"].started_at > 1_790_000_000


class TestDying:
    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("exit", "the process of this job ended with exit code 7"),
            ("kill", "the process of this job was killed by SIGKILL"),
            ("fork", "the process of this job was killed by SIGKILL"),
            ("segfault", "the process of this job was killed by SIGSEGV"),
        ],
    )
    async def test_a_death_costs_one_attempt(self, app, how, message):
        die, add = process_task(app, "die", retry=TWICE), process_task(app, "add")
        async with app.working(WorkerOptions(children=1)):
            job_id = await app.enqueue(die, {"how": how})
            job = await app.wait(job_id, timeout=20, progress=False)
            assert await app.result(await app.enqueue(add, {"left": 1}), timeout=20)
        assert (job.state, job.attempt, job.lost) == (JobState.FAILED, 2, 0)
        assert (job.error.type, job.error.message) == ("ProcessDied", message)

    async def test_more_memory_than_allowed_fails_the_attempt_and_replaces_the_child(self, app):
        die, add = process_task(app, "die", retry=ONCE), process_task(app, "add")
        async with app.working(WorkerOptions(children=1, child_memory=2000)):
            first = await app.result(await app.enqueue(add, {"left": 1}), timeout=20)
            job_id = await app.enqueue(die, {"how": "memory"})
            job = await app.wait(job_id, timeout=20, progress=False)
            second = await app.result(await app.enqueue(add, {"left": 1}), timeout=20)
        assert (job.state, job.error.type) == (JobState.FAILED, "MemoryError")
        assert first["pid"] != second["pid"]

    async def test_an_idle_child_that_dies_costs_nothing(self, app):
        add = process_task(app, "add", retry=ONCE)
        async with app.working(WorkerOptions(children=1)):
            first = await app.result(await app.enqueue(add, {"left": 1}), timeout=20)
            os.kill(first["pid"], signal.SIGKILL)
            await wait_until(lambda: not alive(first["pid"]))
            second = await app.result(await app.enqueue(add, {"left": 1}), timeout=20)
        assert first["pid"] != second["pid"]

    async def test_among_the_dying_every_good_one_completes_once(self, app):
        """Chaos: each bad one costs its own attempts and nobody else's."""
        mixed = process_task(app, "mixed", retry=TWICE)
        bad = {3: "segfault", 9: "exit", 17: "memory", 25: "kill", 31: "fork"}
        hows = [bad.get(n, "good") for n in range(40)]
        async with app.working(WorkerOptions(children=2, child_memory=2000)):
            ids = await app.enqueue_many(mixed, [{"how": how} for how in hows])
            jobs = [await app.wait(job_id, timeout=60, progress=False) for job_id in ids]
        for job, how in zip(jobs, hows, strict=True):
            if how == "good":
                assert (job.state, job.attempt, job.lease) == (JobState.COMPLETED, 1, 1)
            else:
                assert (job.state, job.attempt, job.lease) == (JobState.FAILED, 2, 2)


class TestStopping:
    async def test_a_soft_timeout_is_raised_in_the_job(self, app):
        stay = process_task(app, "stay", timeout=0.3, retry=TWICE)
        job = await outcome_of(app, stay)
        assert (job.state, job.attempt) == (JobState.FAILED, 2)
        assert (job.error.type, job.error.message) == ("JobTimeoutError", "took longer than 0.3 s")

    async def test_a_soft_timeout_may_be_caught(self, app):
        job = await outcome_of(app, process_task(app, "stay", timeout=0.3), how="catch")
        assert (job.state, job.value) == (JobState.COMPLETED, "caught")

    async def test_a_hard_timeout_kills_the_process(self, app, scene):
        stay = process_task(app, "stay", hard_timeout=1.5, retry=ONCE)
        async with app.working(WorkerOptions(children=1)):
            job_id = await app.enqueue(stay, {"how": "deaf"})
            pid = await pid_of(scene, job_id)
            job = await app.wait(job_id, timeout=20, progress=False)
            await wait_until(lambda: not alive(pid))
        assert (job.error.type, job.error.message) == ("JobTimeoutError", "took longer than 1.5 s")

    async def test_a_cancel_is_raised_in_the_job(self, app, scene):
        stay = process_task(app, "stay")
        async with app.working(WorkerOptions(children=1)):
            job_id = await app.enqueue(stay)
            await pid_of(scene, job_id)
            await app.cancel(job_id)
            job = await app.wait(job_id, timeout=4, progress=False)
        assert (job.state, job.error.message) == (JobState.CANCELLED, "cancelled on request")

    async def test_a_job_that_cannot_hear_its_cancel_is_killed(self, app, scene, monkeypatch):
        monkeypatch.setattr("haulier.worker.children.KILL_AFTER", 0.3)
        stay = process_task(app, "stay")
        async with app.working(WorkerOptions(children=1)):
            job_id = await app.enqueue(stay, {"how": "deaf"})
            pid = await pid_of(scene, job_id)
            await app.cancel(job_id)
            job = await app.wait(job_id, timeout=10, progress=False)
            await wait_until(lambda: not alive(pid))
        assert job.state is JobState.CANCELLED

    async def test_a_shutdown_kills_what_outlasts_the_grace_and_gives_it_back(self, app, scene):
        stay = process_task(app, "stay")
        async with Running(app, children=1, grace=0.1) as running:
            job_id = await app.enqueue(stay)
            pid = await pid_of(scene, job_id)
            running.worker.stop()
            await running.task
        job = await app.get(job_id)
        assert (job.state, job.attempt, job.lost) == (JobState.PENDING, 0, 0)
        assert not alive(pid)

    async def test_a_lost_incarnation_kills_its_children(self, app, scene, store):
        stay = process_task(app, "stay")
        async with Running(app, children=1) as running:
            job_id = await app.enqueue(stay)
            pid = await pid_of(scene, job_id)
            running.worker.stop()
            (row,) = await store.workers()
            await store.retire(row.id)
            await running.task
        assert not alive(pid)

    async def test_many_cancels_hit_their_own_job_and_no_other(self, app, scene):
        """The race between a cancel and a job that is just ending."""
        stay = process_task(app, "stay", retry=ONCE)
        async with app.working(WorkerOptions(children=1, jobs_per_child=0)):
            ids = await app.enqueue_many(stay, [{"seconds": n / 1000} for n in range(40)])
            for job_id in ids[::2]:
                await pid_of(scene, job_id)
                await app.cancel(job_id)
            jobs = [await app.wait(job_id, timeout=30, progress=False) for job_id in ids]
        assert {job.state for job in jobs[1::2]} == {JobState.COMPLETED}
        assert {job.state for job in jobs[::2]} <= {JobState.COMPLETED, JobState.CANCELLED}


class TestDefinition:
    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            (lambda: None, "top level"),
            (child_tasks.Squares.run_item, "top level"),
            (asyncio.sleep, "coroutine function cannot run"),
        ],
    )
    def test_what_a_process_cannot_find_is_refused(self, function, reason):
        with pytest.raises(ConfigurationError, match=reason):
            define_task(function, kind="work", executor="process")

    def test_nested_functions_are_refused(self, app):
        def nested() -> None: ...

        with pytest.raises(ConfigurationError, match="top level"):
            app.task(executor="process")(nested)

    def test_a_model_that_a_process_cannot_find_is_refused(self, app):
        class Local(Login):
            pass

        with pytest.raises(ConfigurationError, match="top level"):
            app.task(executor="process", model=Local)(child_tasks.plain_login)

    def test_a_plain_function_cannot_run_on_the_event_loop(self, app):
        with pytest.raises(ConfigurationError, match="plain function cannot run"):
            app.task(executor="async")(child_tasks.add)

    def test_unknown_executors_are_refused(self, app):
        with pytest.raises(ConfigurationError, match="executor"):
            app.task(executor="moon")(child_tasks.add)

    def test_a_runner_with_a_state_of_its_own_is_refused(self, app):
        runner = child_tasks.Squares()
        runner.colour = "red"
        with pytest.raises(ConfigurationError, match="state of its own"):
            app.add_runner(runner)


async def _reports(app: App, job_id: str, progress: int, message: str) -> bool:
    job = await app.get(job_id)
    return (job.state, job.progress, job.message) == (JobState.RUNNING, progress, message)


async def _put_off(app: App, job_id: str) -> bool:
    job = await app.get(job_id)
    return job.state is JobState.PENDING and job.lease == 1
