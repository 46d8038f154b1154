"""What an outcome leads to, as a pure function."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.job import (
    LONGEST_DELAY,
    MICROSECOND,
    Cancelled,
    Expanded,
    Failed,
    Interrupted,
    Job,
    JobError,
    JobState,
    OnLost,
    Snoozed,
    Succeeded,
    TimedOut,
)
from haulier.domain.moves import MAX_LOST, RULES, TIMEOUT_CLASSES, Move, after_loss, decide
from haulier.domain.retry import Backoff, RetryPolicy, class_names
from haulier.exceptions import JobExecutionError, JobTimeoutError, RetryLater, Snooze

BOOM = JobError(type="Boom", message="it broke", attempt=1)
POLICY = RetryPolicy(max_attempts=3, delay=2, backoff=Backoff.FIXED, jitter=False)
LONGEST = round(LONGEST_DELAY * MICROSECOND)


def running(**fields) -> Job:
    plain = {"id": "j", "seq": 1, "kind": "k", "queue": "q", "payload": b"{}", "attempt": 1}
    return Job(**{**plain, "state": JobState.RUNNING, "lease": 1, **fields})


@pytest.mark.parametrize(
    ("outcome", "attempt", "move", "delay"),
    [
        (Succeeded(b"1"), 1, Move.COMPLETE, None),
        (Expanded(), 1, Move.HAND_OVER, None),
        (Failed(BOOM), 1, Move.RETRY, 2.0),
        (Failed(BOOM), 2, Move.RETRY, 2.0),
        (Failed(BOOM), 3, Move.FAIL, None),
        (Failed(BOOM, delay=7.5), 1, Move.RETRY, 7.5),
        (Failed(BOOM, delay=0.0), 1, Move.RETRY, 0.0),
        (Failed(BOOM, delay=7.5), 3, Move.FAIL, None),
        (Failed(BOOM, permanent=True), 1, Move.FAIL, None),
        (Failed(BOOM, retry_after=60.0), 1, Move.RETRY, 62.0),
        (Failed(BOOM, delay=7.5, retry_after=60.0), 1, Move.RETRY, 7.5),
        (Failed(BOOM, retry_after=60.0), 3, Move.FAIL, None),
        (Failed(BOOM, permanent=True, retry_after=60.0), 1, Move.FAIL, None),
        (TimedOut(BOOM), 1, Move.RETRY, 2.0),
        (TimedOut(BOOM), 3, Move.FAIL, None),
        (Snoozed(30.0), 1, Move.SNOOZE, 30.0),
        (Snoozed(30.0), 3, Move.SNOOZE, 30.0),
        (Cancelled(), 1, Move.CANCEL, None),
        (Interrupted(), 1, Move.GIVE_BACK, None),
        (Interrupted(), 3, Move.GIVE_BACK, None),
    ],
)
def test_every_outcome_leads_to_one_move(outcome, attempt, move, delay):
    job = running(attempt=attempt)
    decided = decide(job, outcome, POLICY, 0.5)
    assert (decided.job, decided.move) == (job, move)
    assert decided.delay == (None if delay is None else round(delay * MICROSECOND))


def test_results_and_errors_go_along():
    assert decide(running(), Succeeded(b'"done"'), POLICY, 0).result == b'"done"'
    assert decide(running(), Failed(BOOM), POLICY, 0).error == BOOM
    assert decide(running(attempt=3), Failed(BOOM), POLICY, 0).error == BOOM
    assert decide(running(), TimedOut(BOOM), POLICY, 0).error == BOOM
    assert decide(running(), Cancelled("enough"), POLICY, 0).error.message == "enough"
    assert decide(running(), Cancelled(), POLICY, 0).error is None


outcomes = st.one_of(
    st.builds(Succeeded, st.binary()),
    st.just(Expanded()),
    st.builds(
        Failed,
        st.just(BOOM),
        st.none() | st.floats(allow_nan=True),
        permanent=st.booleans(),
        classes=st.sampled_from([(), ("Boom",), ("OSError", "Boom")]),
        retry_after=st.none() | st.floats(0, 86_400),
    ),
    st.just(TimedOut(BOOM)),
    st.builds(Snoozed, st.floats(allow_nan=True)),
    st.builds(Cancelled, st.text()),
    st.just(Interrupted()),
)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 5),
    delay=st.floats(0, 100),
    cap=st.floats(100, 1e300),
    backoff=st.sampled_from(Backoff),
    jitter=st.booleans(),
    retry_on=st.sampled_from([(), ("Boom",), ("OSError",)]),
    give_up_on=st.sampled_from([(), ("Boom",)]),
    function=st.none() | st.floats(allow_nan=True).map(lambda wait: lambda *_: wait),
)


@given(outcomes, st.integers(1, 10_000), policies, st.floats(0, 1, exclude_max=True))
def test_whatever_a_task_asks_for_the_decision_is_one_that_a_store_can_carry_out(
    outcome, attempt, policy, dice
):
    decided = decide(running(attempt=attempt), outcome, policy, dice)
    assert RULES[decided.move].fenced
    assert decided.delay is None or 0 <= decided.delay <= LONGEST
    if RULES[decided.move].target is not JobState.PENDING:
        assert decided.delay is None


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, -math.inf])
def test_tasks_cannot_ask_for_senseless_delays(delay):
    with pytest.raises(ValueError, match="delay"):
        Snooze(delay)
    with pytest.raises(ValueError, match="delay"):
        RetryLater(delay=delay)


@given(st.integers(0, 50))
def test_a_loss_gives_the_job_back_until_it_has_cost_too_many_workers(lost):
    decided = after_loss(running(lost=lost))
    assert decided.error.type == "WorkerLost"
    if lost + 1 >= MAX_LOST:
        assert decided.move is Move.LOSE_LAST
    else:
        assert decided.move is Move.LOSE
        assert 0 <= decided.delay <= 60 * MICROSECOND


def test_the_first_loss_costs_no_wait_and_each_further_one_a_longer_one():
    delays = [after_loss(running(lost=lost)).delay for lost in range(MAX_LOST - 1)]
    assert delays[0] == 0
    assert delays == sorted(delays)


def test_rules_agree_with_the_states():
    for move, rule in RULES.items():
        assert rule.sources, move
        if rule.fenced:
            assert rule.sources == {JobState.RUNNING}
        if rule.yields_to_cancel:
            assert rule.target is JobState.PENDING
        if rule.lease:
            assert rule.target is JobState.RUNNING
    final = {state for state in JobState if state.final}
    assert final == {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}


def test_a_result_is_read_as_plain_values():
    assert running().value is None
    assert running(result=b'{"a": [1, null]}').value == {"a": [1, None]}


def test_a_policy_tells_errors_apart_by_their_classes():
    policy = RetryPolicy(retry_on=("OSError",), jitter=False)
    assert decide(running(), Failed(BOOM, classes=("OSError",)), policy, 0).move is Move.RETRY
    assert decide(running(), Failed(BOOM, classes=("KeyError",)), policy, 0).move is Move.FAIL


@pytest.mark.parametrize("name", [JobTimeoutError, "JobTimeoutError", JobExecutionError])
def test_a_policy_may_name_timeouts(name):
    policy = RetryPolicy(give_up_on=(name,))
    assert decide(running(), TimedOut(BOOM), policy, 0).move is Move.FAIL
    assert decide(running(), TimedOut(BOOM), RetryPolicy(retry_on=(name,)), 0).move is Move.RETRY


def test_the_classes_of_a_timeout_are_those_of_its_error():
    assert set(TIMEOUT_CLASSES) <= set(class_names(JobTimeoutError))


def test_what_another_system_asked_for_is_the_least_that_is_waited():
    for throw in (0.0, 0.5, 0.99):
        delay = decide(running(), Failed(BOOM, retry_after=60.0), RetryPolicy(), throw).delay
        assert delay >= 60 * MICROSECOND


def test_a_job_that_must_not_run_again_fails_when_its_worker_is_lost():
    decided = after_loss(running(on_lost=OnLost.FAIL))
    assert (decided.move, decided.error.type) == (Move.LOSE_LAST, "WorkerLost")
