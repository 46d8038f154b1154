"""Progress, rate and the time that is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.batch import Batch, Counts
from haulier.domain.job import MICROSECOND, JobState

START = 1_000 * MICROSECOND
numbers = st.integers(0, 10**6)


def batch(*, seconds: float = 0, **fields) -> tuple[Batch, int]:
    """A running batch that started `seconds` ago, and now."""
    counts = {
        name: fields.pop(name)
        for name in ("pending", "running", "completed", "failed", "cancelled")
        if name in fields
    }
    plain = {"id": "b", "kind": "k", "queue": "q", "state": JobState.RUNNING, "sealed": True}
    made = Batch(
        counts=Counts(total=sum(counts.values()), **counts),
        **{**plain, "started_at": START, **fields},
    )
    return made, START + round(seconds * MICROSECOND)


@given(numbers, numbers, numbers, numbers, numbers)
def test_progress_is_a_percentage_of_what_is_done(pending, running, completed, failed, cancelled):
    made, _ = batch(
        pending=pending, running=running, completed=completed, failed=failed, cancelled=cancelled
    )
    assert made.counts.done + pending + running == made.counts.total
    assert 0 <= made.progress <= 100
    if made.counts.total and not pending + running:
        assert made.progress == 100
    if not made.counts.done:
        assert made.progress == 0


def test_the_rate_counts_everything_that_is_done_since_the_first_start():
    made, now = batch(seconds=10, pending=60, completed=30, failed=8, cancelled=2)
    assert made.rate(now) == pytest.approx(4.0)
    assert made.eta(now) == pytest.approx(15.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"pending": 5, "started_at": None},
        {"pending": 5},
        {"pending": 5, "completed": 1, "seconds": 0},
        {"pending": 5, "completed": 1, "seconds": -3},
    ],
)
def test_without_anything_done_in_some_time_there_is_no_rate(fields):
    made, now = batch(**fields)
    assert made.rate(now) is None
    assert made.eta(now) is None


def test_there_is_no_eta_while_items_may_still_be_added_or_when_it_is_over():
    filling, now = batch(seconds=5, pending=5, completed=5, sealed=False)
    assert filling.rate(now) is not None
    assert filling.eta(now) is None
    over, now = batch(seconds=5, completed=5, state=JobState.COMPLETED)
    assert over.eta(now) is None


def test_the_rate_of_a_finished_batch_no_longer_changes():
    ended = START + 20 * MICROSECOND
    made, now = batch(seconds=500, completed=40, state=JobState.COMPLETED, finished_at=ended)
    assert made.rate(now) == made.rate(now + MICROSECOND) == pytest.approx(2.0)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.001, 10**6))
def test_an_eta_is_never_negative(left, done, seconds):
    made, now = batch(seconds=seconds, pending=left, completed=done)
    assert made.eta(now) is None or made.eta(now) >= 0
