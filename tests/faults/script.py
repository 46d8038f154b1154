"""What a producer and an operator do, as a script that can be begun anew after it was cut off.

All ids follow from one, so to repeat a step that was done changes nothing; a test kills the process
before or after each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from faults.log import Log
from faults.witness import Crash, Witness
from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.ids import derived_id
from haulier.domain.job import JobState, NewJob, Role
from haulier.domain.retention import Keep, Retention
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.ports import JobStore
from haulier.stores import open_store
from support import wait_until

TOLD = BatchPolicy(finish=FinishCallback(kind="told"))
BULK = BatchPolicy(finish=FinishCallback(kind="bulk.finish"))
NESTED = BatchPolicy(finish=FinishCallback(kind="nested.finish"))
DONE, CANCELLED = JobState.COMPLETED, JobState.CANCELLED
FEW, MANY = 12, 1200

ASIDE = "aside"
"""A kind that no worker knows: such jobs wait until somebody cancels them."""

NEVER_KEPT = {
    "thread_work": Retention(completed=Keep(count=0)),
    "pruned": Retention(cancelled=Keep(count=0)),
}


class Names:
    """The jobs of one script, by their labels."""

    def __init__(self, root: str, large: str = "") -> None:
        self.root = root
        self.large = large

    def id(self, label: str) -> str:
        return derived_id(self.root, label)

    def many(self, label: str) -> int:
        """The items of that batch: several slices of them if it is the large one."""
        return MANY if label == self.large else FEW

    def job(
        self, label: str, kind: str = "work", *, queue: str = "default", **payload: Any
    ) -> NewJob:
        return NewJob(self.id(label), kind, json.dumps(payload).encode(), queue=queue)

    def jobs(self, label: str, count: int, kind: str = "work", **payload: Any) -> list[NewJob]:
        return [self.job(f"{label} {n}", kind, **payload) for n in range(count)]

    def head(self, label: str, kind: str = "work", **payload: Any) -> NewJob:
        return self.job(label, kind, **payload)._replace(role=Role.HEAD)

    def items(self, head: str, count: int, kind: str = "work", **payload: Any) -> list[NewJob]:
        batch = self.id(head)
        return [
            self.job(f"{head}/{n}", kind, **payload)._replace(
                role=Role.ITEM, batch_id=batch, position=n
            )
            for n in range(count)
        ]

    def fates(self) -> dict[str, JobState | None]:
        """Where each job is at the end, whatever happened on the way; None: removed."""
        fates: dict[str, JobState | None] = {}

        def end(state: JobState | None, *labels: str) -> None:
            fates.update((self.id(label), state) for label in labels)

        end(DONE, *(f"plain {n}" for n in range(6)), *(f"flaky {n}" for n in range(2)))
        end(DONE, "open", *(f"open/{n}" for n in range(10)), "bulk")
        end(CANCELLED, "dropped", *(f"dropped/{n}" for n in range(self.many("dropped"))))
        end(None, "deleted", *(f"deleted/{n}" for n in range(self.many("deleted"))), "single")
        end(
            None,
            "pruned",
            *(f"pruned/{n}" for n in range(self.many("pruned"))),
            "short 0",
            "short 1",
        )
        end(
            DONE,
            "held 0",
            "held 1",
            "retried",
            *(f"retried/{n}" for n in range(self.many("retried"))),
        )
        end(DONE, "requeued")
        return fates


async def prepare(store: JobStore, names: Names) -> None:
    """What is there before the script begins, because it removes it or because it fails first."""
    held = [names.job(f"held {n}", queue=f"held {n}", how="hold") for n in range(2)]
    ends = [names.job("single"), names.job("requeued", how="broken")]
    await store.insert([*held, *ends, *names.jobs("short", 2, "thread_work")])
    for label, kind in (("deleted", ASIDE), ("pruned", "pruned")):
        items = names.items(label, names.many(label), ASIDE)
        await store.open_batch(names.head(label, kind), items, sealed=True)
        await store.cancel([names.id(label)])
    broken = names.items("retried", names.many("retried"), how="broken")
    await store.open_batch(names.head("retried"), broken, policy=TOLD, sealed=True)


async def begin(store: Witness, names: Names, lost: list[str]) -> None:
    """Steps that no worker watches. `lost`: a killed worker to retire, and one that expires."""
    await store.insert(
        [*names.jobs("plain", 6), *names.jobs("flaky", 2, how="flaky", seconds=0.01)]
    )
    items = names.items("open", 10)
    await store.open_batch(names.head("open"), items[:5], policy=TOLD, sealed=False)
    with contextlib.suppress(JobStateError):
        await store.insert(items[5:])
    await store.seal(names.id("open"))
    await store.insert([names.head("bulk", "bulk", items=4)], policy=BULK)
    dropped = names.id("dropped")
    items = names.items("dropped", names.many("dropped"), ASIDE)
    await store.open_batch(names.head("dropped"), items, policy=TOLD, sealed=True)
    with contextlib.suppress(JobStateError):
        with store.slices("pause"):
            await store.pause(dropped)
        await store.alter_batch(dropped, {"concurrency": 2}, by="operator")
        with store.slices("resume"):
            await store.resume(dropped)
    with store.slices("cancel"):
        await store.cancel([dropped])
    await store.retire(lost[0])

    async def expired() -> bool:
        return not any(row.alive and row.id == lost[1] for row in await store.workers())

    await wait_until(expired, 20)
    await store.sweep()


async def go_on(store: Witness, names: Names, lost: list[str]) -> None:
    """Steps beside a worker."""
    retried = names.id("retried")

    async def settled() -> bool:
        return (await store.batch(retried)).settled

    async def ended(label: str) -> JobState:
        await wait_until(lambda: _final(store, names.id(label)), 60)
        return (await store.get(names.id(label))).state

    await wait_until(settled, 60)
    with store.slices("retry_failed"):
        await store.retry_failed(retried)
    await wait_until(settled, 60)
    if await ended("requeued") is JobState.FAILED:
        await store.requeue([names.id("requeued")])
    await ended("requeued")
    for label in ("single", "deleted"):
        with contextlib.suppress(JobNotFoundError):
            await ended(label)
            with store.slices("delete"):
                await store.delete(names.id(label))
    for label in ("short 0", "short 1"):
        with contextlib.suppress(JobNotFoundError):
            await ended(label)
    with store.slices("prune"):
        await store.prune(NEVER_KEPT)


async def _final(store: Any, job_id: str) -> bool:
    return (await store.get(job_id)).state.final


PARTS = {"begin": begin, "go_on": go_on}


def follow(spec: dict[str, Any]) -> None:
    """The whole life of a process that does a part of the script."""
    asyncio.run(_follow(spec))


async def _follow(spec: dict[str, Any]) -> None:
    log = Log(spec["log"])
    crash = Crash(spec.get("point", ""), spec.get("passes", 1), log)
    async with Witness(open_store(spec["store"], ttl=spec["ttl"]), log, crash) as store:
        await PARTS[spec["part"]](store, Names(spec["root"], spec["large"]), spec["lost"])
    log.write("done", part=spec["part"])
