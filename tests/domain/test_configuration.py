"""Settings: what they may be, and what they come to."""

from __future__ import annotations

import pytest

from haulier.domain.configuration import (
    EXPLAINED,
    LONGEST_BY,
    MOST_AT_ONCE,
    Configuration,
    Setting,
    checked,
    paused,
    weight,
)
from haulier.domain.retention import Keep, Retention
from haulier.exceptions import ValidationError


def of(**settings) -> Configuration:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return Configuration(1, {name: Setting(value, 1, "ops", 0) for name, value in named.items()})


def refused(values=None, unset=(), by="ops") -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as error:
        checked(values or {}, unset, by)
    return [(problem.field, problem.reason) for problem in error.value.problems]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("queues.default.paused", True, "true"),
        # A queue that is not paused is one without the setting.
        ("queues.default.paused", False, None),
        ("queues.a.b_c.weight", 1000, "1000"),
        ("retention.proxy_diagnostics.item.failed", {"count": 3, "age": 0.5}, None),
        ("retention.k.completed", True, "true"),
        ("retention.k.completed", False, "false"),
        ("retention.k.cancelled", 0, "0"),
        ("retention.k.result_ttl", None, "null"),
        ("retention.k.result_ttl", 1.5, "1.5"),
        ("log.level", "warning", '"warning"'),
    ],
)
def test_what_may_be_set(name, value, text):
    told = checked({name: value}, (), "ops")
    assert told == {name: text if not isinstance(value, dict) else '{"age":0.5,"count":3}'}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("queues.a.paused", 1, "is true or false"),
        ("queues.a.paused", "yes", "is true or false"),
        ("queues.a.weight", False, "is a whole number from 1 to 1000"),
        ("queues.a.weight", 1.0, "is a whole number from 1 to 1000"),
        ("queues.a.weight", 1001, "is a whole number from 1 to 1000"),
        ("retention.k.failed", "never", "is True, False, a number of jobs"),
        ("retention.k.failed", {"aged": 3}, "is True, False, a number of jobs"),
        ("retention.k.failed", {"age": -1}, "age must be a number of seconds"),
        ("retention.k.failed", {"age": float("nan")}, "age must be a number of seconds"),
        ("retention.k.failed", {"age": "3"}, "age must be a number of seconds"),
        ("retention.k.failed", {"count": 1.5}, "count must be an integer"),
        ("retention.k.failed", {"age": 1e300}, "age is at most"),
        ("retention.k.failed", 10**30, "count at most"),
        ("retention.k.result_ttl", True, "is a number of seconds, or null"),
        ("retention.k.result_ttl", 1e300, "is at most"),
        ("retention.k.result_ttl", float("inf"), "is at most"),
        ("log.level", "loud", "is one of debug, info, warning, error"),
        ("log.level", ["debug"], "is one of debug, info, warning, error"),
        ("queues.a.weigth", 3, "did you mean queues.QUEUE.weight?"),
        ("queues.a b.weight", 3, "'a b' is not a dotted name"),
        ("queues.paused", True, "is no setting"),
        ("queues..paused", True, "is no setting"),
        ("limits", 1, "is no setting"),
        ("", 1, "is no setting"),
        ("q" * 300, 1, "is not the name of a setting"),
        (7, 1, "is not the name of a setting"),
    ],
)
def test_all_else_is_refused_with_its_name_and_the_reason(name, value, reason):
    ((field, why),) = refused({name: value})
    assert field == name
    assert reason in why


def test_all_that_is_wrong_is_told_at_once():
    assert [field for field, _ in refused({"queues.a.weight": 0, "log.level": 1})] == [
        "queues.a.weight",
        "log.level",
    ]
    assert refused({"log.level": "info"}, ["log.level"]) == [("log.level", "is both set and unset")]
    assert [field for field, _ in refused(unset=["log", "levels"])] == ["log", "levels"]
    many = {weight(f"q{n}"): 1 for n in range(MOST_AT_ONCE + 1)}
    assert refused(many) == [("", f"at most {MOST_AT_ONCE} settings are changed at once")]


@pytest.mark.parametrize("by", ["", "x" * (LONGEST_BY + 1), "two\nlines", "nul\0", None, 7])
def test_who_does_it_is_a_short_text(by):
    assert [field for field, _ in refused(by=by)] == ["by"]


def test_each_setting_is_explained_and_can_be_set():
    for form in EXPLAINED:
        name = form.replace("QUEUE", "a").replace("KIND", "b")
        assert checked({}, [name], "ops") == {name: None}


def test_queues_that_are_paused_and_what_they_weigh():
    now = of(queues__a__paused=True, queues__a__weight=2, queues__b__c__weight=3)
    assert now.paused == {"a"}
    assert now.weights == {"a": 2, "b.c": 3}
    assert (paused("b.c"), weight("b.c")) == ("queues.b.c.paused", "queues.b.c.weight")
    assert (Configuration().paused, Configuration().weights) == (frozenset(), {})


def test_the_log_level():
    assert of(log__level="debug").log_level == "debug"
    assert Configuration().log_level is None


def test_retention_comes_before_that_of_the_task_field_by_field():
    own = Retention(completed=Keep(count=9), failed=Keep(age=5), result_ttl=60)
    now = of(
        retention__k__failed={"age": 7, "count": 3},
        retention__k__result_ttl=None,
        retention__other__completed=True,
    )
    assert now.retention("k", own) == Retention(
        completed=Keep(count=9), failed=Keep(age=7, count=3), result_ttl=None
    )
    assert now.retention("other", own).completed == Keep(count=0)
    assert now.retention("third", own) is own
