"""How many jobs a worker takes at once, and which."""

from __future__ import annotations

import asyncio
import threading

from pydantic import BaseModel

from haulier import BaseTaskRunner, Context, JobFilter, JobState, RetryPolicy, WorkerOptions
from haulier.ports import CHUNK
from haulier.runners.base import BatchFinished
from support import wait_until, work, works


class Meter:
    """How many are inside at once, now and at most; they stay until they are let go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.go_on = threading.Event()

    def enter(self, name: str) -> None:
        with self._lock:
            self.now[name] = self.now.get(name, 0) + 1
            self.most[name] = max(self.most.get(name, 0), self.now[name])

    def leave(self, name: str) -> None:
        with self._lock:
            self.now[name] -= 1

    async def stay(self, name: str) -> None:
        self.enter(name)
        await wait_until(self.go_on.is_set)
        self.leave(name)

    def stay_in_thread(self, name: str) -> None:
        self.enter(name)
        self.go_on.wait(20)
        self.leave(name)


async def running(app) -> int:
    counts = await app.store.counts()
    return sum(n for (*_, state), n in counts.items() if state is JobState.RUNNING)


async def test_never_more_is_claimed_than_can_start_at_once(app):
    meter = Meter()

    @app.task
    async def light() -> None:
        await meter.stay("light")

    @app.task
    def heavy() -> None:
        meter.stay_in_thread("heavy")

    async with app.working(WorkerOptions(concurrency=5, threads=2)):
        await app.enqueue_many(light, [{}] * 30)
        await app.enqueue_many(heavy, [{}] * 10)
        await wait_until(lambda: meter.now == {"light": 5, "heavy": 2})
        # Once more, after whatever a further exchange would have claimed.
        await wait_until(lambda: _swept(app))
        assert await running(app) == 7
        meter.go_on.set()
        await wait_until(lambda: _done(app, 40))
    assert meter.most == {"light": 5, "heavy": 2}


async def test_slots_are_filled_by_halves_so_that_one_half_runs_while_the_other_is_claimed(
    app, monkeypatch
):
    meter = Meter()
    asked = []

    @app.task
    async def light() -> None:
        await meter.stay("light")

    exchange = app.store.exchange

    async def spy(worker_id, finished, demands, **more):
        asked.extend(demand.slots for demand in demands if "light" in demand.portions[0].kinds)
        return await exchange(worker_id, finished, demands, **more)

    monkeypatch.setattr(app.store, "exchange", spy)
    await app.enqueue_many(light, [{}] * 5)
    async with app.working(WorkerOptions(concurrency=5)):
        await wait_until(lambda: meter.now == {"light": 5})
        assert asked == [3, 2]
        meter.go_on.set()
        await wait_until(lambda: _done(app, 5))


async def test_a_kind_keeps_to_its_own_number_and_does_not_starve(app):
    meter = Meter()

    @app.task(per_worker=2)
    async def capped() -> None:
        await meter.stay("capped")

    @app.task
    async def free() -> None:
        await meter.stay("free")

    await app.enqueue_many(capped, [{}] * 8)
    await app.enqueue_many(free, [{}] * 30)
    async with app.working(WorkerOptions(concurrency=6)):
        await wait_until(lambda: meter.now == {"capped": 2, "free": 4})
        meter.go_on.set()
        await wait_until(lambda: _done(app, 38))
    assert meter.most["capped"] == 2
    assert sum(meter.most.values()) <= 8


async def test_only_its_own_queues_and_kinds_are_touched(app, store):
    @app.task
    async def mine() -> None: ...

    for queue in ("red", "blue", "green"):
        await app.enqueue(mine, queue=queue)
    await store.insert([work("strange", queue="red")])
    async with app.working(WorkerOptions(queues=("red", "green"))):
        await wait_until(lambda: _done(app, 2))
    left = (await app.find(JobFilter(states=frozenset({JobState.PENDING})))).jobs
    assert sorted((job.kind, job.queue) for job in left) == [("mine", "blue"), ("strange", "red")]


async def test_a_burst_is_worked_off_by_several_workers_each_job_once(app):
    runs: list[int] = []

    @app.task
    async def count(n: int) -> None:
        runs.append(n)

    async with app.working(), app.working():
        await app.enqueue_many(count, [{"n": n} for n in range(3000)])
        await wait_until(lambda: _done(app, 3000), timeout=30)
    assert sorted(runs) == list(range(3000))


async def test_scheduled_jobs_start_when_they_are_due(app):
    started = []

    @app.task
    async def later(n: int) -> None:
        started.append(n)

    async with app.working():
        await app.enqueue(later, {"n": 2}, delay=0.4)
        await app.enqueue(later, {"n": 1}, delay=0.1)
        await wait_until(lambda: started == [1, 2])


class Start(BaseModel):
    count: int


class Item(BaseModel):
    n: int


async def test_a_bulk_kind_runs_from_its_head_to_its_finish(app):
    finished: list[tuple[Start, BatchFinished, list[int]]] = []

    class Squares(BaseTaskRunner[Start, Item]):
        task_type = "squares"
        start_model = Start
        item_model = Item

        def expand(self, ctx: Context, start: Start):
            return (Item(n=n) for n in range(start.count))

        async def run_item(self, ctx: Context, item: Item) -> int:
            return item.n**2

        async def finish(self, ctx: Context, start: Start, told: BatchFinished) -> None:
            results = [job.value async for job in ctx.items(told.batch_id)]
            finished.append((start, told, results))

    app.add_runner(Squares())
    async with app.working():
        head = await app.enqueue("squares", {"count": 2500})
        done = await app.wait(head, timeout=30, progress=False)
        empty = await app.wait(
            await app.enqueue("squares", {"count": 0}), timeout=20, progress=False
        )
    assert (done.state, done.value["completed"]) == (JobState.COMPLETED, 2500)
    assert empty.value["total"] == 0
    (start, told, results), (_, _, nothing) = finished
    assert (start.count, told.batch_id, told.state) == (2500, head, JobState.COMPLETED)
    assert results == [n**2 for n in range(2500)]
    assert nothing == []


async def test_an_expansion_that_fails_fails_the_batch_and_drops_its_items(app):
    class Broken(BaseTaskRunner[Start, Item]):
        task_type = "broken"
        start_model = Start
        item_model = Item

        def expand(self, ctx: Context, start: Start):
            yield from (Item(n=n) for n in range(start.count))
            raise ValueError("the input ends in the middle")

        async def run_item(self, ctx: Context, item: Item) -> int:
            return item.n

    app.add_runner(Broken())
    async with app.working():
        head = await app.enqueue("broken", {"count": CHUNK + 200}, retry=RetryPolicy.never())
        done = await app.wait(head, timeout=30, progress=False)
        await wait_until(lambda: _settled(app, head))
    assert (done.state, done.error.message) == (JobState.FAILED, "the input ends in the middle")
    counts = (await app.batch(head)).counts
    assert counts.done == counts.total == CHUNK


async def _done(app, count: int) -> bool:
    counts = await app.store.counts()
    return sum(n for (*_, state), n in counts.items() if state.final) >= count


async def _settled(app, batch: str) -> bool:
    counts = (await app.batch(batch)).counts
    return counts.done == counts.total


async def _swept(app) -> bool:
    await asyncio.gather(*(app.store.sweep() for _ in range(3)))
    await app.store.insert(works(1, "unknown"))
    return True
