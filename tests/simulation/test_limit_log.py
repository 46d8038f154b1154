"""The check of limits can fail: each history that gets past one is found out."""

from __future__ import annotations

import pytest

from haulier.domain.event import Event
from haulier.domain.job import MICROSECOND, Role
from haulier.domain.limits import KeyState, Limit, Rate
from haulier.domain.moves import Move
from simulation.history import Final
from simulation.limit_log import EAGER, Change, Limited, check_limits

CLAIM, COMPLETE, FAIL, RETRY, LOSE = Move.CLAIM, Move.COMPLETE, Move.FAIL, Move.RETRY, Move.LOSE
ONE = Limit(name="l", concurrency=1)
EACH = Limit(name="l", concurrency=1, per_key=True)
RATE = Limit(name="l", rate=Rate(1, 2.0))
BREAKER = Limit(name="l", breaker=EAGER, per_key=True)
AT_FIRST = Change(0, "l", ONE)

Told = tuple[float, str, str]
"""Seconds, what happened, and the job: its first letter is its key, - none."""


def found(
    *told: Told,
    changes: tuple[Change, ...],
    heads: bool = False,
    slots: int = 0,
    keys: tuple[KeyState, ...] = (),
) -> list[str]:
    role = Role.HEAD if heads else Role.SINGLE
    events = [
        Event("e", seq, round(at * MICROSECOND), what, job, "work", "default", role, None, 1, 1)
        for seq, (at, what, job) in enumerate(told, 1)
    ]
    final = Final(jobs={}, batches={}, counts={}, events=events)
    key_of = {job: None if job[0] == "-" else job[0] for _, _, job in told}
    limited = Limited(changes, key_of, {"l": slots}, {"l": keys})
    return list(check_limits(final, limited))


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (ONE, [(0, CLAIM, "a1"), (0, COMPLETE, "a1"), (0, CLAIM, "b1")]),
        (ONE, [(0, CLAIM, "a1"), (0, LOSE, "a1"), (0, CLAIM, "a1")]),
        (EACH, [(0, CLAIM, "a1"), (0, CLAIM, "b1"), (0, CLAIM, "-1"), (0, CLAIM, "-2")]),
        (RATE, [(0, CLAIM, "a1"), (2, CLAIM, "a2"), (9, CLAIM, "a3")]),
        (BREAKER, [(0, CLAIM, "a1"), (1, FAIL, "a1"), (2, CLAIM, "b1"), (11, CLAIM, "a2")]),
        (
            BREAKER,
            [
                *((0, CLAIM, "a1"), (0, CLAIM, "a2"), (1, FAIL, "a1"), (2, COMPLETE, "a2")),
                *((11, CLAIM, "a3"), (12, COMPLETE, "a3"), (12, CLAIM, "a4"), (12, CLAIM, "a5")),
            ],
        ),
    ],
)
def test_a_right_one_is_not(limit, told):
    assert found(*told, changes=(Change(0, "l", limit),)) == []


@pytest.mark.parametrize(
    ("limit", "told", "finding"),
    [
        (ONE, [(0, CLAIM, "a1"), (0, CLAIM, "-1")], "event 2: l (all) lets 2 run, 1 may"),
        (EACH, [(0, CLAIM, "a1"), (0, CLAIM, "a2")], "event 2: l (a) lets 2 run, 1 may"),
        (
            RATE,
            [(0, CLAIM, "a1"), (1.9, CLAIM, "a2")],
            "event 2: l (all) lets one start without a token",
        ),
        (
            BREAKER,
            [(0, CLAIM, "a1"), (1, RETRY, "a1"), (10.5, CLAIM, "a2")],
            "event 3: l (a) lets one start 500000 µs before its time",
        ),
        (
            BREAKER,
            [(0, CLAIM, "a1"), (1, FAIL, "a1"), (11, CLAIM, "a2"), (11, CLAIM, "a3")],
            "event 4: l (a) lets 2 try it",
        ),
    ],
)
def test_one_that_gets_past_a_limit_is(limit, told, finding):
    assert found(*told, changes=(Change(0, "l", limit),)) == [finding]


def test_limits_count_from_when_they_are_put_to_when_they_are_dropped():
    told = [(0, CLAIM, f"a{number}") for number in range(5)]
    changes = (Change(1, "l", ONE), Change(2, "l"), Change(4, "l", ONE))
    assert found(*told, changes=changes) == [
        "event 2: l (all) lets 2 run, 1 may",
        "event 5: l (all) lets 5 run, 1 may",
    ]


def test_a_breaker_that_is_reset_is_closed():
    told = [(0, CLAIM, "a1"), (1, FAIL, "a1"), (2, CLAIM, "a2")]
    put = Change(0, "l", BREAKER)
    assert len(found(*told, changes=(put,))) == 1
    assert found(*told, changes=(put, Change(2, "l", key="a"))) == []


def test_heads_are_exempt():
    assert found((0, CLAIM, "a1"), (0, CLAIM, "a2"), changes=(AT_FIRST,), heads=True) == []


def test_what_is_held_at_the_end_is_found():
    assert found(changes=(), slots=2) == ["l: 2 slots are taken at the end, and nothing runs"]
    state = KeyState(key="a", running=1)
    assert found(changes=(), keys=(state,)) == ["l (a): 1 run at the end, and nothing does"]
