"""Limits as programs and operators speak of them: declared with a task, changed while it all runs.

What limits mean is in `domain/limits.py`; here their words are checked, and they are put into the
store. A worker puts those that its app declares when it starts. Producers do not: one that is older
than the workers would undo what these have declared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from haulier.domain.limits import Breaker, KeyState, Limit, LimitState, Rate
from haulier.exceptions import ConfigurationError, LimitNotFoundError, Problem, ValidationError
from haulier.ports import JobStore
from haulier.services.names import check_name
from haulier.services.who import who

MOST_KEYS = 1000

_FIELDS = {*Limit.__annotations__, *Rate.__annotations__, *Breaker.__annotations__}


class LimitOptions(TypedDict, total=False):
    """What may be said of a limit beside its name: one of concurrency, rate and breaker.

    concurrency: the most jobs that run at once, over all workers. rate: the most that start in a
    time, "30/m", "5/s", "100/h", "1000/d", "10/30s", or a Rate, which may have a burst. breaker: a
    Breaker, which is per key always. queue, kind: only jobs of these. per_key: the jobs of each key
    by themselves; those without a key are then free.
    """

    concurrency: int | None
    rate: Rate | str | None
    breaker: Breaker | None
    queue: str | None
    kind: str | None
    per_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimit:
    """A limit of one kind, to be declared with its task: one of concurrency, rate and breaker.

    See LimitOptions. The store knows it as `<kind>/<name>`; without a `name` of its own that is
    concurrency, rate, key-concurrency, key-rate or breaker.
    """

    concurrency: int | None = None
    rate: Rate | str | None = None
    breaker: Breaker | None = None
    per_key: bool = False
    name: str | None = None

    def of(self, kind: str) -> Limit:
        """The limit of this kind; raises ValidationError."""
        per_key = self.per_key or self.breaker is not None
        said = "breaker" if self.breaker else "concurrency" if self.rate is None else "rate"
        own = f"key-{said}" if per_key and not self.breaker else said
        return limit_from(
            f"{kind}/{own if self.name is None else self.name}",
            concurrency=self.concurrency,
            rate=self.rate,
            breaker=self.breaker,
            kind=kind,
            per_key=per_key,
        )


def limit_from(name: str, **options: Unpack[LimitOptions]) -> Limit:
    """The limit that is meant; raises ValidationError with the field and the reason."""
    problems = [Problem(key, "is no option") for key in options if key not in _OPTIONS]
    for which in ("queue", "kind"):
        value: Any = options.get(which)
        if value is not None:
            try:
                check_name(which, value)
            except (ConfigurationError, TypeError):
                reason = "is not a dotted name of letters, digits and underscores"
                problems.append(Problem(which, reason))
    if type(options.get("per_key", False)) is not bool:
        problems.append(Problem("per_key", "must be true or false"))
    given: dict[str, Any] = {**options}
    if isinstance(given.get("rate"), str):
        try:
            given["rate"] = Rate.parse(given["rate"])
        except ValueError as error:
            problems.append(Problem("rate", str(error).removeprefix("rate ")))
    if problems:
        raise _refused(name, problems)
    try:
        if given.get("breaker") is not None:
            given["per_key"] = True
        return Limit(name=name, **given)
    except ValueError as error:
        raise _refused(name, [problem_of(error)]) from None


_OPTIONS = frozenset(LimitOptions.__annotations__)


def problem_of(error: ValueError) -> Problem:
    """What the domain said, by the field that its text begins with."""
    field, _, reason = str(error).partition(" ")
    return Problem(field, reason) if field in _FIELDS else Problem("limit", str(error))


def _refused(name: object, problems: list[Problem]) -> ValidationError:
    return ValidationError(f"the limit {str(name)[:60]!r} was refused", problems)


def limits_of_task(kind: str, limits: Iterable[TaskLimit | str] | None) -> tuple[Limit, ...]:
    """What a task's definition declares, a text being a rate; raises ConfigurationError."""
    found: dict[str, Limit] = {}
    each: Any
    for each in (limits,) if isinstance(limits, str) else limits or ():
        wanted = TaskLimit(rate=each) if isinstance(each, str) else each
        if not isinstance(wanted, TaskLimit):
            raise ConfigurationError(f"task {kind!r}: limits: {each!r} is no TaskLimit and no rate")
        try:
            limit = wanted.of(kind)
        except ValidationError as error:
            raise ConfigurationError(f"task {kind!r}: limits: {error}") from None
        if limit.name in found:
            raise ConfigurationError(
                f"task {kind!r}: limits: two are called {limit.name!r}: give them a name"
            )
        found[limit.name] = limit
    return tuple(found.values())


async def declare(store: JobStore, limits: Iterable[Limit]) -> None:
    """Put what code declares into the store; what an operator has changed since stays."""
    for limit in limits:
        await store.limits().put(limit, by=who(), declared=True)


class Limits:
    """The limits of a store, to be looked at and changed while everything runs.

    `by` says who changes one; by default this user on this host. All of it takes effect in the
    transaction of the call, for workers of all processes and machines.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    async def set(
        self, name: str, *, by: str | None = None, **options: Unpack[LimitOptions]
    ) -> bool:
        """Add a limit, or put it in place of the one of its name; whether anything changed.

        The options are those of LimitOptions; what is left out has its default, also if the present
        limit says otherwise. Raises ValidationError with the field and the reason.
        """
        return await self._store.limits().put(limit_from(name, **options), by=who(by))

    async def delete(self, name: str, *, by: str | None = None) -> None:
        """Delete a limit. One that code declares stays away, until its declaration is another.

        Raises LimitNotFoundError if there is none of that name.
        """
        if not await self._store.limits().drop(name, by=who(by)):
            raise LimitNotFoundError(name)

    async def keys(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> list[KeyState]:
        """How keys stand under a limit that is per key, by key: those with something to tell.

        `cursor` is the last key of the page before. Raises LimitNotFoundError if there is no such
        limit.
        """
        if type(limit) is not int or not 1 <= limit <= MOST_KEYS:
            reason = f"must be an integer from 1 to {MOST_KEYS:,}"
            raise ValidationError("the page was refused", [Problem("limit", reason)])
        return await self._store.limits().keys(name, limit=limit, cursor=cursor)

    async def reset(self, name: str, key: str, *, by: str | None = None) -> bool:
        """Close the breaker of a key and forget what it counted; whether it had counted any.

        Raises LimitNotFoundError if there is no such limit, JobStateError if it is no breaker.
        """
        return await self._store.limits().reset(name, key, by=who(by))

    async def all(self) -> list[LimitState]:
        """All limits by name, each with who changed it last, and when."""
        return await self._store.limits().list()
