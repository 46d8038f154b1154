"""Reads lists that operators give as CSV: every bad line is named, and nothing is half-read.

Lines are parsed one by one, so the numbers in problems are those an editor shows, and a quote that
is never closed spoils its own line, not the rest of the file. The price: a field holds no line
break. `read_rows` is the general part, a reader for one kind of list (`read_accounts`) adds what
its values must look like:

    problems = ProblemList()
    for row in read_rows(source, required="proxy", optional=("label",), problems=problems):
        if fault := what_is_wrong_with(row.values["proxy"]):
            problems.add(row.line, "proxy", fault)
    problems.raise_if_any("the list of proxies was refused")
"""

from __future__ import annotations

import csv
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from haulier.exceptions import Problem, ValidationError

MAX_INPUT = 16 * 1024 * 1024
"""Bytes of a list, at most: as many as the payload that it becomes may have."""

MAX_ACCOUNT = 200
MAX_SHOWN = 100
"""Problems told one by one; the others are counted."""

DELIMITERS = ",;\t"

Source = str | bytes | Path | BinaryIO
"""A list to read: its text (`str`, or `bytes` not yet decoded), a file, or an open binary file."""


class ProblemList:
    """Gathers what is wrong with a list, to refuse it once with everything named."""

    def __init__(self, *, shown: int = MAX_SHOWN) -> None:
        self._shown = shown
        self._problems: list[Problem] = []

    def add(self, line: int | None, field: str, reason: str) -> None:
        """Note a problem; `line` is the physical line of the file, counted from 1."""
        self._problems.append(Problem(field, reason, line))

    def __len__(self) -> int:
        return len(self._problems)

    def raise_if_any(self, message: str) -> None:
        """Raise ValidationError with the problems in the order of their lines, if there are any."""
        if not self._problems:
            return
        ordered = sorted(self._problems, key=lambda problem: problem.line or 0)
        shown, hidden = ordered[: self._shown], len(ordered) - self._shown
        if hidden > 0:
            shown.append(Problem("", f"… and {hidden} more"))
        raise ValidationError(message, shown)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a list: its physical number, and its values by lower-case column name."""

    line: int
    values: dict[str, str]


def read_rows(
    source: Source,
    *,
    required: str,
    optional: Sequence[str] = (),
    aliases: Sequence[str] = (),
    problems: ProblemList,
) -> Iterator[Row]:
    """The rows of a CSV, values without surrounding blanks, blank lines left out.

    The first line is a header if one of its cells is `required` or one of its `aliases` (case does
    not matter, the earliest name wins); commas, semicolons or tabs part the columns. Without a
    header every line is one value of `required`. Only `required` (never empty) and `optional`
    columns are given, absent optional ones as "". Faulty lines are added to `problems` and left
    out. Raises ValidationError for a list that cannot be read at all.
    """
    lines = _numbered_lines(_load(source, required), required, problems)
    first = next(lines, None)
    if first is None:
        return
    names = (required, *aliases)
    delimiter, header = _header(first[1], names)
    if header is None:
        lines = itertools.chain([first], lines)
        columns, width = {required: 0}, 1
    else:
        columns, width = _columns(first[0], header, names, optional), len(header)
    absent = dict.fromkeys(optional, "")
    for number, text in lines:
        cells = _cells(number, text, delimiter, required, problems)
        # A row of empty cells is how a spreadsheet saves a blank line.
        if cells is None or (len(cells) > 1 and not any(cells)):
            continue
        if len(cells) != width:
            expected = f"the header has {width}" if header else f"no header names {required!r}"
            problems.add(number, "", f"has {len(cells)} columns, but {expected}")
        elif not cells[columns[required]]:
            problems.add(number, required, "is empty")
        else:
            yield Row(number, absent | {name: cells[at] for name, at in columns.items()})


def read_accounts(source: Source) -> list[str]:
    """The account names of a CSV or of a plain list, in their order.

    The column is called `account`; where there is none, `username` is taken. `id` is not: in
    exports it is mostly the number of the row. Other columns are passed over. Raises
    ValidationError that names every empty, repeated, overlong or unprintable name with its line,
    and a list without any account.
    """
    problems = ProblemList()
    seen: dict[str, int] = {}
    rows = read_rows(source, required="account", aliases=("username",), problems=problems)
    for row in rows:
        name = row.values["account"]
        if fault := account_fault(name):
            problems.add(row.line, "account", fault)
        elif name in seen:
            problems.add(row.line, "account", f"is the same as on line {seen[name]}")
        else:
            seen[name] = row.line
    if not seen and not problems:
        problems.add(None, "account", "there is not one in the list")
    problems.raise_if_any("the list of accounts was refused")
    return list(seen)


def account_fault(name: str) -> str | None:
    """Why a text cannot be the name of an account, None if it can."""
    if not name.strip():
        return "is empty"
    if len(name) > MAX_ACCOUNT:
        return f"has {len(name)} characters, at most {MAX_ACCOUNT} are allowed"
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in name):
        return "holds a control character"
    return None


def _load(source: Source, field: str) -> bytes:
    try:
        if isinstance(source, str):
            # A lone surrogate must reach the decoder below, which names its line.
            data = source.encode("utf-8", "surrogatepass")
        elif isinstance(source, bytes):
            data = source
        elif isinstance(source, Path):
            with source.open("rb") as file:
                data = file.read(MAX_INPUT + 1)
        else:
            data = source.read(MAX_INPUT + 1)
    except OSError as error:
        raise _unreadable(field, f"cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_INPUT:
        raise _unreadable(field, f"is longer than {MAX_INPUT:,} bytes")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unreadable(field, "is UTF-16 text; save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


def _unreadable(field: str, reason: str) -> ValidationError:
    return ValidationError("the list cannot be read", [Problem(field, f"the list {reason}")])


def _numbered_lines(data: bytes, field: str, problems: ProblemList) -> Iterator[tuple[int, str]]:
    # Bytes, unlike str, are split at line ends alone, so the numbers are an editor's.
    for number, raw in enumerate(data.splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            problems.add(number, field, f"byte {error.start + 1} of the line is not UTF-8 text")


def _header(text: str, names: Sequence[str]) -> tuple[str, list[str] | None]:
    """The delimiter of the first line and its cells in lower case; None if it is no header."""
    for delimiter in DELIMITERS:
        try:
            cells = [cell.casefold() for cell in _parse(text, delimiter)]
        except csv.Error:
            continue
        if not set(names).isdisjoint(cells):
            return delimiter, cells
    return DELIMITERS[0], None


def _columns(
    line: int, header: list[str], names: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    """Where the wanted columns are; `names` is the required one and what else it may be called."""
    chosen = next(name for name in names if name in header)
    wanted = {names[0]: chosen} | {name: name for name in optional if name in header}
    twice = [name for name in wanted.values() if header.count(name) > 1]
    if twice:
        reason = "is the name of more than one column"
        raise ValidationError(
            "the list cannot be read", [Problem(name, reason, line) for name in twice]
        )
    return {name: header.index(title) for name, title in wanted.items()}


def _cells(
    line: int, text: str, delimiter: str, field: str, problems: ProblemList
) -> list[str] | None:
    try:
        return _parse(text, delimiter)
    except csv.Error as error:
        unclosed = "unexpected end of data" in str(error)
        reason = "a quote is opened and not closed on this line" if unclosed else str(error)
        problems.add(line, field, reason)
        return None


def _parse(text: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter, strict=True))]
