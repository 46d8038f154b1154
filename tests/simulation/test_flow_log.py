"""The check of flows can fail: each history in which a child goes astray is found out."""

from __future__ import annotations

import pytest

from haulier.domain.event import DELETED, INSERTED, Event
from haulier.domain.flow import PARENT_FAILED, After, Otherwise, Parent
from haulier.domain.job import JobState, Role
from haulier.domain.moves import Move
from simulation.flow_log import check_flows
from simulation.history import Entry, What

CANCEL, RUN = Otherwise.CANCEL, Otherwise.RUN
CLAIM, COMPLETE, FAIL, DROP = Move.CLAIM, Move.COMPLETE, Move.FAIL, Move.DROP
REQUEUE, SETTLE = Move.REQUEUE, Move.SETTLE
DONE, FAILED = JobState.COMPLETED, JobState.FAILED

Told = tuple[str, str]
"""What happened, and to which job. An `item` is one of the batch `b`."""

THERE: list[Told] = [(INSERTED, name) for name in ("a", "b", "item", "child")]
GONE: Told = ("gone", "child")
"""It is cancelled with a parent."""


def found(
    *told: Told,
    otherwise: Otherwise = CANCEL,
    by_hand: tuple[int, int] | None = None,
    parents: tuple[Parent, ...] | None = None,
) -> list[str]:
    """What is found when `child` waits for `a` and for `b`; `told` follows the four inserts."""
    after = (After("a", otherwise), After("b", otherwise))
    history = [Entry(What.ENQUEUE, "child", after=after)]
    if by_hand:
        history.append(Entry(What.REQUEUE, "child", span=by_hand))
    events = [
        Event(
            *("e", seq, 0, DROP if what == "gone" else what, job, "work", "default"),
            role=Role.HEAD if job == "b" else Role.SINGLE,
            batch_id="b" if job == "item" else None,
            error_type=PARENT_FAILED if what == "gone" else None,
        )
        for seq, (what, job) in enumerate([*THERE, *told], 1)
    ]
    return list(check_flows(history, events, {"child": parents} if parents else None))


ITEM = (COMPLETE, "item")
BOTH: list[Told] = [(COMPLETE, "a"), ITEM, (SETTLE, "b")]


@pytest.mark.parametrize(
    ("told", "more"),
    [
        ([*BOTH, (CLAIM, "child")], {}),
        ([*BOTH, (CLAIM, "child"), (Move.RETRY, "child"), (CLAIM, "child")], {}),
        ([(FAIL, "a"), GONE, ITEM, (SETTLE, "b")], {}),
        ([(FAIL, "a"), ITEM, (SETTLE, "b"), (CLAIM, "child")], {"otherwise": RUN}),
        ([(DELETED, "a"), GONE, ITEM, (SETTLE, "b")], {}),
        ([*BOTH, (DELETED, "a"), (CLAIM, "child")], {}),
        ([(FAIL, "a"), GONE, (REQUEUE, "a"), (REQUEUE, "child"), *BOTH, (CLAIM, "child")], {}),
        (
            [(FAIL, "a"), GONE, ITEM, (SETTLE, "b"), (REQUEUE, "child"), (CLAIM, "child")],
            {"by_hand": (8, 9)},
        ),
        ([(DROP, "child")], {}),
        ([(CLAIM, "a"), (Move.RETRY, "a"), (DELETED, "child"), *BOTH], {}),
    ],
)
def test_a_right_one_is_not(told: list[Told], more: dict):
    assert found(*told, **more) == []


@pytest.mark.parametrize(
    ("told", "more", "finding"),
    [
        (
            [(COMPLETE, "a"), (CLAIM, "child"), ITEM, (SETTLE, "b")],
            {},
            "started at event 6, before ['b'] had ended",
        ),
        (
            [(COMPLETE, "a"), (SETTLE, "b"), (CLAIM, "child"), ITEM],
            {},
            "started at event 7, before ['b'] had ended",
        ),
        (
            [(FAIL, "a"), ITEM, (SETTLE, "b"), (CLAIM, "child")],
            {},
            "started at event 8, although ['a'] had failed",
        ),
        (
            [(FAIL, "a"), GONE, ITEM, (SETTLE, "b")],
            {"otherwise": RUN},
            "cancelled with its parents at event 6, none had failed",
        ),
        (
            [*BOTH, GONE],
            {},
            "cancelled with its parents at event 8, none had failed",
        ),
        ([ITEM, (SETTLE, "b")], {}, "waits for ['a'] at the end"),
        (
            [(FAIL, "a"), GONE, ITEM, (SETTLE, "b"), (REQUEUE, "a"), (COMPLETE, "a")],
            {},
            "cancelled with its parents at the end, none of which failed",
        ),
        (
            [(FAIL, "a"), GONE, (REQUEUE, "child"), ITEM, (SETTLE, "b")],
            {},
            "brought back at event 7, although ['a'] had failed",
        ),
        (
            [*BOTH, (CLAIM, "child"), (FAIL, "child"), (REQUEUE, "child")],
            {},
            "brought back at event 10, although [] had failed",
        ),
    ],
)
def test_one_that_goes_astray_is(told: list[Told], more: dict, finding: str):
    assert found(*told, **more)[:1] == [f"job child: {finding}"]


def test_what_is_told_of_parents_is_what_became_of_them():
    told = [(COMPLETE, "a"), (FAIL, "b"), ITEM, GONE]
    right = (
        Parent("a", CANCEL, DONE, ended=True, result=b"1"),
        Parent("b", CANCEL, FAILED, ended=True),
    )
    assert found(*told, parents=right) == []
    for wrong in (
        Parent("a", CANCEL, DONE, ended=True),
        Parent("a", CANCEL, FAILED, ended=True),
        Parent("a", CANCEL, DONE, ended=False),
    ):
        assert len(found(*told, parents=(wrong, right[1]))) == 1
