"""Store URLs as people see them, and the options in them that are ours."""

from __future__ import annotations

import pytest

from haulier.exceptions import ConfigurationError
from haulier.services.urls import own_options, positive_int, shown


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///here.db",
        "sqlite:////folder/there.db",
        "postgresql://user@host:5432/name?schema=jobs",
        "redis://host:6379/0",
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://one:26379,two:26379/service/0",
        "redis://host/0?prefix={haulier}:",
    ],
)
def test_a_url_without_secrets_is_shown_as_it_is_written(url):
    assert shown(url) == url


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://user:s3cret@host/name", "postgresql://user:***@host/name"),
        ("redis://:s3cret@host:6379/0", "redis://:***@host:6379/0"),
        ("unix://user:s3cret@/run/redis.sock", "unix://user:***@/run/redis.sock"),
        ("postgresql://host/name?user=u&password=s3cret", "postgresql://host/name?user=u&password=***"),
    ],
)  # fmt: skip
def test_a_password_is_masked_wherever_it_stands(url, text):
    assert shown(url) == text


def test_our_options_are_taken_out_and_the_drivers_stay():
    url, ours = own_options("unix:///run/r.sock?db=1&prefix=a:", frozenset({"prefix"}))
    assert url == "unix:///run/r.sock?db=1"
    assert ours == {"prefix": "a:"}


@pytest.mark.parametrize("query", ["pool=1&pool=2", "pool="])
def test_an_option_has_one_value(query):
    with pytest.raises(ConfigurationError, match="exactly one value"):
        own_options(f"redis://host/0?{query}", frozenset({"pool"}))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "٣"])
def test_a_number_is_one_or_more(text):
    with pytest.raises(ConfigurationError, match="1 or more"):
        positive_int({"pool": text}, "pool", 5)
