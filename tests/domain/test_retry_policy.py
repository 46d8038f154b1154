"""How long to wait after a failure."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.retry import Backoff, RetryPolicy, class_names
from haulier.exceptions import JobTimeoutError, RetryLater

policies = st.builds(
    lambda delay, room, **fields: RetryPolicy(delay=delay, cap=delay + room, **fields),
    delay=st.floats(0, 1e6),
    room=st.floats(0, 1e6),
    max_attempts=st.integers(1, 1000),
    backoff=st.sampled_from(Backoff),
    jitter=st.booleans(),
    retry_on=st.lists(st.text(max_size=9) | st.sampled_from([OSError, KeyError])).map(tuple),
    give_up_on=st.lists(st.text(max_size=9) | st.sampled_from([OSError, KeyError])).map(tuple),
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
    plain = dataclasses.replace(policy, jitter=False)
    full = dataclasses.replace(policy, jitter=True)
    assert full.delay_for(attempt, throw) == plain.delay_for(attempt, throw) * throw
    assert plain.delay_for(attempt, throw) == plain.delay_for(attempt, 0.0)


@given(policies)
def test_a_policy_survives_the_way_through_json(policy):
    assert RetryPolicy.from_dict(json.loads(json.dumps(policy.as_dict()))) == policy


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


class LostError(LookupError):
    pass


@pytest.mark.parametrize(
    ("fields", "retried"),
    [
        ({}, True),
        ({"retry_on": (LookupError,)}, True),
        ({"retry_on": (OSError, LostError)}, True),
        ({"retry_on": ("LookupError",)}, True),
        ({"retry_on": ("builtins.LookupError",)}, True),
        ({"retry_on": (f"{__name__}.LostError",)}, True),
        ({"retry_on": ("OSError",)}, False),
        ({"retry_on": ("elsewhere.LookupError",)}, False),
        ({"give_up_on": (LookupError,)}, False),
        ({"give_up_on": ("LostError",)}, False),
        ({"give_up_on": (OSError,)}, True),
        # What is given up on wins.
        ({"retry_on": (Exception,), "give_up_on": (LookupError,)}, False),
        ({"retry_on": (LostError,), "give_up_on": (OSError,)}, True),
    ],
)
def test_classes_and_their_names_stand_for_their_subclasses_too(fields, retried):
    policy = RetryPolicy(jitter=False, **fields)
    classes = class_names(LostError)
    assert policy.retries(classes) is retried
    assert policy.wait(1, "LostError", "", classes, 0) == (2.0 if retried else None)


def test_a_task_that_asks_for_another_try_gets_it_whatever_else_is_worth_one():
    policy = RetryPolicy(retry_on=(OSError,), give_up_on=(Exception,), jitter=False)
    classes = class_names(RetryLater)
    assert policy.wait(1, "RetryLater", "", classes, 0) == 2.0
    assert policy.wait(3, "RetryLater", "", classes, 0) is None


@given(policies, attempts, dice)
def test_an_error_is_never_retried_beyond_the_attempts_nor_when_given_up_on(policy, attempt, throw):
    for error in (OSError, KeyError, JobTimeoutError):
        names = class_names(error)
        wait = policy.wait(attempt, error.__name__, "", names, throw)
        given_up = any(name in names for name in policy.give_up_on)
        if given_up or attempt >= policy.max_attempts:
            assert wait is None
        elif not policy.retry_on:
            assert wait == policy.delay_for(attempt, throw)


def test_the_names_of_a_class_are_its_own_and_its_bases():
    names = class_names(LostError)
    assert names[:2] == ("LostError", f"{__name__}.LostError")
    assert {"LookupError", "builtins.LookupError", "Exception", "BaseException"} <= set(names)
    assert "object" not in names


def test_a_function_decides_instead_of_the_backoff():
    asked = []

    def decide(attempt: int, error: str, message: str) -> float | None:
        asked.append((attempt, error, message))
        return 7 if attempt < 3 else None

    policy = RetryPolicy(max_attempts=9, function=decide, give_up_on=("OSError",))
    waits = [policy.wait(attempt, "Boom", "it broke", ("Boom",), 0) for attempt in (1, 2, 3)]
    assert waits == [7.0, 7.0, None]
    assert asked == [(attempt, "Boom", "it broke") for attempt in (1, 2, 3)]
    assert policy.wait(1, "OSError", "", ("OSError",), 0) is None
    assert policy.wait(9, "Boom", "", ("Boom",), 0) is None
    assert len(asked) == 3


def test_a_policy_with_a_function_cannot_be_stored():
    with pytest.raises(ValueError, match="cannot be stored: give it to the task"):
        RetryPolicy(function=lambda *_: 1.0).as_dict()


def test_classes_are_kept_by_name():
    policy = RetryPolicy(retry_on=(LostError,), give_up_on=(OSError, "Boom"))
    assert policy == RetryPolicy(
        retry_on=(f"{__name__}.LostError",), give_up_on=("builtins.OSError", "Boom")
    )
    stored = policy.as_dict()
    assert stored["retry_on"] == (f"{__name__}.LostError",)
    assert stored["give_up_on"] == ("builtins.OSError", "Boom")
    assert "function" not in stored


def test_what_earlier_versions_wrote_is_read():
    old = {"max_attempts": 5, "backoff": "linear", "delay": 1.0, "cap": 9.0, "jitter": False}
    assert RetryPolicy.from_dict(old) == RetryPolicy(
        max_attempts=5, backoff=Backoff.LINEAR, delay=1.0, cap=9.0, jitter=False
    )
