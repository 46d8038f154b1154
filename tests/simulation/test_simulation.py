"""Histories of a store under all kinds of trouble, one per seed, each proved by the checker."""

from __future__ import annotations

import asyncio

import pytest

from haulier.testing import FakeClock
from simulation import schedules
from simulation.checker import check
from simulation.direct import direct_store
from simulation.world import TTL, World

SHOWN = 40


async def run(seed: int) -> list[str]:
    clock = FakeClock()
    async with direct_store(clock, TTL) as store:
        world = World(seed, store, clock)
        final = await world.run()
        # What the store does in the background ends before it is closed.
        await store._background.idle()
        found = await schedules.findings(world, final)
    return check(world.history, final) + world.shut.findings + found


def test_nothing_goes_wrong_whatever_the_seed(seeds: range):
    print(f"seeds {seeds.start} to {seeds.stop - 1}")
    with asyncio.Runner() as runner:
        for seed in seeds:
            findings = runner.run(run(seed))
            if findings:
                text = "\n".join(findings[:SHOWN])
                pytest.fail(f"pytest tests/simulation --seed {seed}\n{text}", pytrace=False)
