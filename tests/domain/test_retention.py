"""How long finished jobs are kept, and the short forms of saying so."""

from __future__ import annotations

import math

import pytest

from haulier.domain.job import JobState
from haulier.domain.retention import DAY, Keep, Retention


def test_failures_are_kept_longest():
    kept = dict(Retention().by_state())
    assert kept == {
        JobState.COMPLETED: Keep(age=7 * DAY),
        JobState.FAILED: Keep(age=90 * DAY),
        JobState.CANCELLED: Keep(age=7 * DAY),
    }


@pytest.mark.parametrize(
    ("removal", "keep"),
    [
        (True, Keep(count=0)),
        (False, Keep()),
        (1000, Keep(count=1000)),
        (0, Keep(count=0)),
        ({"age": 3600}, Keep(age=3600)),
        ({"count": 5}, Keep(count=5)),
        ({"age": 0.5, "count": 5}, Keep(age=0.5, count=5)),
    ],
)
def test_short_forms(removal, keep):
    plain = Retention()
    assert Retention.of(remove_on_complete=removal) == Retention(completed=keep)
    assert Retention.of(remove_on_fail=removal) == Retention(failed=keep)
    both = Retention.of(remove_on_complete=removal, remove_on_fail=True)
    assert (both.completed, both.failed, both.cancelled) == (keep, Keep(count=0), plain.cancelled)


def test_a_retention_stays_what_it_is():
    own = Retention(completed=Keep(age=5), result_ttl=None)
    assert Retention.of(own) is own
    assert Retention.of() == Retention()


@pytest.mark.parametrize(
    "removal",
    [
        -1,
        1.5,
        "7",
        {},
        {"age": -1},
        {"age": math.nan},
        {"age": math.inf},
        {"age": "1"},
        {"age": None},
        {"count": -1},
        {"count": 1.5},
        {"count": True},
        {"days": 3},
        [5],
    ],
    ids=repr,
)
def test_nonsense_is_refused(removal):
    with pytest.raises(ValueError, match=r"age|count|number"):
        Retention.of(remove_on_complete=removal)


def test_a_retention_together_with_a_short_form_is_refused():
    with pytest.raises(ValueError, match="together"):
        Retention.of(Retention(), remove_on_fail=False)
    with pytest.raises(ValueError, match="must be a Retention"):
        Retention.of(7)
