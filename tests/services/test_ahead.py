"""Chunks that are made while the ones before them are inserted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from haulier.domain.job import NewJob
from haulier.exceptions import StoreUnavailableError
from haulier.services.ahead import insert_all
from support import wait_until, works

JOBS = works(10)


class PartError(Exception):
    """What making a part may raise."""


class Log:
    """What happened, in order: `made N` jobs, `begun N` and `ended N` a call."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.inserted: list[NewJob] = []
        self.held = asyncio.Event()
        self.held.set()
        self.trouble: Exception | None = None

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        self.lines.append(f"begun {len(jobs)}")
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            await self.held.wait()
            if self.trouble is not None:
                raise self.trouble
            self.inserted.extend(jobs)
        finally:
            self.lines.append(f"ended {len(jobs)}")

    def parts(self, count: int = 5) -> Iterator[list[NewJob]]:
        for start in range(0, 2 * count, 2):
            self.lines.append("made 2")
            yield JOBS[start : start + 2]

    def breaking(self, count: int) -> Iterator[list[NewJob]]:
        yield from self.parts(count)
        raise PartError


@pytest.mark.parametrize("ahead", [True, False])
async def test_all_are_inserted_in_order_by_one_call_at_a_time(ahead):
    log = Log()
    await insert_all(log.insert, log.parts(), 4, ahead=ahead)
    assert log.inserted == JOBS
    calls = [line for line in log.lines if not line.startswith("made")]
    assert calls == ["begun 4", "ended 4", "begun 4", "ended 4", "begun 2", "ended 2"]


async def test_nothing_is_no_call():
    log = Log()
    await insert_all(log.insert, [], 4, ahead=True)
    assert log.lines == []


async def test_the_next_ones_are_made_while_a_call_is_under_way():
    log = Log()
    await insert_all(log.insert, log.parts(), 4, ahead=True)
    begun = log.lines.index("begun 4")
    assert "made 2" in log.lines[begun : log.lines.index("ended 4")]


async def test_nothing_is_awaited_from_a_slow_input_while_a_call_is_under_way():
    log = Log()
    await insert_all(log.insert, log.parts(), 4, ahead=False)
    for begun in (place for place, line in enumerate(log.lines) if line == "begun 4"):
        assert log.lines[begun + 1] == "ended 4"


@pytest.mark.parametrize("ahead", [True, False])
async def test_when_a_part_cannot_be_made_full_calls_before_it_end(ahead):
    log = Log()
    with pytest.raises(PartError):
        await insert_all(log.insert, log.breaking(3), 4, ahead=ahead)
    assert log.inserted == JOBS[:4]


@pytest.mark.parametrize("ahead", [True, False])
async def test_after_a_call_that_failed_there_is_no_other(ahead):
    log = Log()
    log.trouble = StoreUnavailableError("gone")
    with pytest.raises(StoreUnavailableError):
        await insert_all(log.insert, log.parts(), 4, ahead=ahead)
    assert [line for line in log.lines if line.startswith("begun")] == ["begun 4"]


async def test_of_two_errors_the_one_about_earlier_jobs_counts():
    log = Log()
    log.trouble = StoreUnavailableError("gone")
    with pytest.raises(StoreUnavailableError) as raised:
        await insert_all(log.insert, log.breaking(2), 4, ahead=True)
    assert isinstance(raised.value.__context__, PartError)


@pytest.mark.parametrize("made", [2, 5])
async def test_who_is_cancelled_leaves_no_call_behind(made):
    """While the next ones are made, and while the call is waited for."""
    log = Log()
    log.held.clear()

    def parts() -> Iterator[list[NewJob]]:
        yield from log.parts(made)
        while made == 2:
            yield []

    task = asyncio.create_task(insert_all(log.insert, parts(), 4, ahead=True))
    await wait_until(lambda: "begun 4" in log.lines)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.lines[-1] == "ended 4"
    assert log.inserted == []
