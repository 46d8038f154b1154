"""Steps of the world: jobs that wait for others, and what is deleted under their feet."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from haulier.domain.flow import After, Otherwise
from haulier.domain.job import JobState, Role
from haulier.exceptions import JobNotFoundError, JobStateError, ValidationError
from haulier.ports import JobFilter, pages
from simulation.history import What

if TYPE_CHECKING:
    from simulation.world import World


async def enqueue_flow(world: World) -> None:
    """Some jobs, each after earlier ones of its flow, or after any that there are already."""
    jobs = []
    for _ in range(world.dice.randint(1, 6)):
        known = [job.id for job in jobs] * 2 + world.jobs[-10:] + world.heads[-2:] * 2
        parents = dict.fromkeys(world.pick(known) for _ in range(world.dice.randint(0, 3)) if known)
        rules = [world.pick(list(Otherwise)) for _ in parents]
        after = tuple(After(*each) for each in zip(parents, rules, strict=True))
        bulk = {"kind": "bulk", "role": Role.HEAD} if world.dice.random() < 0.1 else {}
        jobs.append(world.job(after=after, **bulk))
    world.dice.shuffle(jobs)
    try:
        await world.ask(lambda: world.store.insert(jobs))
    except ValidationError:
        # One of the parents was removed meanwhile, or never came to be.
        return
    for job in jobs:
        (world.heads if job.role is Role.HEAD else world.jobs).append(job.id)
        world.note(What.ENQUEUE, job.id, after=job.after)


async def another_chance(world: World) -> None:
    """An operator requeues parents of a job, and then perhaps the job itself."""
    after = {entry.job: entry.after for entry in world.history if entry.after}
    ended = JobFilter(states=frozenset({JobState.FAILED, JobState.CANCELLED}))
    children = [job for job in (await world.store.find(ended)).jobs if job.id in after]
    if not children:
        return
    child = world.pick(children)
    for parent in after[child.id]:
        with contextlib.suppress(JobNotFoundError):
            job = await world.store.get(parent.job_id)
            if job.state in ended.states and world.dice.random() < 0.8:
                await world.requeue_one(job)
    if world.dice.random() < 0.7:
        await world.requeue_one(child)


async def delete(world: World) -> None:
    """An operator deletes a job that does not run, a batch with all that lies within."""
    known = world.jobs + world.heads
    if not known:
        return
    job = world.pick(known)
    try:
        await world.ask(lambda: world.store.delete(job))
    except JobStateError:
        return
    except JobNotFoundError:
        # Whoever asks again may be told so.
        pass
    world.note(What.DELETE, job)
    await forget(world)


async def forget(world: World) -> None:
    """Nobody speaks any more of jobs that were deleted."""
    there = {job.id async for job in pages(world.store, JobFilter())}
    for known in (world.jobs, world.heads, world.named):
        known[:] = [job for job in known if job in there]
    world.unsealed = {batch: size for batch, size in world.unsealed.items() if batch in there}
    world.sent = [jobs for jobs in world.sent if all(job.id in there for job in jobs)]


async def parents_of(world: World) -> dict:
    """What the store tells of the parents of each job that has or had some."""
    found = {}
    for job in {entry.job for entry in world.history if entry.after}:
        with contextlib.suppress(JobNotFoundError):
            found[job] = await world.store.parents(job)
    return found
