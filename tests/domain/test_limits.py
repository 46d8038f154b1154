"""Limits as values: what is refused, the arithmetic of rates, and the way through JSON."""

from __future__ import annotations

import json
import random

import pytest

from haulier.domain.job import MICROSECOND
from haulier.domain.limits import Breaker, Limit, Rate


class TestRates:
    """A token bucket that is kept as one instant."""

    @pytest.mark.parametrize(
        ("text", "count", "per"),
        [
            ("30/m", 30, 60.0),
            ("5/s", 5, 1.0),
            ("100/h", 100, 3600.0),
            ("1000/d", 1000, 86_400.0),
            ("10/30s", 10, 30.0),
            (" 2 / 5 m ", 2, 300.0),
        ],
    )
    def test_as_text(self, text, count, per):
        assert Rate.parse(text) == Rate(count, per)
        assert Rate.parse(str(Rate.parse(text))) == Rate(count, per)

    @pytest.mark.parametrize(
        "text", ["", "30", "/m", "m", "30/w", "-1/s", "1.5/s", "30/m/s", "30 per minute", "x/s"]
    )
    def test_other_text_is_refused_with_an_example(self, text):
        with pytest.raises(ValueError, match="30/m"):
            Rate.parse(text)

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"count": 0}, "count"),
            ({"count": 1_000_001}, "count"),
            ({"count": True}, "count"),
            ({"count": 1.5}, "count"),
            ({"count": 1, "per": 0}, "per"),
            ({"count": 1, "per": float("nan")}, "per"),
            ({"count": 1, "per": float("inf")}, "per"),
            ({"count": 1, "per": True}, "per"),
            ({"count": 1, "per": 400 * 86_400.0}, "per"),
            ({"count": 1, "burst": 0}, "burst"),
        ],
    )
    def test_what_no_rate_can_be_is_refused_by_field(self, fields, named):
        with pytest.raises(ValueError, match=f"^{named} must"):
            Rate(**fields)

    def test_zero_in_text_names_the_field(self):
        with pytest.raises(ValueError, match=r"^count must"):
            Rate.parse("0/s")
        with pytest.raises(ValueError, match=r"^per must"):
            Rate.parse("1/0s")

    @pytest.mark.parametrize(
        ("rate", "depth"),
        [(Rate(30, 60.0), 1), (Rate(5, 1.0), 5), (Rate(7, 2.0), 3), (Rate(1, 9.0, burst=4), 4)],
    )
    def test_the_burst_is_a_second_of_it_unless_it_is_said(self, rate, depth):
        assert rate.depth == depth
        assert rate.tokens(0, 1_000_000) == depth

    def test_spent_tokens_come_back_one_by_one(self):
        rate, now = Rate(60, 60.0, burst=3), 10**15
        full_at = rate.spent(0, now, 3)
        assert rate.tokens(full_at, now) == 0
        assert rate.next_token(full_at) == now + MICROSECOND
        assert rate.tokens(full_at, now + MICROSECOND - 1) == 0
        assert [rate.tokens(full_at, now + s * MICROSECOND) for s in range(5)] == [0, 1, 2, 3, 3]

    @pytest.mark.parametrize("seed", range(20))
    def test_never_more_than_it_says(self, seed):
        dice = random.Random(seed)
        rate = Rate(dice.randint(1, 50), dice.choice([0.5, 1.0, 7.0, 60.0]))
        began = now = 10**15
        full_at, started = 0, 0
        for _ in range(2000):
            now += dice.randrange(rate.interval)
            count = min(rate.tokens(full_at, now), dice.randint(1, 3))
            full_at = rate.spent(full_at, now, count)
            started += count
            assert started <= (now - began) / rate.interval + rate.depth

    @pytest.mark.parametrize("seed", range(20))
    def test_and_not_less_for_who_comes_for_each_token(self, seed):
        dice = random.Random(seed)
        rate = Rate(dice.randint(1, 50), dice.choice([0.5, 1.0, 7.0, 60.0]))
        began = now = 10**15
        full_at, started = 0, 0
        for _ in range(2000):
            assert rate.tokens(full_at, now) > 0
            full_at = rate.spent(full_at, now, 1)
            started += 1
            if not rate.tokens(full_at, now):
                now = rate.next_token(full_at)
        assert started >= (now - began) / rate.interval

    def test_no_interval_is_nothing(self):
        assert Rate(1_000_000, 0.001).interval == 1


class TestLimits:
    """One of three sorts, and whom it concerns."""

    @pytest.mark.parametrize("name", ["", " ", "a b", "-a", ".a", "ä", "a" * 201, None, "a\n"])
    def test_names(self, name):
        with pytest.raises(ValueError, match=r"^name must"):
            Limit(name=name, concurrency=1)

    @pytest.mark.parametrize(
        "fields",
        [{}, {"concurrency": 1, "rate": Rate(1)}, {"rate": Rate(1), "breaker": Breaker()}],
    )
    def test_just_one_sort(self, fields):
        with pytest.raises(ValueError, match="one of concurrency, rate and breaker"):
            Limit(name="l", **fields)

    @pytest.mark.parametrize("concurrency", [0, -1, 1_000_001, True, 1.0, "1"])
    def test_concurrency(self, concurrency):
        with pytest.raises(ValueError, match=r"^concurrency must"):
            Limit(name="l", concurrency=concurrency)

    def test_a_breaker_is_per_key(self):
        with pytest.raises(ValueError, match=r"^per_key must"):
            Limit(name="l", breaker=Breaker())

    @pytest.mark.parametrize(("field", "value"), [("rate", "30/m"), ("breaker", 0.5)])
    def test_values_of_another_type(self, field, value):
        with pytest.raises(ValueError, match=f"^{field} must be a {field.title()}"):
            Limit(name="l", per_key=True, **{field: value})

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"failures": 0}, "failures"),
            ({"failures": 1.01}, "failures"),
            ({"failures": True}, "failures"),
            ({"failures": float("nan")}, "failures"),
            ({"least": 0}, "least"),
            ({"window": 0}, "window"),
            ({"pause": -1}, "pause"),
            ({"probes": 0}, "probes"),
        ],
    )
    def test_breakers_that_cannot_be(self, fields, named):
        with pytest.raises(ValueError, match=f"^{named} must"):
            Breaker(**fields)

    def test_whom_it_concerns(self):
        every = Limit(name="l", concurrency=1)
        one = Limit(name="l", concurrency=1, queue="q", kind="k")
        assert every.concerns("q", "k")
        assert every.concerns("x", "y")
        assert one.concerns("q", "k")
        assert not one.concerns("x", "k")
        assert not one.concerns("q", "y")

    @pytest.mark.parametrize(
        "limit",
        [
            Limit(name="a/b:c.d-e", concurrency=7, queue="q"),
            Limit(name="r", rate=Rate(3, 0.5), kind="k", per_key=True),
            Limit(name="r", rate=Rate(3, 60.0, burst=9)),
            Limit(name="b", breaker=Breaker(failures=0.25, probes=2), per_key=True),
        ],
    )
    def test_through_json_it_stays_the_same(self, limit):
        text = limit.to_text()
        assert Limit.from_json(json.loads(text)) == limit
        assert Limit.from_json(json.loads(text)).to_text() == text

    @pytest.mark.parametrize(
        "told", [{"name": "l"}, {"name": "l", "rate": {"count": 0}}, {"name": "", "concurrency": 1}]
    )
    def test_json_that_tells_none_is_refused(self, told):
        with pytest.raises(ValueError, match=r"must|give one"):
            Limit.from_json(told)
