"""A process dies before and after each verb, between its slices, and at each step of a job.

From every one of these points the end is the same: each job has its fate, each counter is exact,
each batch called back once.
"""

from __future__ import annotations

import asyncio
import random
import signal

from faults.run import Run
from faults.script import TOLD, Names, prepare
from haulier.domain.batch import BatchPolicy
from haulier.domain.job import JobState
from haulier.ports import JobReader, JobStore
from haulier.services.ids import new_id
from simulation.history import look
from support import wait_until

TTL = 2.5
AT_ONCE = 12
"""Runs side by side: most of their time they wait for a ttl to pass."""

BY_OPERATORS = {
    "insert": 3,
    "open_batch": 2,
    "seal": 1,
    "pause": 1,
    "alter_batch": 1,
    "resume": 1,
    "cancel": 1,
    "retire": 1,
    "sweep": 1,
    "retry_failed": 1,
    "requeue": 1,
    "delete": 2,
    "prune": 1,
}
"""The verbs of producers and operators, and how often the script calls each."""

BEGINS = (
    *("insert", "open_batch", "seal", "pause", "alter_batch", "resume", "cancel"),
    *("retire", "sweep"),
)
SLICED = {
    "pause": "dropped",
    "resume": "dropped",
    "cancel": "dropped",
    "retry_failed": "retried",
    "delete": "deleted",
    "prune": "pruned",
}
"""The verbs that work on whole batches in slices, and on which batch the script tries each."""

BY_WORKERS = {
    "enlist": 1,
    "exchange with claims": 1,
    "exchange with finished": 3,
    "note": 2,
    "keep": 4,
    "renew": 3,
    "sweep": 3,
    "insert": 1,
    "retire": 1,
}
NOT_WRITING = {
    *("ttl", "chunk", "watch", "heartbeat", "check"),
    *("transferable", "configurable", "limits"),
}
"""What a store has besides verbs: properties and parts; `renew` is a verb of its heartbeat."""

STEPS = {
    "job started": 5,
    "job in the middle": 5,
    "job between two steps": 4,
    "job before it is handed in": 5,
}


def points(verbs: dict[str, int], dice: random.Random) -> list[tuple[str, int]]:
    """Each point, and at which pass of it the process dies."""
    return [
        (f"{verb} {when}", dice.randint(1, passes))
        for verb, passes in verbs.items()
        for when in ("before", "after")
    ]


async def all_of(runs: list) -> None:
    """Run them a few at a time; every failure is told."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(run) -> None:
        async with room:
            await run

    outcomes = await asyncio.gather(*map(one, runs), return_exceptions=True)
    failures = [outcome for outcome in outcomes if outcome is not None]
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(runs)} points", failures)


def crashed_at(run: Run, point: str) -> bool:
    return f'"point": "{point}"' in run.path.read_text()


class TestOperators:
    async def test_whatever_verb_is_cut_off_the_end_is_the_same(self, nursery, place, dice):
        await all_of(
            [
                self.cut_off(nursery, place, point, passes)
                for point, passes in points(BY_OPERATORS, dice)
            ]
        )

    async def test_work_on_many_that_is_cut_off_between_two_slices_is_done_to_its_end(
        self, nursery, place, dice
    ):
        await all_of(
            [
                self.cut_off(nursery, place, f"{verb} slice", dice.randint(1, 2), large)
                for verb, large in SLICED.items()
            ]
        )

    async def cut_off(self, nursery, place, point: str, passes: int, large: str = "") -> None:
        name = point.replace(" ", "-")
        names = Names(new_id(), large)
        async with Run(nursery, place.folder, place.url(name), ttl=TTL, name=name) as run:
            try:
                await self.script(run, names, point, passes)
            except BaseException as error:
                error.add_note(f"{place.kind}: {point}, pass {passes}")
                raise

    async def script(self, run: Run, names: Names, point: str, passes: int) -> None:
        await prepare(run.store, names)
        lost = await self.two_that_died(run)
        verb = point.rpartition(" ")[0]
        for part in ("begin", "go_on"):
            told = {"part": part, "root": names.root, "large": names.large, "lost": lost}
            if (verb in BEGINS) == (part == "begin"):
                first = run.start("script:follow", point=point, passes=passes, **told)
                await first.ended(60)
                assert crashed_at(run, point), f"{point} was never reached\n{first.says()}"
            again = run.start("script:follow", **told)
            await again.ended(90)
            assert f'"part": "{part}"' in run.path.read_text(), again.says()
            if part == "begin":
                run.start(queues=["default", "held 0", "held 1"], concurrency=100)
        await run.rest()
        await wait_until(lambda: self.all_removed(run, names), 30)
        await run.prove()
        final = await look(run.store)
        for job_id, fate in names.fates().items():
            found = final.jobs.get(job_id)
            assert (found and found.state) == fate, (job_id, found, fate)

    async def all_removed(self, run: Run, names: Names) -> bool:
        """A removal that was cut off between two slices is gone on with by the next sweep only."""
        removed = {job_id for job_id, fate in names.fates().items() if fate is None}
        return removed.isdisjoint((await look(run.store)).jobs)

    async def two_that_died(self, run: Run) -> list[str]:
        """The ids of two workers that are killed while they hold a job each."""
        workers = [run.start(queues=[f"held {n}"]) for n in range(2)]
        await wait_until(lambda: all(run.sink.busy.get(worker.pid) for worker in workers), 30)
        rows = {row.pid: row.id for row in await run.store.workers()}
        for worker in workers:
            run.kill(worker)
        return [rows[worker.pid] for worker in workers]


class TestWorkers:
    async def test_wherever_a_worker_dies_the_end_is_the_same(self, nursery, place, dice):
        steps = [(step, dice.randint(1, passes)) for step, passes in STEPS.items()]
        await all_of(
            [
                self.dies(nursery, place, point, passes)
                for point, passes in [*points(BY_WORKERS, dice), *steps]
            ]
        )

    async def dies(self, nursery, place, point: str, passes: int) -> None:
        name = point.replace(" ", "-")
        async with Run(nursery, place.folder, place.url(name), ttl=TTL, name=name) as run:
            try:
                await self.work(run, Names(new_id()), point, passes)
            except BaseException as error:
                error.add_note(f"{place.kind}: {point}, pass {passes}")
                raise

    async def work(self, run: Run, names: Names, point: str, passes: int) -> None:
        fates = await self.enqueue(run, names)
        victim = run.start(point=point, passes=passes)
        # A job that is cancelled while it runs, or before it did.
        held = names.id("held")
        await wait_until(lambda: not victim.alive or run.sink.busy.get(victim.pid), 30)
        if point.startswith("retire"):
            victim.send(signal.SIGTERM)
        await run.store.cancel([held])
        await victim.ended(30)
        assert crashed_at(run, point), f"{point} was never reached\n{victim.says()}"
        run.start()
        await run.rest()
        await run.prove()
        final = await look(run.store)
        for job_id, fate in fates.items():
            assert final.jobs[job_id].state == fate, (final.jobs[job_id], fate)

    async def enqueue(self, run: Run, names: Names) -> dict[str, JobState]:
        jobs = [
            names.job("held", how="hold")._replace(priority=100),
            *names.jobs("plain", 6, seconds=0.02),
            *names.jobs("flaky", 2, how="flaky"),
            *names.jobs("thread", 2, "thread_work", seconds=0.05),
            *names.jobs("steps", 2, "by_steps", steps=3),
            *names.jobs("thread steps", 1, "thread_by_steps", steps=3),
        ]
        await run.store.insert(jobs)
        items = names.items("open", 10, seconds=0.02)
        policy = BatchPolicy(finish=TOLD.finish, concurrency=3)
        await run.store.open_batch(names.head("open"), items, policy=policy, sealed=True)
        bulk = names.head("bulk", "bulk", items=5)
        await run.store.insert([bulk], policy=BatchPolicy(finish=TOLD.finish))
        fates = dict.fromkeys((job.id for job in [*jobs, *items]), JobState.COMPLETED)
        fates |= {names.id("open"): JobState.COMPLETED, bulk.id: JobState.COMPLETED}
        return fates | {names.id("held"): JobState.CANCELLED}


def test_every_verb_that_writes_has_its_points():
    def verbs_of(port) -> set[str]:
        return {name for name in vars(port) if not name.startswith("_")}

    written = verbs_of(JobStore) - verbs_of(JobReader) - NOT_WRITING
    pointed = {name.partition(" ")[0] for name in (*BY_OPERATORS, *BY_WORKERS)} - {"renew"}
    assert pointed == written
