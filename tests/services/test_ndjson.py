"""NDJSON line by line."""

from __future__ import annotations

from io import BytesIO

import pytest

from haulier.exceptions import Problem, ValidationError
from haulier.services import ndjson


def check(item):
    if "bad" in item:
        raise ValidationError("no", [Problem("bad", "is bad")])


def read(raw: bytes):
    return list(ndjson.lines(BytesIO(raw), check))


def test_items_and_empty_lines():
    found = read(b'\xef\xbb\xbf{"n":1}\r\n\n  \n{"n":2}')
    assert [(line.number, line.item) for line in found] == [(1, {"n": 1}), (4, {"n": 2})]
    assert not any(line.problems for line in found)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[1]", "must be an object"),
        (b"{", "is not JSON"),
        (b'{"n": NaN,}', "is not JSON"),
        (b'{"n": "\xff"}', "is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"bad": 1}', "is bad"),
    ],
)
def test_bad_lines_say_why(raw, reason):
    good, bad, after = read(b'{"n":1}\n' + raw + b'\n{"n":2}\n')
    assert (good.problems, after.problems) == ((), ())
    (problem,) = bad.problems
    assert (problem.line, reason in problem.reason) == (2, True)


def test_a_line_without_end_is_not_read_into_memory(monkeypatch):
    monkeypatch.setattr(ndjson, "LONGEST_LINE", 1 << 20)
    bad, good = read(b"x" * (3 << 20) + b'\n{"n":1}\n')
    assert ([p.reason for p in bad.problems], good.number) == (["is longer than 1 MiB"], 2)


def test_an_error_names_some_of_many_bad_lines():
    with pytest.raises(ValidationError) as caught:
        ndjson.check_all(BytesIO(b"nope\n" * 1000), check)
    assert len(caught.value.problems) == ndjson.TOLD
    assert f"more than {ndjson.TOLD} lines" in caught.value.message
    assert ndjson.check_all(BytesIO(b'{"n":1}\n' * 5), check) == 5
