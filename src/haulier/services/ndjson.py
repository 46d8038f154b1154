"""Items from NDJSON: a JSON object per line. Bad lines are told by their number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from haulier.exceptions import Problem, ValidationError

LONGEST_LINE = 4 << 20
"""Bytes of a line: far more than a payload may have."""

TOLD = 20
"""Bad lines that one error names."""

Check = Callable[[dict[str, Any]], object]
"""Raises ValidationError for an item that its kind does not take."""


@dataclass(frozen=True, slots=True)
class Line:
    """An item, or what is wrong with its line."""

    number: int
    item: dict[str, Any]
    problems: tuple[Problem, ...] = ()


def lines(stream: BinaryIO, check: Check) -> Iterator[Line]:
    """The lines of a stream that are not empty, in flat memory."""
    number = 0
    while raw := stream.readline(LONGEST_LINE + 1):
        number += 1
        long = len(raw) > LONGEST_LINE
        if long:
            while len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
                raw = stream.readline(LONGEST_LINE + 1)
            yield _bad(number, f"is longer than {LONGEST_LINE >> 20} MiB")
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            yield _line(number, raw, check)


def _line(number: int, raw: bytes, check: Check) -> Line:
    try:
        item = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return _bad(number, "is not UTF-8")
    except (ValueError, RecursionError) as error:
        return _bad(number, f"is not JSON: {error}")
    if not isinstance(item, dict):
        return _bad(number, 'must be an object: {"name": value}')
    try:
        check(item)
    except ValidationError as error:
        problems = error.problems or [Problem("", error.message)]
        return Line(number, item, tuple(Problem(p.field, p.reason, line=number) for p in problems))
    return Line(number, item)


def _bad(number: int, reason: str) -> Line:
    return Line(number, {}, (Problem("", reason, line=number),))


def refused(bad: list[Line]) -> ValidationError:
    """The error that names these lines."""
    problems = [problem for line in bad[:TOLD] for problem in line.problems]
    count = (
        f"more than {TOLD} lines"
        if len(bad) > TOLD
        else f"{len(bad)} bad line{'s' if len(bad) > 1 else ''}"
    )
    return ValidationError(f"the input was refused: {count}", problems)


def check_all(stream: BinaryIO, check: Check) -> int:
    """Read all lines and return how many items they are; raises ValidationError for bad ones."""
    count, bad = 0, list[Line]()
    for line in lines(stream, check):
        count += 1
        if line.problems:
            bad.append(line)
            if len(bad) > TOLD:
                break
    if bad:
        raise refused(bad)
    return count
