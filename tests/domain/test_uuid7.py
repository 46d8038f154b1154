"""Ids that sort by time, and ids that follow from others."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.ids import (
    ENTROPY_BYTES,
    derived_id,
    derived_ids,
    raw_id,
    text_id,
    uuid7,
    uuid7s,
)
from haulier.services.ids import new_id, new_ids

times = st.integers(0, 2**48 - 1)
entropies = st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES)
ids = st.builds(uuid7, times, entropies)
labels = st.text(max_size=40)


@given(times, entropies)
def test_an_id_is_a_uuid_of_version_7_with_its_time_in_front(milliseconds, entropy):
    parsed = uuid.UUID(uuid7(milliseconds, entropy))
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == milliseconds
    assert str(parsed) == uuid7(milliseconds, entropy)


@given(times, times, entropies, entropies)
def test_ids_sort_by_time(first, second, one, other):
    if first < second:
        assert uuid7(first, one) < uuid7(second, other)


@given(times, st.lists(entropies))
def test_many_at_once_are_the_same(milliseconds, many):
    assert uuid7s(milliseconds, b"".join(many)) == [uuid7(milliseconds, each) for each in many]


def test_what_an_id_looks_like():
    assert uuid7(0x018BCFE56800, bytes(range(10))) == "018bcfe5-6800-7001-8203-040506070809"
    assert uuid7(2**48 - 1, b"\xff" * 10) == "ffffffff-ffff-7fff-bfff-ffffffffffff"


@given(ids)
def test_text_and_bytes_say_the_same(text):
    assert text_id(raw_id(text)) == text
    assert raw_id(text.upper()) == raw_id(text.replace("-", "")) == raw_id(text)


@pytest.mark.parametrize(
    "text", ["", "x", "123", "0" * 31, "0" * 34, "g" * 32, "00 " * 16, "no-id-at-all"]
)
def test_what_is_no_uuid_is_refused(text):
    with pytest.raises(ValueError):
        raw_id(text)


@given(ids, labels)
def test_a_derived_id_is_the_same_each_time_and_keeps_the_time_of_its_parent(parent, label):
    derived = derived_id(parent, label)
    assert derived == derived_id(parent, label)
    assert derived != parent
    assert uuid.UUID(derived).version == 7
    assert derived[:13] == parent[:13]


def test_derived_ids_never_change():
    """Producers that crashed under another version repeat their inserts too."""
    parent = "0199f3a2-7c1e-7abc-8def-0123456789ab"
    expected = {
        "0": "0199f3a2-7c1e-785c-80ea-0c5e6d2ff595",
        "finish/15": "0199f3a2-7c1e-7644-b96d-73aa60c408ed",
        "Zoë": "0199f3a2-7c1e-7685-8b41-156a86721fca",
    }
    assert derived_ids(parent.upper(), expected) == list(expected.values())
    assert [derived_id(parent, label) for label in expected] == list(expected.values())
    assert derived_ids(parent, []) == []


@given(ids, ids, labels, labels)
def test_other_parents_and_other_labels_give_other_ids(parent, other, label, another):
    if label != another:
        assert derived_id(parent, label) != derived_id(parent, another)
    if parent != other:
        assert derived_id(parent, label) != derived_id(other, label)


@given(ids, st.integers(0, 10**9))
def test_however_a_parent_is_written_its_derived_ids_are_the_same(parent, position):
    label = str(position)
    assert derived_id(parent.upper(), label) == derived_id(parent, label)
    assert derived_id(parent.replace("-", ""), label) == derived_id(parent, label)


def test_new_ids_are_all_different_and_of_now():
    made = new_ids(10_000)
    assert len(set(made)) == 10_000
    assert made[0][:11] <= new_id()[:11]
