"""What operators change while everything runs: named settings, kept in the store for all workers.

A setting that the store has comes before the environment and the command line of a worker, and
these before its code. Every change makes a new version of the whole; workers hear of the number and
then read what it is.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from haulier.domain.names import is_dotted
from haulier.domain.retention import Keep, Retention
from haulier.domain.shares import MOST
from haulier.exceptions import Problem, ValidationError

KEPT_CHANGES = 200
"""Changes whose who and when is kept: the last ones."""

LONGEST_NAME = 240
LONGEST_BY = 200
LONGEST = 100 * 366 * 86_400
MOST_KEPT = 1_000_000_000
MOST_AT_ONCE = 100
"""Settings that one call may change."""

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_LEVEL = "log.level"

EXPLAINED = {
    "queues.QUEUE.paused": "true: no worker gets jobs of the queue; those that run go on",
    "queues.QUEUE.weight": f"1 to {MOST}: its share of what workers with several queues take",
    "retention.KIND.completed": "when completed jobs go: true, false, a number, or age and count",
    "retention.KIND.failed": "the same of failed jobs",
    "retention.KIND.cancelled": "the same of cancelled jobs",
    "retention.KIND.result_ttl": "seconds that a result is kept; null: as long as its job",
    LOG_LEVEL: "what workers and servers log: debug, info, warning or error",
}
"""Every setting there is, and what it says."""


def paused(queue: str) -> str:
    """The name of the setting that pauses a queue."""
    return f"queues.{queue}.paused"


def weight(queue: str) -> str:
    """The name of the setting that gives a queue a weight."""
    return f"queues.{queue}.weight"


class Setting(NamedTuple):
    """What a setting is now: a plain JSON value, the version that set it, who and when.

    `changed_at`: microseconds UTC by the store's clock.
    """

    value: Any
    version: int
    changed_by: str
    changed_at: int


class Alteration(NamedTuple):
    """One setting that was changed: its JSON text before and after, None where it was not set."""

    version: int
    at: int
    by: str
    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Configuration:
    """All settings of a store. `version` is 0 while nobody has ever changed any."""

    version: int = 0
    settings: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def paused(self) -> frozenset[str]:
        """The queues that are paused."""
        return paused_queues(self.settings)

    @property
    def weights(self) -> dict[str, int]:
        """The weights of queues that have one."""
        return {
            _subject(name): setting.value
            for name, setting in self.settings.items()
            if name.startswith("queues.") and name.endswith(".weight")
        }

    @property
    def log_level(self) -> str | None:
        """The log level; None: as each process was told at its start."""
        setting = self.settings.get(LOG_LEVEL)
        return None if setting is None else setting.value

    def retention(self, kind: str, own: Retention) -> Retention:
        """What is kept of a kind: what is set here, the rest as its task definition says."""
        found: dict[str, Any] = {}
        for name, make in _RETENTION.items():
            setting = self.settings.get(f"retention.{kind}.{name}")
            if setting is not None:
                found[name] = make(setting.value)
        return replace(own, **found) if found else own


def paused_queues(names: Iterable[str]) -> frozenset[str]:
    """The queues that are paused, by the names of the settings that there are."""
    return frozenset(
        _subject(name) for name in names if name.startswith("queues.") and name.endswith(".paused")
    )


# ── Checking ─────────────────────────────────────────────────────────────────────────────────


def checked(values: Mapping[str, Any], unset: Iterable[str], by: str) -> dict[str, str | None]:
    """A change as stores keep it: the JSON text of each setting, None for those that go.

    Raises ValidationError that names each setting at fault, and why.
    """
    gone = list(unset)
    problems = [Problem(name, reason) for name in (*values, *gone) if (reason := _misnamed(name))]
    problems += [Problem(name, "is both set and unset") for name in gone if name in values]
    if not problems:
        problems = [
            Problem(name, reason)
            for name, value in values.items()
            if (reason := _wrong(name, value))
        ]
    if len(values) + len(gone) > MOST_AT_ONCE:
        problems.append(Problem("", f"at most {MOST_AT_ONCE} settings are changed at once"))
    if not isinstance(by, str) or not 1 <= len(by) <= LONGEST_BY or not by.isprintable():
        problems.append(Problem("by", f"is a text of 1 to {LONGEST_BY} characters, without breaks"))
    if problems:
        raise ValidationError("the configuration was refused", problems)
    texts: dict[str, str | None] = dict.fromkeys(gone)
    for name, value in values.items():
        # A queue that is not paused is one without the setting.
        off = value is False and name.startswith("queues.")
        texts[name] = None if off else json.dumps(value, sort_keys=True, separators=(",", ":"))
    return texts


def check_expected(there: int, expected: int | None) -> str | None:
    """Why a change is refused that was made with another version in mind; None if it is not."""
    if expected is None or expected == there:
        return None
    return f"the configuration has version {there} by now, not {expected}: look at it again"


def _subject(name: str) -> str:
    """The queue or kind that a setting is about."""
    return name.partition(".")[2].rpartition(".")[0]


def _form(name: str) -> str:
    """A name with what it is about left out, as it is explained."""
    section, _, rest = name.partition(".")
    subject, _, last = rest.rpartition(".")
    place = {"queues": "QUEUE", "retention": "KIND"}.get(section)
    return f"{section}.{place}.{last}" if place and subject else name


def _misnamed(name: object) -> str | None:
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        return f"is not the name of a setting, a text of at most {LONGEST_NAME} characters"
    form = _form(name)
    if form not in EXPLAINED:
        near = difflib.get_close_matches(form, EXPLAINED, n=1)
        return f"is no setting{f'; did you mean {near[0]}?' if near else ''}"
    subject = _subject(name)
    if subject and not is_dotted(subject):
        return f"{subject[:60]!r} is not a dotted name of letters, digits and underscores"
    return None


def _wrong(name: str, value: Any) -> str | None:
    """Why a setting cannot have this value; None if it can."""
    try:
        _CHECKS[_form(name)](value)
    except (ValueError, TypeError, OverflowError) as error:
        return str(error)
    return None


def _check_paused(value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError("is true or false")


def _check_weight(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise ValueError(f"is a whole number from 1 to {MOST}")


def _check_level(value: Any) -> None:
    if value not in LOG_LEVELS:
        raise ValueError(f"is one of {', '.join(LOG_LEVELS)}")


def _result_ttl(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("is a number of seconds, or null")
    if value is not None and value > LONGEST:
        raise ValueError(f"is at most {LONGEST} seconds")
    return Retention(result_ttl=value).result_ttl


def _kept(value: Any) -> Keep:
    keep = Keep.unless(value)
    if (keep.age or 0) > LONGEST or (keep.count or 0) > MOST_KEPT:
        raise ValueError(f"age is at most {LONGEST} seconds, count at most {MOST_KEPT}")
    return keep


_RETENTION: Mapping[str, Callable[[Any], Any]] = {
    "completed": _kept,
    "failed": _kept,
    "cancelled": _kept,
    "result_ttl": _result_ttl,
}

_CHECKS: Mapping[str, Callable[[Any], object]] = {
    "queues.QUEUE.paused": _check_paused,
    "queues.QUEUE.weight": _check_weight,
    **{f"retention.KIND.{name}": make for name, make in _RETENTION.items()},
    LOG_LEVEL: _check_level,
}
