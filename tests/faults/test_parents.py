"""Worker processes that die under a parent: it sees the exit, and no ttl has to pass."""

from __future__ import annotations

from faults.daemons import command
from faults.run import Run
from support import wait_until

KILLS = 3


async def test_what_a_dead_child_had_is_free_at_once_although_the_ttl_is_that_by_default(
    nursery, place, dice, faults_long, tell
):
    async with Run(nursery, place.folder, place.url("jobs"), ttl=15.0) as run:
        kills = KILLS * (3 if faults_long else 1)
        producer = run.produce(dice, longest=0.3)
        with command(run, "worker", "--processes", "2", "--concurrency", "5") as parent:
            for kill in range(kills):
                least = run.sink.over + 10 if kill else 0
                await wait_until(lambda goal=least: run.sink.over >= goal and both_busy(run), 60)
                run.kill_pid(dice.choice(parent.children()))
            run.kill(producer)
            await run.rest()
            report = await run.prove()
            tell(f"{place.kind}: {report}")
            assert report.kills == kills + 1
            assert max(report.released) < 2, parent.says()
            assert parent.process.poll() is None


def both_busy(run: Run) -> bool:
    return sum(map(bool, run.sink.busy.values())) == 2
