"""How failures are slowed down, on a clock that stands still until it is moved."""

from __future__ import annotations

import pytest

from haulier.web.throttle import BURST, MOST, REFILL, Throttle, network_of, retry_after


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def throttle(clock):
    return Throttle(clock)


def test_so_many_in_a_row_are_answered_and_then_one_at_a_time(throttle, clock):
    assert [throttle.fail("a") for _ in range(BURST)] == [0.0] * BURST
    assert throttle.fail("a") == REFILL
    clock.now += REFILL
    assert throttle.fail("a") == 0.0
    assert throttle.fail("a") == REFILL
    clock.now += BURST * REFILL
    assert [throttle.fail("a") for _ in range(BURST)] == [0.0] * BURST


def test_whoever_goes_on_and_on_does_not_wait_longer_for_it(throttle, clock):
    for _ in range(1000):
        throttle.fail("a")
    assert throttle.wait("a") == REFILL
    clock.now += REFILL
    assert throttle.wait("a") == 0.0


def test_each_source_and_each_token_counts_by_itself_and_the_worst_decides(throttle):
    for _ in range(BURST):
        throttle.fail("a")
    assert throttle.wait("b") == 0.0
    assert throttle.wait("a", "b") == throttle.wait("a") > 0.0


def test_what_is_remembered_is_bounded(throttle):
    for number in range(MOST + 50):
        throttle.fail(str(number))
    assert len(throttle._buckets) == MOST
    assert "0" not in throttle._buckets


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("local", "local"),
        ("x" * 500, "x" * 100),
    ],
)
def test_an_ipv6_user_is_one_source_whatever_address_is_used(address, network):
    assert network_of(address) == network


def test_a_wait_is_told_in_whole_seconds():
    assert [retry_after(seconds) for seconds in (0.0, 0.2, 1.0, 4.1)] == ["1", "1", "1", "5"]
