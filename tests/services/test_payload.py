"""Payloads and results between Python and JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field

from haulier.exceptions import ValidationError
from haulier.services.payload import MAX_DEPTH, MAX_RESULT, decode, encode, encode_result, validate
from haulier.services.registry import MAX_PAYLOAD, define_task
from haulier.services.secrets import Sealer, Secret

JOB = "01234567-89ab-7def-8123-456789abcdef"


class Colour(StrEnum):
    RED = "red"


class Row(BaseModel):
    url: str
    tries: int = 1


class Rich(BaseModel):
    when: dt.datetime
    day: dt.date
    price: Decimal
    colour: Colour
    ids: set[UUID]
    pair: tuple[int, str]
    span: dt.timedelta
    folder: Path
    raw: bytes = b""
    maybe: float | None = None


class Odd(BaseModel):
    """Named otherwise in JSON, with a field that is computed, and no room for more."""

    model_config = ConfigDict(extra="forbid")
    street: str = Field(alias="streetName")

    @computed_field
    @property
    def length(self) -> int:
        return len(self.street)


def rows_task(rows: list[Row], name: str) -> None: ...


def any_task(value: Any) -> None: ...


def secret_task(value: Any, password: Secret) -> None: ...


ROWS, ANY, SECRET = define_task(rows_task), define_task(any_task), define_task(secret_task)


def sealer() -> Sealer:
    return Sealer(lambda: bytes(32))


def stored(definition, payload) -> bytes:
    return encode(definition, validate(definition, payload), JOB, sealer())


def problems(definition, payload) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        stored(definition, payload)
    return {problem.field: problem.reason for problem in caught.value.problems}


class TestValidation:
    def test_every_bad_field_is_named_with_its_reason(self):
        given = {"rows": [{"url": "a"}, {"url": 3, "tries": "many"}], "extra": 1}
        found = problems(ROWS, given)
        assert set(found) == {"rows.1.url", "rows.1.tries", "name", "extra"}
        assert "string" in found["rows.1.url"]
        assert "required" in found["name"].lower()

    def test_given_values_are_not_repeated_since_one_may_be_a_secret(self):
        with pytest.raises(ValidationError) as caught:
            validate(ROWS, {"rows": "hunter2-in-the-wrong-field", "name": ["hunter2"]})
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__

    @pytest.mark.parametrize("payload", [[1, 2], "text", 7, [("value",)], {1: 2}])
    def test_a_payload_that_is_no_object_is_refused(self, payload):
        with pytest.raises(ValidationError):
            validate(ANY, payload)

    def test_a_model_of_another_kind_is_refused(self):
        assert "Row was given" in problems(ANY, Row(url="a"))["payload"]

    def test_a_model_of_this_kind_is_taken_as_it_is(self):
        payload = ROWS.model(rows=[Row(url="a")], name="n")
        assert validate(ROWS, payload) is payload


class TestLimits:
    def test_size(self):
        room = MAX_PAYLOAD - len(b'{"value":""}')
        assert len(stored(ANY, {"value": "x" * room})) == MAX_PAYLOAD
        assert "at most 262,144" in problems(ANY, {"value": "x" * (room + 1)})["payload"]

    def test_size_counts_bytes_not_characters(self):
        assert problems(ANY, {"value": "ü" * (MAX_PAYLOAD // 2)})

    @pytest.mark.parametrize("secrets", [False, True])
    @pytest.mark.parametrize("kind", [list, dict])
    def test_depth(self, kind, secrets):
        definition, more = (SECRET, {"password": "p"}) if secrets else (ANY, {})

        def nest(levels: int) -> Any:
            value: Any = 1
            for _ in range(levels):
                value = [value] if kind is list else {"v": value}
            return value

        # The payload itself is the first level.
        deepest = MAX_DEPTH - 1
        assert stored(definition, {"value": nest(deepest), **more})
        for levels in (deepest + 1, 200, 1000, 10_000):
            found = problems(definition, {"value": nest(levels), **more})
            assert set(found) & {"payload", "value"}, found

    def test_a_value_that_holds_itself(self):
        ring: list[Any] = []
        ring.append(ring)
        assert problems(ANY, {"value": ring})

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("definition", [ANY, SECRET])
    def test_numbers_that_json_cannot_carry(self, definition, value):
        more = {"password": "p"} if definition is SECRET else {}
        assert "NaN" in problems(definition, {"value": [value], **more})["payload"]

    def test_words_that_look_like_such_numbers_are_fine(self):
        given = {"value": ["NaN", "Infinity", {"NaN": "-Infinity"}]}
        assert decode(ANY, stored(ANY, given), JOB, sealer()).value == given["value"]

    @pytest.mark.parametrize("value", ["\ud800", ["a\udfff"], {"\ud83d": 1}])
    @pytest.mark.parametrize("definition", [ANY, SECRET])
    def test_half_a_character(self, definition, value):
        more = {"password": "p"} if definition is SECRET else {}
        assert problems(definition, {"value": value, **more})

    def test_half_a_character_in_a_secret(self):
        found = problems(SECRET, {"value": 1, "password": "hunter2\ud800"})
        assert "hunter2" not in str(found)

    @pytest.mark.parametrize("value", [object(), b"\xff\xfe", {1, object()}])
    def test_values_that_json_does_not_know(self, value):
        assert problems(ANY, {"value": value})

    def test_a_number_of_a_million_digits(self):
        found = problems(ANY, {"value": 10**300_000})
        assert found

    @given(st.binary(max_size=40))
    def test_bytes_that_are_no_text_never_get_through_half(self, value):
        try:
            data = stored(ANY, {"value": value})
        except ValidationError:
            return
        assert json.loads(data)["value"].encode() == value


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class TestRoundTrip:
    @given(json_values)
    def test_plain_values_come_back_as_they_were(self, value):
        for definition, more in ((ANY, {}), (SECRET, {"password": "p"})):
            back = decode(definition, stored(definition, {"value": value, **more}), JOB, sealer())
            assert back.value == value

    def test_richer_types_come_back_as_themselves(self):
        def task(rich: Rich) -> None: ...

        task.__annotations__["rich"] = Rich
        definition = define_task(task)
        payload = Rich(
            when=dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
            day=dt.date(2026, 1, 2),
            price=Decimal("12.30"),
            colour=Colour.RED,
            ids={UUID(int=1), UUID(int=2)},
            pair=(1, "a"),
            span=dt.timedelta(days=1, microseconds=5),
            folder=Path("a/b"),
        )
        assert decode(definition, stored(definition, payload), JOB, sealer()) == payload

    def test_models_with_aliases_and_computed_fields_come_back(self):
        def task(odd: Odd) -> None: ...

        task.__annotations__["odd"] = Odd
        definition = define_task(task)
        data = stored(definition, {"streetName": "Elm"})
        assert decode(definition, data, JOB, sealer()).street == "Elm"

    def test_a_stored_payload_that_no_longer_fits_is_refused_by_field(self):
        with pytest.raises(ValidationError) as caught:
            decode(ROWS, b'{"rows": [{"url": 1}], "name": "n"}', JOB, sealer())
        assert [problem.field for problem in caught.value.problems] == ["rows.0.url"]

    @pytest.mark.parametrize("definition", [ANY, SECRET])
    def test_a_stored_payload_that_is_no_json_is_refused(self, definition):
        with pytest.raises(ValidationError):
            decode(definition, b'{"value": ', JOB, sealer())


@dataclasses.dataclass
class Point:
    x: int
    y: int


class TestResults:
    @pytest.mark.parametrize(
        ("value", "kept"),
        [
            (None, None),
            (7, 7),
            ("ü", "ü"),
            ({"a": [1, 2.5, None, True]}, {"a": [1, 2.5, None, True]}),
            (Row(url="a"), {"url": "a", "tries": 1}),
            (Point(1, 2), {"x": 1, "y": 2}),
            (dt.date(2026, 1, 2), "2026-01-02"),
            ((1, 2), [1, 2]),
            (Path("a/b"), "a/b"),
        ],
    )
    def test_they_are_kept_as_json(self, value, kept):
        assert json.loads(encode_result(value)) == kept

    def test_one_that_is_too_large_is_replaced_by_its_size(self):
        fits = "x" * (MAX_RESULT - 2)
        assert json.loads(encode_result(fits)) == fits
        kept = json.loads(encode_result(fits + "y"))
        assert kept == {"$truncated": MAX_RESULT + 1, "limit": MAX_RESULT}

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_numbers_that_json_cannot_carry_become_null(self, value):
        kept = encode_result({"mean": value})
        assert json.loads(kept, parse_constant=pytest.fail) == {"mean": None}

    def test_a_secret_in_a_result_is_masked(self):
        class Login(BaseModel):
            password: Secret

        assert b"hunter2" not in encode_result(Login(password="hunter2"))
