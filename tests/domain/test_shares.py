"""Sharing queues by weight."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.shares import MOST, Share, listened_to, moved_on, shares_of, weights_of
from haulier.domain.worker import Demand
from haulier.exceptions import ConfigurationError

WEIGHTS = st.lists(st.integers(1, MOST), min_size=1, max_size=5)


def taken(shares, slots: int, there: list[int]) -> list[int]:
    """How many jobs a claim takes from each queue, of so many that are there."""
    times = [
        (share.after(n), queue)
        for queue, share in enumerate(shares)
        for n in range(1, min(slots, there[queue]) + 1)
    ]
    found = Counter(queue for _, queue in sorted(times)[:slots])
    return [found[queue] for queue in range(len(shares))]


@given(WEIGHTS, st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_full_queues_get_what_they_weigh_to_a_job_or_two(weights, claims):
    shares, got = shares_of(weights), [0] * len(weights)
    for slots in claims:
        counts = taken(shares, slots, [10**6] * len(weights))
        shares = moved_on(shares, counts)
        got = [a + b for a, b in zip(got, counts, strict=True)]
    for weight, number in zip(weights, got, strict=True):
        meant = sum(claims) * weight / sum(weights)
        assert abs(number - meant) <= len(weights)


@given(WEIGHTS, st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9))), max_size=30))
def test_whatever_is_there_all_slots_are_filled_and_times_stay_small(weights, claims):
    shares = shares_of(weights)
    for slots, given_ in claims:
        there = (given_ + [0] * len(weights))[: len(weights)]
        counts = taken(shares, slots, there)
        assert sum(counts) == min(slots, sum(there))
        shares = moved_on(shares, counts)
        ahead = [share.ahead for share in shares]
        # No two are ever the same, or stores might order them differently.
        assert len(set(ahead)) == len(ahead)
        assert 0 <= min(ahead) < 1024
        # Lua counts with 53 bits.
        assert max(ahead) + 10_000 * 2**30 < 2**53


def test_a_queue_that_was_empty_gets_its_share_and_no_more():
    shares = shares_of([1, 1])
    for _ in range(50):
        shares = moved_on(shares, taken(shares, 10, [0, 100]))
    assert taken(shares, 10, [100, 100]) == [5, 5]


def test_what_took_nothing_changes_nothing():
    shares = shares_of([3, 1])
    assert moved_on(shares, [0, 0]) == shares


def test_the_weights_of_the_store_come_first():
    assert weights_of(("a", "b", "c"), {"a": 5}, {"a": 2, "c": 3}) == (2, 1, 3)
    assert weights_of(("a", "b"), {}, {"other": 3}) == ()
    assert weights_of(("a", "b"), {"b": 4}, {}) == (1, 4)


def test_queues_as_a_command_line_names_them():
    assert listened_to(["a", "b"]) == ("a", "b")
    assert listened_to(["a=5", "b"]) == {"a": 5, "b": 1}
    for wrong in (["a=0"], ["a="], ["a=x"], ["a=1001"], ["a", "a=2"]):
        with pytest.raises(ConfigurationError, match="queues: "):
            listened_to(wrong)


def test_a_demand_without_some_queues():
    demand = Demand(("a", "b"), (), 3, (Share(1, 0), Share(2, 1)))
    assert demand.without({"c"}) is demand
    assert demand.without({"a"}) == Demand(("b",), (), 3, (Share(2, 1),))
    assert demand.without({"a", "b"}) is None
    assert Demand(("a", "b"), (), 3).without({"b"}) == Demand(("a",), (), 3)
