"""Jobs that wait for each other against jobs that do not, in one run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from haulier.app import App
from haulier.cli.bench.measure import Figures, all_settled
from haulier.domain.flow import MOST_PARENTS
from haulier.services.flow import Flow
from haulier.worker.lanes import WorkerOptions

if TYPE_CHECKING:
    from haulier.cli.bench.command import Lines, Load

LENGTH = 20
"""Jobs of each chain."""


async def flow(url: str, load: Load) -> tuple[Figures, Lines]:
    """Plain jobs; one that many wait for, and one that waits for these; chains side by side."""
    app = App(url)
    count = min(load.jobs, MOST_PARENTS)

    @app.task
    async def noop(number: int) -> None:
        del number

    async def run() -> float:
        began = time.perf_counter()
        async with app.working(WorkerOptions(concurrency=load.concurrency)):
            await all_settled(app)
            return time.perf_counter() - began

    async with app:
        await app.enqueue_many(noop, [{"number": number} for number in range(count)])
        plain = count / await run()
        fan, chains = app.flow(), app.flow()
        ends = _fan(fan, count)
        width = max(count // LENGTH, 1)
        for _ in range(width):
            chains.chain(*[("noop", {"number": number}) for number in range(LENGTH)])
        began = time.perf_counter()
        await fan.start()
        inserted = time.perf_counter() - began
        fanned = (count + ends) / await run()
        await chains.start()
        chained = width * LENGTH / await run()
    figures: Figures = {
        "jobs": count,
        "chains": width,
        "plain_per_s": round(plain),
        "flow_enqueue_per_s": round((count + ends) / inserted),
        "fan_per_s": round(fanned),
        "chain_per_s": round(chained),
        "fan_ratio": round(fanned / plain, 3),
        "chain_ratio": round(chained / plain, 3),
    }
    return figures, [
        ("plain", f"{figures['plain_per_s']:,} jobs/s"),
        ("enqueue a flow", f"{figures['flow_enqueue_per_s']:,} jobs/s"),
        (f"1, {count:,}, 1", f"{figures['fan_per_s']:,} jobs/s, {fanned / plain:.0%} of plain"),
        (
            f"{width:,} chains of {LENGTH}",
            f"{figures['chain_per_s']:,} jobs/s, {chained / plain:.0%} of plain",
        ),
    ]


def _fan(flow: Flow, count: int) -> int:
    """One job, many after it, and one after all of them; how many are not among the many."""
    first = flow.add("noop", {"number": 0})
    many = flow.add_many("noop", [{"number": number} for number in range(count)], after=first)
    flow.add("noop", {"number": 0}, after=many)
    return 2
