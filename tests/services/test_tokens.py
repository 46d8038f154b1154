"""Tokens as texts, and who may see what."""

from __future__ import annotations

import re

import pytest

from haulier.domain.access import Access, Identity
from haulier.exceptions import ValidationError
from haulier.services.tokens import What, check_name, check_scope, lifetime, mint, presented

DAY = 86_400_000_000


@pytest.mark.parametrize("what", What)
def test_what_is_minted_is_recognised_as_what_it_is(what):
    made = mint(what)
    assert re.fullmatch(rf"{what}_\w{{12}}_\w{{32}}_\w{{6}}", made.text)
    shown = presented(what, made.text)
    assert shown is not None
    assert shown.id == made.id
    assert shown.matches(made.digest)
    assert not shown.matches(mint(what).digest)
    assert [other for other in What if presented(other, made.text)] == [what]


def test_no_two_are_alike_and_none_is_shown_by_accident():
    many = [mint(What.TOKEN) for _ in range(1000)]
    assert len({each.text for each in many}) == len({each.id for each in many}) == 1000
    secret = many[0].text.split("_")[2]
    assert secret not in repr(many[0])
    assert secret.encode() not in many[0].digest


def test_every_single_typing_mistake_is_found():
    text = mint(What.TOKEN).text
    for place in range(len(text)):
        for other in "aZ0_":
            if other != text[place]:
                assert presented(What.TOKEN, text[:place] + other + text[place + 1 :]) is None


@pytest.mark.parametrize(
    "text", ["", "hlr", "hlr_", "x" * 57, "hlr_\u00e9" + "a" * 52, "hlr_a_b_c\n", "\x00" * 57]
)
def test_what_cannot_be_one_is_none(text):
    assert presented(What.TOKEN, text) is None


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        *(("90s", 90_000_000), ("15min", 900_000_000), ("12h", DAY // 2), ("30d", 30 * DAY)),
        *(("2w", 14 * DAY), ("never", None)),
    ],
)
def test_lifetimes(text, microseconds):
    assert lifetime(text) == microseconds


@pytest.mark.parametrize(
    "text", ["", "0d", "-1d", "30", "d", "1y", "1.5h", "30 d", "\u0663d", "99999w", "Never"]
)
def test_what_is_no_lifetime_is_refused(text):
    with pytest.raises(ValidationError, match="expires"):
        lifetime(text)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201, " padded", "\x1b[31m"])
def test_names_that_cannot_be_shown_are_refused(name):
    with pytest.raises(ValidationError, match="name"):
        check_name(name)


def test_scopes():
    assert check_scope("kind", []) is None
    assert check_scope("kind", ["a", "b", "a"]) == {"a", "b"}
    for bad in ([""], ["x" * 201], ["a\nb"], [str(number) for number in range(101)]):
        with pytest.raises(ValidationError, match="kind"):
            check_scope("kind", bad)


@pytest.mark.parametrize(
    ("kinds", "queues", "kind", "queue", "seen"),
    [
        (None, None, "add", "default", True),
        ({"add"}, None, "add", "other", True),
        ({"add"}, None, "add.item", "default", True),
        ({"add"}, None, "addition", "default", False),
        ({"add.item"}, None, "add", "default", False),
        (None, {"default"}, "add", "default", True),
        (None, {"default"}, "add", "other", False),
        ({"add"}, {"default"}, "add", "other", False),
        (frozenset(), None, "add", "default", False),
    ],
)
def test_what_a_scope_covers(kinds, queues, kind, queue, seen):
    assert Identity("x", Access.ADMIN, kinds=kinds, queues=queues).covers(kind, queue) is seen
