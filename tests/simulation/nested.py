"""Steps of the world: batches within batches, and limits that change while batches run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from haulier.domain.ids import derived_id
from haulier.domain.job import Role
from haulier.exceptions import JobStateError
from simulation.history import What

if TYPE_CHECKING:
    from simulation.world import World


async def nest(world: World) -> None:
    """A producer fills a batch with heads of others; some lie within one that was made before."""
    outer = world.job(kind="bulk", role=Role.HEAD, delay=0)
    policy = world.policy()
    await world.ask(lambda: world.store.open_batch(outer, [], policy=policy, sealed=False))
    world.heads.append(outer.id)
    world.note(What.ENQUEUE, outer.id, calls_back=policy.finish is not None)
    around = outer.id
    for depth in range(world.dice.randint(1, 3)):
        inner = [
            world.job(
                id=derived_id(around, f"inner/{n}"),
                kind="bulk",
                role=Role.INNER,
                batch_id=around,
                position=n,
                delay=0,
            )
            for n in range(world.dice.randint(1, 2))
        ]
        policy = world.policy()
        try:
            await world.ask(lambda jobs=inner, rules=policy: world.store.insert(jobs, policy=rules))
        except JobStateError:
            # It was cut short meanwhile.
            break
        for job in inner:
            world.heads.append(job.id)
            world.note(What.ENQUEUE, job.id, batch=around, calls_back=policy.finish is not None)
        around = inner[0].id
        del depth
    await world.ask(lambda: world.store.seal(outer.id))


async def alter(world: World) -> None:
    """An operator changes a limit of a batch."""
    if not world.heads:
        return
    head = world.pick(world.heads)
    changes = world.pick(
        (
            {"concurrency": world.pick((None, 1, 2, 4))},
            {"batch_size": world.pick((None, 1, 3))},
            {"max_failures": world.pick((0, 1, 3))},
        )
    )
    with contextlib.suppress(JobStateError):
        await world.ask(lambda: world.store.alter_batch(head, changes, by="ann"))
