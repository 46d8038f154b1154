"""How long to wait after a failure."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.retry import Backoff, RetryPolicy

policies = st.builds(
    lambda delay, room, **fields: RetryPolicy(delay=delay, cap=delay + room, **fields),
    delay=st.floats(0, 1e6),
    room=st.floats(0, 1e6),
    max_attempts=st.integers(1, 1000),
    backoff=st.sampled_from(Backoff),
    jitter=st.booleans(),
)
attempts = st.integers(1, 100_000)
dice = st.floats(0, 1, exclude_max=True)


@given(policies, attempts, dice)
def test_a_delay_is_never_negative_and_never_above_the_cap(policy, attempt, throw):
    assert 0 <= policy.delay_for(attempt, throw) <= policy.cap


@given(policies, attempts, dice)
def test_delays_do_not_shrink_from_one_attempt_to_the_next(policy, attempt, throw):
    assert policy.delay_for(attempt, throw) <= policy.delay_for(attempt + 1, throw)


@given(policies, attempts, dice)
def test_jitter_draws_from_zero_to_what_it_would_be_without(policy, attempt, throw):
    plain = RetryPolicy(**{**policy.as_dict(), "jitter": False})
    full = RetryPolicy(**{**policy.as_dict(), "jitter": True})
    assert full.delay_for(attempt, throw) == plain.delay_for(attempt, throw) * throw
    assert plain.delay_for(attempt, throw) == plain.delay_for(attempt, 0.0)


@given(policies)
def test_a_policy_survives_the_way_through_json(policy):
    assert RetryPolicy.from_dict(policy.as_dict()) == policy


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (Backoff.FIXED, [2, 2, 2, 2, 2, 2]),
        (Backoff.LINEAR, [2, 4, 6, 8, 10, 10]),
        (Backoff.EXPONENTIAL, [2, 4, 8, 10, 10, 10]),
    ],
)
def test_each_backoff_grows_in_its_own_way_up_to_the_cap(backoff, delays):
    policy = RetryPolicy(backoff=backoff, delay=2, cap=10, jitter=False)
    assert [policy.delay_for(attempt, 0.5) for attempt in range(1, 7)] == delays


def test_max_attempts_counts_the_first_try_too():
    policy = RetryPolicy(max_attempts=3)
    assert [policy.wait(attempt, "Boom", "", (), 0.0) is not None for attempt in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    assert RetryPolicy.never().wait(1, "Boom", "", (), 0.0) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"delay": -0.1},
        {"delay": math.nan},
        {"delay": math.inf, "cap": math.inf},
        {"cap": math.inf},
        {"cap": math.nan},
        {"delay": 5, "cap": 4},
    ],
)
def test_senseless_policies_are_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        RetryPolicy(**fields)
