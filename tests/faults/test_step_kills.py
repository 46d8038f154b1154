"""SIGKILL of workers in the middle of jobs with steps: a finished step never runs again."""

from __future__ import annotations

import asyncio
import random
import signal

from faults.log import read
from faults.run import Run
from faults.script import Names
from haulier.domain.job import JobState
from haulier.services.ids import new_id
from support import wait_until

TTL = 2.5
STEPS = 8
SECONDS = 0.15
KILLS = 2
"""Of workers that hold the same jobs: after one more loss each of these would have to run alone."""

WAVES, MANY_WAVES = 1, 20

Place = tuple[str, int]


async def test_a_worker_is_killed_between_steps_and_no_finished_one_runs_again(
    nursery, place, dice, tell, faults_long
):
    waves = MANY_WAVES if faults_long else WAVES
    async with Run(nursery, place.folder, place.url("jobs"), ttl=TTL) as run:
        for _ in range(waves):
            await one_wave(run, dice)
        report = await run.prove()
        assert (report.kills, report.redone) == (waves * KILLS, 0)
        tell(f"{place.kind}: {report}")


async def one_wave(run: Run, dice: random.Random) -> None:
    """Some jobs whose workers are killed while they are under way, and the end of these jobs."""
    names = Names(new_id())
    jobs = [
        *names.jobs("steps", 6, "by_steps", steps=STEPS, seconds=SECONDS),
        *names.jobs("thread steps", 2, "thread_by_steps", steps=STEPS, seconds=SECONDS),
    ]
    await run.store.insert(jobs)
    ids = {job.id for job in jobs}
    for _ in range(KILLS):
        victim = run.start()
        goal = len(passed(run, ids)) + dice.randint(4, 12)
        await wait_until(lambda at=goal: len(passed(run, ids)) >= at, 30)
        await asyncio.sleep(dice.uniform(0, SECONDS))
        run.kill(victim)
    before = passed(run, ids)
    assert len(before) < len(jobs) * STEPS
    last = run.start()
    await run.rest()
    last.send(signal.SIGTERM)
    await last.ended()
    for job in jobs:
        found = await run.store.get(job.id)
        assert found.state is JobState.COMPLETED
        steps = await run.store.steps(job.id)
        assert [step.name for step in steps] == [f"{number}" for number in range(STEPS)]
        # What the killed workers had finished is as they left it.
        for number, step in enumerate(steps):
            assert step.lease <= before.get((job.id, number), found.lease)
            assert step.result == b"%d" % step.lease


def passed(run: Run, ids: set[str]) -> dict[Place, int]:
    """The steps that these jobs have passed, each with the claim that did first."""
    found: dict[Place, int] = {}
    for line in read(run.path):
        if line["what"] == "passed" and line["job"] in ids:
            found.setdefault((line["job"], line["step"]), line["lease"])
    return found
