"""A worker that stood still for longer than its ttl, and comes back as if nothing had happened."""

from __future__ import annotations

from faults.log import read
from faults.run import Run
from faults.script import Names
from haulier.domain.job import JobState
from haulier.services.ids import new_id
from nursery import Child
from support import wait_until

TTL = 1.5
ROUNDS = 20


def lines(run: Run, what: str, by: Child) -> set[tuple[str, int]]:
    return {
        (line["job"], line["lease"])
        for line in read(run.path)
        if line["what"] == what and line["by"] == by.pid
    }


async def test_what_it_had_is_done_once_by_another_and_all_that_it_does_late_is_refused(
    nursery, place, faults_long, tell
):
    async with Run(nursery, place.folder, place.url("jobs"), ttl=TTL) as run:
        for _ in range(ROUNDS if faults_long else 1):
            await one_zombie(run)
        report = await run.prove()
        assert report.taken > 0
        assert report.refused > 0
        tell(f"{place.kind}: {report}")


async def one_zombie(run: Run) -> None:
    """Its jobs tell the sink of themselves all the time, one of them whatever it is told."""
    names = Names(new_id())
    jobs = [
        *names.jobs("held", 3, how="hold"),
        *names.jobs("stubborn", 1, "thread_work", how="stubborn"),
        *names.jobs("long", 3, seconds=1.0),
    ]
    await run.store.insert(jobs)
    zombie = run.start()
    await wait_until(lambda: len(run.sink.busy[zombie.pid]) == len(jobs), 30)
    run.stop(zombie)
    other = run.start()
    await run.rest()
    held = {(job.id, 1) for job in jobs}
    assert not lines(run, "end", zombie)
    run.wake(zombie)
    await wait_until(lambda: "incarnation lost" in zombie.says())
    # Each attempt is over: it was cancelled, or had come to its end before it could be.
    await wait_until(lambda: lines(run, "halted", zombie) | lines(run, "end", zombie) == held)
    assert lines(run, "halted", zombie) >= {(job.id, 1) for job in jobs[:4]}
    for job in jobs:
        found = await run.store.get(job.id)
        assert (found.state, found.value, found.lease) == (JobState.COMPLETED, 2, 2)
    told = [line for line in read(run.path) if line["what"] == "effect" and not line["accepted"]]
    refused = {(line["job"], line["lease"]) for line in told}
    assert (jobs[3].id, 1) in refused
    # It goes on as another incarnation.
    run.kill(other)
    (again,) = names.jobs("again", 1)
    await run.store.insert([again])
    await run.rest()
    assert (again.id, 1) in lines(run, "end", zombie)
    run.kill(zombie)


async def test_a_finish_that_was_on_its_way_when_the_worker_stood_still_is_refused(
    nursery, place, tell
):
    """The worker has no time to notice anything: its very next step is to send what it has."""
    async with Run(nursery, place.folder, place.url("jobs"), ttl=TTL) as run:
        jobs = Names(new_id()).jobs("late", 5, seconds=3.0, how="slow at last")
        first = {(job.id, 1) for job in jobs}
        await run.store.insert(jobs)
        # A claim takes half of the slots at most; here it is to take all of the jobs.
        zombie = run.start(point="exchange with finished before", stops=True, concurrency=10)
        await wait_until(lambda: "exchange with finished" in run.path.read_text(), 30)
        other = run.start()
        await wait_until(lambda: len(run.sink.busy[other.pid]) == len(jobs), 30)
        run.wake(zombie)
        handed_in = await wait_until(lambda: answered(run, zombie))
        assert handed_in <= first
        # The other one goes on with them, as if nothing had been sent.
        assert len(run.sink.busy[other.pid]) == len(jobs)
        await run.rest()
        report = await run.prove()
        assert report.refused >= len(handed_in)
        for job in jobs:
            found = await run.store.get(job.id)
            assert (found.state, found.value, found.lease) == (JobState.COMPLETED, 2, 2)
        tell(f"{place.kind}: {report}")


def answered(run: Run, by: Child) -> set[tuple[str, int]]:
    """What that process handed in and was refused."""
    return {
        (job, lease)
        for line in read(run.path)
        if line["what"] == "hand_in" and line["by"] == by.pid and line["ok"] is False
        for job, lease, _ in line["moves"]
    }
