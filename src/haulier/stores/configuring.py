"""What all stores do alike with a configuration: texts to values, and what a change comes to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from haulier.domain.configuration import Configuration, Setting, check_expected, paused_queues
from haulier.exceptions import JobStateError

NOBODY = "00000000-0000-0000-0000-000000000000"
"""In the place of the job in an event that is no job's."""


class Kept(NamedTuple):
    """A setting as stores keep it: its JSON text, the version that set it, who and when."""

    name: str
    text: str
    version: int
    by: str
    at: int


class Altered(NamedTuple):
    """A setting that changes: its text before and after, None where it is not set."""

    name: str
    before: str | None
    after: str | None


def configuration_of(version: int, rows: Iterable[Kept]) -> Configuration:
    """The configuration that these rows are."""
    settings = {
        row.name: Setting(json.loads(row.text), row.version, row.by, row.at) for row in sorted(rows)
    }
    return Configuration(version, settings)


def alterations(
    there: Mapping[str, str], version: int, texts: Mapping[str, str | None], expected: int | None
) -> list[Altered]:
    """What a change changes of the texts that are there; JobStateError for another version."""
    why = check_expected(version, expected)
    if why is not None:
        raise JobStateError(why)
    return [
        Altered(name, there.get(name), text)
        for name, text in texts.items()
        if there.get(name) != text
    ]


def paused_text(names: Iterable[str]) -> str | None:
    """The paused queues as an exchange reads them, by the names of all settings; None: none."""
    found = sorted(paused_queues(names))
    return json.dumps(found, separators=(",", ":")) if found else None
